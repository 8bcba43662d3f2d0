#!/usr/bin/env python3
"""Training speed of ours beside its peers, in one interleaved run (`make bench`), or of two revisions of ours (`make bench-compare`).

    train_speed.py [--models R,W] [--precisions fp32,bf16] [--rounds 7] [--malloc tuned|default] [--peers ...] [--against PROGRAM]

Correctness comes first: fused and reference backend must give the same loss, else no figure is printed. A round in which
other processes used more than a tenth of a core is made again. Written: a table, and JSON under benches/results/.
"""
import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from machine import PROGRAM, ROOT, machine, sha256, units

MODELS = {
    "R": dict(V=8192, n=512, d=256, h=4, layers=6, k=128, batch=8, f=1024, steps=6),
    "W": dict(V=8192, n=512, d=768, h=12, layers=4, k=128, batch=8, f=3072, steps=3),
}
TUNED = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"
WARM = 3
# Student's t, 97.5 %, by degrees of freedom.
QUANTILES = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="R,W")
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(units())
    parser.add_argument("--precisions", default="fp32,bf16" if has_bf16 else "fp32", help="bf16 crawls on a processor without products in it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--malloc", choices=["tuned", "default"], default="tuned", help="of the peers; ours always sets its own")
    parser.add_argument("--peers", default="hugging-face,hugging-face-compile,lucidrains,floor,floor-chosen")
    parser.add_argument("--against", help="another program of ours, in place of the peers")
    parser.add_argument("--out", help="name of the JSON file (default: by date)")
    return parser.parse_args()


def busy():
    """Seconds that all cores together have been busy."""
    fields = list(map(int, open("/proc/stat").readline().split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


class Worker:
    """A peer that stays alive between rounds."""

    def __init__(self, python, peer, model, precision, tokens, threads, malloc):
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
        if malloc == "tuned":
            environment["GLIBC_TUNABLES"] = TUNED
        command = [python, ROOT / "benches/peers.py", peer, json.dumps(model), precision, tokens, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        if self.process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{peer} did not start")
        self.pid, self.steps = self.process.pid, max(2, model["steps"] // 2)

    def cpu(self):
        fields = open(f"/proc/{self.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def round(self):
        before = self.cpu()
        self.process.stdin.write(f"{self.steps}\n")
        self.process.stdin.flush()
        seconds = float(self.process.stdout.readline())
        return self.steps / seconds, self.cpu() - before

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """A run of the program; its own figure of the steps behind the warm-up."""

    def __init__(self, program, model, precision, folder, backend="fused"):
        self.program, self.model, self.precision, self.folder, self.backend = program, model, precision, folder, backend

    def config(self, steps):
        m = self.model
        return {
            "model": {"hidden_size": m["d"], "num_hidden_layers": m["layers"], "num_attention_heads": m["h"], "intermediate_size": m["f"],
                      "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "backend": self.backend,
                      "attention": {"k": m["k"], "sharing": "key_value"}},
            "data": {"corpus": str(ROOT / "data/text"), "tokenizer": "byte_bpe", "vocab_size": m["V"], "sequence_length": m["n"],
                     "cache_dir": str(self.folder / "cache"), "max_validation_sequences": 1},
            "train": {"max_steps": steps, "batch_size": m["batch"], "warmup_steps": 2, "learning_rate": 1e-4, "precision": self.precision,
                      "log_every": WARM, "eval_every": 0, "checkpoint_every": 0},
        }

    def run(self, steps):
        config = self.config(steps)
        config["run"] = {"dir": tempfile.mkdtemp(dir=self.folder) + "/run"}
        path = self.folder / "config.json"
        path.write_text(json.dumps(config))
        subprocess.run([self.program, "pretrain", path, "--quiet"], check=True, capture_output=True)
        return [json.loads(line) for line in open(pathlib.Path(config["run"]["dir"]) / "metrics.jsonl")]

    def round(self):
        before = sum(os.times()[2:4])
        steps = WARM + WARM * max(1, self.model["steps"] // WARM)
        records = [r for r in self.run(steps) if r["split"] == "train"][1:]
        tokens = self.model["batch"] * self.model["n"]
        seconds = sum(WARM * tokens / r["tokens_per_second"] for r in records)
        self.waited = statistics.mean(r["data_wait"] for r in records)
        return len(records) * WARM / seconds, sum(os.times()[2:4]) - before

    def close(self):
        pass


def check(program, model, precision, folder):
    """Losses of both backends on the same batches."""
    losses = [[r["loss"] for r in Ours(program, model, precision, folder, b).run(WARM) if r["split"] == "train"][0] for b in ["fused", "reference"]]
    limit = 1e-4 if precision == "fp32" else 5e-3
    if not abs(losses[0] - losses[1]) < limit:
        sys.exit(f"error: {precision}: fused and reference backend differ, losses {losses}: no figure is given")


def measure(contenders, rounds):
    speeds, again, disturbed = {name: [] for name in contenders}, 0, 0
    for number in range(rounds):
        for name, contender in contenders.items():
            for attempt in range(4):
                before, start = busy(), time.perf_counter()
                rate, own = contender.round()
                foreign = (busy() - before - own) / (time.perf_counter() - start)
                if foreign < 0.1 or attempt == 3:
                    break
                again += 1
            disturbed += foreign >= 0.1
            speeds[name].append(rate)
    return speeds, again, disturbed


def by_shape(python, model, precision, tokens, options):
    """Milliseconds a step of the floor's products, by shape: how often, and all of them together."""
    command = [python, ROOT / "benches/peers.py", "shapes", json.dumps(model), precision, tokens, str(options.threads)]
    shapes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for shape, row in sorted(shapes.items(), key=lambda item: -item[1]["milliseconds"]):
        print(f"    {shape:34} {row['count']:4} times  {row['milliseconds']:8.1f} ms")
    return shapes


def verdict(ours, against):
    """The change between two programs, round by round, and whether it is above the noise of the rounds."""
    changes = [math.log(a / b) for a, b in zip(ours, against)]
    mean = statistics.mean(changes)
    error = statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else math.inf
    limit = QUANTILES.get(len(changes) - 1, 2.23) * error
    word = ("FASTER" if mean > 0 else "SLOWER") if abs(mean) > limit else "no change above the noise"
    return {"change": math.expm1(mean), "noise": math.expm1(limit) if limit < math.inf else None, "verdict": word}


def main():
    options = arguments()
    python = ROOT / ".venv/bench/bin/python"
    results = {"machine": machine(), "threads": options.threads, "malloc_of_peers": options.malloc, "rounds": options.rounds,
               "peers": [line for line in open(ROOT / "benches/peers.txt").read().split("\n") if "==" in line], "runs": []}
    if options.against:
        results["against"] = {"program": options.against, "sha256": sha256(options.against)}
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for model_name in options.models.split(","):
            model = MODELS[model_name]
            for precision in options.precisions.split(","):
                check(PROGRAM, model, precision, folder)
                contenders = {"ours": Ours(PROGRAM, model, precision, folder)}
                if options.against:
                    contenders["against"] = Ours(options.against, model, precision, folder)
                else:
                    contenders["ours, reference backend"] = Ours(PROGRAM, model, precision, folder, "reference")
                    tokens = next(folder.glob("cache/corpus-*/train-00000.bin"))
                    for peer in options.peers.split(","):
                        contenders[peer] = Worker(python, peer, model, precision, tokens, options.threads, options.malloc)
                speeds, again, disturbed = measure(contenders, options.rounds)
                [contender.close() for contender in contenders.values()]
                tokens_per_step = model["batch"] * model["n"]
                rows = {}
                for contender, rates in speeds.items():
                    rates = sorted(rate * tokens_per_step for rate in rates)
                    rows[contender] = {"tokens_per_second": statistics.median(rates), "lowest": rates[0], "highest": rates[-1]}
                ours = rows["ours"]["tokens_per_second"]
                print(f"\n{model_name} {precision}, {options.threads} threads, {options.rounds} rounds ({again} made again, {disturbed} disturbed all the same), malloc of peers {options.malloc}, data_wait {contenders['ours'].waited:.2%}")
                for contender, row in rows.items():
                    row["ours_times"] = ours / row["tokens_per_second"]
                    print(f"  {contender:26} {row['tokens_per_second']:9,.0f} tokens/s  ({row['lowest']:,.0f} - {row['highest']:,.0f})   ours is {row['ours_times']:.2f} times it")
                run = {"model": model_name, "shape": model, "precision": precision, "made_again": again, "disturbed": disturbed,
                       "data_wait": contenders["ours"].waited, "speeds": rows}
                if options.against:
                    run["compared"] = verdict(speeds["ours"], speeds["against"])
                    noise = run["compared"]["noise"]
                    print(f"  {run['compared']['verdict']}: {run['compared']['change']:+.1%}, noise {'unknown' if noise is None else f'{noise:.1%}'} (95 %, rounds in pairs)")
                else:
                    run["floor_by_shape"] = by_shape(python, model, precision, tokens, options)
                results["runs"].append(run)
                sys.stdout.flush()
    kind = "compare" if options.against else "train_speed"
    out = ROOT / "benches/results" / (options.out or f"{kind}-{options.malloc}-{time.strftime('%Y-%m-%d')}.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten: {out.relative_to(ROOT)}")


main()
