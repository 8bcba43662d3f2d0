#!/bin/sh
# How long a task of a million rows takes to prepare, and to open once it is prepared.
# Usage: benches/task_open.sh [ROWS]; needs target/release/linformer. `data show` opens everything that a fine-tuning run opens.
set -eu
program=$(pwd)/target/release/linformer
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
cd "$folder"
awk -v rows="${1:-1000000}" 'BEGIN {
  srand(1); print "text\tlabel"
  for (i = 0; i < rows; i++) { n = 4 + int(rand() * 24); t = i; for (j = 0; j < n; j++) t = t " w" int(rand() * 5000); print t "\t" i % 2 }
}' > train.tsv
head -n 1001 train.tsv > dev.tsv
cat > c.json <<'JSON'
{ "data": { "task": { "name": "million", "train": "train.tsv", "dev": "dev.tsv", "text": "text", "label": "label", "labels": ["0", "1"] },
  "tokenizer": "bytes", "sequence_length": 128, "cache_dir": "cache", "on_overlap": "warn" } }
JSON
ls -l train.tsv
for what in prepare open open; do
  echo "$what:"
  command time -f "%e s, %M KiB" "$program" data show c.json -n 1 > shown
done
head -n 1 shown
