"""The native engine against others on the same networks: time, load time, memory.

    python -m benchmarks.engines [SUITE ...] [--threads 1 2] [--rounds 7] [--seconds 1.0]
        [--work work/engines] [--model edgeid/default.edgeid] [--teacher mobilefacenet.onnx]
        [--out benchmarks/results/engines.json]

Suites: ``cnn20`` (face and speaker CNN-20 of full width, untrained: 22.7 M weights each),
``trained`` (the pair of ``--model``), ``mobilefacenet`` (the public network, codebooks put in).
A joint run is one face and one window of speech, (1, 112, 96) each, one network after the other;
for ``trained`` one face (two inputs where the model mirrors) and 3 s of speech (three windows).

Each contender runs in processes of its own, and the contenders take turns, so that other work on
the machine slows all of them. A process loads the networks, warms up and runs for ``--seconds``.
Times are the fastest run of all processes and the median of the processes' medians; ratios come
with their range over the rounds. Memory is the peak of a process (VmHWM) above one that has only
imported numpy. Int8 contenders of other engines run the ReLU variant, their best case. Where the
machine has other work to do, ``chrt -r 10 python -m benchmarks.engines`` keeps that out of the
figures. ``--out`` keeps what it holds of suites that are not run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import KINDS, AbsentError, RunAll

FEWEST = 5  # runs of a process, beside those to warm up
ABSENT = 3  # exit status of a process whose engine is not there


@dataclass(frozen=True)
class Contender:
    """An engine on one folder of networks."""

    name: str
    kind: str
    folder: str
    isa: str | None = None


def _suite(folder: str, relu: str | None = None) -> list[Contender]:
    levels = ("portable", "avx2", "avx512")
    found = [Contender("numpy alone", "nothing", folder), Contender("native", "native", folder)]
    found += [Contender(f"native {isa}", "native", folder, isa) for isa in levels]
    found.append(Contender("onnxruntime fp32", "onnxruntime", folder))
    found.append(Contender("LiteRT fp32", "litert", folder))
    if relu is not None:
        found.append(Contender("onnxruntime fp32 ReLU", "onnxruntime", relu))
        found.append(Contender("onnxruntime int8 ReLU", "onnxruntime-int8", relu))
        found.append(Contender("LiteRT fp32 ReLU", "litert", relu))
        found.append(Contender("LiteRT int8 ReLU", "litert-int8", relu))
        found.append(Contender("native ReLU", "native", relu))
    return found


SUITES = {
    "cnn20": _suite("cnn20-1", "cnn20-1-relu"),
    "trained": _suite("trained"),
    "mobilefacenet": _suite("mobilefacenet"),
}


# one process


def measure(kind: str, folder: Path, threads: int, seconds: float) -> dict[str, Any]:
    """What one process finds; see the head of this file. Times in ms, memory in MiB."""
    with np.load(folder / "inputs.npz") as archive:
        arrays = dict(archive)
    started = time.perf_counter()
    load = KINDS[kind](folder, threads)
    imported = time.perf_counter()
    run = load()
    loaded = time.perf_counter()
    inputs = {name: x for name, x in arrays.items() if not name.endswith("_output")}
    first = joint(run, inputs)
    outputs = run(inputs)
    joint(run, inputs)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while outputs and (len(times) < FEWEST or time.perf_counter() < until):
        times.append(joint(run, inputs))
    return {
        "import": 1e3 * (imported - started),
        "load": 1e3 * (loaded - imported),
        "first": first,
        "fastest": min(times, default=0.0),
        "median": statistics.median(times) if times else 0.0,
        "runs": len(times),
        "peak": peak_memory(),
        "cosine": min((cosine(outputs[n], arrays[f"{n}_output"]) for n in outputs), default=1.0),
    }


def joint(run: RunAll, inputs: dict[str, NDArray[np.float32]]) -> float:
    """Milliseconds of one run of every network."""
    start = time.perf_counter()
    run(inputs)
    return 1e3 * (time.perf_counter() - start)


def peak_memory() -> float:
    """MiB; VmHWM, not ru_maxrss: that counts the parent too, as it was before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Between two embeddings."""
    lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(one.ravel() @ other.ravel()) / lengths


def worker(options: argparse.Namespace) -> int:
    """Measure, print, exit; ``ABSENT`` where the engine is not there."""
    try:
        found = measure(options.worker, options.work, options.threads[0], options.seconds)
    except (AbsentError, ImportError) as error:
        print(str(error), file=sys.stderr)
        return ABSENT
    print(json.dumps(found))
    return 0


# all processes


def spawn(contender: Contender, threads: int, options: argparse.Namespace) -> dict[str, Any] | str:
    """One process of a contender: what it found, or why it is absent."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    if contender.isa is not None:
        environment["EDGEID_ISA"] = contender.isa
    command = [sys.executable, "-m", "benchmarks.engines", "--worker", contender.kind]
    command += ["--work", str(options.work / contender.folder), "--threads", str(threads)]
    command += ["--seconds", str(options.seconds)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == ABSENT:
        return done.stderr.strip().splitlines()[-1]
    if done.returncode:
        raise RuntimeError(f"{contender.name}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(suite: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """All contenders of a suite, in turns that begin with another one each round."""
    contenders = SUITES[suite]
    seen: dict[str, list[dict[str, Any]]] = {one.name: [] for one in contenders}
    absent: dict[str, str] = {}
    for number in range(options.rounds):
        for turn in range(len(contenders)):
            one = contenders[(number + turn) % len(contenders)]
            if one.name in absent:
                continue
            found = spawn(one, threads, options)
            if isinstance(found, str):
                absent[one.name] = found
            else:
                seen[one.name].append(found)
    base = min(found["peak"] for found in seen.pop("numpy alone"))
    rows = {name: summary(found, base) for name, found in seen.items() if found}
    ratios = {
        name: ratio(found, seen["native"])
        for name, found in seen.items()
        if found and seen["native"] and name != "native"
    }
    return {
        "suite": suite,
        "machine": machine(),
        "threads": threads,
        "rounds": options.rounds,
        "numpy alone, peak MiB": base,
        "contenders": rows,
        "over native": ratios,
        "absent": absent,
    }


def summary(found: Sequence[dict[str, Any]], base: float) -> dict[str, Any]:
    """Minimum and median of what the processes found."""
    middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
    return {
        "ms": {"min": min(one["fastest"] for one in found), "median": middle["median"]},
        "load ms": {"min": min(one["load"] for one in found), "median": middle["load"]},
        "first run ms": {"min": min(one["first"] for one in found), "median": middle["first"]},
        "import ms": {"min": min(one["import"] for one in found), "median": middle["import"]},
        "peak MiB above numpy": {
            "min": min(one["peak"] for one in found) - base,
            "median": middle["peak"] - base,
        },
        "cosine": middle["cosine"],
    }


def ratio(other: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How much longer the other takes: of the minima, and each round's medians in order."""
    rounds = sorted(a["median"] / b["median"] for a, b in zip(other, own, strict=False))
    fastest = min(a["fastest"] for a in other) / min(b["fastest"] for b in own)
    middle = statistics.median(rounds)
    return {"minima": fastest, "low": rounds[0], "median": middle, "high": rounds[-1]}


def lines(report: dict[str, Any]) -> list[str]:
    """A Markdown table."""
    found = [
        f"{report['suite']}, {report['threads']} thread(s), {report['rounds']} processes each",
        "| engine | ms (min / median) | over native: minima [rounds] | load ms | "
        "MiB above numpy | cosine |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in report["contenders"].items():
        ms, load, peak = row["ms"], row["load ms"], row["peak MiB above numpy"]
        over = report["over native"].get(name)
        times = f"{over['minima']:.2f} [{over['low']:.2f}, {over['high']:.2f}]" if over else ""
        found.append(
            f"| {name} | {ms['min']:.2f} / {ms['median']:.2f} | {times} | {load['min']:.1f} / "
            f"{load['median']:.1f} | {peak['min']:.1f} | {row['cosine']:.4f} |"
        )
    return found + [f"absent: {name}: {why}" for name, why in report["absent"].items()]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = (
        Path("/proc/cpuinfo").read_text().partition("model name")[2].split("\n")[0].strip(" \t:")
    )
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version()}


def merged(before: list[dict[str, Any]], reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier reports, with new ones in the place of those on the same suite and threads."""
    found = {(one["suite"], one["threads"]): one for one in before + reports}
    order = list(SUITES)
    return sorted(found.values(), key=lambda one: (order.index(one["suite"]), one["threads"]))


def main() -> int:
    """Build what is missing, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=Path("work/engines"))
    parser.add_argument("--model", type=Path, default=Path("edgeid/default.edgeid"))
    parser.add_argument("--teacher", type=Path, default=Path("../shared/models/mobilefacenet.onnx"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/engines.json"))
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options)
    suites = options.suites or list(SUITES)
    before = json.loads(options.out.read_text()) if options.out.is_file() else []
    from benchmarks.networks import build

    wanted = dict.fromkeys(one.folder for suite in suites for one in SUITES[suite])
    build(options.work, options.model, options.teacher, list(wanted))
    reports = []
    for suite in suites:
        for threads in options.threads:
            reports.append(compare(suite, threads, options))
            print("\n".join(lines(reports[-1])), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(merged(before, reports), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
