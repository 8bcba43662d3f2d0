#!/usr/bin/env bash
# How long training stands still for checkpoints, and what writing them in the background costs beside that: a model of 8 million
# weights (checkpoints of 90 MB) that saves every 25 steps, in turns with one that never saves.
#   benches/checkpoint_stall.sh [rounds]
set -euo pipefail
cd "$(dirname "$0")/.."
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
run() { # name, checkpoint_every
  target/release/linformer pretrain experiments/demo/pretrain.json --quiet run.dir="$runs/$1" data.cache_dir="$runs/cache" \
    model.hidden_size=256 model.num_hidden_layers=6 model.intermediate_size=1024 data.vocab_size=8192 data.sequence_length=512 \
    model.attention.k=128 data.short_steps=0 data.short_sequence_length=null data.max_validation_sequences=2 \
    train.batch_size=8 train.max_steps=76 train.warmup_steps=5 train.decay_steps=null train.log_every=25 train.eval_every=0 \
    train.checkpoint_every="$2" 2>"$runs/$1.log"
  # Of the windows after the first save: the share of the time, and tokens a second.
  python3 - "$runs/$1/metrics.jsonl" "$1" <<'PY'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
windows = [line for line in lines if line["split"] == "train" and line["step"] in (50, 75)]
mean = lambda key: sum(w[key] for w in windows) / len(windows)
print(f"{sys.argv[2]:8} stall {100 * mean('checkpoint_stall'):.2f} % of the time, {mean('tokens_per_second'):.0f} tokens/s")
PY
  rm -rf "${runs:?}/$1"
}
for _ in $(seq "${1:-3}"); do
  run never 0
  run every25 25
done
