#!/usr/bin/env bash
# Compiles every CUDA kernel for the architectures that are supported; needs nvcc, but no GPU and no CUDA build of torch.
# So the kernels include c10/cuda/CUDAStream.h and CUDAGuard.h; ATen/cuda/CUDAContext.h would need the cuSPARSE headers too.
# Usage: cuda_check.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
architectures=(80 87 90 120) # A100, Jetson Orin, H100, RTX 50

shopt -s nullglob
sources=(cuda/*.cu)
if [ ${#sources[@]} -eq 0 ]; then
  echo "cuda-check: no CUDA sources yet"
  exit 0
fi
nvcc=$(command -v nvcc || command -v /usr/local/cuda/bin/nvcc || true)
if [ -z "$nvcc" ]; then
  echo "cuda-check: nvcc is missing; install a CUDA toolkit >= 12.8 and put its bin/ on the PATH" >&2
  exit 1
fi

build=build/cuda_check
mkdir -p "$build/c10/cuda/impl"
# A CPU build of torch has the CUDA headers but for this one, which its own CUDA build generates.
echo "#pragma once" >"$build/c10/cuda/impl/cuda_cmake_macros.h"
includes=$("$python" -c '
import sysconfig
from torch.utils.cpp_extension import include_paths
print(" ".join("-isystem " + path for path in [*include_paths(), sysconfig.get_path("include")]))')
targets=()
for architecture in "${architectures[@]}"; do
  targets+=(-gencode "arch=compute_$architecture,code=sm_$architecture")
done
for source in "${sources[@]}"; do
  echo "cuda-check: $source for sm_${architectures[*]}"
  # shellcheck disable=SC2086  # $includes is a list of words
  "$nvcc" -c "$source" -o "$build/$(basename "$source" .cu).o" -std=c++20 -O2 --expt-relaxed-constexpr --threads 2 \
    "${targets[@]}" -Icuda $includes -isystem "$build"
done
