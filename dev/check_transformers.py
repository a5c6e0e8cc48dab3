#!/usr/bin/env python3
"""Checks checkpoints against Hugging Face's transformers, in both directions.

    python3 dev/check_transformers.py CHECKPOINT SHARD       (needs torch and transformers, on the CPU)

1. GPT2LMHeadModel.from_pretrained(CHECKPOINT) has the same loss on the first tokens of SHARD as ./train_gpt;
   the tokenizer of the folder, too, can be loaded and decodes what it encodes.
2. A GPT-2 with random weights, saved by transformers (with and without the `transformer.` prefix, with the attn.bias
   buffers of old files), is loaded by ./train_gpt --init-from and has the same loss there as in transformers.

The exit status is 0 if all losses agree to 1e-4.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
TRAINER = os.path.join(HERE, "../build/cpu/train_gpt")
BATCH, LENGTH = 4, 32


def our_loss(weights, shard, vocabulary):
    """Returns the loss of the first validation batches without training: runs one step at learning rate 0."""
    with tempfile.TemporaryDirectory() as run:
        words = [TRAINER, "--run", run, "--init-from", weights, "--train", shard, "--validation", shard,
                 "--batch", str(BATCH), "--sequence-length", str(LENGTH), "--steps", "1", "--warmup", "0",
                 "--learning-rate", "0", "--validation-batches", "2", "--sample-tokens", "1"]
        result = subprocess.run(words, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"train_gpt failed: {result.stderr}")
        lines = [json.loads(line) for line in open(os.path.join(run, "metrics.jsonl"))]
        return next(line["validation_loss"] for line in lines if "validation_loss" in line)


def their_loss(model, shard):
    tokens = numpy.fromfile(shard, dtype=numpy.uint16)[512:].astype(numpy.int64)
    rows = [tokens[i * LENGTH : i * LENGTH + LENGTH + 1] for i in range(2 * BATCH)]
    x = torch.tensor(numpy.stack(rows))
    with torch.no_grad():
        logits = model(x[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), x[:, 1:].reshape(-1)).item()


def compare(what, ours, theirs):
    print(f"{what}: ours {ours:.6f}, transformers {theirs:.6f}, difference {abs(ours - theirs):.1e}")
    return abs(ours - theirs) <= 1e-4


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    checkpoint, shard = sys.argv[1:]
    model = GPT2LMHeadModel.from_pretrained(checkpoint).eval()
    vocabulary = model.config.vocab_size
    good = compare("our checkpoint", our_loss(checkpoint, shard, vocabulary), their_loss(model, shard))
    tokenizer = os.path.join(checkpoint, "tokenizer.json")
    if os.path.exists(tokenizer):
        text = "Once upon a time, in 1999, there was a GPT."
        fast = PreTrainedTokenizerFast(tokenizer_file=tokenizer)
        good &= fast.decode(fast.encode(text)) == text
        print("our tokenizer.json:", fast.encode(text)[:8], "...")

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=48, n_layer=3, n_head=2, initializer_range=0.2)
    model = GPT2LMHeadModel(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = os.path.join(folder, "model.safetensors")
        if os.path.exists(tokenizer):
            shutil.copy(tokenizer, folder)
        theirs = their_loss(model, shard)
        good &= compare("their random model", our_loss(folder, shard, vocabulary), theirs)
        bare = {name.replace("transformer.", ""): t.clone() for name, t in load_file(path).items()}
        bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
        bare["h.1.attn.masked_bias"] = torch.tensor(-1e4)
        bare["lm_head.weight"] = bare["wte.weight"].clone()
        save_file(bare, path, metadata={"format": "pt"})
        good &= compare("without the prefix, with buffers", our_loss(folder, shard, vocabulary), theirs)
        half = {name: t.bfloat16() for name, t in bare.items()}
        save_file(half, path, metadata={"format": "pt"})
        rounded = GPT2LMHeadModel(config).eval()
        rounded.load_state_dict({"transformer." + n if n != "lm_head.weight" else n: t.float() for n, t in half.items()
                                 if not n.endswith("masked_bias")}, strict=False)
        good &= compare("in bf16", our_loss(folder, shard, vocabulary), their_loss(rounded, shard))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
