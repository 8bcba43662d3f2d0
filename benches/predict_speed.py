"""Predictions beside transformers' pipelines, on the same weights: equal numbers first, then rows per second.

    python benches/predict_speed.py FINETUNED PRETRAINED ROWS.tsv [copies of the rows, default 20]

FINETUNED and PRETRAINED are runs with full attention (RoBERTa as transformers knows it), such as
runs/demo/finetune/full_task=which_novel and runs/demo/pretrain/full; ROWS.tsv has the columns of the former's task. Needs
torch and transformers. Both sides compute in fp32 on OMP_NUM_THREADS threads.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy
import torch
import transformers
from transformers import PreTrainedTokenizerFast, RobertaConfig, pipeline
from safetensors.torch import load_file

BIN = str(pathlib.Path(__file__).resolve().parent.parent / "target/release/linformer")
FP32 = ["--set", "train.precision=fp32"]
transformers.logging.set_verbosity_error()


def best_checkpoint(run: pathlib.Path) -> pathlib.Path:
    step = json.loads((run / "summary.json").read_text()).get("best_step")
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    return next(c for c in checkpoints if step is None or int(c.name[5:]) == step) if step else checkpoints[-1]


def load(run: pathlib.Path, kind, labels=None):
    """The run's model and tokenizer as transformers' own."""
    config = json.loads((run / "config.json").read_text())
    ours = config["model"]
    assert ours["attention"]["kind"] == "full" and ours["norm"] == "post", "not RoBERTa"
    keys = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "type_vocab_size",
            "max_position_embeddings", "layer_norm_eps", "hidden_act", "pad_token_id"]
    theirs = RobertaConfig(**{k: ours[k] for k in keys}, **({"id2label": dict(enumerate(labels)), "label2id": {l: i for i, l in enumerate(labels)}} if labels else {}))
    model = kind(theirs).eval()
    weights = load_file(best_checkpoint(run) / "model.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all("decoder" in m or "position_ids" in m for m in missing), (missing, unexpected)
    # As RoBERTa's: the mask stands for a word with the space before it.
    ours_json = json.loads((run / "tokenizer.json").read_text())
    next(t for t in ours_json["added_tokens"] if t["content"] == "<mask>")["lstrip"] = True
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(ours_json))
        file.flush()
        tokenizer = fast_tokenizer(file.name, ours)
    return model, tokenizer, config


def fast_tokenizer(path: str, ours: dict):
    return PreTrainedTokenizerFast(tokenizer_file=path, bos_token="<s>", cls_token="<s>", eos_token="</s>",
                                   sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
                                   model_max_length=ours["max_position_embeddings"] - ours["pad_token_id"] - 1,
                                   model_input_names=["input_ids", "attention_mask"])


def linformer(*arguments, text=None):
    started = time.perf_counter()
    done = subprocess.run([BIN, *map(str, arguments)], input=text, capture_output=True, text=True, check=True)
    return done.stdout, time.perf_counter() - started


def main() -> None:
    finetuned, pretrained, rows = map(pathlib.Path, sys.argv[1:4])
    copies = int(sys.argv[4]) if len(sys.argv) > 4 else 20
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))

    # Guesses for masks.
    model, tokenizer, _ = load(pretrained, transformers.RobertaForMaskedLM)
    guess = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=5)
    for text in ["The <mask> of the people.", "It is a truth <mask> acknowledged"]:
        ours = json.loads(linformer("fill-mask", pretrained, text, "--json", *FP32)[0])
        for mine, theirs in zip(ours, guess(text)):
            assert mine["token"] == theirs["token"] and abs(mine["score"] - theirs["score"]) < 1e-5, (mine, theirs)

    # Vectors: mean over all tokens, and the first token's.
    texts = ["The ship sailed.", "A much longer sentence, about nothing in particular.", "x"]
    hidden = [model.roberta(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].detach().numpy() for t in texts]
    with tempfile.TemporaryDirectory() as folder:
        for pooling, theirs in [("mean", [h.mean(0) for h in hidden]), ("first", [h[0] for h in hidden])]:
            path = pathlib.Path(folder) / f"{pooling}.npy"
            linformer("embed", pretrained, "-", "--pooling", pooling, "--out", path, *FP32, text="\n".join(texts))
            assert numpy.abs(numpy.load(path) - numpy.stack(theirs)).max() < 1e-4

    # Labels, and how fast.
    labels = json.loads((finetuned / "config.json").read_text())["data"]["task"]
    table = [line.split("\t") for line in rows.read_text().splitlines()]
    first, second = [table[0].index(c) for c in ("sentence1", "sentence2")]
    names = {"which_novel": ["first", "second"]}[labels]
    model, tokenizer, config = load(finetuned, transformers.RobertaForSequenceClassification, names)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    pairs = [{"text": r[first], "text_pair": r[second]} for r in table[1:]] * copies
    options = {"truncation": True, "max_length": config["data"]["sequence_length"], "padding": True}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.tsv"
        path.write_text("\n".join(["\t".join(table[0]), *["\t".join(r) for r in table[1:]] * copies]) + "\n")
        out, _ = linformer("predict", finetuned, path, *FP32)
        ours = [line.split("\t") for line in out.splitlines()[1:]]
        for batch in (1, 64):
            count = len(pairs) if batch > 1 else len(pairs) // 10
            started = time.perf_counter()
            theirs = list(classify(pairs[:count], batch_size=batch, **options))
            seconds = time.perf_counter() - started
            same = sum(t["label"] == o[1] for t, o in zip(theirs, ours)) / count
            error = max(abs(t["score"] - float(o[2])) for t, o in zip(theirs, ours))
            print(f"transformers {transformers.__version__}, batch {batch:2}: {count / seconds:8,.0f} rows/s  ({count} rows; same labels {same:.4f}, largest difference {error:.1e})")
            assert error < 1e-4
        best = min(linformer("predict", finetuned, path, *FP32)[1] for _ in range(3))
        print(f"linformer predict, start-up included:  {len(pairs) / best:8,.0f} rows/s  ({len(pairs)} rows in {best:.2f} s)")
    first_answer = min(linformer("predict", finetuned, "-", text="a\tb\n")[1] for _ in range(5))
    print(f"linformer predict, one line, from start to end: {first_answer:.2f} s")


main()
