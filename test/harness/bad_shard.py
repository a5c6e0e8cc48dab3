#!/usr/bin/env python3
"""Writes a token shard that is easy to learn, except for the sequences at some positions of the training order.

    test/harness/bad_shard.py SHARD SEQUENCES T SEED FIRST END TOKEN

Sequences at the positions FIRST .. END - 1 of the order that --seed SEED gives (data/tokens/loader.h) are random tokens from
TOKEN up; all others repeat the tokens 0 to 6.
"""
import random
import struct
import sys

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def permute(index, count, seed, epoch):
    bits = 1
    while 1 << 2 * bits < count:
        bits += 1
    mask = (1 << bits) - 1
    key = mix(mix(seed + GOLDEN & MASK) ^ (epoch + 1) * GOLDEN & MASK)
    while True:
        left, right = index >> bits, index & mask
        for turn in range(8):
            scrambled = mix(right + mix(key + turn * GOLDEN & MASK) & MASK) >> 32
            left, right = right, left ^ scrambled & mask
        index = left << bits | right
        if index < count:
            return index


def main():
    path, (count, T, seed, first, end, token) = sys.argv[1], map(int, sys.argv[2:])
    tokens = [i % 7 for i in range(count * T + 1)]
    generator = random.Random(1)
    for position in range(first, end):
        begin = permute(position, count, seed, 0) * T
        tokens[begin:begin + T] = [token + generator.randrange(100) for _ in range(T)]
    with open(path, "wb") as file:
        file.write(struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253))
        file.write(struct.pack("<%dH" % len(tokens), *tokens))


main()
