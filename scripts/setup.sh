#!/usr/bin/env bash
# Puts libtorch 2.11.0 into .libtorch/ from pip's wheels, or checks the one that LIBTORCH names.
#   scripts/setup.sh [cuda]     cuda: the libraries for a GPU as well (5 GB instead of 1.2)
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=2.11.0
DIR=.libtorch
fail() { echo "setup: $*" >&2; exit 1; }

version_in() { # version of the libtorch in folder $1, or nothing
  # Older versions have the numbers in the second file.
  cat "$1/include/torch/headeronly/version.h" "$1/include/torch/csrc/api/include/torch/version.h" 2>/dev/null |
    awk '$2 == "TORCH_VERSION_MAJOR" {a = $3} $2 == "TORCH_VERSION_MINOR" {b = $3} $2 == "TORCH_VERSION_PATCH" {c = $3}
         END {if (a != "") print a "." b "." c}' || true
}

if [ -n "${LIBTORCH:-}" ]; then
  found=$(version_in "$LIBTORCH")
  [ "$found" = "$VERSION" ] ||
    fail "LIBTORCH=$LIBTORCH holds libtorch ${found:-nothing}, expected $VERSION; unset LIBTORCH to have it installed here"
  echo "setup: libtorch $found at $LIBTORCH (from LIBTORCH)"
  exit 0
fi

wanted=cpu
if [ "${1:-}" = cuda ] || [ -e /proc/driver/nvidia/version ]; then wanted=cuda; fi
have=$(cat "$DIR/complete" 2>/dev/null || true)
if [ "$have" = "$VERSION $wanted" ] || [ "$have" = "$VERSION cuda" ]; then
  exit 0
fi

command -v cargo >/dev/null || fail "no cargo: install Rust (rustup) first"
command -v c++ >/dev/null || command -v g++ >/dev/null || fail "no C++ compiler: install g++ (C++17)"
python3 -m pip --version >/dev/null 2>&1 || fail "no python3 with pip: install Python 3 and pip (only used to fetch libtorch)"
need=$([ $wanted = cuda ] && echo 11000000 || echo 3000000)
free=$(df -Pk . | awk 'NR == 2 {print $4}')
[ "$free" -ge "$need" ] || fail "$((free / 1000)) MB are free here, expected $((need / 1000)) MB for libtorch"

# A folder of its own until all is there: a broken-off install is never taken for a whole one.
export PIP_ROOT_USER_ACTION=ignore
partial=$DIR.partial.$$
trap 'rm -rf "$partial"' EXIT
find . -maxdepth 1 -name "$DIR.partial.*" -mmin +60 -exec rm -rf {} +
mkdir "$partial"
echo "setup: fetching libtorch $VERSION ($wanted) ..."
pip() { python3 -m pip install --quiet --disable-pip-version-check --no-compile --target "$partial" "$@" || fail "pip could not install: $*"; }
# The wheel of Python 3.13, whatever Python runs pip: only its libraries and headers are used.
pip --no-deps --only-binary=:all: --python-version 3.13 --implementation cp --abi cp313 --platform manylinux_2_28_x86_64 "torch==$VERSION"
# All of NVIDIA's in one call: they share a folder, and pip leaves out what comes to one that is there.
nvidia=('nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*')
if [ $wanted = cuda ]; then
  # Exactly what the wheel asks for, less its Python packages, and headers that CUDA's others include: NCCL is compiled here.
  mapfile -t libraries < <(sed -nE 's/^Requires-Dist: ((nvidia-|cuda-toolkit)[^;]*);.*/\1/p' "$partial"/torch-*.dist-info/METADATA)
  pip "${nvidia[@]}" "${libraries[@]}" 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-cccl==13.0.*'
else
  pip --no-deps "${nvidia[@]}"
fi
[ "$(version_in "$partial/torch")" = "$VERSION" ] || fail "the wheel does not hold libtorch $VERSION"
echo "$VERSION $wanted" > "$partial/complete"
rm -rf "$DIR"
mv "$partial" "$DIR"
trap - EXIT
echo "setup: libtorch $VERSION ($wanted) is in $DIR/"
