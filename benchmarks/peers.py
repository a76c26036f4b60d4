"""Face and voice verification end to end, ours beside what a user would put together.

    python -m benchmarks.peers [--rounds 5] [--calls 10] [--threads 1] [--work work/peers]
        [--model work/small.edgeid] [--teacher mobilefacenet.onnx] [--detector yunet.onnx]
        [--other-python VENV/bin/python] [--out benchmarks/results/peers.json]

An image file of 640x480 and a recording of 3 s go in, a decision comes out. Each contender runs
in processes of its own, in turns: import, load, enrol, verify ``--calls`` times. The speaker
networks of other pipelines have the right shapes and random weights (``speaker_networks.py``), so
their decisions mean nothing; their time and memory do. ``--other-python`` is a virtual environment
with face_recognition (dlib) and Resemblyzer; without it they are reported as absent. Megabytes are
those of the installed packages that a contender imports, and of its model files.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import AbsentError
from benchmarks.engines import machine, peak_memory
from benchmarks.pipelines import KINDS

ABSENT = 3

OWN = ("numpy", "opencv-python-headless", "soundfile", "cffi", "cryptography")
CV = ("numpy", "opencv-python-headless", "soundfile", "cffi")
ORT = (*CV, "onnxruntime", "protobuf", "flatbuffers")
DLIB = ("numpy", "face-recognition", "face-recognition-models", "dlib-bin", "pillow", "setuptools")
RESEMBLYZER = (
    *("Resemblyzer", "torch", "librosa", "scipy", "numba", "llvmlite", "scikit-learn", "joblib"),
    *("webrtcvad-wheels", "soundfile", "cffi", "sympy", "networkx", "audioread"),
)


@dataclass(frozen=True)
class Contender:
    """A pipeline, what it needs to be installed, and its model files below the work folder."""

    name: str
    kind: str
    packages: tuple[str, ...]
    files: tuple[str, ...]
    other_python: bool = False


CONTENDERS = (
    Contender(
        "EdgeID, default model, onnxruntime",
        "edgeid",
        (*ORT, "cryptography"),
        ("default.edgeid",),
    ),
    Contender("EdgeID, codebooks, native engine", "edgeid-native", OWN, ("model.edgeid",)),
    Contender(
        "EdgeID, codebooks, native engine, YuNet",
        "edgeid-yunet",
        OWN,
        ("yunet.onnx", "model.edgeid"),
    ),
    Contender(
        "onnxruntime: YuNet, MobileFaceNet, ResNet34",
        "ort-resnet34",
        ORT,
        ("yunet.onnx", "mobilefacenet.onnx", "resnet34.onnx"),
    ),
    Contender(
        "onnxruntime: YuNet, MobileFaceNet, ECAPA-512",
        "ort-ecapa",
        ORT,
        ("yunet.onnx", "mobilefacenet.onnx", "ecapa.onnx"),
    ),
    Contender(
        "OpenCV: YuNet, MobileFaceNet, ECAPA-512",
        "opencv",
        CV,
        ("yunet.onnx", "mobilefacenet.onnx", "ecapa.onnx"),
    ),
    Contender("face_recognition + Resemblyzer", "dlib", DLIB + RESEMBLYZER, (), True),
)


# one process


def worker(options: argparse.Namespace) -> int:
    """Import, load, enrol, verify; print what it took in ms and MiB."""
    work, (one,) = options.work, [c for c in CONTENDERS if c.kind == options.worker]
    started = time.perf_counter()
    try:
        enrol, verify = KINDS[one.kind](work, options.threads)
    except (AbsentError, ImportError) as error:
        print(error, file=sys.stderr)
        return ABSENT
    loaded = time.perf_counter()
    enrol(work / "enrol.jpg", work / "enrol.wav")
    times = []
    for _ in range(options.calls):
        start = time.perf_counter()
        accepted = verify(work / "probe.jpg", work / "probe.wav")
        times.append(1e3 * (time.perf_counter() - start))
    print(
        json.dumps(
            {
                "load": 1e3 * (loaded - started),
                "cold": 1e3 * (loaded - started) + times[0],
                "fastest": min(times),
                "median": statistics.median(times),
                "peak": peak_memory(),
                "accepted": accepted,
                "installed": sum(package_size(name) for name in one.packages),
                "models": sum((work / name).stat().st_size for name in one.files),
            }
        )
    )
    return 0


def package_size(name: str) -> int:
    """Bytes of an installed package; of one that is not, 0."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return 0
    paths = [Path(str(file.locate())) for file in files]
    return sum(path.stat().st_size for path in paths if path.is_file())


# all processes


def spawn(one: Contender, options: argparse.Namespace) -> dict[str, Any] | str:
    """One process: what it found, or why there is nothing."""
    python = options.other_python if one.other_python else Path(sys.executable)
    if python is None:
        return "needs a virtual environment of its own: --other-python"
    count = str(options.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}
    command = [str(python), "-m", "benchmarks.peers", "--worker", one.kind]
    command += ["--work", str(options.work), "--threads", count, "--calls", str(options.calls)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == ABSENT:
        return done.stderr.strip().splitlines()[-1]
    if done.returncode:
        raise RuntimeError(f"{one.name}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Minimum and median over the processes."""
    return {
        "verify ms": {
            "min": min(one["fastest"] for one in found),
            "median": statistics.median(one["median"] for one in found),
        },
        "load ms": min(one["load"] for one in found),
        "load + verify ms": min(one["cold"] for one in found),
        "peak MiB": statistics.median(one["peak"] for one in found),
        "installed MB": found[0]["installed"] / 1e6,
        "models MB": found[0]["models"] / 1e6,
        "accepted": all(one["accepted"] for one in found),
    }


def main() -> int:
    """Prepare, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    models = Path("../shared/models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("work/peers"))
    parser.add_argument("--model", type=Path, default=Path("work/small.edgeid"))
    parser.add_argument("--teacher", type=Path, default=models / "mobilefacenet.onnx")
    parser.add_argument("--detector", type=Path, default=models / "yunet.onnx")
    parser.add_argument("--other-python", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers.json"))
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options)
    from benchmarks.peer_files import prepare

    prepare(options.work, options.model, options.teacher, options.detector)
    seen: dict[str, list[dict[str, Any]]] = {}
    absent: dict[str, str] = {}
    for number in range(options.rounds):
        for turn in range(len(CONTENDERS)):
            one = CONTENDERS[(number + turn) % len(CONTENDERS)]
            found = absent.get(one.name) or spawn(one, options)
            if isinstance(found, str):
                absent[one.name] = found
            else:
                seen.setdefault(one.name, []).append(found)
    rows = {one.name: summary(seen[one.name]) for one in CONTENDERS if one.name in seen}
    print("| pipeline | verify ms (min / median) | load + verify ms | peak MiB | MB installed |")
    print("|---|---|---|---|---|")
    for name, row in rows.items():
        ms = row["verify ms"]
        print(
            f"| {name} | {ms['min']:.1f} / {ms['median']:.1f} | "
            f"{row['load + verify ms']:.0f} | {row['peak MiB']:.0f} | "
            f"{row['installed MB']:.0f} + {row['models MB']:.1f} |"
        )
    for name, why in absent.items():
        print(f"absent: {name}: {why}")
    report = {"machine": machine(), "threads": options.threads, "rounds": options.rounds}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report | {"pipelines": rows, "absent": absent}, indent=1)
    options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
