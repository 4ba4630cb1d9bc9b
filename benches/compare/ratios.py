"""Runs Keepwell and llama.cpp in turns and prints the ratios as a Markdown table."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

MIB = 1 << 20


@dataclass
class Row:
    """One line of the table. `bar` is the least ratio; for memory the largest."""

    name: str
    test: str
    tokens: int
    depth: int = 0
    batch: int = 1
    budget: float = 1.0
    bar: float = 1.0
    keepwell: list = field(default_factory=list)
    llama: dict = field(default_factory=dict)


ROWS = [
    Row("prefill 512", "prefill", 512, bar=3.0),
    Row("prefill 512 at depth 4000", "prefill", 512, depth=4000, bar=4.0),
    Row("decode 64", "decode", 64, bar=1.5),
    Row("decode 64 at depth 7000", "decode", 64, depth=7000, bar=2.5),
    Row("decode 64 at depth 7000, budget 0.28", "decode", 64, depth=7000, budget=0.28, bar=4.5),
    Row("decode 8 sequences at depth 256", "decode", 64, depth=256, batch=8, bar=3.0),
    Row("peak memory at depth 7000, budget 0.28", "memory", 8, depth=7000, budget=0.28, bar=0.8),
]


def run(command):
    """Output and peak resident bytes of a command."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(command)} failed with {status}")
        out.seek(0)
        return out.read(), usage.ru_maxrss * 1024


def keepwell(arguments, row):
    with tempfile.NamedTemporaryFile("r") as file:
        prompt, generated = (row.tokens, 0) if row.test == "prefill" else (0, row.tokens)
        _, peak = run(
            [arguments.keepwell, "engine", "--model", arguments.model]
            + ["--prompt", str(prompt), "--gen", str(generated), "--depth", str(row.depth)]
            + ["--batch", str(row.batch), "--kv-budget", str(row.budget)]
            + ["--threads", str(arguments.threads), "--repetitions", "1", "--json", file.name]
            + ["--activation-bits", str(arguments.activation_bits)]
        )
        result = json.load(file)[0]
    return peak if row.test == "memory" else result["tokens_per_s"]


def divergences(arguments, budgets):
    """Of Keepwell's predictions from those of weights and kernels in f32 with an exact cache."""
    with tempfile.NamedTemporaryFile("r") as file:
        run(
            [arguments.keepwell, "engine", "--model", arguments.model, "--kl", arguments.text]
            + ["--prompt", "0", "--gen", "1", "--kv-budget", ",".join(map(str, budgets))]
            + ["--threads", str(arguments.threads), "--repetitions", "1", "--json", file.name]
            + ["--activation-bits", str(arguments.activation_bits)]
        )
        return {round(row["kv_budget"], 4): row["kl_to_f32"] for row in json.load(file)}


def llama(arguments, row, kv_type):
    common = ["-m", arguments.model, "-t", str(arguments.threads), "-fa", "1"]
    common += ["-ctk", kv_type, "-ctv", kv_type]
    # llama-bench keeps a copy of the cache between repetitions, which a server would not.
    if row.batch > 1 or row.test == "memory":
        command = [f"{arguments.llama}/llama-batched-bench", *common, "--output-format", "jsonl"]
        command += ["-tb", str(arguments.threads), "-c", "8192", "-b", "2048", "-ub", "512"]
        command += ["-npp", str(row.depth), "-ntg", str(row.tokens), "-npl", str(row.batch)]
        output, peak = run(command)
        lines = [line for line in output.splitlines() if line.startswith("{")]
        return peak if row.test == "memory" else json.loads(lines[-1])["speed_tg"]
    prompt, generated = (row.tokens, 0) if row.test == "prefill" else (0, row.tokens)
    command = [f"{arguments.llama}/llama-bench", *common, "-o", "json", "-r", "1"]
    command += ["-p", str(prompt), "-n", str(generated), "-d", str(row.depth)]
    return json.loads(run(command)[0])[0]["avg_ts"]


def better(row):
    return min if row.test == "memory" else max


def measure(arguments, row, first):
    # Quantized ones are slower in every row, but small.
    wanted = "f16,q8_0,q4_0" if row.test == "memory" else arguments.kv_types
    kv_types = wanted.split(",") if first else [best(row)]
    row.keepwell.append(keepwell(arguments, row))
    for kv_type in kv_types:
        row.llama.setdefault(kv_type, []).append(llama(arguments, row, kv_type))


def best(row):
    """The KV type with which llama.cpp does best."""
    return better(row)(row.llama, key=lambda kv_type: statistics.median(row.llama[kv_type]))


def line(row, kls=None):
    kv_type = best(row)
    ours, theirs = statistics.median(row.keepwell), statistics.median(row.llama[kv_type])
    ratio = ours / theirs
    # The machine may change its speed between rounds, for both programs.
    rounds = [a / b for a, b in zip(row.keepwell, row.llama[kv_type])]
    spread = f"{statistics.median(rounds):.2f} ({min(rounds):.2f} - {max(rounds):.2f})"
    holds = ratio <= row.bar if row.test == "memory" else ratio >= row.bar
    bound = "at most" if row.test == "memory" else "at least"
    if row.test == "memory":
        ours, theirs = (f"{x / MIB:.0f} MiB" for x in (ours, theirs))
    else:
        between = f"({min(row.keepwell):.0f} - {max(row.keepwell):.0f})"
        ours, theirs = f"{ours:.1f} {between}", f"{theirs:.1f}"
    verdict = "" if holds else " **missed**"
    # Measured after 640 tokens: deeper down compression costs something else.
    known = kls.get(row.budget) if kls and row.depth < 1000 else None
    kl = "" if kls is None else " |" if known is None else f" {known:.6f} |"
    return (
        f"| {row.name} | {ours} | {theirs} ({kv_type}) | {ratio:.2f} | {spread} | "
        f"{bound} {row.bar}{verdict} |{kl}"
    )


def main():
    parser = argparse.ArgumentParser()
    for name in ["--llama", "--keepwell", "--model", "--text"]:
        parser.add_argument(name, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--activation-bits", type=int, default=16, help="Keepwell's; llama.cpp has 8")
    # Quantized ones are slower in every row, and take minutes to prefill 7000 tokens with.
    parser.add_argument("--kv-types", default="f16", help="llama.cpp's; each row takes the best")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if arguments.rows in row.name]
    if not rows:
        sys.exit(f"no row has {arguments.rows!r} in its name")
    for index in range(arguments.rounds):
        for row in rows:
            measure(arguments, row, first=index == 0)
            print(f"round {index + 1}: {line(row)}", file=sys.stderr, flush=True)
    kls = divergences(arguments, sorted({row.budget for row in rows}))
    print(f"tokens/s with {arguments.threads} threads on {platform.machine()}, ", end="")
    print(f"medians of {arguments.rounds} rounds in turns\n")
    columns = ["", "Keepwell", "llama.cpp (KV type)", "ratio", "of rounds", "bar"]
    print("| " + " | ".join([*columns, "Keepwell's KL to f32"]) + " |")
    print("|" + "---|" * (len(columns) + 1))
    for row in rows:
        print(line(row, kls))


main()
