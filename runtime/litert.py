"""The LiteRT engine: TensorFlow Lite under its new name, or under its old one.

The graph becomes a float32 TFLite model here, in memory, so that the ``.edgeid`` file is all
that a device needs. Boards that have no wheel of ai-edge-litert may have tflite-runtime, which
was given up in 2023, needs numpy below 2, and runs some models wrongly without a word: the
golden vectors of the model file decide whether it may be used.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import Engine, check_input
from edgeid.runtime.errors import EngineError, GraphError
from edgeid.runtime.graph import Graph
from edgeid.runtime.tflite_layers import graph_to_tflite


class LitertEngine(Engine):
    """Runs a graph with LiteRT on the CPU: one interpreter an entry, one input at a time."""

    name = "litert"

    def __init__(self, graph: Graph, threads: int = 1) -> None:
        """Write the TFLite models and build their interpreters.

        Args:
            graph: a valid graph.
            threads: threads inside one operator, at least 1.

        Raises:
            EngineError: neither package is installed, or the graph has a layer that TFLite
                cannot express.
        """
        make = _import_interpreter()
        self._graph = graph
        self._output_shapes = {e.name: graph.infer_shapes(e.name)[e.output] for e in graph.entries}
        self._interpreters = {
            e.name: _interpreter(make, graph, e.name, threads) for e in graph.entries
        }
        # an interpreter keeps its input and output: one run at a time
        self._locks = {entry.name: threading.Lock() for entry in graph.entries}

    def run(self, entry: str, x: FloatArray) -> FloatArray:
        """See ``Engine.run``. Safe to call from several threads, which then take turns."""
        x = check_input(self._graph, entry, x)
        out = np.empty((len(x), *self._output_shapes[entry]), dtype=np.float32)
        running = self._interpreters[entry]
        with self._locks[entry]:
            try:
                (source,), (sink,) = running.get_input_details(), running.get_output_details()
                for row, values in enumerate(x):
                    running.set_tensor(source["index"], values[None])
                    running.invoke()
                    out[row] = running.get_tensor(sink["index"])[0]
            except (RuntimeError, ValueError) as error:
                raise EngineError(f"LiteRT failed on entry {entry!r}: {error}") from error
        return out


def _import_interpreter() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as missing:
        try:
            from tflite_runtime.interpreter import Interpreter
        except (ImportError, AttributeError) as error:  # the latter beside numpy 2
            name = getattr(error, "name", None) or ""
            if isinstance(error, ModuleNotFoundError) and name.startswith("tflite_runtime"):
                raise EngineError(
                    "the litert engine needs ai-edge-litert: pip install edgeid[litert], or "
                    "choose another engine"
                ) from missing
            raise EngineError(
                f"tflite-runtime is installed and cannot be used ({error}): it needs numpy below "
                "2; choose another engine"
            ) from error
    return Interpreter


def _interpreter(make: Any, graph: Graph, entry: str, threads: int) -> Any:
    try:
        model = graph_to_tflite(graph, entry)
    except GraphError as error:
        raise EngineError(f"the litert engine cannot run this model: {error}") from error
    try:
        running = make(model_content=model, num_threads=threads)
        running.allocate_tensors()
    except Exception as error:  # the old package raises what it likes
        old = " (tflite-runtime needs numpy below 2)" if _is_old(make) else ""
        raise EngineError(f"LiteRT does not take the model: {error}{old}") from error
    return running


def _is_old(make: Any) -> bool:
    return str(getattr(make, "__module__", "")).startswith("tflite_runtime")
