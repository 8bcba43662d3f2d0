#!/bin/sh
# Builds the program of another revision into target/revisions/REV/linformer.
set -eu
cd "$(dirname "$0")/.."
rev=${1:?which revision?}
into=target/revisions/$rev
[ -x "$into/linformer" ] && exit 0
mkdir -p "$into"
git archive "$rev" | tar -x -C "$into"
LIBTORCH=${LIBTORCH:-$(pwd)/.libtorch/torch} cargo build --release --quiet --manifest-path "$into/Cargo.toml" --target-dir target/revisions/build
cp target/revisions/build/release/linformer "$into/linformer"
