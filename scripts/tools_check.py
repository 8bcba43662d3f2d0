"""A served TensorBoard, pandas, polars and jsonschema on a small sweep; see tensorboard_check.sh."""
import json
import math
import pathlib
import subprocess
import sys
import time
import urllib.request

import jsonschema
import pandas
import polars

work, experiments = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
runs = work / "runs"


def tensorboard() -> None:
    port = 16006 + hash(str(work)) % 2000
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", "--logdir", runs, "--port", str(port), "--load_fast=false"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(path: str, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://localhost:{port}/data/{path}", data, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))

    try:
        for _ in range(300):
            try:
                if len(ask("runs")) == 3:
                    break
            except OSError:
                pass
            time.sleep(0.2)
        assert sorted(ask("runs")) == ["full/tensorboard", "linformer/tensorboard", "tensorboard-report"], ask("runs")
        run = "linformer/tensorboard"
        text = ask(f"plugin/text/text?run={run}&tag=text/config")
        assert "hidden_size" in text[0]["text"] and "<code" in text[0]["text"], text
        images = ask("plugin/images/tags")["tensorboard-report"]
        assert {"report/perplexity_by_k", "report/perplexity_by_tokens"} <= set(images), images
        tags = ask("plugin/histograms/tags")
        assert set(tags) == {run}, tags
        name = "roberta.encoder.layer.0.attention.self.key_projection"
        for group in ("weights", "gradients"):
            series = ask(f"plugin/histograms/histograms?run={run}&tag={group}/{name}")
            assert [point[1] for point in series] == [10, 20], series
            assert sum(bucket[2] for bucket in series[0][2]) == 8 * 64, series[0]
        experiment = ask("plugin/hparams/experiment", {"experimentName": ""})
        infos = {info["name"]: info for info in experiment["hparamInfos"]}
        assert infos["model.attention.k"]["type"] == "DATA_TYPE_FLOAT64", infos["model.attention.k"]
        # A key that only the second run has a value for is there too.
        assert "model.classifier_dropout" in infos and infos["model.attention.kind"]["type"] == "DATA_TYPE_STRING"
        names = [info["name"]["tag"] for info in experiment["metricInfos"]]
        assert "valid/perplexity" in names, names
        column = {"metric": {"group": "", "tag": "valid/perplexity"}} if "group" in experiment["metricInfos"][0]["name"] else {"metric": {"tag": "valid/perplexity"}}
        groups = ask("plugin/hparams/session_groups", {"experimentName": "", "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
                     "colParams": [column], "startIndex": 0, "sliceSize": 10})["sessionGroups"]
        assert len(groups) == 2, groups
        for group in groups:
            session = group["sessions"][0]
            assert session["status"] == "STATUS_SUCCESS", session
            kind = group["hparams"]["model.attention.kind"]
            summary = json.loads((runs / kind / "summary.json").read_text())
            value = next(m["value"] for m in group["metricValues"] if m["name"]["tag"] == "valid/perplexity")
            assert math.isclose(value, summary["perplexity"], rel_tol=1e-6), (value, summary["perplexity"])
        print(f"tensorboard: {len(groups)} runs in HParams with {len(infos)} keys and {len(names)} curves; texts, pictures and histograms are served")
    finally:
        server.terminate()
        server.wait()


def tables() -> None:
    path = runs / "linformer" / "metrics.jsonl"
    last = json.loads((runs / "linformer" / "summary.json").read_text())["perplexity"]
    metrics = pandas.read_json(path, lines=True)
    assert metrics[metrics.split == "valid"].perplexity.iloc[-1] == last
    frame = polars.read_ndjson(path, infer_schema_length=None)
    assert frame.filter(polars.col("split") == "valid")["perplexity"][-1] == last
    assert metrics.shape == frame.shape and metrics.shape[0] == 6, (metrics.shape, frame.shape)
    print(f"pandas and polars: {metrics.shape[0]} rows of {metrics.shape[1]} columns, alike")


def schemas() -> None:
    checks = {kind: jsonschema.Draft202012Validator(json.loads((work / f"{kind}.schema.json").read_text())) for kind in ("run", "sweep")}
    seen = 0
    for path in sorted(experiments.rglob("*.json")):
        config = json.loads(path.read_text())
        if "results" in path.parts or not isinstance(config, dict):
            continue
        kind = "sweep" if "base" in config else "run" if {"model", "data", "train", "run", "extends"} & set(config) else None
        if kind and "rounds" not in config:
            errors = [e.message for e in checks[kind].iter_errors(config)]
            assert not errors, f"{path}: {errors}"
            seen += 1
    wrong = [{"train": {"batchsize": 4}}, {"model": {"attention": {"kind": "fast"}}}, {"train": {"max_steps": "many"}}]
    assert all(not checks["run"].is_valid(config) for config in wrong)
    resolved = json.loads((runs / "full" / "config.json").read_text())
    assert checks["run"].is_valid(resolved), [e.message for e in checks["run"].iter_errors(resolved)]
    print(f"jsonschema: {seen} experiment files pass, {len(wrong)} wrong ones do not")


tensorboard()
tables()
schemas()
