#!/usr/bin/env bash
# Keepwell against llama.cpp on this machine: the same GGUF, the same threads, in turns.
#
#   benches/compare/llama_cpp.sh [--rounds 3] [--rows WORDS] [--kv-types f16,q8_0]
#
# prints the table of benches/README.md.
#
# LLAMA_BUILD=DIR   use DIR/bin/llama-bench and DIR/bin/llama-batched-bench instead of building them
# THREADS=N         threads of both programs (default: all cores)
# GGUF=FILE         the model (default: the one Keepwell fetches)
# CACHE=DIR         where sources and build stay (default: ~/.cache/keepwell/llama.cpp)
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cache=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/keepwell/llama.cpp}
threads=${THREADS:-$(nproc)}

# Not -march=native: where a virtual machine hides AMX, a native build can die of an illegal instruction.
flags=(-DGGML_NATIVE=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF
  -DBUILD_SHARED_LIBS=OFF)
# All else that this processor has; each name once as llama.cpp and once as Linux writes it.
for feature in AVX2=avx2 FMA=fma F16C=f16c BMI2=bmi2 AVX_VNNI=avx_vnni AVX512=avx512f \
  AVX512_VNNI=avx512_vnni AVX512_VBMI=avx512_vbmi AVX512_BF16=avx512_bf16; do
  grep -qw "${feature#*=}" /proc/cpuinfo && has=ON || has=OFF
  flags+=("-DGGML_${feature%=*}=$has")
done

build_llama() {
  mkdir -p "$cache"
  local sources
  sources=$(python3 "$root/benches/compare/sources.py" "$cache")
  if ! command -v cmake >/dev/null || ! command -v ninja >/dev/null; then
    [ -d "$cache/venv" ] || python3 -m venv "$cache/venv"
    "$cache/venv/bin/pip" install --quiet cmake ninja
    PATH=$cache/venv/bin:$PATH
  fi
  cmake -S "$sources" -B "$cache/build" -G Ninja -DCMAKE_BUILD_TYPE=Release "${flags[@]}" >&2
  cmake --build "$cache/build" --target llama-bench llama-batched-bench >&2
}

if [ -z "${LLAMA_BUILD:-}" ]; then
  build_llama
  LLAMA_BUILD=$cache/build
fi
cargo build --release --manifest-path "$root/Cargo.toml" -p keepwell-benches
target=${CARGO_TARGET_DIR:-$root/target}
# The first run fetches the model.
gguf=${GGUF:-${XDG_CACHE_HOME:-$HOME/.cache}/keepwell/SmolLM2-135M-Instruct.Q4_1.gguf}
[ -f "$gguf" ] || "$target/release/keepwell-bench" engine --prompt 1 --gen 0 --repetitions 1 >&2

exec python3 "$root/benches/compare/ratios.py" --llama "$LLAMA_BUILD/bin" \
  --keepwell "$target/release/keepwell-bench" --model "$gguf" --threads "$threads" \
  --text "$root/server/tests/fixtures/alice.txt" "$@"
