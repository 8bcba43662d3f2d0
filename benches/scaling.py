#!/usr/bin/env python3
"""Training speed against n, k, d, batch and threads: tokens/s from configuration R, one number changed at a time.

    benches/scaling.py [--precision bf16] [--rounds 3] [--only n,k] [--out benches/results/scaling]

Rounds in turns, medians; a figure is that of the steps behind the warm-up. Written: JSON, CSV and, where matplotlib is
installed, a plot. About ten minutes on 2 cores. On fewer cores the curve of threads is that much shorter.
"""
import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

from machine import PROGRAM, ROOT, machine

BASE = dict(n=512, k=128, d=256, batch=8, threads=os.cpu_count())
# At a fixed number of tokens a step where n grows.
CURVES = {
    "n": [dict(n=n, batch=max(1, 4096 // n), k=min(128, n // 2)) for n in [128, 256, 512, 1024, 2048, 4096, 8192]],
    "k": [dict(k=k) for k in [32, 64, 128, 256, 512]],
    "d": [dict(d=d) for d in [128, 256, 512, 768]],
    "batch": [dict(batch=batch) for batch in [1, 2, 4, 8, 16]],
    "threads": [dict(threads=threads) for threads in range(1, (os.cpu_count() or 1) + 1)],
}
WARM, TIMED = 2, 3


def speed(point, kind, precision, folder):
    m = dict(BASE, **point)
    attention = {"kind": "full"} if kind == "full" else {"k": m["k"], "sharing": "key_value"}
    config = {
        "model": {"hidden_size": m["d"], "num_hidden_layers": 6, "num_attention_heads": m["d"] // 64, "intermediate_size": 4 * m["d"],
                  "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "attention": attention},
        "data": {"corpus": str(ROOT / "data/text"), "vocab_size": 8192, "sequence_length": m["n"], "cache_dir": str(folder / "cache"),
                 "max_validation_sequences": 1},
        "train": {"max_steps": WARM + TIMED, "batch_size": m["batch"], "warmup_steps": 1, "learning_rate": 1e-4, "precision": precision,
                  "log_every": 1, "eval_every": 0, "checkpoint_every": 0},
        "run": {"dir": tempfile.mkdtemp(dir=folder) + "/run"},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    subprocess.run([PROGRAM, "pretrain", path, "--quiet"], check=True, capture_output=True, env=dict(os.environ, OMP_NUM_THREADS=str(m["threads"])))
    lines = map(json.loads, open(pathlib.Path(config["run"]["dir"]) / "metrics.jsonl"))
    return statistics.median([line["tokens_per_second"] for line in lines if line["split"] == "train"][WARM:])


def plot(rows, path):
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot
    curves = list(dict.fromkeys(row["curve"] for row in rows))
    figure, axes = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3.5), squeeze=False)
    for axis, curve in zip(axes[0], curves):
        for kind in dict.fromkeys(row["attention"] for row in rows):
            points = [(row["value"], row["tokens_per_second"]) for row in rows if row["curve"] == curve and row["attention"] == kind]
            if points:
                axis.plot(*zip(*points), marker="o", label=kind)
        axis.set(xlabel=curve, xscale="log", ylim=(0, None), ylabel="tokens/s")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(CURVES))
    parser.add_argument("--out", default=ROOT / "benches/results/scaling", type=pathlib.Path)
    options = parser.parse_args()
    cases = [(curve, point, "linformer") for curve in options.only.split(",") for point in CURVES[curve]]
    # The curve over n has full attention beside it.
    cases += [("n", point, "full") for point in CURVES["n"] if "n" in options.only.split(",")]
    speeds = [[] for _ in cases]
    with tempfile.TemporaryDirectory() as name:
        for _ in range(options.rounds):
            for (_, point, kind), measured in zip(cases, speeds):
                measured.append(speed(point, kind, options.precision, pathlib.Path(name)))
    rows = [dict(curve=curve, value=dict(BASE, **point)[curve], attention=kind, **dict(BASE, **point), tokens_per_second=statistics.median(s),
                 lowest=min(s), highest=max(s)) for (curve, point, kind), s in zip(cases, speeds)]
    for row in rows:
        print(f"{row['curve']:8} {row['value']:6} {row['attention']:10} {row['tokens_per_second']:9,.0f} tokens/s  ({row['lowest']:,.0f} - {row['highest']:,.0f})")
    command = f"benches/scaling.py --precision {options.precision} --rounds {options.rounds} --only {options.only}"
    record = {"command": command, "machine": machine(), "base": BASE, "rows": rows}
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    with open(options.out.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, options.out.with_suffix(".svg"))


main()
