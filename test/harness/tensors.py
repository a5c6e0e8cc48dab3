#!/usr/bin/env python3
"""Prints the name and the CRC-32 of every tensor in a checkpoint's model and optimizer files, however many there are.

    test/harness/tensors.py runs/NAME       the run's newest checkpoint
"""
import glob
import json
import struct
import sys
import zlib


def main():
    newest = sorted(glob.glob(sys.argv[1] + "/checkpoints/step_*"))[-1]
    lines = []
    for path in glob.glob(newest + "/*.safetensors"):
        with open(path, "rb") as file:
            content = file.read()
        size = struct.unpack("<Q", content[:8])[0]
        data = content[8 + size:]
        for name, tensor in json.loads(content[8:8 + size]).items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                lines.append("%s %s %08x" % (name, tensor["shape"], zlib.crc32(data[begin:end])))
    print("\n".join(sorted(lines)))


main()
