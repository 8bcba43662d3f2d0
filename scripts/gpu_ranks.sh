#!/usr/bin/env bash
# Two ranks over NCCL, two steps of the demo's config; left out, with a line that says so, where two GPUs are not to be had.
set -euo pipefail
program=${1:-target/release/linformer}
devices=$("$program" doctor --json | sed -nE 's/.*"([0-9]+) devices".*/\1/p')
if [ "${devices:-0}" -lt 2 ]; then
  echo "gpu-check: two ranks over NCCL are left out: ${devices:-0} GPUs are here, expected 2"
  exit 0
fi
"$program" launch --nproc 2 pretrain experiments/demo/pretrain.json run.device=cuda --dry-run
