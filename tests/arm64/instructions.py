"""Instructions of every step of a model under emulation: a stand-in for speed, and no more.

Runs itself twice: by the emulated Python with the plugin that counts (``instructions.c``), and
before that by the host's Python, which starts it and prints the table.

    python tests/arm64/instructions.py MODEL.edgeid [--cpu cortex-a72 cortex-a76] [--isa neon]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "arm64"


def count(model: str, isa: str | None) -> None:
    """Under emulation: run every entry once between two calls of getppid, and name its steps."""
    import numpy as np

    from edgeid.runtime.format import read_model
    from edgeid.runtime.native.engine import NativeEngine

    graph = read_model(model).graph
    engine = NativeEngine(graph, threads=1, isa=isa)
    rng = np.random.default_rng(0)
    names = []
    for entry in graph.entries:
        x = rng.standard_normal((1, *entry.shape)).astype(np.float32)
        os.getppid()
        steps = engine.profile(entry.name, x, rounds=1)
        os.getppid()
        names += [(entry.name, layer, kernel) for layer, kernel, _ in steps]
    print(json.dumps({"isa": engine.isa, "steps": names}))


def table(model: str, cpu: str, isa: str | None) -> None:
    """On the host: what the plugin counted, beside the names of the steps."""
    plugin, counts = BUILD / "instructions.so", BUILD / "instructions.txt"
    compile_ = ["cc", "-O2", "-shared", "-fPIC", "-o", str(plugin), str(HERE / "instructions.c")]
    subprocess.run(compile_, check=True)
    root = BUILD / "root"
    emulator = ["qemu-aarch64", "-cpu", cpu, "-L", str(root), "-plugin", f"{plugin},out={counts}"]
    program = [str(root / "usr/bin/python3.11"), __file__, "--count", model]
    environment = {**os.environ, "PYTHONPATH": str(BUILD / "site"), "PYTHONSAFEPATH": "1"}
    if isa:
        program += ["--isa", isa]
    done = subprocess.run(
        emulator + program, env=environment, stdout=subprocess.PIPE, check=True, text=True
    )
    seen = json.loads(done.stdout)
    # before a step and behind it: every second count is a step's own
    numbers = [int(line) for line in counts.read_text().split()][1::2]
    print(f"\n{cpu}, {seen['isa']}: instructions, a stand-in for speed")
    totals: dict[str, int] = {}
    for (entry, layer, kernel), number in zip(seen["steps"], numbers, strict=True):
        print(f"{entry:8}{layer:32}{kernel:16}{number:>14,}")
        totals[entry] = totals.get(entry, 0) + number
    for entry, total in totals.items():
        print(f"{entry:8}{'all steps':48}{total:>14,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--cpu", nargs="+", default=["cortex-a72", "cortex-a76"])
    parser.add_argument("--isa")
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.count:
        count(arguments.model, arguments.isa)
        return
    for cpu in arguments.cpu:
        table(arguments.model, cpu, arguments.isa)


if __name__ == "__main__":
    sys.exit(main())
