#!/usr/bin/env bash
# What the paper did, in small, on the text in data/: the steps a researcher would type.
#   scripts/demo.sh [smoke]     smoke: a few steps of everything
set -euo pipefail
cd "$(dirname "$0")/.."

bin=target/release/linformer
dir=runs/demo
extra=() rows=(--train-rows 6000 --dev-rows 1000)
if [ "${1:-}" = smoke ]; then
  dir=runs/demo-smoke
  rows=(--train-rows 200 --dev-rows 60)
  extra=(train.log_every=10 train.eval_every=20 data.max_validation_sequences=64)
  rm -rf $dir
fi
started=$SECONDS
say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

say "1. tokenizer, token files, and two tasks from the embedded text"
$bin data prepare experiments/demo/pretrain.json
$bin data derive data/text runs/demo/tasks --validation-fraction 0.08 "${rows[@]}"

say "2. pretraining: full attention, Linformer at three k, and one that starts as a mean pool"
if [ "${1:-}" = smoke ]; then
  $bin sweep experiments/demo/pretrain-sweep.json train.max_steps=40 train.warmup_steps=10 train.decay_steps=20 data.short_steps=20 "${extra[@]}"
else
  $bin sweep experiments/demo/pretrain-sweep.json
fi
