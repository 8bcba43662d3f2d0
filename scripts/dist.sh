#!/usr/bin/env bash
# A folder that runs without Rust, Python, or a libtorch of its own: program, libraries, completions, manual pages, licences.
#   scripts/dist.sh FOLDER           makes FOLDER/{bin,lib,share,...}
#   scripts/dist.sh --archive        makes dist/linformer-VERSION-x86_64-linux.tar.zst (.gz without zstd)
# The host's glibc has to be at least the builder's; its libstdc++ may be any, or none.
set -euo pipefail
cd "$(dirname "$0")/.."

program=target/release/linformer
version=$("$program" --version | cut -d' ' -f2)
name=linformer-$version-$(uname -m)-linux
case "${1:-}" in
  --archive) to=dist/$name ;;
  "") echo "dist: expected a folder or --archive" >&2; exit 2 ;;
  *) to=$1 ;;
esac

# All or nothing: what was there is replaced when the new one is whole.
mkdir -p "$(dirname "$to")"
new=$to.new.$$
trap 'rm -rf "$new"' EXIT
rm -rf "$new"
mkdir -p "$new"/{bin,lib,licences,share/man/man1,share/bash-completion/completions,share/zsh/site-functions,share/fish/vendor_completions.d}
install -m 755 "$program" "$new/bin/linformer"

# What the program loads, but glibc, which has to be the host's own.
ldd "$program" | awk '/=> \// {print $1, $3}' | while read -r library path; do
  case "$library" in
    ld-linux*|libc.so*|libm.so*|libdl.so*|librt.so*|libpthread.so*|libutil.so*) ;;
    *) install -m 644 "$path" "$new/lib/$library" ;;
  esac
done
[ -e "$new/lib/libtorch_cpu.so" ] || { echo "dist: $program does not load libtorch_cpu.so from anywhere; run make build first" >&2; exit 1; }

"$program" man --out "$new/share/man/man1"
"$program" completions bash > "$new/share/bash-completion/completions/linformer"
"$program" completions zsh > "$new/share/zsh/site-functions/_linformer"
"$program" completions fish > "$new/share/fish/vendor_completions.d/linformer.fish"
"$program" config schema > "$new/share/linformer.schema.json"
"$program" config schema --sweep > "$new/share/linformer-sweep.schema.json"

cp LICENSE-MIT LICENSE-APACHE README.md CHANGELOG.md "$new/"
cp -r docs models "$new/"
mkdir "$new/experiments"
cp -r experiments/demo experiments/small experiments/paper "$new/experiments/"
scripts/third_party.py "$new/licences"
libraries=$(dirname "$(dirname "$(dirname "$(ldd "$program" | awk '/libtorch_cpu.so/ {print $3}')")")")
for licence in "$libraries"/*.dist-info/licenses/*; do
  package=$(basename "$(dirname "$(dirname "$licence")")" .dist-info)
  install -m 644 "$licence" "$new/licences/$package-$(basename "$licence")"
done

rm -rf "$to"
mv "$new" "$to"
trap - EXIT
if [ "${1:-}" != --archive ]; then
  exit 0
fi
if command -v zstd > /dev/null; then
  archive=$to.tar.zst
  tar -C dist -cf - "$name" | zstd -q -10 -T0 -f -o "$archive"
else
  archive=$to.tar.gz
  tar -C dist -czf "$archive" "$name"
fi
(cd dist && sha256sum "$(basename "$archive")" > "$(basename "$archive").sha256")
echo "$archive, $(du -h "$archive" | cut -f1)"
