#!/usr/bin/env bash
# Peak memory of `linformer data prepare` on a corpus and on one 20 times as large: expected within 10 %.
#   benches/prepare_memory.sh [MB of the smaller corpus, default 10]
set -euo pipefail
cd "$(dirname "$0")/.."
mb=${1:-10}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Distinct documents, so that nothing is shared between the two: numbered lines around the words of data/text.
python3 - "$folder" "$mb" <<'PY'
import itertools, pathlib, random, sys
folder, mb = pathlib.Path(sys.argv[1]), int(sys.argv[2])
words = " ".join(p.read_text() for p in sorted(pathlib.Path("data/text").rglob("*.txt"))).split()
for name, size in [("small", mb), ("large", 20 * mb)]:
    rng, written = random.Random(0), 0
    with open(folder / f"{name}.txt", "w") as out:
        for number in itertools.count():
            if written > size * 1_000_000:
                break
            at = rng.randrange(len(words) - 400)
            text = f"Document {number}. " + " ".join(words[at : at + 400]) + "\n\n"
            written += out.write(text)
PY
peak() {
  echo "{\"data\": {\"corpus\": \"$folder/$1.txt\", \"document\": \"blank_line\", \"vocab_size\": 4096, \"tokenizer_sample_mib\": 4,
    \"cache_dir\": \"$folder/cache-$1\", \"deduplicate\": true}}" > "$folder/$1.json"
  RAYON_NUM_THREADS=2 /usr/bin/env python3 - "$folder/$1.json" <<'PY'
import resource, subprocess, sys
subprocess.run(["target/release/linformer", "data", "prepare", sys.argv[1]], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
PY
}
small=$(peak small)
large=$(peak large)
echo "peak memory: $small MiB with $mb MB of text, $large MiB with $((20 * mb)) MB ($((100 * large / small)) % of it)"
[ $((100 * large)) -le $((110 * small)) ]
