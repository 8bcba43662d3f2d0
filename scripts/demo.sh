#!/usr/bin/env bash
# What the paper did, in small, on the text in data/: the commands a researcher would type, one after the other.
#   scripts/demo.sh [smoke]     smoke: a few steps of everything, in runs/demo-smoke/
set -euo pipefail
cd "$(dirname "$0")/.."

linformer() { "$bin" "$@"; }
bin=$PWD/target/release/linformer
rows=(--train-rows 12000 --dev-rows 1000)
pretrain=() finetune=()
if [ "${1:-}" = smoke ]; then
  # The same files from a folder of its own, so that a real demo's runs stay.
  rm -rf runs/demo-smoke
  mkdir -p runs/demo-smoke
  ln -s "$PWD/data" "$PWD/experiments" runs/demo-smoke/
  cd runs/demo-smoke
  rows=(--train-rows 300 --dev-rows 60)
  pretrain=(train.max_steps=40 train.warmup_steps=10 train.decay_steps=20 train.log_every=20 train.eval_every=20 data.short_steps=20 data.max_validation_sequences=64)
  finetune=(train.max_steps=10 train.warmup_steps=2 train.log_every=5 train.eval_every=5)
fi
say() { printf '\n== %s  [%d s]\n' "$1" $SECONDS; }

say "1. a tokenizer, token files, and two tasks from the text in data/"
linformer data prepare experiments/demo/pretrain.json
linformer data derive experiments/demo/pretrain.json runs/demo/tasks --words 18 "${rows[@]}"

say "2. masked-LM pretraining: full attention, Linformer at three k, one started as a mean pool"
linformer sweep experiments/demo/pretrain-sweep.json "${pretrain[@]}"

say "3. fine-tuning each on both tasks, and one model from random weights"
linformer sweep experiments/demo/finetune-sweep.json "${finetune[@]}"

say "4. report"
linformer report runs/demo/pretrain runs/demo/finetune --out runs/demo/report

say "done"
cat <<END
report:        $PWD/runs/demo/report/report.html
TensorBoard:   pip install tensorboard && tensorboard --logdir $PWD/runs/demo
a bigger one:  target/release/linformer sweep experiments/small/k-sweep.json   (see its numbers first: linformer info experiments/small/base.json)
END
