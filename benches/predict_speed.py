"""Predictions beside transformers' pipelines, on the same weights: equal numbers first, then texts per second.

    python benches/predict_speed.py FINETUNED PRETRAINED ROWS.tsv [--encoder FOLDER] [--copies 10] [--rounds 5] [--out FILE.json]

FINETUNED and PRETRAINED are runs, such as runs/demo/finetune/full_task=which_novel and runs/demo/pretrain/full; ROWS.tsv has the
columns of the former's task, of two texts. FOLDER is an encoder that save_pretrained wrote, for `embed`. Needs torch and
transformers. Every model is exported and loaded from there; both sides compute in fp32 on OMP_NUM_THREADS threads. Ours is timed
from the start of the process to its end, theirs from the first text to the last, with everything loaded. Rounds are interleaved;
medians are reported, and processor time beside wall time: on a machine that others use, the former says more.
"""
import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import tempfile
import time

import numpy
import torch
import transformers
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = str(ROOT / "target/release/linformer")
FP32 = ["--set", "train.precision=fp32"]
START_UPS = 9
BATCH = 64
transformers.logging.set_verbosity_error()


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def linformer(*arguments, text=None) -> str:
    return subprocess.run([BIN, *map(str, arguments)], input=text, capture_output=True, text=True, check=True).stdout


def first_answer(arguments, line: str, header: int) -> float:
    """Seconds from the start of the process to its first answer to a line of standard input."""
    started = time.perf_counter()
    child = subprocess.Popen([BIN, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.stdin.write(line + "\n")
    child.stdin.flush()
    for _ in range(header + 1):
        assert child.stdout.readline()
    seconds = time.perf_counter() - started
    child.stdin.close()
    assert child.wait() == 0
    return seconds


def measure(sides: dict, rounds: int) -> dict:
    """`sides` maps a name to (texts, function); the rates of each, its rounds interleaved with the others'."""
    walls, cpus = {name: [] for name in sides}, {name: [] for name in sides}
    for _ in range(rounds):
        for name, (count, work) in sides.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            work()
            walls[name].append(count / (time.perf_counter() - wall))
            cpus[name].append(count / (cpu_seconds() - cpu))
    table = {}
    for name, (count, _) in sides.items():
        rate, of_cpu = statistics.median(walls[name]), statistics.median(cpus[name])
        ours, ours_cpu = statistics.median(walls["linformer"]), statistics.median(cpus["linformer"])
        table[name] = {"texts": count, "texts_per_second": rate, "lowest": min(walls[name]), "highest": max(walls[name]),
                       "texts_per_processor_second": of_cpu, "linformer_times": ours / rate, "linformer_times_of_processor": ours_cpu / of_cpu}
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("finetuned", type=pathlib.Path)
    parser.add_argument("pretrained", type=pathlib.Path)
    parser.add_argument("rows", type=pathlib.Path)
    parser.add_argument("--encoder", type=pathlib.Path)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    report = {"machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_at_start": os.getloadavg()[0], "kernel": platform.release()},
              "threads": threads, "rounds": args.rounds, "torch": torch.__version__, "transformers": transformers.__version__}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        lines = [row.split("\t") for row in args.rows.read_text().splitlines()]
        report["fill_mask"] = fill_mask(args, folder, lines)
        report["predict"] = predict(args, folder, lines)
        if args.encoder:
            report["embed"] = embed(args, folder, lines)
    starts = {
        "predict": (["predict", args.finetuned, "-"], "a\tb", 1),
        "fill_mask": (["fill-mask", args.pretrained, "-"], "The <mask> of the people", 0),
    }
    report["seconds_to_first_answer"] = {
        name: {"median": statistics.median(times), "lowest": min(times), "highest": max(times), "runs": START_UPS}
        for name, start in starts.items()
        for times in [[first_answer(*start) for _ in range(START_UPS)]]
    }
    show(report)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def cpu_name() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def exported(args, run: pathlib.Path, out: pathlib.Path, auto):
    linformer("export", run, "--out", out)
    model = auto.from_pretrained(out, trust_remote_code=True).eval()
    return model, AutoTokenizer.from_pretrained(out)


def fill_mask(args, folder, lines) -> dict:
    model, tokenizer = exported(args, args.pretrained, folder / "lm", AutoModelForMaskedLM)
    guess = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=5)
    words = [" ".join(row).split()[:10] for row in lines[1:]]
    texts = [" ".join(w[: len(w) // 2] + ["<mask>"] + w[len(w) // 2 + 1:]) for w in words]
    path = folder / "masks.txt"
    path.write_text("\n".join(texts) + "\n")

    def ours():
        with open(path) as file:
            return subprocess.run([BIN, "fill-mask", args.pretrained, "-", *FP32], stdin=file, capture_output=True, text=True, check=True).stdout

    mine = [json.loads(line) for line in ours().splitlines()]
    worst = 0.0
    for text, found in zip(texts[:200], mine):
        for a, b in zip(found, guess(text)):
            worst = max(worst, abs(a["score"] - b["score"]))
    assert worst < 1e-5, worst
    few = texts[: len(texts) // 4]
    sides = {"linformer": (len(texts), ours), "transformers, batch 1": (len(few), lambda: guess(few, batch_size=1)),
             f"transformers, batch {BATCH}": (len(texts), lambda: guess(texts, batch_size=BATCH))}
    return {"largest_difference": worst, "rates": measure(sides, args.rounds)}


def predict(args, folder, lines) -> dict:
    model, tokenizer = exported(args, args.finetuned, folder / "classifier", AutoModelForSequenceClassification)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    first, second = [lines[0].index(c) for c in ("sentence1", "sentence2")]
    pairs = [{"text": r[first], "text_pair": r[second]} for r in lines[1:]] * args.copies
    path = folder / "rows.tsv"
    path.write_text("\n".join(["\t".join(lines[0]), *["\t".join(r) for r in lines[1:]] * args.copies]) + "\n")
    options = {"truncation": True, "padding": True}
    ours = lambda: linformer("predict", args.finetuned, path, *FP32)
    mine = [line.split("\t") for line in ours().splitlines()[1:]]
    theirs = list(classify(pairs[:1000], batch_size=BATCH, **options))
    worst = max(abs(t["score"] - float(o[2])) for t, o in zip(theirs, mine))
    same = sum(t["label"] == o[1] for t, o in zip(theirs, mine)) / len(theirs)
    assert worst < 1e-4, worst
    few = pairs[: len(pairs) // 20]
    sides = {"linformer": (len(pairs), ours), "transformers, batch 1": (len(few), lambda: list(classify(few, batch_size=1, **options))),
             f"transformers, batch {BATCH}": (len(pairs), lambda: list(classify(pairs, batch_size=BATCH, **options)))}
    return {"largest_difference": worst, "same_labels": same, "rates": measure(sides, args.rounds)}


def embed(args, folder, lines) -> dict:
    """Means of the last hidden states of texts of 1 to 60 words."""
    model, tokenizer = AutoModel.from_pretrained(args.encoder).eval(), AutoTokenizer.from_pretrained(args.encoder)
    words = " ".join(" ".join(row) for row in lines[1:]).split()
    texts = [" ".join(words[at:at + 1 + at * 7 % 60]) for at in range(0, 6000, 12)]
    path, out = folder / "texts.txt", folder / "vectors.npy"
    path.write_text("\n".join(texts) + "\n")

    def theirs(batch):
        vectors = []
        for at in range(0, len(texts), batch):
            inputs = tokenizer(texts[at:at + batch], return_tensors="pt", padding=True, truncation=True)
            real = inputs["attention_mask"].unsqueeze(-1)
            vectors.append((model(**inputs).last_hidden_state * real).sum(1) / real.sum(1))
        return torch.cat(vectors).numpy()

    ours = lambda: linformer("embed", args.encoder, path, "--out", out)
    ours()
    worst = float(numpy.abs(numpy.load(out) - theirs(BATCH)).max())
    assert worst < 1e-4, worst
    sides = {"linformer": (len(texts), ours), "transformers, batch 1": (len(texts), lambda: theirs(1)),
             f"transformers, batch {BATCH}": (len(texts), lambda: theirs(BATCH))}
    return {"largest_difference": worst, "rates": measure(sides, args.rounds)}


def show(report) -> None:
    for what in ("predict", "fill_mask", "embed"):
        for name, side in report.get(what, {}).get("rates", {}).items():
            print(f"{what:10} {name:24} {side['texts_per_second']:9,.0f} texts/s   {side['texts_per_processor_second']:9,.0f} a processor second"
                  f"   linformer {side['linformer_times']:6.2f} times, of processor time {side['linformer_times_of_processor']:6.2f}")
    for what, seconds in report["seconds_to_first_answer"].items():
        print(f"{what:10} first answer after {seconds['median']:.2f} s ({seconds['lowest']:.2f} to {seconds['highest']:.2f})")


main()
