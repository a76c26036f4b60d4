"""The onnxruntime engine: one session an entry, on the CPU, from bytes made here."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import Engine, check_input
from edgeid.runtime.errors import EngineError
from edgeid.runtime.graph import Graph
from edgeid.runtime.onnx_bytes import graph_to_onnx_parts

IMAGES_AT_ONCE = 16  # bounds the activations of one call whatever the batch


class OnnxruntimeEngine(Engine):
    """Runs a graph with onnxruntime (CPU provider)."""

    name = "onnxruntime"

    def __init__(self, graph: Graph, threads: int = 1) -> None:
        """Build the sessions.

        Args:
            graph: a valid graph.
            threads: threads inside one operator, at least 1.

        Raises:
            EngineError: onnxruntime is not installed, or does not take the graph.
        """
        runtime = _import_onnxruntime()
        self._graph = graph
        self._output_shapes = {e.name: graph.infer_shapes(e.name)[e.output] for e in graph.entries}
        self._sessions = {e.name: _session(runtime, graph, e.name, threads) for e in graph.entries}

    def run(self, entry: str, x: FloatArray) -> FloatArray:
        """See ``Engine.run``. Safe to call from several threads."""
        x = check_input(self._graph, entry, x)
        feed = self._graph.entry(entry).input
        session = self._sessions[entry]
        out = np.empty((len(x), *self._output_shapes[entry]), dtype=np.float32)
        for start in range(0, len(x), IMAGES_AT_ONCE):
            part = slice(start, start + IMAGES_AT_ONCE)
            try:
                out[part] = session.run(None, {feed: np.ascontiguousarray(x[part])})[0]
            except Exception as error:  # onnxruntime raises bare RuntimeError subclasses
                raise EngineError(f"onnxruntime failed on entry {entry!r}: {error}") from error
        return out


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            "the onnxruntime engine needs onnxruntime: pip install edgeid[onnxruntime], "
            "or choose engine='reference'"
        ) from error
    # only builds of onnxruntime for Windows report anything; off is off
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _session(runtime: Any, graph: Graph, entry: str, threads: int) -> Any:
    model, weights = graph_to_onnx_parts(graph, entry)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False  # the arena keeps the peak of the largest batch
    options.log_severity_level = 3  # errors only; they are raised as well
    # threads that spin between operators take the core from the camera and the microphone
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # handed over in memory: in the bytes they would be held three times while loading
    values = [runtime.OrtValue.ortvalue_from_numpy(weight) for weight in weights.values()]
    try:
        options.add_external_initializers(list(weights), values)
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"onnxruntime does not take the model: {error}") from error
