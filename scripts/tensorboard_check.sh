#!/usr/bin/env bash
# The tools around us, real ones from pip (in .venv/): TensorBoard reads the event files of a small sweep (scalars, histograms,
# texts, pictures, HParams), pandas and polars its metrics.jsonl, and jsonschema holds the experiment files against our schema.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=$PWD/.venv/tensorboard
if [ ! -e "$packages/complete-2" ]; then
  rm -rf "$packages"
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --target "$packages" \
    'tensorboard==2.20.*' 'setuptools<81' pandas polars jsonschema
  touch "$packages/complete-2"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --release --quiet
linformer=$PWD/target/release/linformer
cat > "$work/sweep.json" <<END
{ "base": "$PWD/experiments/demo/pretrain.json", "dir": "$work/runs",
  "variants": [ { "name": "full", "set": { "model.attention.kind": "full" } },
                { "name": "linformer", "set": { "model.attention.k": 8, "train.histogram_every": 10, "model.classifier_dropout": 0.3 } } ],
  "set": { "data.cache_dir": "$work/cache", "train.max_steps": 20, "train.warmup_steps": 5, "train.log_every": 5, "train.eval_every": 10,
           "data.max_validation_sequences": 64, "data.short_steps": 0, "train.decay_steps": 5 } }
END
"$linformer" sweep "$work/sweep.json" 2> /dev/null > /dev/null
"$linformer" report "$work/runs" 2> /dev/null > /dev/null
"$linformer" config schema > "$work/run.schema.json"
"$linformer" config schema --sweep > "$work/sweep.schema.json"
export PYTHONPATH=$packages
for run in full linformer; do python3 scripts/read_events.py "$work/runs/$run"; done
python3 scripts/tools_check.py "$work" experiments
