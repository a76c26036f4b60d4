"""Engines: what runs a graph. All answer alike; they differ in speed and in what they need."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.errors import EngineError
from edgeid.runtime.graph import Graph

__all__ = ["ENGINES", "Engine", "check_input", "make_engine", "thread_count"]

ENGINES = ("auto", "native", "onnxruntime", "litert", "reference")
MAX_THREADS = 256


class Engine(Protocol):
    """Runs the entries of one graph."""

    name: str
    """One of ``ENGINES``."""

    def run(self, entry: str, x: FloatArray) -> FloatArray:
        """Run a batch.

        Args:
            entry: name of the entry.
            x: float32 (N, *entry.shape), N of 0 or more.

        Returns:
            float32 (N, *output shape); for an embedding (N, d), not normalised.

        Raises:
            GraphError: there is no such entry.
            EngineError: x has another shape or dtype, or the engine failed.
        """
        ...

    def run_together(self, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Run a batch of several entries; as ``run``, by entry. The native engine computes
        them side by side."""
        return {entry: self.run(entry, x) for entry, x in inputs.items()}


def make_engine(graph: Graph, name: str = "auto", threads: int | None = None) -> Engine:
    """Build an engine for a graph; weights are decoded once, here.

    Args:
        graph: validated here.
        name: "native", "onnxruntime", "litert", "reference", or "auto": native where it was
            built and every entry has activation scales, else onnxruntime where that is
            installed, else reference.
        threads: for one inference; None takes EDGEID_THREADS, and 1 where that is not set.

    Raises:
        GraphError: the graph is not valid.
        EngineError: no such engine, its package is not installed, or threads is no count.
    """
    graph.validate()
    count = thread_count(threads)
    if name == "auto":
        name = _best(graph)
    if name == "native":
        from edgeid.runtime.native.engine import NativeEngine

        return NativeEngine(graph, count)
    if name == "onnxruntime":
        from edgeid.runtime.ort import OnnxruntimeEngine

        return OnnxruntimeEngine(graph, count)
    if name == "litert":
        from edgeid.runtime.litert import LitertEngine

        return LitertEngine(graph, count)
    if name == "reference":
        from edgeid.runtime.reference import ReferenceEngine

        return ReferenceEngine(graph, count)
    raise EngineError(f"no engine {name!r:.80}; choose one of {', '.join(ENGINES)}")


def _best(graph: Graph) -> str:
    """What "auto" stands for."""
    from edgeid.runtime.native.engine import levels

    scaled = all(
        any(name in graph.scales for layer in graph.layers_of(e.name) for name in layer.inputs)
        for e in graph.entries
    )
    if scaled and levels():
        return "native"
    return "onnxruntime" if importlib.util.find_spec("onnxruntime") else "reference"


def thread_count(threads: int | None) -> int:
    """The number of threads asked for: the argument, else EDGEID_THREADS, else 1."""
    source, value = "threads", str(threads)
    if threads is None:
        source, value = "EDGEID_THREADS", os.environ.get("EDGEID_THREADS") or "1"
    if isinstance(threads, bool) or not (value.isascii() and value.isdigit()):
        raise EngineError(f"{source} is {value!r:.80}; give a whole number from 1 to {MAX_THREADS}")
    count = int(value[:9])
    if not 1 <= count <= MAX_THREADS:
        raise EngineError(f"{source} is {value!r:.80}; give a whole number from 1 to {MAX_THREADS}")
    return count


def check_input(graph: Graph, entry: str, x: NDArray[Any]) -> FloatArray:
    """``x`` if it is a float32 batch for the entry; raises EngineError saying what is needed."""
    shape = graph.entry(entry).shape
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.shape[1:] != shape or not x.ndim:
        found = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        expected = ", ".join(str(n) for n in shape)
        raise EngineError(f"entry {entry!r} takes a float32 array (N, {expected}), got {found}")
    return x
