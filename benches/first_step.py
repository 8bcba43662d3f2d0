#!/usr/bin/env python3
"""Seconds from the start of `linformer pretrain` to the end of its first and second step, the demo's model on a prepared corpus.

    benches/first_step.py [--runs 5] [--out benches/results/first_step.json]
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

from machine import PROGRAM, ROOT, machine


def run(folder, number):
    arguments = ["train.max_steps=2", "train.warmup_steps=1", "train.decay_steps=1", "train.log_every=1", "train.eval_every=0", f"data.cache_dir={folder}/cache",
                 f"run.dir={folder}/run-{number}"]
    started = time.time()
    subprocess.run([PROGRAM, "pretrain", ROOT / "experiments/demo/pretrain.json", "--quiet", *arguments], check=True, capture_output=True, cwd=ROOT)
    lines = [json.loads(line) for line in open(f"{folder}/run-{number}/metrics.jsonl")]
    return [line["time"] - started for line in lines if line["split"] == "train"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", default=ROOT / "benches/results/first_step.json", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(folder, 0)  # prepares the corpus
        seconds = [run(folder, number) for number in range(1, options.runs + 1)]
    first, second = ([each[i] for each in seconds] for i in [0, 1])
    print(f"first step after {statistics.median(first):.2f} s ({min(first):.2f} - {max(first):.2f}), second after {statistics.median(second):.2f} s, {options.runs} runs")
    options.out.write_text(json.dumps({"command": f"benches/first_step.py --runs {options.runs}", "machine": machine(), "first": first, "second": second}, indent=1) + "\n")


main()
