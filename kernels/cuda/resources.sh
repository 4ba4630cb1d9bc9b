#!/usr/bin/env bash
# Compiles all kernels to machine code for every architecture of kernels/build.rs and prints what each
# thread needs. Fails when a kernel spills registers or keeps arrays in local memory. Needs nvcc: see toolchain.sh.
set -euo pipefail
cd "$(dirname "$0")"

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
read -ra architectures <<<"$(sed -n 's/.*ARCHITECTURES.*= \[\(.*\)\];/\1/p' ../build.rs | tr -d ,)"
for architecture in "${architectures[@]}"; do
    "${CUDA_HOME:+$CUDA_HOME/bin/}nvcc" -cubin -O3 -std=c++17 -Xptxas -v -arch="sm_$architecture" \
        kernels.cu -o "$out/$architecture.cubin" 2>"$out/$architecture"
done
python3 - "$out" "${architectures[@]}" <<'PY'
import re, sys

out, architectures = sys.argv[1], sys.argv[2:]
registers, spills = {}, []
for architecture in architectures:
    text = open(f"{out}/{architecture}").read()
    for part in text.split("Compiling entry function '")[1:]:
        kernel = part.split("'")[0]
        stored, loaded = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part).groups()
        frame = re.search(r"(\d+) bytes stack frame", part)[1]
        if (stored, loaded, frame) != ("0", "0", "0"):
            what = f"{stored} bytes stored, {loaded} loaded, {frame} of stack"
            spills.append(f"{kernel} on sm_{architecture}: {what}")
        registers.setdefault(kernel, []).append(re.search(r"Used (\d+) registers", part)[1])
print("| registers of a thread | " + " | ".join(f"sm_{a}" for a in architectures) + " |")
print("|---|" + "---:|" * len(architectures))
for kernel in sorted(registers):
    print(f"| {kernel} | " + " | ".join(registers[kernel]) + " |")
print("\n".join(spills), file=sys.stderr)
sys.exit(bool(spills))
PY
