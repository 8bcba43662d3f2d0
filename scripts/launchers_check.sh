#!/usr/bin/env bash
# Two ranks under every launcher that is found, each with the bits of one process that accumulates twice.
# TORCHRUN, OPENMPI, MPIEXEC and SRUN name them (default: those on the path); a name that is empty leaves one out.
set -euo pipefail
program=$(realpath "${1:-target/release/linformer}")
config=$(realpath "$(dirname "$0")/../tests/fixtures/ranks/config.json")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir text
for i in $(seq 24); do
  for j in $(seq 40); do echo "Line $((i * j % 17)) of the book $((i % 6)) says $((j * 7 % 23)) times the same."; done >"text/$i.txt"
done
export OMP_NUM_THREADS=1
args=(pretrain "$config" --quiet)
"$program" "${args[@]}" run.dir=one train.micro_batch_size=4 2>one.log

same() {
  local name=$1
  shift
  if ! command -v "$1" >/dev/null; then
    echo "$name: not found"
    return
  fi
  "$@" "$program" "${args[@]}" run.dir="$name" >"$name.log" 2>&1 || { cat "$name.log"; exit 1; }
  for file in model optimizer; do
    cmp "one/checkpoints/step-00000006/$file.safetensors" "$name/checkpoints/step-00000006/$file.safetensors"
  done
  echo "$name: the bits of one process"
}

same torchrun-standalone "${TORCHRUN-torchrun}" --no-python --standalone --nproc-per-node 2
same torchrun-static "${TORCHRUN-torchrun}" --no-python --master-addr 127.0.0.1 --master-port 29617 --nproc-per-node 2
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1
same open-mpi "${OPENMPI-mpirun}" --oversubscribe -n 2
same mpich "${MPIEXEC-mpiexec.hydra}" -n 2
same slurm "${SRUN-srun}" -n 2 --overcommit
