#!/usr/bin/env python3
"""By how much two safetensors files of fp32 differ: prints the largest difference; fails above 1e-6 (or the second argument's)."""
import json
import struct
import sys


def read(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        body = file.read()
    header.pop("__metadata__", None)
    return {name: (about["dtype"], body[slice(*about["data_offsets"])]) for name, about in header.items()}


first, second = read(sys.argv[1]), read(sys.argv[2])
if first.keys() != second.keys():
    sys.exit(print(f"other tensors: {sorted(first.keys() ^ second.keys())[:3]}") or 1)
largest, where = 0.0, ""
for name, (kind, data) in first.items():
    if data == second[name][1]:
        continue
    form = {"F32": "f", "F64": "d", "I64": "q"}[kind]
    for a, b in zip(struct.iter_unpack(form, data), struct.iter_unpack(form, second[name][1])):
        if abs(a[0] - b[0]) > largest:
            largest, where = abs(a[0] - b[0]), name
print(f"within {largest:.1e} of one process ({where})")
sys.exit(largest > 1e-6)
