#!/usr/bin/env bash
# Sets up what `--features cuda` needs to build: nvcc and the libraries that candle links, from PyPI, in
# a folder. Needs python3 with pip and a C++ compiler; no GPU, no driver, no root.
#
#   eval "$(kernels/cuda/toolchain.sh [FOLDER])"
#
# prints the variables to set (CUDA_HOME, PATH, CUDA_COMPUTE_CAP). Run again, it finds what is there.
set -euo pipefail

folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/keepwell/cuda-13.0}
# One release of the toolkit: 13.0, which candle 0.11 and its cudarc know.
packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-nvrtc==13.0.88
    nvidia-cublas==13.0.2.14
    nvidia-curand==10.4.0.35
)
files=(
    bin/nvcc bin/ptxas nvvm/bin/cicc nvvm/libdevice/libdevice.10.bc include/cuda.h include/cuda_fp16.h
    include/crt/host_config.h include/cublas_v2.h include/curand.h include/nvrtc.h
    lib/libcudart_static.a lib/libcublas.so.13 lib/libcublasLt.so.13 lib/libcurand.so.10 lib/libnvrtc.so.13
)

say() { echo "toolchain: $*" >&2; }

missing() {
    for file in "${files[@]}"; do
        [ -e "$home/$file" ] || echo "$file"
    done
}

for tool in python3 c++; do
    command -v "$tool" >/dev/null || { say "$tool is missing: install it first"; exit 1; }
done

home=$folder/nvidia/cu13
if [ -n "$(missing)" ]; then
    say "installing CUDA 13.0 into $folder (0.9 GB are downloaded, 2 GB kept)"
    mkdir -p "$folder"
    if ! python3 -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
        --target "$folder" "${packages[@]}" >&2; then
        say "pip could not install the packages above"
        exit 1
    fi
fi
# The names that linkers look for.
ln -sfn lib "$home/lib64"
for library in libcudart libcublas libcublasLt libcurand libnvrtc; do
    found=$(find "$home/lib" -name "$library.so.*" | sort | head -n 1)
    [ -z "$found" ] || ln -sfn "$(basename "$found")" "$home/lib/$library.so"
done
# The driver's library comes with the driver. Nothing is taken from this one (kernels/build.rs).
stub=$home/lib/libcuda.so
[ -e "$stub" ] || c++ -shared -o "$stub" -Wl,-soname,libcuda.so.1 -x c++ /dev/null
if [ -n "$(missing)" ]; then
    say "still missing in $home:" $(missing)
    exit 1
fi
"$home/bin/nvcc" --version | grep release >&2

echo "export CUDA_HOME='$home'"
echo "export PATH='$home/bin':\"\$PATH\""
# candle's own kernels are compiled for one architecture, and run on later ones.
echo "export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-80}"
