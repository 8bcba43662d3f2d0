#!/usr/bin/env bash
# The scaling report: sums and training steps of 1 to 4 processes of this machine, and the paper's model on 1 to 1,024 GPUs.
#   scripts/scaling.sh [PROGRAM]     writes experiments/results/scaling; then make report-results
set -euo pipefail
cd "$(dirname "$0")/.."
program=${1:-target/release/linformer}
runs=runs/scaling
export OMP_NUM_THREADS=1
mkdir -p "$runs"
# 13 MB of gradients, 8 sequences a rank.
config=(experiments/demo/pretrain.json model.hidden_size=256 model.num_hidden_layers=4 model.intermediate_size=1024 data.short_steps=0
  data.cache_dir="$runs/cache" train.max_steps=60 train.log_every=5 train.eval_every=0 train.checkpoint_every=0 run.ranks.bucket_mib=4 train.warmup_steps=10
  train.decay_steps=10)
"$program" data prepare "${config[@]}" > /dev/null
for ranks in 2 3 4; do
  "$program" launch --nproc $ranks --logs "$runs/logs" collectives > "$runs/sums-$ranks.jsonl"
done
for ranks in 1 2 3 4; do
  rm -rf "$runs/steps-$ranks"
  "$program" launch --nproc $ranks --logs "$runs/logs" pretrain "${config[@]}" train.batch_size=$((8 * ranks)) run.dir="$runs/steps-$ranks" --quiet
done
"$program" scaling experiments/paper/pretrain.json --peak-tflops 125 --out experiments/results/scaling \
  --fit-on 2,4 --sums "$runs/sums-2.jsonl" --sums "$runs/sums-3.jsonl" --sums "$runs/sums-4.jsonl" \
  --run "$runs/steps-1" --run "$runs/steps-2" --run "$runs/steps-3" --run "$runs/steps-4"
"$program" scaling experiments/paper/pretrain.json --peak-tflops 989 --out experiments/results/scaling/h100 > /dev/null
