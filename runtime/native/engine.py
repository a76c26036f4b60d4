"""The native engine: C kernels that compute convolutions from codebooks by table look-up."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import Engine, check_input
from edgeid.runtime.errors import EngineError
from edgeid.runtime.graph import Graph
from edgeid.runtime.native import oracle
from edgeid.runtime.native.planner import plan
from edgeid.runtime.native.records import make_records
from edgeid.runtime.native.tuning import Choices, fastest, recall, remember

LEVELLED = ("lookup", "dense", "depthwise")  # kernels that every instruction set has its own of
MOST_TOGETHER = 4  # programs of one call of the extension


def levels() -> tuple[str, ...]:
    """The instruction sets that can be used here, best last; empty without the C extension."""
    try:
        from edgeid.runtime import _native
    except ImportError:
        return ()
    return _native.levels()


class OracleEngine(Engine):
    """The same bits as the native engine, computed by numpy: slow, and needs no compiler."""

    name = "oracle"

    def __init__(self, graph: Graph) -> None:
        """``graph`` is valid."""
        self._graph = graph
        self._programs = {e.name: plan(graph, e.name) for e in graph.entries}

    def run(self, entry: str, x: FloatArray) -> FloatArray:
        """See ``Engine.run``."""
        x = check_input(self._graph, entry, x)
        return oracle.run(self._programs[entry], x)


def integer_engine(graph: Graph, threads: int = 1) -> NativeEngine | OracleEngine:
    """The native engine where it was built, else the oracle: they answer the same."""
    return NativeEngine(graph, threads) if levels() else OracleEngine(graph)


class NativeEngine(Engine):
    """Runs the entries of a graph; the name of the instruction set is ``isa``.

    Safe to share between Python threads, which it does not hold up: the interpreter's lock
    is released while it computes. In a forked child it works on one thread.
    """

    name = "native"

    def __init__(
        self,
        graph: Graph,
        threads: int = 1,
        isa: str | None = None,
        choices: Choices | None = None,
    ) -> None:
        """Plan every entry and bring its weights into the order in which they are read.

        Args:
            graph: valid.
            threads: that share the work of one call; no more than there are processors, as
                threads that wait for one another only get slower by more.
            isa: one of ``levels()``; None takes EDGEID_ISA, else the best.
            choices: levels of single layers; None takes what ``tune`` has remembered for this
                graph and machine, unless an instruction set is asked for.

        Raises:
            EngineError: the extension was not built, or there is no such instruction set here.
        """
        self._native = _extension()
        self.isa = _chosen(isa)
        self._graph = graph
        self._pool = self._native.Pool(min(threads, _processors()))
        if choices is None:
            forced = isa is not None or os.environ.get("EDGEID_ISA")
            choices = {} if forced else recall(graph, levels(), threads)
        self._programs = {
            e.name: _Entry(graph, e.name, self.isa, choices.get(e.name, {})) for e in graph.entries
        }

    def run(self, entry: str, x: FloatArray) -> FloatArray:
        """See ``Engine.run``."""
        return self.run_together({entry: x})[entry]

    def run_together(self, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """See ``Engine.run_together``: one call, in which threads share out all entries."""
        calls: list[Any] = []
        outputs: dict[str, FloatArray] = {}
        for entry, x in inputs.items():
            batch = np.ascontiguousarray(check_input(self._graph, entry, x))
            found = self._programs[entry]
            outputs[entry] = np.empty((len(x), *found.output_shape), np.float32)
            if len(x):
                calls += [found.program, batch, outputs[entry]]
        for start in range(0, len(calls), 3 * MOST_TOGETHER):
            self._native.run(self._pool, *calls[start : start + 3 * MOST_TOGETHER])
        return outputs

    def profile(self, entry: str, x: FloatArray, rounds: int = 10) -> list[tuple[str, str, float]]:
        """Of every step its layer, its kernel and the least seconds it took in some rounds."""
        x = np.ascontiguousarray(check_input(self._graph, entry, x))
        found = self._programs[entry]
        out = np.empty((len(x), *found.output_shape), np.float32)
        least = np.full(len(found.steps), np.inf)
        for _ in range(rounds):
            seconds = np.zeros(len(least))
            found.program.profile(self._pool, x, out, seconds)
            least = np.minimum(least, seconds)
        return [(*step, float(s)) for step, s in zip(found.steps, least, strict=True)]


def tune(graph: Graph, threads: int = 1, rounds: int = 20) -> tuple[Choices, Path]:
    """Time every layer by every instruction set of this machine, and remember the best.

    Args:
        graph: valid.
        threads: of one inference; the choices are for this number.
        rounds: runs of every entry by every level.

    Returns:
        The layers for which another level than the best one was chosen, and the file in which
        that is remembered.

    Raises:
        EngineError: the extension was not built, or the file cannot be written.
    """
    engines = {level: NativeEngine(graph, threads, level) for level in levels()}
    if not engines:
        _extension()
    choices: Choices = {}
    for entry in graph.entries:
        x = np.random.default_rng(0).standard_normal((1, *entry.shape)).astype(np.float32)
        times: dict[str, dict[str, float]] = {}
        for level, engine in engines.items():
            times[level] = defaultdict(float)
            for layer, kernel, seconds in engine.profile(entry.name, x, rounds):
                if kernel in LEVELLED:
                    times[level][layer] += seconds
        choices[entry.name] = fastest(times, levels()[-1])
    return choices, remember(graph, levels(), threads, choices)


class _Entry:
    """One entry's program, and what is needed to call it."""

    def __init__(self, graph: Graph, name: str, isa: str, choices: Mapping[str, str]) -> None:
        program = plan(graph, name)
        numbers = {layer: levels().index(level) for layer, level in choices.items()}
        records = make_records(program, numbers)
        self.output_shape = program.output_shape
        self.steps = tuple(zip(records.names, records.kinds, strict=True))
        try:
            self.program = _extension().Program(
                records=records.records,
                slots=records.slots,
                blob=records.blob,
                input=math.prod(program.input_shape),
                output=math.prod(program.output_shape),
                result=records.result,
                isa=isa,
            )
        except ValueError as error:
            raise EngineError(
                f"entry {name!r} cannot be run by the native engine: {error}"
            ) from error


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _extension() -> ModuleType:
    try:
        from edgeid.runtime import _native
    except ImportError as error:
        raise EngineError(
            "the native engine was not built when the package was installed: install a wheel, "
            "or a C compiler and the package again, or choose another engine"
        ) from error
    return _native


def _chosen(isa: str | None) -> str:
    source, value = (
        ("isa", isa) if isa is not None else ("EDGEID_ISA", os.environ.get("EDGEID_ISA"))
    )
    if not value:
        return levels()[-1]
    if value not in levels():
        raise EngineError(f"{source} is {value!r:.80}; this machine has {', '.join(levels())}")
    return value
