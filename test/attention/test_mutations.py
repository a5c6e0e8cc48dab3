#!/usr/bin/env python3
"""Mutation test: each of the mistakes listed below, made in a copy of the flash attention kernels, must make the
emulated attention test fail; otherwise the test cannot detect it. The unchanged kernels must pass the same runs. Prints
one line per mistake: what found it, and the time it took.

    make DEVICE=emulated test_mutations                       all of them
    make DEVICE=emulated test_mutations MUTATIONS='dq: blind'       those with one of these words in their names

The Makefile sets the commands to compile and link: MUTATION_COMPILE, and MUTATION_LINK, which has all objects of the
test except attention/flash.o. Only that is compiled, without optimisation, which is fastest."""
import concurrent.futures
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

# The runs of a mistake, until one fails: the test once, or also with other orders of threads (CUDA_EMULATION_SEED).
# Blocks run one after the other, except in CONCURRENT runs.
ONCE, ORDERS, CONCURRENT = ["0"], ["1", "2", "3", "0"], ["1", "2", "3", "0"]
LONGEST_RUN = 120  # seconds; the emulator reports a deadlock long before

FORWARD, BACKWARD, TILE, LAUNCH = "flash_forward.cuh", "flash_backward.cuh", "flash_tile.cuh", "flash.cu"
RELEASE = "if (unpublished && threadIdx.x == 0) store_release(scratch.parts + row_of(%s) / QUERIES, (unsigned)block.tile + 1);"

# Name; file; a text that occurs in it once, ignoring spaces and line breaks; its replacement; runs.
MUTATIONS = [
    # ---- visibility
    ("forward: a key too many is seen", FORWARD, "if (8 * j + e > last) s[", "if (8 * j + e > last + 1) s[", ONCE),
    ("forward: a key too few is seen", FORWARD, "if (8 * j + e > last) s[", "if (8 * j + e >= last) s[", ONCE),
    ("forward: only rows of the last query's tile are hidden", FORWARD, "KEYS - 1 > last_key(block.visible, query)",
     "KEYS - 1 > last_key(block.visible, end - 1)", ONCE),
    ("forward: keys past Tk are not zero", FORWARD, "(int)a.Tk - key, block.HS);", "KEYS, block.HS);", ONCE),
    ("forward: the last tile of keys is dropped", FORWARD, "x.first + x.count - 1) + 1, 0)",
     "x.first + x.count - 1), 0)", ONCE),
    ("backward: a key too many is seen", BACKWARD, "8 * (e / 2) > last) p", "8 * (e / 2) > last + 1) p", ONCE),
    ("backward: a key too few is seen", BACKWARD, "8 * (e / 2) > last) p", "8 * (e / 2) >= last) p", ONCE),
    ("backward: queries past Tq are not zero", BACKWARD, "(unsigned)a.out_token, Tq - query",
     "(unsigned)a.out_token, QUERIES", ONCE),
    ("backward: a tile of queries is skipped", BACKWARD, "max(x.first_key - x.visible.diagonal, 0) / Tile::QUERIES",
     "(max(x.first_key - x.visible.diagonal, 0) + Tile::QUERIES - 1) / Tile::QUERIES", ONCE),
    ("backward: the last tile of queries is dropped", BACKWARD, "step < block.steps; step++",
     "step + 1 < block.steps; step++", ONCE),
    ("backward: the first tile of keys skips blind queries", BACKWARD, "x.tile == 0 ? 0 :", "", ONCE),
    ("backward: old dS is multiplied", BACKWARD, "(num_seen(step) + ROWS - 1) / ROWS * ROWS", "KEYS", ONCE),
    ("forward: a tile whose last key is not seen is not hidden", FORWARD,
     "if (j * KEYS + KEYS - 1 > last_key(block.visible, query))",
     "if (j * KEYS + KEYS - 2 > last_key(block.visible, query))", ONCE),
    ("keys past Tk are seen", TILE, "(int)a.Tk - 1};", "(int)a.Tk};", ONCE),
    ("columns past HS are not zero", TILE, "row < valid && chunk * CHUNK < HS;", "row < valid;", ONCE),
    # ---- softmax
    ("the accumulator is not rescaled", FORWARD, "out[i][j][e] *= factor[i][e / 2];", ";", ONCE),
    ("the sum of a row is not rescaled", FORWARD, "rows[i][1].sum *= factor[i][1];", "", ONCE),
    ("the maximum is of one half of the rows", FORWARD, "fmaxf(s[i][j][2 * h], s[i][j][2 * h + 1])",
     "fmaxf(s[i][j][0], s[i][j][1])", ONCE),
    ("the maximum is of two lanes", FORWARD, "return fmaxf(x, __shfl_xor_sync((unsigned)FULL_WARP, x, 2));",
     "return x;", ONCE),
    ("a blind row: maximum", FORWARD, "rows[i][h].maximum == -INFINITY ? 0.0f : rows", "rows", ONCE),
    ("a blind row: lse", FORWARD, "blind ? INFINITY :", "", ONCE),
    ("a blind row: out", FORWARD, "blind ? 0.0f : __fdividef", "__fdividef", ONCE),
    ("forward: lse in units of ln 2", FORWARD, "* LN_2", "", ONCE),
    ("backward: lse in units of 1", BACKWARD, "+ query] * LOG2_E", "+ query]", ONCE),
    ("scale 0 hides nothing", LAUNCH, "fmaxf(a.scale * LOG2_E, 1e-30f)", "a.scale * LOG2_E", ONCE),
    # ---- dropout
    ("forward: bytes and words of dropout change places", FORWARD,
     "byte = e / 4 % 2 * 2 + e % 2, word = e % 4 / 2 * 2 + e / 8",
     "byte = e % 4 / 2 * 2 + e / 8, word = e / 4 % 2 * 2 + e % 2", ONCE),
    ("forward: dropout of head 0", FORWARD, "dropout_sequence_head(a, x.b, x.head)",
     "dropout_sequence_head(a, x.b, 0)", ONCE),
    ("backward: dropout of the group's first head", BACKWARD, "dropout_sequence_head(a, block.b, head_of(step))",
     "dropout_sequence_head(a, block.b, block.first_head)", ONCE),
    ("backward: dropout 8 queries off", BACKWARD, "16 * (e / 2) + 2 * (j % 2) + i", "16 * (e / 2) + i", ONCE),
    ("backward: dropout 16 keys off", BACKWARD, "kept.even >>= second, kept.odd >>= second;", "", ONCE),
    ("dropout of step 0", TILE, "sequence_head, dropout.step", "sequence_head, 0", ONCE),
    ("out without 1 / keep rate", FORWARD, "__fdividef(block.dropout_scale, total)", "__fdividef(1.0f, total)", ONCE),
    ("dv without 1 / keep rate", BACKWARD, "dv_factor[i / 2][i % 2] = dropout_scale(&a.dropout);",
     "dv_factor[i / 2][i % 2] = 1.0f;", ONCE),
    ("dk without 1 / keep rate", BACKWARD, "dk_factor[i / 2][i % 2] = block.dq_scale;",
     "dk_factor[i / 2][i % 2] = a.scale;", ONCE),
    ("D without the keep rate", BACKWARD, "sum / dropout_scale(&a.dropout)", "sum", ONCE),
    # ---- heads, columns, places
    ("forward: another head's keys", FORWARD, "x.head / (NH / (int)a.NKV) * a.HS", "x.head % (int)a.NKV * a.HS", ONCE),
    ("backward: another head's keys", BACKWARD, "x.first_key * a.kv_token + kv_head * a.HS",
     "x.first_key * a.kv_token", ONCE),
    ("backward: another group's queries", BACKWARD, "x.first_head = kv_head * group;", "x.first_head = kv_head;", ONCE),
    ("backward: the first half of the columns twice", BACKWARD,
     "(dk_sum, da, stage.queries, part, column_group * Tile::COLUMNS)",
     "(dk_sum, da, stage.queries, part, 0)", ONCE),
    ("a tile is copied to places that are not permuted", TILE, "cp_async_16(tile + place<columns>(row, chunk)",
     "cp_async_16(tile + row * columns + chunk * CHUNK", ONCE),
    ("rows are not permuted: bank conflicts", TILE, "(chunk ^ permutation<columns>(row)) * CHUNK", "chunk * CHUNK",
     ONCE),
    ("the last group of heads is as large as the others", TILE, "min(group, heads - first)", "group", ONCE),
    # ---- barriers and copies in flight
    ("forward: the block's work is not waited for", FORWARD, "__syncthreads(); // the block is visible to all threads", "",
     ORDERS),
    ("forward: a tile is not waited for", FORWARD, "cp_async_wait<Tile::STAGES - 2>();",
     "cp_async_wait<Tile::STAGES - 1>();", ORDERS),
    ("forward: no barrier before a tile", FORWARD, "cp_async_wait<Tile::STAGES - 2>(); __syncthreads();",
     "cp_async_wait<Tile::STAGES - 2>();", ORDERS),
    ("forward: a buffer is filled before the barrier", FORWARD, "__syncthreads(); fetch(index + Tile::STAGES - 1);",
     "fetch(index + Tile::STAGES - 1); __syncthreads();", ORDERS),
    ("forward: queries that see nothing are not waited for", FORWARD, "cp_async_wait<0>();", "", ORDERS),
    ("forward: no barrier before rows are stored", FORWARD, "__syncthreads(); // also if", "// also if", ORDERS),
    ("a warp's rows are stored before they are complete", TILE, "__syncwarp(); // the", "// the", ORDERS),
    ("backward: the ticket is not waited for", BACKWARD, "__syncthreads(); // the ticket", "// the ticket", ORDERS),
    ("backward: a tile is not waited for", BACKWARD, "cp_async_wait<0>();", "cp_async_wait<1>();", ORDERS),
    ("backward: no barrier before a tile", BACKWARD, "__syncthreads(); // the step", "// the step", ORDERS),
    ("backward: statistics are overwritten before they are read", BACKWARD,
     "fetch(step + 1); const auto", "fetch(step + 1); fetch_statistics(step + 1); const auto", ORDERS),
    ("backward: no barrier before dS is read", BACKWARD, "__syncthreads(); // dS is", "// dS is", ORDERS),
    ("backward: no barrier before rows are stored", BACKWARD, "__syncthreads(); // the last part",
     "// the last part", ORDERS),
    # ---- dq, a sum over blocks
    ("dq: a block does not wait for its turn", BACKWARD,
     "while (load_acquire(scratch.parts + row_of(step) / QUERIES) != (unsigned)block.tile) __nanosleep(20);", ";", CONCURRENT),
    ("dq: the last part is never told", BACKWARD, RELEASE % "block.steps - 1", "", ONCE),
    ("dq: a part is told before it is written", BACKWARD, "__syncthreads(); // the step",
     RELEASE % "step - 1" + "__syncthreads(); // the step", CONCURRENT),
    ("dq: the wrong tile is told", BACKWARD, "row_of(step - 1) / QUERIES", "row_of(step) / QUERIES", ONCE),
    ("dq: nobody is told", BACKWARD, "unpublished = !a.atomics && !is_last;", "unpublished = false;", ONCE),
    ("dq: the sum so far is left out", BACKWARD, "load_partial_dq(x, partial);", ";", ONCE),
    ("dq: finished too early", BACKWARD, "last_seen(step) < block.first_key + KEYS;",
     "last_seen(step) <= block.first_key + KEYS;", ONCE),
    ("dq: tiles in the order of blocks, not of tickets", BACKWARD, "atomicAdd(scratch.ticket, 1u)", "blockIdx.x",
     ORDERS),
    ("dq: the ticket is not reset", BACKWARD, "counters[i] = 0;", "if (i) counters[i] = 0;", ONCE),
    ("dq with atomics: not zeroed", LAUNCH, "if (a.atomics) device_zero", "if (false) device_zero", ONCE),
    ("dq with atomics: finished without 1 / keep rate", BACKWARD,
     "head * a.HS, x, a.scale * dropout_scale(&a.dropout)", "head * a.HS, x, a.scale", ONCE),
]


def mutated(text, old, new):
    """Returns `text` with the only occurrence of `old`, ignoring spaces and line breaks, replaced by `new`."""
    places = [i for i, c in enumerate(text) if not c.isspace()]
    flat, wanted = "".join(text[i] for i in places), "".join(old.split())
    if flat.count(wanted) != 1:
        raise ValueError(f"'{old}' occurs {flat.count(wanted)} times, not once: the list of mutations is to be brought up to date")
    first = flat.index(wanted)
    return text[: places[first]] + new + text[places[first + len(wanted) - 1] + 1 :]


def build(folder, file=None, old=None, new=None):
    """Builds the test with unchanged kernels, or with one mistake, and returns its path."""
    shutil.copytree("attention", f"{folder}/attention")
    if file:
        with open(f"attention/{file}") as f:
            text = f.read()
        with open(f"{folder}/attention/{file}", "w") as f:
            f.write(mutated(text, old, new))
    compile = shlex.split(os.environ["MUTATION_COMPILE"]) + ["-O0", "-g0", "-w", "-c", f"{folder}/attention/flash.cu"]
    link = shlex.split(os.environ["MUTATION_LINK"]) + [f"{folder}/flash.o"]
    for command in compile + ["-o", f"{folder}/flash.o"], link + ["-o", f"{folder}/test"]:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"it does not compile: {done.stderr[:1000]}")
    return f"{folder}/test"


def run(program, seed, runs):
    """Runs the test. Returns None if it passes, else what failed, in a few words."""
    environment = dict(os.environ, TEST_SMALL="1", TEST_STOP_AT_FIRST="1", CUDA_EMULATION_SEED=seed)
    if runs is not CONCURRENT:
        environment["OMP_THREAD_LIMIT"] = "1"
    done = subprocess.run([program], env=environment, capture_output=True, text=True, errors="replace", timeout=LONGEST_RUN)
    said = re.search(r"^cuda emulation: .*", done.stderr, re.MULTILINE) or re.search(r"FAILED: .*", done.stdout)
    if done.returncode == 0:
        return None
    if not said:  # a crash of the test itself proves nothing
        raise ValueError(f"ended with status {done.returncode} and not a word: {done.stderr[-300:]}")
    return said.group(0)


def check(name, runs, *mutation):
    """Builds and runs a mutation, or the unchanged kernels. Returns whether the result is as expected, and its line."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=work.name) as folder:
        try:
            program = build(folder, *mutation)
            for seed in runs:
                said = run(program, seed, runs)
                if said:
                    break
        except (ValueError, subprocess.TimeoutExpired) as problem:
            return False, f"FAILED: {name}: {problem}"
    seconds = f"({time.monotonic() - started:.1f} s)"
    if not mutation:
        return not said, f"FAILED: {name}: {said}" if said else f"{name}: pass {seconds}"
    if not said:
        return False, f"FAILED: {name}: nothing finds it {seconds}"
    return True, f"{name}: {said[:70]}{f', seed {seed}' if seed != '0' else ''} {seconds}"


def main():
    if "MUTATION_COMPILE" not in os.environ or "MUTATION_LINK" not in os.environ:
        print("MUTATION_COMPILE and MUTATION_LINK are not set: make DEVICE=emulated test_mutations sets them")
        return 1
    chosen = [m for m in MUTATIONS if not sys.argv[1:] or any(word in m[0] for word in sys.argv[1:])]
    passed = failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(check, "the kernels as they are", ["0", "1"])]
        jobs += [pool.submit(check, name, runs, file, old, new) for name, file, old, new, runs in chosen]
        for job in concurrent.futures.as_completed(jobs):
            good, line = job.result()
            passed, failed = passed + good, failed + (not good)
            print(line, flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


work = tempfile.TemporaryDirectory()
os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
sys.exit(main())
