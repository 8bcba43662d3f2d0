#!/usr/bin/env python3
"""The peak of memory that `info` computes beside the one that training has (VmHWM), in MiB, with and without recomputation.

    benches/memory.py [--steps 8] [--out benches/results/memory.json]

A row is wrong where the two differ by more than 10 %; the exit code then is 1.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from machine import PROGRAM, ROOT, machine

# name: layers, width, heads, feed-forward width, n, k, sequences, micro-batch, precision
MODELS = {
    "R fp32": (6, 256, 4, 1024, 512, 128, 8, 8, "fp32"),
    "R bf16": (6, 256, 4, 1024, 512, 128, 8, 8, "bf16"),
    "W fp32": (4, 768, 12, 3072, 512, 128, 8, 8, "fp32"),
    "W bf16": (4, 768, 12, 3072, 512, 128, 8, 8, "bf16"),
    "long n fp32": (4, 256, 4, 1024, 4096, 256, 4, 4, "fp32"),
    "in pieces bf16": (6, 512, 8, 2048, 512, 128, 16, 8, "bf16"),
}


def config(model, recompute, steps, folder):
    layers, width, heads, inner, n, k, batch, micro, precision = model
    return {
        "model": {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner,
                  "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "attention": {"k": k, "sharing": "key_value"}},
        "data": {"corpus": str(ROOT / "data/text"), "vocab_size": 8192, "sequence_length": n, "cache_dir": str(folder / "cache"),
                 "max_validation_sequences": 2},
        "train": {"max_steps": steps, "batch_size": batch, "micro_batch_size": micro, "warmup_steps": 1, "learning_rate": 1e-4,
                  "precision": precision, "log_every": 1, "eval_every": 0, "checkpoint_every": 0, "recompute": recompute},
        "run": {"dir": tempfile.mkdtemp(dir=folder) + "/run"},
    }


def row(name, recompute, steps, folder):
    content = config(MODELS[name], recompute, steps, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(content))
    table = subprocess.run([PROGRAM, "info", path, "--peak-tflops", "1"], check=True, capture_output=True, text=True).stdout
    computed = float(re.search(r"memory at the peak, on a CPU +([\d,]+) MiB", table).group(1).replace(",", ""))
    said = subprocess.run([PROGRAM, "pretrain", path, "--quiet"], check=True, capture_output=True, text=True).stderr
    measured = float(re.search(r"peak memory ([\d,]+) MiB", said).group(1).replace(",", ""))
    lines = map(json.loads, open(pathlib.Path(content["run"]["dir"]) / "metrics.jsonl"))
    loss = [line["loss"] for line in lines if line["split"] == "train"][-1]
    return {"model": name, "recompute": recompute, "computed_mib": computed, "measured_mib": measured, "ratio": computed / measured, "loss": loss}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", help="names with this in them")
    parser.add_argument("--out", default=ROOT / "benches/results/memory.json", type=pathlib.Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    rows = []
    print(f"{'model':16} {'recompute':9} {'computed':>8} {'measured':>8} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as name:
        for model in MODELS:
            if options.only and options.only not in model:
                continue
            for recompute in [False, True]:
                rows.append(row(model, recompute, options.steps, pathlib.Path(name)))
                r = rows[-1]
                print(f"{model:16} {str(recompute):9} {r['computed_mib']:8.0f} {r['measured_mib']:8.0f} {r['ratio']:6.2f}", flush=True)
            if rows[-1]["loss"] != rows[-2]["loss"]:
                sys.exit(f"error: {model}: recomputation changed the loss, {rows[-2]['loss']} to {rows[-1]['loss']}")
    options.out.write_text(json.dumps({"command": "benches/memory.py", "machine": machine(), "threads": os.environ["OMP_NUM_THREADS"], "steps": options.steps,
                                       "models": {name: dict(zip("layers width heads inner n k batch micro_batch precision".split(), m)) for name, m in MODELS.items()},
                                       "rows": rows}, indent=1) + "\n")
    sys.exit(any(abs(r["ratio"] - 1) > 0.1 for r in rows))


main()
