#!/usr/bin/env python3
"""Times our attention and PyTorch's alternately, in one process and on the same memory, and prints the ratio of the medians.

    python3 dev/bench_attention.py [--rounds N] [--lengths 512,1024] [--head-sizes 64,128] [--dropouts 0,0.1]
    python3 dev/bench_attention.py --cpu

Causal self-attention on packed q, k, v. On a GPU (the default if there is one) our variants, with sums in a fixed order
and with atomics, are compared with PyTorch's flash, cuDNN and efficient backends and its deterministic flash:
NH * HS = 2048, 16,384 tokens, bf16. On the CPU our flash is compared with PyTorch's: NH * HS = 768, 4,096 tokens, fp32.
First run `make attention_library`, which builds our side.

For each case (HS, T, dropout), our out, dq, dk and dv are first compared with PyTorch's, without dropout; the program
ends with exit status 1 if a row of HS elements differs by more than the tolerance. Then follows a line for each side:
forward, backward and both, each in ms, in TFLOP/s (the causal half only; GFLOP/s on the CPU), and as the time of
PyTorch's flash divided by that of the side: a ratio above 1 is faster than PyTorch. Deterministic sides are compared with
PyTorch's deterministic flash.

Threads that spin while they wait slow down the other side and other programs: on the CPU, set OMP_WAIT_POLICY=passive.
"""
import argparse
import contextlib
import ctypes
import itertools
import os
import statistics
import sys
import time
import warnings

try:
    import torch
except ImportError:
    sys.exit(f"error: {sys.executable} has no PyTorch; install it in a virtual environment with: pip install torch")
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench_torch import gpu_seconds

FLASH, DETERMINISTIC = "torch flash", ", deterministic"
# Tolerance for the error of a row, relative to the mean of its own norm and the average norm of rows. Two correct
# results differed by up to 4e-2 in bf16 (dq of the first queries) and by 1e-5 in fp32.
TOLERANCE = {torch.bfloat16: 1e-1, torch.float32: 1e-4}
PASSES = {"forward": 1, "backward": 2.5, "both": 3.5}  # times the FLOP of a forward pass


class Case(ctypes.Structure):
    """LibraryCase of dev/attention_library.cu."""
    _fields_ = ([("variant", ctypes.c_char_p)] +
                [(name, ctypes.c_uint64) for name in ("B", "T", "NH", "NKV", "HS", "q_token", "kv_token", "out_token")] +
                [("dropout", ctypes.c_double)] +
                [(name, ctypes.c_uint64) for name in ("seed", "step", "causal", "atomics")])


class Inputs:
    """The inputs of all sides, of shape (B, T, NH, HS); q, k and v are parts of one tensor."""

    def __init__(self, place, B, T, NH, HS):
        torch.manual_seed(1)
        options = {"device": place.device, "dtype": place.dtype}
        self.row = 3 * NH * HS  # stride between tokens, in elements
        packed = torch.randn(B, T, self.row, **options)
        self.q, self.k, self.v = (x.view(B, T, NH, HS) for x in packed.split(NH * HS, dim=2))
        self.dout = torch.randn(B, T, NH, HS, **options)


class Torch:
    def __init__(self, inputs, dropout, backend, deterministic=False):
        self.backend, self.deterministic, self.dropout = backend, deterministic, dropout
        self.inputs = [x.transpose(1, 2).detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
        self.dout = inputs.dout.transpose(1, 2)
        with self.turn():
            self.out = self.attend()

    @contextlib.contextmanager
    def turn(self):
        torch.use_deterministic_algorithms(self.deterministic)
        try:
            with sdpa_kernel(self.backend):
                yield
        finally:
            torch.use_deterministic_algorithms(False)

    def attend(self):
        return F.scaled_dot_product_attention(*self.inputs, is_causal=True, dropout_p=self.dropout)

    def forward(self):
        with torch.no_grad():
            self.attend()

    def backward(self):
        return torch.autograd.grad(self.out, self.inputs, self.dout, retain_graph=True)

    def both(self):
        torch.autograd.grad(self.attend(), self.inputs, self.dout)

    def results(self):
        return [x.detach().transpose(1, 2) for x in (self.out, *self.backward())]


class Ours:
    def __init__(self, inputs, dropout, library, variant, atomics=False):
        B, T, NH, HS = inputs.q.shape
        self.library, self.inputs = library, inputs
        self.case = Case(variant.encode(), B, T, NH, NH, HS, inputs.row, inputs.row, NH * HS, dropout,
                         seed=1, step=1, causal=True, atomics=atomics)
        refusal = library.library_refusal(self.case)
        if refusal:
            raise RuntimeError(refusal.decode())
        floats = {"device": inputs.q.device, "dtype": torch.float32}
        self.lse = torch.empty(B, NH, T, **floats)
        self.saved = torch.empty(library.library_saved_size(self.case), **floats)
        self.scratch = torch.empty(library.library_scratch_size(self.case), **floats)
        self.out = torch.empty_like(inputs.dout)
        packed = torch.empty(B, T, inputs.row, device=inputs.q.device, dtype=inputs.q.dtype)
        self.gradients = [x.view(B, T, NH, HS) for x in packed.split(NH * HS, dim=2)]
        self.stream = torch.cuda.current_stream().cuda_stream if inputs.q.is_cuda else 0
        self.forward()

    turn = staticmethod(contextlib.nullcontext)

    def call(self, function, *tensors):
        function(self.case, *(x.data_ptr() for x in tensors), self.stream)

    def forward(self):
        x = self.inputs
        self.call(self.library.library_forward, self.out, self.lse, self.saved, x.q, x.k, x.v)

    def backward(self):
        x = self.inputs
        self.call(self.library.library_backward, *self.gradients, x.dout, x.q, x.k, x.v, self.out, self.lse, self.saved,
                  self.scratch)

    def both(self):
        self.forward()
        self.backward()

    def results(self):
        self.both()
        return [self.out, *self.gradients]


class Place:
    """A device, the sizes measured on it, its clock, and the sides that are compared."""

    def __init__(self, on_gpu, path):
        self.library = open_library(path or default_library(on_gpu))
        if self.library.library_is_gpu() != on_gpu:
            sys.exit(f"error: {path} was built for " + ("the CPU: give --cpu" if on_gpu else "a GPU, but this runs on the CPU"))
        self.dtype = torch.bfloat16 if self.library.library_is_bf16() else torch.float32
        names = itertools.takewhile(bool, map(self.library.library_variant, itertools.count()))
        variants = [name.decode() for name in names if name != b"naive"]
        self.sides = {FLASH: (Torch, SDPBackend.FLASH_ATTENTION)}
        if on_gpu:
            self.device, self.name, self.channels, self.tokens = "cuda", torch.cuda.get_device_name(), 2048, 16384
            self.head_sizes, self.lengths, self.dropouts = (64, 128), (512, 1024, 2048, 4096, 8192, 16384), (0, 0.1)
            self.rate, self.unit, self.rounds = "TFLOP/s", 1e12, 5
            self.seconds = lambda work: gpu_seconds(work, 4, warm_up=1)  # calls are queued, so the GPU is never idle
            self.sides[FLASH + DETERMINISTIC] = (Torch, SDPBackend.FLASH_ATTENTION, True)
            self.sides["torch cudnn"] = (Torch, SDPBackend.CUDNN_ATTENTION)
            self.sides["torch efficient"] = (Torch, SDPBackend.EFFICIENT_ATTENTION)
            for variant in variants:
                self.sides[f"ours {variant}"] = (Ours, self.library, variant, True)
                self.sides[f"ours {variant}{DETERMINISTIC}"] = (Ours, self.library, variant, False)
        else:
            self.device, self.name, self.channels, self.tokens = "cpu", "CPU", 768, 4096
            self.head_sizes, self.lengths, self.dropouts = (64,), (256, 512, 1024, 2048, 4096), (0,)
            self.rate, self.unit, self.rounds, self.seconds = "GFLOP/s", 1e9, 9, cpu_seconds
            for variant in variants:
                self.sides[f"ours {variant}"] = (Ours, self.library, variant)

    def describe(self):
        text = ctypes.create_string_buffer(320)
        self.library.library_describe(text, len(text))
        policy = "" if self.device == "cuda" else f", OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')}"
        return (f"PyTorch {torch.__version__}, {self.name}, {torch.get_num_threads()} threads; ours: {text.value.decode()}; "
                f"{str(self.dtype)[6:]}, causal, NH * HS = {self.channels}, {self.tokens} tokens{policy}")


def default_library(on_gpu):
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "../build", "cuda-bf16" if on_gpu else "cpu",
                        "dev/libattention.so")


def open_library(path):
    if not os.path.exists(path):
        sys.exit(f"error: {os.path.normpath(path)} does not exist; build it with: make attention_library")
    library = ctypes.CDLL(path)
    case, pointer, size = ctypes.POINTER(Case), ctypes.c_void_p, ctypes.c_size_t
    for name, result, parameters in (
            ("describe", None, [ctypes.c_char_p, size]), ("variant", ctypes.c_char_p, [size]),
            ("refusal", ctypes.c_char_p, [case]), ("saved_size", size, [case]), ("scratch_size", size, [case]),
            ("forward", None, [case] + 7 * [pointer]), ("backward", None, [case] + 12 * [pointer])):
        function = getattr(library, "library_" + name)
        function.restype, function.argtypes = result, parameters
    return library


def cpu_seconds(work):
    started = time.perf_counter()
    work()
    return [time.perf_counter() - started]


def reason_of(error, caught):
    """Returns the most specific message: PyTorch states its reasons in warnings, each after a title."""
    reasons = [line for line in (str(w.message).split(" (Triggered")[0] for w in caught) if not line.endswith("because:")]
    return (reasons + str(error).splitlines())[0][:80]


def open_sides(place, inputs, dropout):
    """Returns the sides that support this case, each of which has run once, and the reasons why others do not."""
    sides, reasons = {}, {}
    for name, (kind, *arguments) in place.sides.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                side = kind(inputs, dropout, *arguments)
                with side.turn():
                    side.both()
                sides[name] = side
            except RuntimeError as error:
                reasons[name] = reason_of(error, caught)
    return sides, reasons


def difference(ours, theirs):
    """Returns the largest error of all rows; NaN if there is any NaN."""
    theirs = theirs.float()
    error, size = (ours.float() - theirs).norm(dim=-1), theirs.norm(dim=-1)
    return (2 * error / (size + size.mean())).max().item()


def check(place, inputs, case):
    """Prints the largest difference between our results and PyTorch's; ends the program if it exceeds the tolerance."""
    sides, reasons = open_sides(place, inputs, dropout=0.0)
    theirs = [side for side in sides.values() if isinstance(side, Torch)]
    ours = {name: side for name, side in sides.items() if isinstance(side, Ours)}
    if not theirs or not ours:
        sys.exit(f"error: {case}: nothing to compare: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    with theirs[0].turn():
        expected = theirs[0].results()
    largest, tolerance = 0.0, TOLERANCE[place.dtype]
    for name, side in ours.items():
        for tensor, x, y in zip(("out", "dq", "dk", "dv"), side.results(), expected):
            found = difference(x, y)
            if not found <= tolerance:
                sys.exit(f"error: {case}: {tensor} of {name} differs from PyTorch's by {found:.1e}, more than {tolerance:.0e}")
            largest = max(largest, found)
    print(f"{case}: out, dq, dk, dv differ by {largest:.1e} from PyTorch's, at most {tolerance:.0e} is allowed")


def measure(place, sides, rounds):
    """Returns the median seconds of every side and pass; the sides alternate."""
    seconds = {(name, work): [] for work in PASSES for name in sides}
    for work in PASSES:
        for _ in range(rounds):
            for name, side in sides.items():
                with side.turn():
                    seconds[name, work] += place.seconds(getattr(side, work))
    return {key: statistics.median(taken) for key, taken in seconds.items()}


def bench(place, inputs, dropout, rounds):
    B, T, NH, HS = inputs.q.shape
    sides, reasons = open_sides(place, inputs, dropout)
    seconds = measure(place, sides, rounds)
    for name in place.sides:
        line = f"{HS:4} {T:6} {dropout:5g} {name:27}"
        if name in reasons:
            print(line, reasons[name])
            continue
        other = FLASH + DETERMINISTIC if name.endswith(DETERMINISTIC) else FLASH
        for work, factor in PASSES.items():
            taken, flop = seconds[name, work], factor * 2 * B * NH * T * T * HS
            ratio = f"{seconds[other, work] / taken:5.2f}" if other in sides else "    -"
            line += f" {1e3 * taken:11.3f} {flop / taken / place.unit:7.1f} {ratio}"
        print(line, flush=True)


def numbers(kind, lowest):
    def parse(text):
        try:
            values = [kind(word) for word in text.split(",")]
        except ValueError:
            values = []
        if not values or min(values) < lowest:
            raise argparse.ArgumentTypeError(f"{text}: expected comma-separated numbers, each at least {lowest}")
        return values
    return parse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="run on the CPU even where there is a GPU")
    parser.add_argument("--rounds", type=int, help="turns of each side; default: 9 on the CPU, 5 (of 4 calls each) on a GPU")
    parser.add_argument("--lengths", type=numbers(int, 2), metavar="T,...", help="sequence lengths in tokens")
    parser.add_argument("--head-sizes", type=numbers(int, 8), metavar="HS,...")
    parser.add_argument("--dropouts", type=numbers(float, 0), metavar="P,...")
    parser.add_argument("--library", help="default: build/cuda-bf16/dev/libattention.so, build/cpu/dev/libattention.so with --cpu")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.utils.deterministic.fill_uninitialized_memory = False  # deterministic mode would first fill outputs with NaN
    place = Place(torch.cuda.is_available() and not options.cpu, options.library)
    print(place.describe())
    print(f"{'HS':>4} {'T':>6} {'drop':>5} {'side':27}" + "".join(f" {work + ' ms':>11} {place.rate} ratio" for work in PASSES))
    for HS in options.head_sizes or place.head_sizes:
        for T in options.lengths or place.lengths:
            inputs = Inputs(place, max(1, place.tokens // T), T, place.channels // HS, HS)
            check(place, inputs, f"HS {HS}, T {T}")
            for dropout in options.dropouts or place.dropouts:
                bench(place, inputs, dropout, options.rounds or place.rounds)


if __name__ == "__main__":
    main()
