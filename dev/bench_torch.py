#!/usr/bin/env python3
"""Times the same training step here and in PyTorch, alternately in one run, and prints the ratio of the medians.

    python3 dev/bench_torch.py [--rounds N] [--shapes small,medium,gpt2] [--precisions fp32,bf16] [--variants eager,compiled]
    python3 dev/bench_torch.py --cuda --model gpt2-124M --batch 16 --sequence-length 1024 [--variants compiled,eager]

--cuda times PyTorch alone, on a GPU, with bf16 autocast, SDPA and fused AdamW, as nanoGPT trains; dev/gpu_check.sh runs
our trainer on the same shape. Without it, on the CPU:

PyTorch trains the same GPT-2 (F.scaled_dot_product_attention if available, AdamW, tied head, fp32 or bf16
autocast) on the CPU with the same number of threads. First run `make bench`, which builds the other side,
build/cpu/dev/bench. For Debian's PyTorch 1.13, whose defaults are slow, set
    ATEN_CPU_CAPABILITY=avx512 LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu/openblas-openmp
"""
import argparse
import inspect
import math
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

SHAPES = {  # L NH C T B V, rounds
    "small": ((4, 4, 128, 64, 12, 65), 100),
    "medium": ((6, 6, 384, 256, 4, 65), 12),
    "gpt2": ((12, 12, 768, 64, 4, 50257), 6),
}

MODELS = {"gpt2-124M": (12, 12, 768), "gpt2-350M": (24, 16, 1024), "gpt2-774M": (36, 20, 1280), "gpt2-1558M": (48, 25, 1600)}
VOCABULARY, PADDED_VOCABULARY = 50257, 50304


class Block(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.projection = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def attend(self, x):
        B, T, C = x.shape
        q, k, v = (y.view(B, T, self.heads, C // self.heads).transpose(1, 2) for y in self.qkv(x).split(C, dim=2))
        if hasattr(F, "scaled_dot_product_attention"):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mask = torch.ones(T, T, dtype=torch.bool).tril()
            scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
            out = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        return self.projection(out.transpose(1, 2).reshape(B, T, C))

    def forward(self, x):
        x = x + self.attend(self.ln1(x))
        return x + self.down(gelu(self.up(self.ln2(x))))


def gelu(x):
    try:
        return F.gelu(x, approximate="tanh")
    except TypeError:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


class GPT(nn.Module):
    def __init__(self, L, NH, C, T, V):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(T, C)
        self.blocks = nn.ModuleList(Block(C, NH) for _ in range(L))
        self.ln = nn.LayerNorm(C)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.ln(x) @ self.wte.weight.t()
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))


class Torch:
    def __init__(self, shape, precision, compiled):
        L, NH, C, T, B, V = shape
        torch.manual_seed(1)
        self.model = GPT(L, NH, C, T, V)
        fused = {"fused": True} if "fused" in inspect.signature(torch.optim.AdamW).parameters else {}
        options = dict(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
        try:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), **options, **fused)
        except RuntimeError:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), **options)
        self.loss = torch.compile(self.model) if compiled else self.model
        self.autocast = precision == "bf16"
        index = torch.arange(B * T).view(B, T)
        self.tokens, self.targets = index * 7919 % V, (index + 1) * 7919 % V

    def step(self):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.loss(self.tokens, self.targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return 1e3 * (time.perf_counter() - started)


class Ours:
    def __init__(self, shape, precision):
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../build/cpu/dev/bench")
        if not os.path.exists(program):
            sys.exit(f"error: {program} does not exist; build it with: make bench_program")
        words = [program, "serve", *map(str, shape), precision, "flash"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def step(self):
        self.process.stdin.write("step\n")
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def flop_per_token(L, C, T, V):
    """FLOPs of a training step per token, as the trainer counts them: only the causal half of attention, no padding of V."""
    return 3 * (L * (24 * C * C + 2 * T * C) + 2 * C * V)


def gpu_seconds(work, rounds, warm_up=3):
    """Returns the seconds of each of `rounds` calls, by the GPU's own clock."""
    for _ in range(warm_up):
        work()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    marks[0].record()
    for i in range(rounds):
        work()
        marks[i + 1].record()
    torch.cuda.synchronize()
    return [1e-3 * marks[i].elapsed_time(marks[i + 1]) for i in range(rounds)]


def measured_peak(n=8192):
    """Returns the FLOP/s of a square product in bf16, on random numbers."""
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / statistics.median(gpu_seconds(lambda: a @ b, 10))


class TrainingOnGPU:
    def __init__(self, name, batch, T, compiled, device="cuda"):
        L, NH, C = MODELS[name]
        torch.manual_seed(1)
        self.device = device
        self.model = GPT(L, NH, C, T, PADDED_VOCABULARY).to(device)
        for parameter in self.model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self.loss = torch.compile(self.model) if compiled else self.model
        self.tokens, self.targets = torch.randint(VOCABULARY, (2, batch, T), device=device)

    def step(self):
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.loss(self.tokens, self.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def bench_training_on_gpu(options):
    L, _, C = MODELS[options.model]
    tokens = options.batch * options.sequence_length
    flop = tokens * flop_per_token(L, C, options.sequence_length, VOCABULARY)
    torch.set_float32_matmul_precision("high")
    peak = measured_peak()
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}, square product in bf16 {peak / 1e12:.1f} TFLOP/s")
    for variant in options.variants.split(","):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        training = TrainingOnGPU(options.model, options.batch, options.sequence_length, variant == "compiled")
        seconds = statistics.median(gpu_seconds(training.step, options.rounds or 40, warm_up=10))
        print(f"{options.model}, PyTorch {variant}: {1e3 * seconds:.2f} ms/step, {tokens / seconds:.0f} tokens/s, "
              f"{flop / seconds / 1e12:.1f} TFLOP/s, {100 * flop / seconds / peak:.1f} % of the product, "
              f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB allocated, "
              f"{torch.cuda.max_memory_reserved() / 2**20:.0f} MiB reserved", flush=True)
        del training


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="small,medium,gpt2")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--variants", default="eager", help="eager, compiled, or both: the better one counts")
    parser.add_argument("--rounds", type=int, default=0, help="timed steps of each side; 0: as many as each shape needs")
    parser.add_argument("--cuda", action="store_true", help="time PyTorch alone, on a GPU")
    parser.add_argument("--model", default="gpt2-124M", choices=MODELS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=1024)
    options = parser.parse_args()
    if options.cuda and not torch.cuda.is_available():
        sys.exit("error: --cuda needs a GPU, and PyTorch finds none")
    if options.cuda:
        return bench_training_on_gpu(options)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, SDPA {hasattr(F, 'scaled_dot_product_attention')}")
    for name in options.shapes.split(","):
        shape, rounds = SHAPES[name]
        for precision in options.precisions.split(","):
            sides = {"ours": Ours(shape, precision)}
            for variant in options.variants.split(","):
                sides["torch " + variant] = Torch(shape, precision, variant == "compiled")
            times = {side: [] for side in sides}
            for i in range(3 + (options.rounds or rounds)):
                for side, runner in sides.items():
                    milliseconds = runner.step()
                    if i >= 3:
                        times[side].append(milliseconds)
            sides["ours"].close()
            medians = {side: statistics.median(t) for side, t in times.items()}
            best = min(v for side, v in medians.items() if side != "ours")
            shown = ", ".join(f"{side} {v:.2f} ms" for side, v in medians.items())
            print(f"{name} L NH C T B V = {shape} {precision}: {shown}: {best / medians['ours']:.2f} x", flush=True)


if __name__ == "__main__":
    main()
