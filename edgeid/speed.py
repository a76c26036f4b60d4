"""How fast a model runs on this machine: every engine that is installed, layer by layer."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeid.runtime.engine import ENGINES, Engine
from edgeid.runtime.errors import EngineError
from edgeid.runtime.format import read_model
from edgeid.runtime.golden import golden_input
from edgeid.runtime.graph import Graph
from edgeid.runtime.model import Model, default_model

FEWEST = 5  # runs of an entry, whatever the time they take
PROFILED = 20  # runs of an entry, layer by layer
KINDS = tuple(name for name in ENGINES if name != "auto")


@dataclass(frozen=True)
class Time:
    """Milliseconds of one inference with one input: the fastest run and the middle one."""

    minimum: float
    median: float


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds that one layer takes, and the kernel that computes it."""

    layer: str
    kernel: str
    milliseconds: float


@dataclass(frozen=True)
class EngineSpeed:
    """One engine on one model.

    Attributes:
        engine: its name.
        load: milliseconds of reading the model, building the engine, and checking its
            golden vectors.
        peak: MiB of memory that the process took at most, Python and numpy included;
            None where the system does not tell.
        entries: times of each network.
        layers: of each network, where the engine tells them apart.
    """

    engine: str
    load: float
    peak: float | None
    entries: dict[str, Time]
    layers: dict[str, tuple[LayerTime, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``from_dict`` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> EngineSpeed:
        """What another process measured."""
        return cls(
            engine=record["engine"],
            load=record["load"],
            peak=record["peak"],
            entries={name: Time(**value) for name, value in record["entries"].items()},
            layers={
                name: tuple(LayerTime(**value) for value in values)
                for name, values in record["layers"].items()
            },
        )


@dataclass(frozen=True)
class SpeedReport:
    """All engines on one model.

    Attributes:
        model: path of the file.
        machine: processor, cores, Python.
        threads: of one inference.
        engines: the fastest first.
        absent: why an engine could not be measured, by its name.
    """

    model: str
    machine: dict[str, Any]
    threads: int
    engines: tuple[EngineSpeed, ...]
    absent: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def measure_engine(
    path: str | os.PathLike[str], engine: str, threads: int | None, seconds: float
) -> EngineSpeed:
    """Load a model with one engine, in this process, and time each of its networks.

    Args:
        path: an ``.edgeid`` file, or "default".
        engine: of ``ENGINES``.
        threads: of one inference; None takes EDGEID_THREADS.
        seconds: to spend on each network, about.

    Raises:
        ModelError, EngineError: as ``Model.load``.
    """
    started = time.perf_counter()
    model = Model.load(path, engine, threads=threads)
    load = 1e3 * (time.perf_counter() - started)
    graph = model.file.graph
    times = {entry.name: _time(model.engine, graph, entry.name, seconds) for entry in graph.entries}
    peak = peak_memory()  # before the layers, which may need more
    layers = {entry.name: layer_times(model.engine, graph, entry.name) for entry in graph.entries}
    found = {name: rows for name, rows in layers.items() if rows}
    return EngineSpeed(model.engine.name, load, peak, times, found)


def measure_engines(
    path: str | os.PathLike[str], threads: int, seconds: float, rounds: int
) -> SpeedReport:
    """Every engine in processes of its own, which take turns: what else the machine does
    then slows all of them, and memory is told apart.

    Args:
        path: an ``.edgeid`` file, or "default".
        threads: of one inference.
        seconds: to spend on each network in each process, about.
        rounds: processes of each engine.

    Raises:
        ModelError: the file cannot be used, whatever the engine.
    """
    source = default_model() if str(path) == "default" else Path(path)
    read_model(source)
    seen: dict[str, list[EngineSpeed]] = {name: [] for name in KINDS}
    absent: dict[str, str] = {}
    for number in range(rounds):
        for turn in range(len(KINDS)):
            name = KINDS[(number + turn) % len(KINDS)]
            if name in absent:
                continue
            try:
                seen[name].append(_in_process(source, name, threads, seconds))
            except EngineError as error:
                absent[name] = str(error)
    engines = [_merged(found) for name, found in seen.items() if found and name not in absent]
    engines.sort(key=lambda one: sum(value.minimum for value in one.entries.values()))
    return SpeedReport(str(source), machine(), threads, tuple(engines), absent)


def layer_times(engine: Engine, graph: Graph, entry: str) -> tuple[LayerTime, ...]:
    """What each layer takes, in the order they run; empty where the engine cannot tell."""
    profile = getattr(engine, "profile", None)
    if profile is None:
        return ()
    x = golden_input(0, graph.entry(entry).shape)
    return tuple(LayerTime(n, kernel, 1e3 * s) for n, kernel, s in profile(entry, x, PROFILED))


def machine() -> dict[str, Any]:
    """Processor, cores and Python of this machine."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def peak_memory() -> float | None:
    """MiB that this process has taken at most; None where the system does not tell."""
    try:
        # not ru_maxrss: it counts the parent too, as it was before exec
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    amount = status.partition("VmHWM:")[2].split()
    return int(amount[0]) / 1024 if amount else None


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for key in ("model name", "Model"):  # the latter on a Raspberry Pi
        found = text.partition(f"\n{key}")[2].partition("\n")[0].strip(" \t:")
        if found:
            return found
    return platform.processor() or platform.machine()


def _time(engine: Engine, graph: Graph, entry: str, seconds: float) -> Time:
    x = golden_input(0, graph.entry(entry).shape)
    engine.run(entry, x)  # warm
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < FEWEST or time.perf_counter() < until:
        start = time.perf_counter()
        engine.run(entry, x)
        times.append(1e3 * (time.perf_counter() - start))
    return Time(min(times), statistics.median(times))


def _in_process(path: Path, engine: str, threads: int, seconds: float) -> EngineSpeed:
    options = ["--engine", engine, "--threads", str(threads), "--seconds", str(seconds)]
    command = [sys.executable, "-P", "-m", "edgeid", "bench", "--model", str(path), "--json"]
    # numpy's own threads would be measured with the reference engine
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment)
    try:
        record = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise EngineError(f"the process ended with status {done.returncode}") from None
    if "error" in record:
        raise EngineError(record["error"]["message"])
    return EngineSpeed.from_dict(record["engines"][0])


def _merged(found: Sequence[EngineSpeed]) -> EngineSpeed:
    """The fastest of several processes, and the middle of their middles."""
    entries = {
        name: Time(
            min(one.entries[name].minimum for one in found),
            statistics.median(one.entries[name].median for one in found),
        )
        for name in found[0].entries
    }
    peaks = [one.peak for one in found if one.peak is not None]
    best = min(found, key=lambda one: sum(value.minimum for value in one.entries.values()))
    return EngineSpeed(
        found[0].engine,
        min(one.load for one in found),
        min(peaks, default=None),
        entries,
        best.layers,
    )
