#!/usr/bin/env python3
"""Prints registers, shared memory, stack, spills and theoretical occupancy of every kernel, from the compiler's report.

    dev/kernel_resources.py --nvcc NVCC [--architectures sm_80,sm_90a] [--nvcc-flags "FLAGS"] SOURCE...

Prints one line for each kernel and architecture. A kernel fails if it spills registers, keeps an array in local memory,
does not fit on a multiprocessor, or does not tell the compiler its block size (__launch_bounds__); the last line is
`N passed, N failed`. `make kernel_resources` calls this for the trainer with the options of the build.

Occupancy is the number of warps that can be resident on a multiprocessor, as a share of its maximum, by the rules of the
CUDA C++ Programming Guide (section "Compute Capabilities") and of cuda_occupancy.h. "dynamic" is shared memory that is
allocated when the kernel is launched (DYNAMIC below).
"""
import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile

# Limits of a multiprocessor: warps, blocks, shared memory in KB.
LIMITS = {"sm_80": (64, 32, 164), "sm_86": (48, 16, 100), "sm_89": (48, 24, 100), "sm_90": (64, 32, 228),
          "sm_100": (64, 32, 228), "sm_120": (48, 24, 100)}
REGISTERS = 64 * 1024  # of a multiprocessor, in four parts; a warp is allocated units of 256
RESERVED = 1024  # bytes of shared memory that every block uses in addition to its own, in units of 128

# Dynamic shared memory in bytes, by the name of the kernel. The name includes the template arguments (as the table
# shows them) if the memory depends on them. If it depends on the model, it is that of gpt2-124M.
DYNAMIC = {
    "matmul_own_kernel": 2 * (128 + 64) * 128,  # two buffers of tiles of A and B, rows of 128 bytes
    "layernorm_forward_kernel": 4 * 768 * 4,  # LAYERNORM_WARPS rows in fp32
}

# Tiles of flash attention (attention/flash.cu) that need more than this are used only on GPUs with more shared memory.
SMALL_SHARED_MEMORY = 99 * 1024


def dynamic_shared(name, element):
    """Returns bytes. `element` is the size of floatX. For flash attention, mirrors ForwardShared and BackwardShared."""
    block = 64  # ForwardBlock and BackwardBlock are a few bytes smaller
    tile = re.search(r"(Forward|Backward)Tile<([\d, ]+)>", name)
    if tile and "finish_dq" not in name:
        numbers = [int(n) for n in tile.group(2).split(",")]
        if tile.group(1) == "Forward":
            head, warps, slabs, keys, stages, _ = numbers
            return (16 * slabs * warps + stages * keys) * head * element + block
        head, warps, slabs, groups, queries, _ = numbers
        keys = 16 * slabs * warps // groups
        return ((2 * keys + 4 * queries) * head + keys * queries) * element + queries * 8 + block
    return DYNAMIC.get(name, DYNAMIC.get(re.sub(r"<.*", "", name).split("::")[-1], 0))


def round_up(x, unit):
    return (x + unit - 1) // unit * unit


def blocks_per_multiprocessor(architecture, threads, registers, shared):
    warps_of_all, blocks_of_all, kilobytes = LIMITS[architecture.rstrip("af")]
    warps = (threads + 31) // 32
    by_registers = 4 * (REGISTERS // 4 // round_up(32 * registers, 256)) // warps
    by_shared = kilobytes * 1024 // round_up(shared + RESERVED, 128)
    return min(blocks_of_all, warps_of_all // warps, by_registers, by_shared), warps_of_all, warps


def run(words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(words)}:\n{done.stdout}")
    return done.stdout


def parse_ptx(ptx):
    """Returns a dictionary from mangled names to the maximum number of threads of a block (0 if it is not declared) and
    whether dynamic shared memory is used."""
    result = {}
    for part in ptx.split(".entry ")[1:]:
        name, attributes, body = re.match(r"(\w+)\s*\([^)]*\)([^{]*)(.*)", part, re.DOTALL).groups()
        bounds = re.search(r"\.(?:maxntid|reqntid)\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?", attributes)
        x, y, z = (int(n or 1) for n in bounds.groups()) if bounds else (0, 0, 0)
        result[name] = x * y * z, "dynamic_shared_memory" in body
    return result


def readable(names):
    text = subprocess.run(["c++filt"], input="\n".join(names), stdout=subprocess.PIPE, text=True, check=True).stdout
    result = {}
    for mangled, full in zip(names, text.splitlines()):
        full = re.sub(r"^void ", "", full)
        full = re.sub(r"\((?:[^()]|\([^()]*\))*\)$", "", full)  # the arguments
        result[mangled] = re.sub(r"\((\w+)\)(\d+)", r"\2", full)  # (MatmulLayout)2
    return result


def short(name):
    return name.replace("flash::", "")[:58]


def report_of(source, architecture, options):
    """Returns the properties of each kernel from its PTX (parse_ptx), and the report of ptxas."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = os.path.join(folder, "kernels.ptx")
        virtual = architecture.replace("sm_", "compute_")
        run([options.nvcc, *options.nvcc_flags.split(), "-ptx", f"-arch={virtual}", "-x", "cu", source, "-o", ptx])
        with open(ptx) as file:
            properties = parse_ptx(file.read())
        ptxas = os.path.join(os.path.dirname(options.nvcc), "ptxas")
        return properties, run([ptxas, "-v", f"-arch={architecture}", ptx, "-o", os.path.join(folder, "kernels.cubin")])


def kernels_of(source, architecture, options):
    """Returns a list of (mangled name, (threads or 0, whether dynamic shared memory is used), registers, static shared
    bytes, stack bytes, spilled bytes)."""
    properties, report = report_of(source, architecture, options)
    kernels = []
    for part in report.split("Compiling entry function ")[1:]:
        def number(pattern):
            found = re.search(pattern, part)
            return int(found.group(1)) if found else 0
        name = re.match(r"'(\w+)'", part).group(1)
        if "Used " not in part or "bytes stack frame" not in part:
            sys.exit(f"error: no resource report from ptxas for {name}")
        kernels.append((name, properties[name], number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"),
                        number(r"(\d+) bytes stack frame"),
                        number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")))
    return kernels


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvcc", required=True)
    parser.add_argument("--nvcc-flags", default="")
    parser.add_argument("--architectures", default="sm_80,sm_86,sm_90a")
    parser.add_argument("sources", nargs="+")
    options = parser.parse_args()
    passed = failed = 0
    print(f"{'kernel':58} {'':7} {'threads':>7} {'registers':>9} {'shared':>7} {'dynamic':>7} {'stack':>5} {'spills':>6} {'occupancy':>9}")
    architectures = options.architectures.split(",")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # one compiler per processor
        found = {a: [pool.submit(kernels_of, source, a, options) for source in options.sources] for a in architectures}
    for architecture in architectures:
        rows = [row for job in found[architecture] for row in job.result()]
        names = readable([row[0] for row in rows])
        for mangled, (threads, uses_dynamic), registers, shared, stack, spills in sorted(rows, key=lambda row: names[row[0]]):
            name = names[mangled]
            dynamic = dynamic_shared(name, 4 if "PRECISION_IS_FP32" in options.nvcc_flags else 2)
            wrong = []
            if uses_dynamic != (dynamic > 0):
                wrong.append("its entry in the table DYNAMIC of dev/kernel_resources.py is wrong")
            occupancy = "?"
            if threads == 0:
                wrong.append("its block size is not known: give it __launch_bounds__")
            else:
                blocks, room, warps = blocks_per_multiprocessor(architecture, threads, registers, shared + dynamic)
                occupancy = f"{100 * blocks * warps / room:.0f} %"
                if dynamic > SMALL_SHARED_MEMORY and "Tile<" in name and LIMITS[architecture.rstrip("af")][2] == 100:
                    occupancy = "not here"
                elif blocks == 0:
                    wrong.append("it does not fit on a multiprocessor")
            if spills:
                wrong.append(f"{spills} bytes of registers are spilled")
            if stack:
                wrong.append(f"{stack} bytes of local memory (an array that is not in registers)")
            print(f"{short(name):58} {architecture:7} {threads:7} {registers:9} {shared:7} {dynamic:7} {stack:5} {spills:6} {occupancy:>9}")
            for what in wrong:
                print(f"FAILED: {name} for {architecture}: {what}")
            failed += bool(wrong)
            passed += not wrong
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
