#!/usr/bin/env python3
"""Checks that a run is never lost: trains tiny models, exposes the runs to everything that can happen to them, and
compares the result with an uninterrupted run: weights, optimizer and every line of metrics must be the same, bit for
bit.

    BUILD=build/cpu test/torture.py [--long] [--seed N] [--only TEXT] [part ...]

    kills    SIGKILL at random moments and between any two calls that access files; of one process, one of many, all
    flips    checkpoints with a flipped bit, truncated, extended, or with a file missing
    faults   calls that access files fail, once or permanently, transfer less than requested or hang
             (test/harness/io_faults.c); a full disk; a folder that disappears
    peers    processes of many that die or freeze; signals that ask a run to end
    soak     memory, descriptors, threads and disk space of a long run with a save every few seconds

All parts take a minute and a half, with --long an hour. Every case draws its random numbers from the seed and its
name: a line FAILED names the case, and --seed with --only NAME repeats it. The last line is `N passed, N failed`."""
import argparse
import ctypes
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

BUILD = os.path.realpath(os.environ.get("BUILD", os.path.join(os.path.dirname(__file__), "..", "build", "cpu")))
TRAINER = os.path.join(BUILD, "train_gpt")
IO_FAULTS = os.path.join(BUILD, "test", "harness", "io_faults.so")
PARTS = ["kills", "flips", "faults", "peers", "soak"]
LONGEST = 600  # seconds that any command may take: only a hang reaches it
DEADLINE = {True: 3, False: 10}  # seconds that processes wait for a lost one, with --long and without
DONE, USER, IO, LOST, INTERRUPTED = 0, 1, 2, 3, 5  # exit statuses

# Lets launchers start more processes than there are cores, and hides launcher variables from the environment of this
# test.
ENVIRONMENT = {name: value for name, value in os.environ.items()
               if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
ENVIRONMENT.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMP_WAIT_POLICY="passive",
                   OMP_NUM_THREADS="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_hwloc_base_binding_policy="none", PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe")


# ---- counts
# ----------------------------------------------------------------------------------------------------------

class Report:
    """Passed and failed checks of all cases, which run concurrently, and figures for the report."""

    def __init__(self):
        self.passed = self.failed = 0
        self.figures = {}
        self.lock = threading.Lock()

    def check(self, holds, text):
        with self.lock:
            if holds:
                self.passed += 1
            else:
                self.failed += 1
                print(text, flush=True)

    def count(self, figure, number=1):
        with self.lock:
            self.figures[figure] = self.figures.get(figure, 0) + number

    def share(self, figure, good, number):
        """Adds to a figure of the form "M of N"."""
        with self.lock:
            before = self.figures.get(figure, (0, 0))
            self.figures[figure] = before[0] + good, before[1] + number

    def largest(self, figure, number):
        with self.lock:
            self.figures[figure] = max(self.figures.get(figure, number), number)


class Case:
    """One scenario, with its own folder, random numbers and checks."""

    def __init__(self, test, name):
        self.test, self.name = test, name
        self.random = random.Random(f"{test.seed}/{name}")
        self.folder = os.path.join(test.folder, hashlib.md5(name.encode()).hexdigest()[:12])
        self.outcomes = []  # finished commands, reported with failures
        self.failed = False
        os.makedirs(self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def check(self, holds, what):
        """Counts a check. The first failure of a case also shows its last commands."""
        if not holds:
            what = f"FAILED: {self.name} (--seed {self.test.seed}): {what}"
            if not self.failed:
                what += "".join(outcome.describe() for outcome in self.outcomes[-3:])
            self.failed = True
        self.test.report.check(holds, what)
        return holds

    def run(self, words, variables=None, timeout=LONGEST):
        return self.start(words, variables).finish(timeout)

    def start(self, words, variables=None):
        return Command(self, words, variables or {})


# ---- processes -------------------------------------------------------------------------------------------------------

def environment_of(pid):
    """Returns the variables of a process's environment; empty if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return {}
    return dict(word.decode(errors="replace").split("=", 1) for word in words if b"=" in word)


def program_of(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def send(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


class Command:
    """A command, while it runs and afterwards. A variable in the environment of all its processes, including those
    that mpirun starts, identifies them."""

    serial = itertools.count()
    starting = threading.RLock()  # held while all commands are being killed

    def __init__(self, case, words, variables):
        number = next(Command.serial)
        self.case, self.words, self.variables = case, words, variables
        self.mark = f"{os.getpid()}.{number}"
        self.log = case.path(f"calls_{number}.txt")
        self.files = [case.path(f"{name}_{number}.txt") for name in ("stdout", "stderr")]
        # Open MPI's jobs would break each other in the folder that they share by default.
        environment = dict(ENVIRONMENT, TORTURE_MARK=self.mark, OMPI_MCA_orte_tmpdir_base=case.folder, **variables)
        if "IO_FAULTS_UNDER" in variables:  # preloaded into the trainer only
            environment["IO_FAULTS_LOG"] = self.log
            words = [word for w in words for word in (["env", f"LD_PRELOAD={case.test.io_faults}", w] if w == TRAINER else [w])]
        self.began = time.monotonic()
        with Command.starting, open(self.files[0], "w") as out, open(self.files[1], "w") as err:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment,
                                            cwd=case.folder, start_new_session=True)

    def processes(self):
        """Returns the ids of all its processes, except zombies."""
        return [int(pid) for pid in os.listdir("/proc")
                if pid.isdigit() and environment_of(pid).get("TORTURE_MARK") == self.mark]

    def ranks(self):
        """Returns its trainers: rank -> pid."""
        found = {}
        for pid in self.processes():
            if program_of(pid) == "train_gpt":
                variables = environment_of(pid)
                found[int(variables.get("OMPI_COMM_WORLD_RANK", variables.get("PMI_RANK", 0)))] = pid
        return found

    def kill_all(self):
        """Kills everything, like a power failure."""
        self.process.kill()
        while pids := self.processes():
            for pid in pids:
                send(pid, signal.SIGKILL)
            time.sleep(0.002)
        self.process.wait()

    def wait(self, seconds):
        """Waits until it has ended; returns False on timeout. mpirun, which may hang if a process dies while it
        connects, is killed some time after the last trainer has ended."""
        until = time.monotonic() + seconds
        alone_since = None
        while (left := until - time.monotonic()) > 0:
            try:
                self.process.wait(min(left, 1))
                return True
            except subprocess.TimeoutExpired:
                pass
            alone_since = (alone_since or time.monotonic()) if not self.ranks() else None
            if alone_since and time.monotonic() - alone_since > 20:
                self.case.test.report.count("mpirun hung after its processes had ended")
                self.kill_all()
                return True
        return False

    def wait_for_end(self, seconds):
        """Waits until none of its processes is left; returns False on timeout."""
        until = time.monotonic() + seconds
        while self.processes():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def finish(self, timeout=LONGEST):
        """Waits for its end, and checks that it ends in time and leaves no process behind."""
        in_time = self.wait(timeout)
        alone = in_time and self.wait_for_end(LONGEST)
        left = [f"{program_of(pid)} {pid}" for pid in self.processes()]
        if not alone:
            self.kill_all()
        self.status, self.seconds = self.process.wait(), time.monotonic() - self.began
        self.out, self.err = [open(name, errors="replace").read() for name in self.files]
        self.case.outcomes.append(self)
        self.case.check(in_time, f"ran for more than {timeout} s: {left}")
        if in_time:
            self.case.check(alone, f"left processes behind: {left}")
        return self

    def hits(self):
        """Returns the calls that io_faults affected: (number, call, what, path)."""
        if not os.path.exists(self.log):
            return []
        with open(self.log, errors="replace") as file:
            lines = [line.rstrip("\n").split(" ", 3) for line in file]
        return [(int(line[0]), *line[1:]) for line in lines if len(line) == 4]

    def has_trained(self):
        return re.search(r"^step \d", self.out, re.M) is not None

    def errors(self):
        return re.findall(r"^error: .*", self.err, re.M)

    def warnings(self):
        return re.findall(r"^warning: .*", self.err, re.M)

    def describe(self):
        text = "".join(f"\n    {name}={value}" for name, value in self.variables.items())
        if "IO_FAULTS_UNDER" in self.variables:
            text += "".join(f"\n    hit: {' '.join(map(str, hit))}" for hit in self.hits()[:3])
        text += f"\n    {' '.join(self.words)}\n    status {self.status} after {self.seconds:.1f} s"
        lines = self.out.splitlines()[-6:] + self.err.splitlines()[-6:]
        return text + "".join(f"\n    | {line[:300]}" for line in lines)


# ---- runs ------------------------------------------------------------------------------------------------------------

class RunKind:
    """A kind of run: number of processes and options."""

    def __init__(self, test, name, processes, num_steps, save_every, options):
        self.test, self.name, self.processes = test, name, processes
        self.num_steps, self.save_every, self.options = num_steps, save_every, options
        self.launcher = ["mpirun", "-n", str(processes)] if processes > 1 else []
        self.saves = ["--save-every", str(save_every), "--keep", "2"]
        self.lock = threading.Lock()
        self.finished = self.seconds = None

    def fresh(self, run, *more):
        return [*self.launcher, TRAINER, "--run", run, *self.test.data, *self.options, *self.saves, *more]

    def resumed(self, run, *more):
        return [*self.launcher, TRAINER, "--run", run, "--resume", *self.saves, *more]

    def reference(self):
        """Returns the folder of the same run, uninterrupted, with a checkpoint of every step. It is created on first
        use."""
        with self.lock:
            if self.finished is None:
                case = Case(self.test, f"reference {self.name}")
                run = case.path("run")
                every = ["--save-every", "1", "--keep", "1000000", "--save-synchronously"]
                case.check(case.run(self.fresh(run, *every)).status == DONE, "the reference fails")
                self.metrics = metrics_of(run)
                self.finished = run
        return self.finished

    def measure(self):
        """Returns the duration of an uninterrupted run, and the number of calls of process 0 that access files."""
        self.reference()
        with self.lock:
            if self.seconds is None:
                case = Case(self.test, f"measure {self.name}")
                run = case.path("run")
                command = case.run(self.fresh(run), faults(run, "count", RANK=0))
                case.check(command.status == DONE, "fails without trouble")
                case.check(metrics_of(run) == self.metrics, "the same run twice has different metrics")
                self.seconds, self.num_calls = command.seconds, len(command.hits())
        return self.seconds, self.num_calls

    def copy_reference(self, run, steps):
        """Copies the reference, as if only these checkpoints had been written so far."""
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.reference(), run, ignore=lambda folder, names: [
            name for name in names if name.startswith("step_") and int(name[5:]) not in steps])

    def last_steps(self, count):
        return [self.num_steps - i * self.save_every for i in reversed(range(count))]


def faults(run, mode, **settings):
    """Returns the environment for io_faults on files below a run's folder."""
    return {"IO_FAULTS_UNDER": run, "IO_FAULTS_MODE": mode, **{f"IO_FAULTS_{k}": str(v) for k, v in settings.items()}}


def steps_of(run):
    """Returns the steps of a run's checkpoints, in order."""
    try:
        names = os.listdir(os.path.join(run, "checkpoints"))
    except FileNotFoundError:
        return []
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step_\d{8}", name))


def checkpoint_of(run, step):
    return os.path.join(run, "checkpoints", f"step_{step:08d}")


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def metrics_of(run):
    """Returns the lines of metrics.jsonl without times; lines that are not JSON are unchanged."""
    lines = []
    for line in read(os.path.join(run, "metrics.jsonl")).decode(errors="replace").splitlines():
        try:
            fields = json.loads(line)
            fields.pop("seconds", None)
            lines.append(json.dumps(fields))
        except ValueError:
            lines.append(line)
    return lines


def tensors_of(folder):
    """Returns all tensors of a checkpoint, whichever files they are in."""
    tensors = {}
    for name in os.listdir(folder):
        if name.endswith(".safetensors"):
            data = read(os.path.join(folder, name))
            begin = 8 + int.from_bytes(data[:8], "little")
            for tensor, about in json.loads(data[8:begin]).items():
                if tensor != "__metadata__":
                    first, end = about["data_offsets"]
                    tensors[tensor] = about["dtype"], about["shape"], data[begin + first:begin + end]
    return tensors


def is_sharded_differently(folder, other):
    """Returns True if process 0 has written what the others would have written, because they cannot see the run's
    folder."""
    names = set(os.listdir(folder)) ^ set(os.listdir(other))
    return all(".safetensors" in name for name in names) and tensors_of(folder) == tensors_of(other)


def difference(run, kind, step):
    """Describes how a checkpoint differs from the reference's of the same step; None: they are equal."""
    folder, other = checkpoint_of(run, step), checkpoint_of(kind.reference(), step)
    names, expected = set(os.listdir(folder)), set(os.listdir(other))
    if names != expected and not is_sharded_differently(folder, other):
        return f"step {step}: files {sorted(names ^ expected)} are missing or too many"
    for name in sorted((names & expected) - {"manifest"}):
        if read(os.path.join(folder, name)) != read(os.path.join(other, name)):
            return f"step {step}: {name} differs from that of a run without trouble"
    if names == expected and manifest_lines(folder) != manifest_lines(other):
        return f"step {step}: manifest has other lines than that of a run without trouble"
    return None


def manifest_lines(folder):
    """Returns all lines except the run's id and the manifest's own checksum."""
    lines = read(os.path.join(folder, "manifest")).splitlines()[:-1]
    return sorted(line for line in lines if not line.startswith(b"run "))


def first_difference(lines, expected):
    for i, (line, other) in enumerate(zip(lines, expected)):
        if line != other:
            return f"line {i + 1} is {line}, not {other}"
    return f"{len(lines)} lines, not {len(expected)}"


def unfinished_files(run):
    """Returns files and folders that exist only while something is written or removed."""
    return [name for _, folders, files in os.walk(run) for name in folders + files
            if name.startswith(("writing_", "removing")) or name.endswith(".tmp")]


def check_whole(case, kind, run):
    """Checks that everything with a checkpoint's name is an intact checkpoint."""
    for step in steps_of(run):
        wrong = difference(run, kind, step)
        case.check(wrong is None, wrong)


def check_finished(case, kind, run):
    """Checks that the run has ended as if it had not been interrupted."""
    steps = steps_of(run)
    case.check(steps[-1:] == [kind.num_steps], f"there are checkpoints of steps {steps}, not of {kind.num_steps}")
    check_whole(case, kind, run)
    metrics = metrics_of(run)
    case.check(metrics == kind.metrics, f"metrics.jsonl: {first_difference(metrics, kind.metrics)}")
    case.check(not unfinished_files(run), f"left behind: {unfinished_files(run)}")


def continue_command(kind, run):
    """Returns the command that a user would run after a failure: resume if possible, otherwise start again."""
    can_resume = os.path.exists(os.path.join(run, "options.txt")) and steps_of(run)
    return kind.resumed(run) if can_resume else kind.fresh(run)


def check_continues(case, kind, run):
    """Checks, after a failure, that all checkpoints are intact and that continuing leads to the reference."""
    check_whole(case, kind, run)
    again = case.run(continue_command(kind, run))
    if case.check(again.status == DONE, f"going on ends with status {again.status}"):
        check_finished(case, kind, run)


def wait_for_steps(command, run, steps):
    """Waits until this many steps are done; returns False if the command ends before."""
    path = os.path.join(run, "metrics.jsonl")
    while command.process.poll() is None and time.monotonic() < command.began + LONGEST:
        if os.path.exists(path) and read(path).count(b'"loss"') >= steps:
            return True
        time.sleep(0.01)
    return False


# ---- kills -----------------------------------------------------------------------------------------------------------

# Saves concurrently with training, or before training continues.
WAYS_TO_SAVE = [[], ["--save-synchronously"]]


def kill_once(case, kind, run, way_to_save):
    """Continues a run and kills it somewhere; returns False if it ended before that."""
    seconds, num_calls = kind.measure()
    words = continue_command(kind, run) + way_to_save
    way = case.random.choice(["moment", "call"] if kind.processes == 1 else ["moment", "call", "one"])
    if way == "call":  # immediately before one of the calls that access files
        rank = case.random.randrange(kind.processes)
        command = case.start(words, faults(run, "kill", RANK=rank, AT=case.random.randint(1, num_calls)))
        command.wait(LONGEST)
    else:
        command = case.start(words)
        command.wait(case.random.uniform(0, seconds))
        if way == "one" and (ranks := command.ranks()):
            send(ranks[case.random.choice(sorted(ranks))], signal.SIGKILL)
            command.wait(LONGEST)
    was_killed = command.process.poll() != DONE
    if way == "moment":
        command.kill_all()
    command.finish()
    if way == "moment" or command.status in (-signal.SIGKILL, 128 + signal.SIGKILL, LOST):
        return was_killed
    return not case.check(command.status == DONE, f"killed by {way}, the rest ended with status {command.status}")


def kill_runs(case, kind, kills):
    """Runs that are killed repeatedly, `kills` times in total; each must end like the reference."""
    run, way_to_save = case.path("run"), case.random.choice(WAYS_TO_SAVE)
    done = newest = 0
    while done < kills and not case.failed:
        was_killed = kill_once(case, kind, run, way_to_save)
        done += was_killed
        check_whole(case, kind, run)
        steps = steps_of(run)
        case.check(max(steps, default=0) >= newest, f"of checkpoints up to step {newest}, {steps} are left")
        newest = steps[-1] if steps else 0
        if not was_killed and not case.failed:
            check_finished(case, kind, run)
            shutil.rmtree(run)
            newest = 0
    check_continues(case, kind, run)
    case.test.report.share(f"kills of {kind.name} survived", 0 if case.failed else done, done)


def kills(test):
    """Yields the cases of kills."""
    for kind in filter(None, [test.small, test.small_two]):
        cases, each = (10, 5) if test.long else (2, 4 if kind.processes == 1 else 2)
        for i in range(cases):
            yield f"kills {kind.name} {i}", kill_runs, (kind, each)


# ---- flips -----------------------------------------------------------------------------------------------------------

def sample_command(run):
    return [TRAINER, "--run", run, "--sample", "x", "--sample-tokens", "12", "--seed", "1"]


def regions_of(data, name):
    """Returns parts of a file in which a flip may have different consequences: (name, first, end)."""
    regions = [("start", 0, min(16, len(data))), ("end", max(0, len(data) - 16), len(data)), ("middle", 0, len(data))]
    if name.endswith(".safetensors"):
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + length])
        spans = sorted(t["data_offsets"] for key, t in header.items() if key != "__metadata__")
        regions.append(("header", 8, 8 + length))
        for place, (first, end) in [("first", spans[0]), ("middle", spans[len(spans) // 2]), ("last", spans[-1])]:
            regions.append((f"{place} tensor", 8 + length + first, 8 + length + end))
    return regions


def damages_of(case, name, data, flips):
    """Yields ways to damage a file: (description, its content afterwards; None: the file is gone)."""
    regions = regions_of(data, name)
    for i in range(flips):
        region, first, end = regions[i % len(regions)]
        at, bit = case.random.randrange(first, end), case.random.randrange(8)
        yield f"bit {bit} of byte {at} ({region}) flipped", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1:]
    for length in sorted({0, 1, len(data) // 2, case.random.randrange(len(data)), len(data) - 1} - {len(data)}):
        yield f"cut to {length} bytes", data[:length]
    yield "gone", None
    yield "longer by a byte", data + b"x"
    yield "longer by a page", data + bytes(4096)


def set_file(path, data):
    if data is None:
        os.remove(path)
    else:
        write(path, data)


def check_named(case, command, run, step, name, how):
    """Checks that a warning names the damaged file, or the checkpoint's folder if a file is missing, and says that
    it is skipped."""
    where = f"step_{step:08d}"
    sentences = [w for w in command.warnings() if re.match(f"warning: checkpoint {where} is skipped: ", w)]
    named = [w for w in sentences if f"{where}/{name}" in w or (how == "gone" and f"{where}'" in w)]
    case.check(len(sentences) == 1 and named, f"{name} {how}: the warnings are {command.warnings()}")
    case.check(not [e for e in command.errors()], f"{name} {how}: {command.errors()}")


def finished_run(case, kind, checkpoints):
    run = case.path("run")
    kind.copy_reference(run, kind.last_steps(checkpoints))
    return run


def flip_file(case, kind, name, flips):
    """Damages one file of the newest checkpoint: the previous one is used, and the damaged one is not changed."""
    run = finished_run(case, kind, 3)
    newest = steps_of(run)[-1]
    expected = case.test.sample_of_step_before(kind)
    path = os.path.join(checkpoint_of(run, newest), name)
    data = read(path)
    for how, damaged in damages_of(case, name, data, flips):
        set_file(path, damaged)
        command = case.run(sample_command(run))
        case.check(command.status == DONE and command.out == expected, f"{name} {how}: status {command.status}, "
                   f"the sample is {command.out!r}, not the {expected!r} of the checkpoint before")
        check_named(case, command, run, newest, name, how)
        is_same = read(path) == damaged if damaged is not None else not os.path.exists(path)
        case.check(is_same and len(steps_of(run)) == 3, f"{name} {how}: what was damaged is not left as it was")
        case.test.report.share("damages found", not case.failed, 1)
        write(path, data)
    check_whole(case, kind, run)


def flip_and_resume(case, kind, count):
    """Like flip_file, for any file, and training continues. It is killed, perhaps before the damaged step, whose
    checkpoint is then kept, and continues to the end."""
    for _ in range(count):
        run = finished_run(case, kind, 3)
        before, newest = steps_of(run)[-2:]
        folder = checkpoint_of(run, newest)
        name = case.random.choice(sorted(os.listdir(folder)))
        path = os.path.join(folder, name)
        how, damaged = case.random.choice(list(damages_of(case, name, read(path), 8)))
        set_file(path, damaged)
        command = case.run(kind.resumed(run), faults(run, "kill", AT=case.random.randint(1, 30)))
        if command.status != DONE and newest in steps_of(run) and os.path.exists(path):
            case.check(read(path) in (damaged, read(os.path.join(checkpoint_of(kind.reference(), newest), name))),
                       f"{name} {how}: what was damaged is neither left as it was nor whole")
        command = case.run(kind.resumed(run))
        case.check(command.status == DONE, f"{name} {how}: resuming ends with status {command.status}")
        if case.outcomes[-2].status == DONE:
            command = case.outcomes[-2]
        check_named(case, command, run, newest, name, how)
        check_finished(case, kind, run)
        case.check(before in steps_of(run), f"{name} {how}: the checkpoint of step {before}, which was used, is gone")
        case.test.report.share("resumed in spite of damage", not case.failed, 1)


def damaged_stays(case, kind):
    """A damaged checkpoint that training does not reach is kept, and not counted among the kept ones."""
    run = finished_run(case, kind, 2)
    before, newest = steps_of(run)
    path = os.path.join(checkpoint_of(run, newest), "training_state.json")
    write(path, b"{}")
    command = case.run(kind.resumed(run, "--steps", str(before + 1), "--keep", "1"))
    case.check(command.status == DONE, f"status {command.status}")
    case.check(os.path.isdir(checkpoint_of(run, newest)) and read(path) == b"{}", "the damaged checkpoint was changed")
    case.check(before + 1 in steps_of(run), f"the new checkpoint is not kept: {steps_of(run)}")
    command = case.run(sample_command(run))
    case.check(command.status == DONE and len(command.warnings()) == 1, "the newest whole checkpoint is not used")


def all_damaged(case, kind):
    """If every checkpoint is damaged, no run can continue: one sentence about each, and nothing is deleted."""
    run = finished_run(case, kind, 3)
    for step in steps_of(run):
        folder = checkpoint_of(run, step)
        path = os.path.join(folder, case.random.choice(sorted(os.listdir(folder))))
        write(path, read(path)[:-1])
    before = content_of(run)
    for words in (kind.resumed(run), sample_command(run)):
        command = case.run(words)
        case.check(command.status == USER, f"status {command.status}, not {USER}")
        for step in steps_of(run):
            named = [w for w in command.warnings() if f"step_{step:08d} is skipped" in w]
            case.check(len(named) == 1, f"of step {step} is said: {named}")
        case.check(len(command.errors()) == 1, f"not one line of error: {command.errors()}")
        case.check(content_of(run) == before, "something was changed or deleted")


def content_of(run):
    """Returns all files of a run by their paths, except the lock."""
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(run) for name in names]
    return {path: read(path) for path in paths if os.path.basename(path) != "lock"}


def flips(test):
    """Yields the cases of damaged checkpoints."""
    kinds = [test.small, test.small_two] if test.long else [test.small]
    for kind in filter(None, kinds):
        for name in sorted(os.listdir(checkpoint_of(kind.reference(), kind.num_steps))):
            yield f"flips {kind.name} {name}", flip_file, (kind, name, 300 if test.long else 14)
        for i in range(10 if test.long else 1):
            yield f"flips {kind.name} resumed {i}", flip_and_resume, (kind, 4)
        yield f"flips {kind.name} stays", damaged_stays, (kind,)
        yield f"flips {kind.name} all", all_damaged, (kind,)


# ---- faults ----------------------------------------------------------------------------------------------------------

def count_calls(case, kind, begin, rank):
    """Returns the calls of a run that begins with `begin`. While training waits for saves, they are made in the same
    order each time."""
    run = case.path("run")
    command = case.run(begin(kind, run) + ["--save-synchronously"], faults(run, "count", RANK=rank))
    case.check(command.status == DONE, f"status {command.status} with calls counted")
    return command.hits()


def from_nothing(kind, run):
    return kind.fresh(run)


def from_middle(kind, run):
    """Continues from the second of two checkpoints."""
    kind.copy_reference(run, [kind.save_every, 2 * kind.save_every])
    return kind.resumed(run)


BEGINNINGS = {"begun": from_nothing, "resumed": from_middle}


def check_status(case, command, hits, is_for_good, mode):
    """Checks the exit status and the messages after failed calls."""
    case.check(command.status in (DONE, USER, IO), f"status {command.status}")
    if command.status != DONE:
        case.check(len(command.errors()) == 1, f"not one line of error: {command.errors()}")
        case.check("/" in "".join(command.errors()), "the error names no file")
    if command.status == USER:
        case.check(not command.has_trained(), "status 1 after training had begun")
    if mode != "fail":
        case.check(command.status == DONE, f"{mode} of a call is no reason for status {command.status}")
    # Old files may remain.
    needed = [hit for hit in hits if hit[2] == "space" and not os.path.basename(hit[3]).startswith("removing_")]
    if mode == "fail" and command.has_trained() and needed:
        case.check(command.warnings(), "no warning that a file cannot be written")
        wanted = IO if is_for_good else DONE
        case.check(command.status == wanted, f"status {command.status}, not {wanted}, after training had begun")


def fault(case, kind, beginning, mode, settings):
    """One run with failing calls, then one without."""
    run = case.path("run")
    words = BEGINNINGS[beginning](kind, run)
    before = steps_of(run)
    words += case.random.choice(WAYS_TO_SAVE)
    command = case.run(words, faults(run, mode, **settings))
    hits = command.hits()
    check_status(case, command, hits, is_lasting(mode, settings), mode)
    steps = steps_of(run)
    new = [step for step in steps if step not in before]
    wanted = (before + new)[-2:]
    case.check(steps[-len(wanted):] == wanted, f"of checkpoints {before} and {new} there are {steps}")
    check_continues(case, kind, run)
    lasts = {"1": "once", "3": "three times", "all": "for good"}[str(settings.get("COUNT", 1))]
    case.test.report.share(f"faults survived: {mode}, {lasts}", not case.failed, 1)


def kinds_of_fault(hit):
    """Yields the faults that are possible for a call."""
    _, call, what, _ = hit
    errors = {"look": ["EIO", "ESTALE"], "change": ["EIO", "ESTALE", "EROFS"]}
    for error in errors.get(what, ["EIO", "ESTALE", "EROFS", "ENOSPC"]):
        yield "fail", {"ERRNO": error}
    if what == "space":
        yield "fail", {"ERRNO": "ENOSPC", "COUNT": "all"}
    yield "fail", {"ERRNO": "EIO", "COUNT": "all"}
    yield "fail", {"ERRNO": "EIO", "COUNT": 3}
    if call in ("read", "write", "pread", "pwrite"):
        yield "short", {}
        yield "short", {"COUNT": "all"}
    yield "hang", {"SECONDS": 0.5}


def is_lasting(mode, settings):
    return mode == "fail" and settings.get("COUNT") == "all"


def every_fault(calls, seed):
    """Yields (call, mode, settings) for every call, with one of its possible faults, chosen by the seed."""
    for i, hit in enumerate(calls):
        kinds = list(kinds_of_fault(hit))
        yield hit, *kinds[(i + seed) % len(kinds)]


def sampled_faults(case, calls, wanted):
    """Like every_fault, for a sample with calls of every kind."""
    by_kind = {}
    for hit in calls:
        by_kind.setdefault((hit[1], re.sub(r"\d+", "N", hit[3])), []).append(hit)
    kinds = sorted(by_kind)
    case.random.shuffle(kinds)
    for i in range(wanted):
        hit = case.random.choice(by_kind[kinds[i % len(kinds)]])
        lasting = i % 8 == 0  # only a few of these, as they take longer: the last save is tried again and again
        yield hit, *case.random.choice([kind for kind in kinds_of_fault(hit) if is_lasting(*kind) == lasting])


def check_all_calls_seen(case, calls):
    """Checks that all kinds of call are observed; otherwise nothing is tested."""
    seen = {hit[1] for hit in calls}
    missing = {"open", "write", "fsync", "rename", "mkdir", "close", "opendir", "unlink"} - seen
    case.check(not missing, f"calls that are not seen: {sorted(missing)}; seen: {sorted(seen)}")


def refused_in_spite_of_faults(case, kind):
    """A run that has checkpoints is not started again, whichever call fails during the search for them."""
    for at in range(1, 7):
        run = finished_run(case, kind, 2)
        before = content_of(run)
        command = case.run(kind.fresh(run), faults(run, "fail", AT=at))
        second = f"a second run in the same folder, whose call {at} fails,"
        case.check(command.status in (USER, IO), f"{second} ends with status {command.status}")
        case.check(content_of(run) == before, f"{second} changes the first")


def unreadable_data(case, kind, is_for_good):
    """The shards become unreadable, or one call fails."""
    run, data = case.path("run"), case.test.data_folder
    num_calls = len(case.run(kind.fresh(run), faults(data, "count")).hits())
    shutil.rmtree(run)
    settings = {"AT": case.random.randint(1, num_calls), "COUNT": "all" if is_for_good else 1}
    command = case.run(kind.fresh(run), faults(data, "fail", **settings))
    check_status(case, command, command.hits(), is_for_good, "fail")
    check_continues(case, kind, run)


def is_root():
    return os.geteuid() == 0


def mount_small(case, megabytes):
    """Mounts a file system of this size; returns None if that is not allowed."""
    folder = case.path("disk")
    os.makedirs(folder)
    if not is_root() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder],
                                       capture_output=True).returncode != 0:
        case.test.note("a real full disk is left out: mounting needs root")
        return None
    case.test.mounted.append(folder)
    return folder


def unmount(case, folder):
    subprocess.run(["umount", "-l", folder], capture_output=True)
    case.test.mounted.remove(folder)


def full_disk(case, kind, comes_back):
    """The disk is full from the middle of a run on, permanently or temporarily."""
    disk = mount_small(case, 64)
    if disk is None:
        return
    try:
        run = os.path.join(disk, "run")
        command = case.start(kind.fresh(run))
        wait_for_steps(command, run, case.random.randint(kind.save_every + 2, 3 * kind.save_every))
        fill(os.path.join(disk, "filler"))
        if comes_back:
            time.sleep(case.random.uniform(0.3, 1))
            os.remove(os.path.join(disk, "filler"))
        command.finish()
        wanted = DONE if comes_back else IO
        case.check(command.status == wanted, f"a full disk ends it with status {command.status}, not {wanted}")
        case.check(comes_back or (len(command.errors()) == 1 and command.warnings()), "not warnings and one error")
        check_whole(case, kind, run)
        case.check(steps_of(run), "no checkpoint is left")
        if not comes_back:
            os.remove(os.path.join(disk, "filler"))
        check_continues(case, kind, run)
    finally:
        unmount(case, disk)


def fill(path):
    """Writes until the disk is full."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass


def moved_folder(case, kind, comes_back):
    """The run's folder is gone from the middle of a run on, permanently or temporarily."""
    run, away = case.path("run"), case.path("away")
    command = case.start(kind.fresh(run))
    wait_for_steps(command, run, case.random.randint(kind.save_every + 2, 3 * kind.save_every))
    os.rename(run, away)
    if comes_back:
        time.sleep(case.random.uniform(0.3, 1))
        case.check(not os.path.exists(run), "the folder that was moved away is made anew")
        os.rename(away, run)
    command.finish()
    wanted = DONE if comes_back else IO
    case.check(command.status == wanted, f"status {command.status}, not {wanted}, after the folder was moved away")
    if not comes_back:
        case.check(len(command.errors()) == 1, f"not one line of error: {command.errors()}")
        case.check(not os.path.exists(run), "the folder that was moved away is made anew")
        shutil.rmtree(run, ignore_errors=True)
        os.rename(away, run)
    check_continues(case, kind, run)


def read_only_folder(case, kind):
    """The run's folder becomes read-only."""
    if is_root():
        case.test.note("a folder that is made read-only is left out: root writes all the same")
        return
    run = case.path("run")
    command = case.start(kind.fresh(run))
    wait_for_steps(command, run, case.random.randint(kind.save_every + 2, 3 * kind.save_every))
    os.chmod(os.path.join(run, "checkpoints"), 0o555)
    command.finish()
    os.chmod(os.path.join(run, "checkpoints"), 0o755)
    case.check(command.status == IO, f"status {command.status}, not {IO}")
    check_continues(case, kind, run)


def faults_of(test, kind, beginning, rank):
    """Yields the cases of failing calls of one process."""
    case = Case(test, f"faults {kind.name} {beginning} rank {rank}")
    calls = count_calls(case, kind, BEGINNINGS[beginning], rank)
    if rank == 0:
        check_all_calls_seen(case, calls)
    test.report.count(f"calls that touch files of a {kind.name} that is {beginning}, process {rank}", len(calls))
    chosen = every_fault(calls, test.seed) if test.long else sampled_faults(case, calls, 28)
    for hit, mode, settings in chosen:
        told = "".join(f" {name} {value}" for name, value in settings.items())
        place = re.sub(r"\.\d+\.tmp", ".tmp", os.path.basename(hit[3]))
        yield (f"faults {kind.name} {beginning} rank {rank} call {hit[0]} {mode}{told} ({hit[1]} {place})",
               fault, (kind, beginning, mode, {"RANK": rank, "AT": hit[0], **settings}))


def faults_part(test):
    """Yields the cases of failing calls, disks and folders."""
    for kind in [test.short] + ([test.short_two] if test.long and test.short_two else []):
        for beginning in BEGINNINGS:
            for rank in range(kind.processes):
                yield from faults_of(test, kind, beginning, rank)
    yield "faults refused", refused_in_spite_of_faults, (test.short,)
    for comes_back in (False, True):
        for i in range(5 if test.long else 1):
            back = "for a while" if comes_back else "for good"
            yield f"faults full disk {back} {i}", full_disk, (test.slow, comes_back)
            yield f"faults moved folder {back} {i}", moved_folder, (test.slow, comes_back)
            yield f"faults data {back} {i}", unreadable_data, (test.short, not comes_back)
    yield "faults read-only folder", read_only_folder, (test.slow,)


# ---- peers -----------------------------------------------------------------------------------------------------------

def lost_peer(case, kind, number):
    """One of many processes dies or freezes: the others end soon and report it; the run continues from its last
    checkpoint."""
    run = case.path("run")
    command = case.start(kind.fresh(run))
    wait_for_steps(command, run, case.random.randint(1, kind.num_steps // 2))
    time.sleep(case.random.uniform(0, 0.1))
    rank = case.random.randrange(kind.processes)
    victim = command.ranks().get(rank)
    if not case.check(victim is not None, f"there is no process {rank} to send {number.name} to"):
        command.kill_all()
    else:
        send(victim, number)
    began = time.monotonic()
    command.finish()
    seconds = time.monotonic() - began
    case.test.report.largest(f"seconds until the rest had ended after {number.name}", round(seconds, 1))
    case.check(seconds <= (DEADLINE[True] + 10 if case.test.long else LONGEST), f"after {number.name} the others go on for {seconds:.1f} s")
    if number == signal.SIGSTOP:
        case.check(command.status == LOST, f"status {command.status}, not {LOST}")
        case.check(re.search(rf"^error: process {rank}\b", command.err, re.M), f"process {rank} is not named")
    else:
        case.check(command.status in (LOST, 128 + number), f"status {command.status} after {number.name}")
    check_continues(case, kind, run)
    case.test.report.share(f"ended in time after {number.name} of one, and went on", not case.failed, 1)


def asked_to_end(case, kind, number, to_launcher):
    """All processes save the same step and end; the run continues as if it had not been interrupted."""
    run = case.path("run")
    settings = {"OMPI_MCA_odls_base_sigkill_timeout": "3"}  # by default, mpirun would give processes one second to save
    command = case.start(kind.fresh(run), settings)
    wait_for_steps(command, run, case.random.randint(1, kind.num_steps // 2))
    time.sleep(case.random.uniform(0, 0.1))
    ranks = command.ranks()
    victim = command.process.pid if to_launcher else ranks[case.random.choice(sorted(ranks))]
    send(victim, number)
    command.finish()
    # mpirun forwards SIGUSR1; on SIGTERM it has a status of its own.
    is_its_own = to_launcher and number == signal.SIGTERM and command.status != DONE
    case.check(command.status == INTERRUPTED or is_its_own, f"status {command.status}, not {INTERRUPTED}")
    case.check(not command.errors(), f"asked to end: {command.errors()}")
    done = len([line for line in metrics_of(run) if '"loss"' in line])
    case.check(steps_of(run)[-1:] == [done], f"{done} steps were done, saved are {steps_of(run)}")
    check_continues(case, kind, run)
    case.test.report.share(f"saved and went on after {number.name}", not case.failed, 1)


def peers(test):
    """Yields the cases of processes that are lost, or asked to end."""
    if not test.peers:
        return
    for i in range(20 if test.long else 1):
        for number in (signal.SIGKILL, signal.SIGSTOP):
            kind = test.peers[i % len(test.peers)]
            yield f"peers {kind.name} {number.name} {i}", lost_peer, (kind, number)
    for i in range(5 if test.long else 1):
        for number in (signal.SIGTERM, signal.SIGUSR1):
            for to_launcher in (True, False) if test.long else [number == signal.SIGUSR1]:
                kind = test.peers[(i + 1) % len(test.peers)]
                name = f"peers {kind.name} {number.name} {'launcher' if to_launcher else 'one'} {i}"
                yield name, asked_to_end, (kind, number, to_launcher)


# ---- soak ------------------------------------------------------------------------------------------------------------

def folder_bytes(folder):
    """Returns the number of bytes of all files except metrics.jsonl; files that disappear during the count are
    ignored."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(place, name)) if name != "metrics.jsonl" else 0
            except FileNotFoundError:
                pass
    return total


def sample_process(pid, run):
    """Returns memory in kB, descriptors, threads, bytes of the run's folder."""
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return int(status["VmRSS"].split()[0]), descriptors, int(status["Threads"]), folder_bytes(run)


def slope(values):
    """Returns the slope per second, by least squares."""
    return statistics.linear_regression(range(len(values)), values).slope


def check_level(case, name, values, tolerance, bound):
    """Checks for growth: the last third must not exceed the middle one, and the second half must not rise."""
    third = len(values) // 3
    middle, last = max(values[third:2 * third]), max(values[2 * third:])
    rise = slope(values[len(values) // 2:])
    case.test.report.figures[f"soak: {name}"] = f"{min(values[third:])} .. {max(values[third:])}, {rise:+.3g} a second"
    case.check(last <= middle + tolerance, f"{name}: up to {last} in the last third, {middle} in the middle one")
    case.check(rise <= bound, f"{name} rises by {rise:.3g} a second, {bound:.3g} at most")


def soak_run(case, seconds, csv):
    """Memory, descriptors, threads and disk space of a run with a save every few seconds remain constant."""
    run = case.path("run")
    every = 0.05 if case.test.long else 0.01
    endless = ["--steps", "100000000", "--save-every", "0", "--save-minutes", str(every)]
    command = case.start(case.test.slow.fresh(run, *endless))
    samples, pid = [], None
    wait_for_steps(command, run, 3)
    until = time.monotonic() + seconds
    while time.monotonic() < until and command.process.poll() is None:
        pid = pid or command.ranks()[0]
        samples.append(sample_process(pid, run))
        case.test.progress("soak", len(samples), seconds)
        time.sleep(1)
    send(command.process.pid, signal.SIGTERM)
    command.finish()
    case.check(command.status == INTERRUPTED, f"status {command.status}, not {INTERRUPTED}")
    if not case.check(len(samples) >= 0.8 * seconds, f"only {len(samples)} samples in {seconds} s"):
        return
    if csv:
        with open(csv, "w") as file:
            file.write("second,resident_kB,descriptors,threads,folder_bytes\n")
            file.writelines(f"{i},{','.join(map(str, sample))}\n" for i, sample in enumerate(samples))
    saves = steps_of(run)
    case.check(len(saves) == 2, f"checkpoints {saves} are kept, not 2")
    resident, descriptors, threads, folder = zip(*samples)
    checkpoint = folder_bytes(checkpoint_of(run, saves[-1]))
    check_level(case, "resident kB", resident, 512, 1 if case.test.long else 100)
    check_level(case, "descriptors", descriptors, 2, 0.002 if case.test.long else 0.3)
    check_level(case, "threads", threads, 1, 0.001 if case.test.long else 0.1)  # a validation briefly has one more
    check_level(case, "bytes of the folder", folder, checkpoint, checkpoint / (600 if case.test.long else 5))
    case.check(max(folder) <= 3.5 * checkpoint, f"up to {max(folder)} bytes, a checkpoint has {checkpoint}")


def soak(test):
    """Yields the only case of the soak."""
    yield "soak", soak_run, (1800 if test.long else 20, test.soak_csv)


# ---- test
# ------------------------------------------------------------------------------------------------------------

class Test:
    """All parts, and what they share."""

    def __init__(self, settings, folder):
        self.seed, self.long, self.soak_csv, self.folder = settings.seed, settings.long, settings.soak_csv, folder
        self.report = Report()
        self.mounted, self.notes = [], []
        self.begun = self.shown = time.monotonic()
        self.samples, self.lock = {}, threading.Lock()
        self.make_data()
        self.make_run_kinds()

    def make_data(self):
        """Creates stories, a tokenizer, shards."""
        folder = self.data_folder = os.path.join(self.folder, "data")
        os.makedirs(folder)
        self.io_faults = shutil.copy(IO_FAULTS, folder)  # LD_PRELOAD does not accept a path with a space
        tokenizer, shards = os.path.join(folder, "tokenizer.json"), os.path.join(folder, "data_*.bin")
        text, programs = os.path.join(folder, "train.txt"), os.path.join(BUILD, "data")
        for words in (["write_stories", "--train-bytes", "60k", "--validation-stories", "20", "--out", folder],
                      ["tokenize", "train", "--input", text, "--vocab", "400", "--out", tokenizer],
                      ["tokenize", "encode", "--tokenizer", tokenizer, "--input", text, "--out", shards[:-6]]):
            subprocess.run([os.path.join(programs, words[0]), *words[1:]], check=True, capture_output=True)
        self.data = ["--train", shards, "--validation", shards, "--tokenizer", tokenizer]

    def make_run_kinds(self):
        """Creates the kinds of run. Slow ones leave time for an interruption between two steps."""
        has_mpi = shutil.which("mpirun") is not None and "HAVE_MPI" in open(os.path.join(BUILD, "flags")).read()
        if not has_mpi:
            self.note("runs of many processes are left out: the build has no MPI, or mpirun is not installed")

        def kind(name, processes, num_steps, save_every, global_batch, *more):
            if processes > 1 and not has_mpi:
                return None
            options = ["--num-layers", 2, "--num-heads", 2, "--channels", 32, "--sequence-length", 24, "--warmup", 2,
                       "--learning-rate", 1e-2, "--dropout", 0.1, "--validation-batches", 2, "--sample-tokens", 3,
                       "--steps", num_steps, "--validate-every", 2 * save_every, "--batch", 4,
                       "--global-batch", global_batch, *more]
            return RunKind(self, name, processes, num_steps, save_every, list(map(str, options)))

        many = ["--deterministic-reduce", "--deadline", 20]
        sharded, lost = ["--shard", "optimizer", *many], ["--deadline", DEADLINE[self.long]]
        self.small = kind("one process", 1, 60, 5, 16)
        self.small_two = kind("two processes", 2, 60, 5, 16, *sharded)
        self.short = kind("short run", 1, 12, 3, 16)
        self.short_two = kind("short run of two", 2, 12, 3, 16, *sharded)
        self.slow = kind("slow run", 1, 150, 10, 64)
        self.peers = list(filter(None, [kind("three slow processes", 3, 50, 2, 48, *sharded, *lost),
                                        kind("two slow processes", 2, 50, 2, 48, *many, *lost)]))

    def sample_of_step_before(self, kind):
        """Returns the sample of a finished run without its newest checkpoint, which differs from the sample with it."""
        with self.lock:
            if kind.name not in self.samples:
                case = Case(self, f"sample of {kind.name}")
                run = finished_run(case, kind, 3)
                newest = case.run(sample_command(run))
                shutil.rmtree(checkpoint_of(run, steps_of(run)[-1]))
                before = case.run(sample_command(run))
                case.check(before.status == DONE and before.out != newest.out, "samples do not tell checkpoints apart")
                self.samples[kind.name] = before.out
        return self.samples[kind.name]

    def note(self, text):
        with self.report.lock:
            if text not in self.notes:
                self.notes.append(text)
                print(text, flush=True)

    def progress(self, part, done, total):
        """Prints a line every half minute, with --long."""
        now = time.monotonic()
        if self.long and now - self.shown >= 30 and done > 0:
            self.shown = now
            left = (now - self.part_begun) / done * (total - done)
            print(f"{part}: {done} of {total}, about {left / 60:.0f} min left, {self.report.failed} failed", flush=True)

    def run_case(self, part, name, function, arguments):
        case = Case(self, name)
        try:
            function(case, *arguments)
        except Exception:  # most likely a missing checkpoint or file
            case.check(False, traceback.format_exc())
        shutil.rmtree(case.folder, ignore_errors=True)
        with self.lock:
            self.done += 1
        self.progress(part, self.done, self.total)

    def run_part(self, part, make_cases, only):
        """Runs the cases of a part, some of them concurrently."""
        self.part_begun, self.done = time.monotonic(), 0
        before = self.report.passed, self.report.failed
        cases = [case for case in make_cases(self) if only is None or only in case[0]]
        self.total = len(cases)
        workers = 2 if part != "faults" else 8 if self.long else 4  # these mostly wait to try a save again
        with ThreadPoolExecutor(workers) as pool:
            for name, function, arguments in cases:
                pool.submit(self.run_case, part, name, function, arguments)
        passed, failed = self.report.passed - before[0], self.report.failed - before[1]
        print(f"{part}: {len(cases)} cases, {passed} checks passed, {failed} failed, "
              f"{time.monotonic() - self.part_begun:.0f} s", flush=True)

    def clean_up(self):
        for folder in self.mounted:
            subprocess.run(["umount", "-l", folder], capture_output=True)

    def end_at_once(self, *_):
        """On an interrupt: removes everything, although cases are still running."""
        Command.starting.acquire()
        self.report.check = lambda holds, text: None
        mine = f"{os.getpid()}."
        while pids := [int(pid) for pid in os.listdir("/proc")
                       if pid.isdigit() and environment_of(pid).get("TORTURE_MARK", "").startswith(mine)]:
            for pid in pids:
                send(pid, signal.SIGKILL)
        self.clean_up()
        for _ in range(100):  # threads may still write files there
            shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="an hour")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="only cases with this text in their names")
    parser.add_argument("--soak-csv", type=os.path.abspath, help="the soak's samples, one a second")
    parser.add_argument("parts", nargs="*", metavar="part", help=" ".join(PARTS))
    settings = parser.parse_args()
    if set(settings.parts) - set(PARTS):
        parser.error(f"the parts are {' '.join(PARTS)}")
    makers = {"kills": kills, "flips": flips, "faults": faults_part, "peers": peers, "soak": soak}
    print(f"seed {settings.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="torture_", ignore_cleanup_errors=True) as folder:
        test = Test(settings, os.path.realpath(folder))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, test.end_at_once)
        try:
            for part in settings.parts or PARTS:
                test.run_part(part, makers[part], settings.only)
        finally:
            test.clean_up()
    for figure, number in test.report.figures.items():
        print(f"{figure}: {number[0]} of {number[1]}" if isinstance(number, tuple) else f"{figure}: {number}")
    print(f"{test.report.passed} passed, {test.report.failed} failed")
    sys.exit(test.report.failed > 0 or test.report.passed == 0)


if __name__ == "__main__":
    main()
