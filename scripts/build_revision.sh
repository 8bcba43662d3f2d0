#!/bin/sh
# Builds the program of another revision, once for each commit, and says where it is.
set -eu
cd "$(dirname "$0")/.."
rev=$(git rev-parse --short "${1:?which revision?}^{commit}")
into=target/revisions/$rev
echo "$into/linformer"
[ -x "$into/linformer" ] && exit 0
mkdir -p "$into"
git archive "$rev" | tar -x -C "$into"
LIBTORCH=${LIBTORCH:-$(pwd)/.libtorch/torch} cargo build --release --quiet --manifest-path "$into/Cargo.toml" --target-dir target/revisions/build
cp target/revisions/build/release/linformer "$into/linformer"
