#!/usr/bin/env bash
# The demo's config, two and four ranks, under every launcher that is found: the weights and the optimizer's state of one process
# that accumulates as often, to the bit, or by how much they differ.
#   scripts/launchers_check.sh [PROGRAM]
# TORCHRUN, OPENMPI, MPIEXEC and SRUN name the launchers (default: those on the path); a name that is empty leaves one out.
# Where no Slurm runs but its daemons are installed (Debian: slurm-wlm, munge), root gets a cluster of this one machine.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${1:-target/release/linformer}")
scripts=$(realpath scripts)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1
STEPS=${STEPS:-10}
config=(experiments/demo/pretrain.json --quiet "train.max_steps=$STEPS" train.warmup_steps=4 train.decay_steps=4 data.short_steps=5 "train.eval_every=$STEPS" train.log_every=5
  data.max_validation_sequences=64 data.cache_dir="$folder/cache")
last=checkpoints/$(printf 'step-%08d' "$STEPS")
failed=0

for ranks in 2 4; do
  "$program" pretrain "${config[@]}" run.dir="$folder/one-$ranks" train.micro_batch_size=$((64 / ranks)) 2> "$folder/one.log" || { cat "$folder/one.log" >&2; exit 1; }
done

# NAME LAUNCHER...: {n} stands for the number of ranks.
same() {
  local name=$1 ranks file verdict
  shift
  if ! command -v "$1" > /dev/null; then
    echo "$name: not found"
    return
  fi
  for ranks in 2 4; do
    local run=$folder/$name-$ranks
    local command=("${@//\{n\}/$ranks}")
    # Ours starts itself; the others start a program.
    [ "$1" = "$program" ] || command+=("$program")
    if ! "${command[@]}" pretrain "${config[@]}" run.dir="$run" > "$run.log" 2>&1; then
      sed "s/^/$name, $ranks ranks: /" "$run.log" >&2
      failed=1
      continue
    fi
    verdict="the bits of one process"
    for file in model optimizer; do
      cmp -s "$folder/one-$ranks/$last/$file.safetensors" "$run/$last/$file.safetensors" ||
        verdict=$("$scripts/weights_differ.py" "$folder/one-$ranks/$last/$file.safetensors" "$run/$last/$file.safetensors") || failed=1
    done
    echo "$name, $ranks ranks: $verdict (weights $(sha256sum "$run/$last/model.safetensors" | cut -c1-16))"
  done
}

same "linformer launch" "$program" launch --nproc {n} --logs "$folder/logs"
same torchrun "${TORCHRUN-torchrun}" --no-python --standalone --nproc-per-node {n}
same "torchrun, static" "${TORCHRUN-torchrun}" --no-python --master-addr 127.0.0.1 --master-port 29617 --nproc-per-node {n}
same "Open MPI" "${OPENMPI-mpirun.openmpi}" --oversubscribe -n {n}
same MPICH "${MPIEXEC-mpiexec.hydra}" -n {n}
if [ -z "${SRUN+x}" ] && ! sinfo > /dev/null 2>&1; then
  same "Slurm, one machine" "$scripts/slurm_one_node.sh" srun -n {n} --overcommit
else
  same Slurm "${SRUN-srun}" -n {n} --overcommit
fi
exit $failed
