#!/usr/bin/env python3
"""`linformer data prepare` beside the Python library `tokenizers` (encode_batch): text file in, file of u16 ids out.

    pip install tokenizers && benches/prepare_speed.py [MB of text, default 50] [threads, default: all]

Both read the same file, one document a line, use the same tokenizer.json and threads, and write the same number of ids.
"""
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from array import array

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "target/release/linformer"
megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 50
threads = sys.argv[2] if len(sys.argv) > 2 else str(os.cpu_count())
os.environ["RAYON_NUM_THREADS"] = threads


def write_text(path: pathlib.Path) -> None:
    words = " ".join(p.read_text() for p in sorted((ROOT / "data/text").rglob("*.txt"))).split()
    rng, written = random.Random(0), 0
    with open(path, "w") as out:
        while written < megabytes * 1_000_000:
            at = rng.randrange(len(words) - 300)
            written += out.write(" ".join(words[at : at + 300]) + "\n")


def prepare(config: pathlib.Path, **data) -> pathlib.Path:
    config.write_text(json.dumps({"data": data}))
    output = subprocess.run([BINARY, "data", "prepare", config], check=True, capture_output=True, text=True).stdout
    return pathlib.Path(output.strip().split("; ")[-1])


def with_tokenizers(path: pathlib.Path, tokenizer_json: pathlib.Path, out: pathlib.Path) -> int:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    separator, count = tokenizer.token_to_id("</s>"), 0
    with open(path) as lines, open(out, "wb") as file:
        while batch := [line.rstrip("\n") for _, line in zip(range(1000), lines)]:
            for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
                ids = array("H", encoding.ids)
                ids.append(separator)
                ids.tofile(file)
                count += len(ids)
    return count


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    text = folder / "text.txt"
    write_text(text)
    size = text.stat().st_size / 1e6
    trained = prepare(folder / "t.json", corpus=str(ROOT / "data/text"), cache_dir=f"{name}/trained", vocab_size=16000)
    rows = []
    for attempt in range(3):
        start = time.perf_counter()
        made = prepare(folder / "c.json", corpus=str(text), document="line", tokenizer=str(trained / "tokenizer.json"), cache_dir=f"{name}/{attempt}")
        ours = time.perf_counter() - start
        meta = json.loads((made / "meta.json").read_text())
        our_ids = meta["train"]["tokens"] + meta["validation"]["tokens"]
        start = time.perf_counter()
        their_ids = with_tokenizers(text, trained / "tokenizer.json", folder / "out.bin")
        theirs = time.perf_counter() - start
        assert our_ids == their_ids, (our_ids, their_ids)
        rows.append((theirs / ours, ours, theirs))
        print(f"{size:.0f} MB, {threads} threads: linformer {size / ours:.1f} MB/s, tokenizers {size / theirs:.1f} MB/s, ratio {theirs / ours:.2f}")
    print(f"median ratio {sorted(rows)[1][0]:.2f} ({our_ids:,} ids, equal in number)")
