#!/usr/bin/env bash
# The tarball in a bare root: nothing there but it and the host's glibc. No Python, no Rust, no shell, no home.
#   scripts/dist_check.sh            after make dist; needs root (chroot) or user namespaces
set -euo pipefail
cd "$(dirname "$0")/.."

archive=$(ls -t dist/linformer-*.tar.* | grep -v sha256 | head -1)
(cd dist && sha256sum --quiet -c "$(basename "$archive").sha256")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{tmp,trial/texts,proc/self}
# All of /proc that the loader reads: where the program is, to find the libraries beside it. Containers have the real one.
ln -s /linformer/bin/linformer "$root/proc/self/exe"
tar -C "$root" -xf "$archive"
mv "$root"/linformer-* "$root/linformer"
# glibc alone.
for library in /lib64/ld-linux-x86-64.so.2 $(ldd "$root/linformer/bin/linformer" | awk '/=> \// {print $3}' | grep -E '/(libc|libm|libdl|librt|libpthread|libutil)\.so'); do
  install -D -m 755 "$library" "$root$library"
done
for i in $(seq 40); do
  for j in $(seq 30); do echo "The captain saw the harbour $((i * j % 7)) times, and the ship lay still."; done > "$root/trial/texts/$i.txt"
done
cat > "$root/trial/small.json" <<END
{ "model": { "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "attention": { "k": 8 } },
  "data": { "corpus": "/trial/texts", "vocab_size": 300, "sequence_length": 32, "cache_dir": "/trial/cache" },
  "train": { "max_steps": 20, "batch_size": 8, "warmup_steps": 5, "eval_every": 0, "checkpoint_every": 0 }, "run": { "dir": "/trial/run" } }
END
chroot=$(PATH=$PATH:/usr/sbin:/sbin command -v chroot)
enter() {
  if [ "$(id -u)" = 0 ]; then env -i "$chroot" "$root" "$@"; else env -i "$(command -v unshare)" --map-root-user "$chroot" "$root" "$@"; fi
}
enter /linformer/bin/linformer --version
enter /linformer/bin/linformer doctor | head -3
enter /linformer/bin/linformer pretrain /trial/small.json --quiet 2> "$root/log" || { cat "$root/log"; exit 1; }
enter /linformer/bin/linformer fill-mask /trial/run 'The captain saw the <mask>.' -k 2
enter /linformer/bin/linformer list /trial
enter /linformer/bin/linformer fill-mask /linformer/models/prose 'The people of the United <mask>.' -k 2
echo "dist_check: $(basename "$archive") runs in a bare root: $(find "$root/linformer/lib" -name '*.so*' -printf '%f ')"
