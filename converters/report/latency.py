"""How long one inference takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import Engine

SECONDS = 4.0  # for each entry, about
FEWEST, MOST = 7, 60


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference with one input: the fastest and the middle of ``rounds``."""

    minimum: float
    median: float
    rounds: int


def measure_latency(
    engines: Sequence[Engine], inputs: Mapping[str, FloatArray]
) -> dict[str, list[Latency]]:
    """Latencies by entry, one an engine.

    The engines take turns, each round beginning with another one: other work on the machine
    then slows all of them, and no engine always follows the same one's cache.

    Args:
        inputs: (1, *shape) of each entry to be measured.
    """
    found = {}
    for entry, x in inputs.items():
        first = [_time(engine, entry, x) for engine in engines]  # warm
        total = sum(first) + 1e-9
        rounds = max(FEWEST, min(MOST, int(SECONDS / total)))
        times: list[list[float]] = [[] for _ in engines]
        for number in range(rounds):
            for turn in range(len(engines)):
                which = (number + turn) % len(engines)
                times[which].append(_time(engines[which], entry, x))
        found[entry] = [
            Latency(1e3 * min(own), 1e3 * statistics.median(own), rounds) for own in times
        ]
    return found


def _time(engine: Engine, entry: str, x: FloatArray) -> float:
    start = time.perf_counter()
    engine.run(entry, x)
    return time.perf_counter() - start
