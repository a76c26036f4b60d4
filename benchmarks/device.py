"""How long a cold start takes and how much memory a verification needs.

    python benchmarks/device.py [--rounds 7] [--json]

Each round is a process of its own, engines interleaved: import, load (default model), enrol
is done beforehand, first verify of a face and a voice, ten more. Minimum and median.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from edgeid.runtime.native.engine import levels

ROUND = """
import json, sys, time
start = time.perf_counter()
from edgeid import EdgeID
from edgeid.demo import synthetic_people
person = next(synthetic_people())
imported = time.perf_counter()
store, engine, enrol = sys.argv[1], sys.argv[2], sys.argv[3] == "enrol"
eid = EdgeID(store=store, key=bytes(range(32)), engine=engine)
loaded = time.perf_counter()
if enrol:
    eid.enroll("ann", images=person.images[:3], audio=person.audio[:3])
    sys.exit()
assert eid.verify(person.images[3], person.audio[3], user="ann").accepted
first = time.perf_counter()
totals = [eid.verify(person.images[3], person.audio[3], user="ann").timings for _ in range(10)]
# VmHWM, not ru_maxrss: that counts the parent too, as it was before exec
status = open("/proc/self/status").read()
print(json.dumps({
    "import": (imported - start) * 1e3, "load": (loaded - imported) * 1e3,
    "first verify": (first - loaded) * 1e3, "import + load + first verify": (first - start) * 1e3,
    "next verify": min(t["total"] for t in totals),
    "peak RSS (MiB)": int(status.partition("VmHWM:")[2].split()[0]) / 1024,
}))
"""


def run(store: Path, engine: str, mode: str) -> str:
    """One process; returns what it printed."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "EDGEID_THREADS": "1"}
    command = [sys.executable, "-P", "-c", ROUND, str(store), engine, mode]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    engines = ["reference", *(["native"] if levels() else [])]
    if importlib.util.find_spec("onnxruntime"):
        engines.append("onnxruntime")
    seen: dict[str, dict[str, list[float]]] = {engine: {} for engine in engines}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store.db"
        run(store, "reference", "enrol")
        for _ in range(options.rounds):
            for engine in engines:
                for name, value in json.loads(run(store, engine, "verify")).items():
                    seen[engine].setdefault(name, []).append(value)
    report = {
        engine: {n: {"min": min(v), "median": statistics.median(v)} for n, v in rows.items()}
        for engine, rows in seen.items()
    }
    if options.json:
        print(json.dumps(report))
        return
    for engine, rows in report.items():
        print(f"{engine} engine, one thread, {options.rounds} processes (ms, minimum / median)")
        for name, value in rows.items():
            print(f"  {name:30} {value['min']:8.1f} / {value['median']:.1f}")


if __name__ == "__main__":
    main()
