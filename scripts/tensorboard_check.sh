#!/usr/bin/env bash
# A real TensorBoard (pip, in .venv/) reads the event file of a short run: every scalar, with its values and steps.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=$PWD/.venv/tensorboard
if [ ! -e "$packages/complete" ]; then
  rm -rf "$packages"
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --target "$packages" 'tensorboard==2.20.*' 'setuptools<81'
  touch "$packages/complete"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --release --quiet
target/release/linformer pretrain experiments/demo/pretrain.json --quiet run.dir="$work/run" data.cache_dir="$work/cache" \
  train.max_steps=20 train.warmup_steps=5 train.log_every=5 train.eval_every=10 data.max_validation_sequences=64 data.short_steps=0 train.decay_steps=5
PYTHONPATH=$packages python3 scripts/read_events.py "$work/run"
