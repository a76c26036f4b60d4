"""The contenders of ``benchmarks/engines.py``: what each imports, loads and runs.

A contender takes a folder (``networks.py``) and a number of threads, imports what it needs, and
returns what loads the networks; that returns what runs all of them, an input and an output each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Run = Callable[[Floats], Floats]
RunAll = Callable[[dict[str, Floats]], dict[str, Floats]]
Load = Callable[[], RunAll]


class AbsentError(Exception):
    """The engine is not there, or not with the instruction set asked for."""


def nothing(_folder: Path, _threads: int) -> Load:
    """Only numpy: what memory is measured from."""
    return lambda: lambda _inputs: {}


def in_turn(runs: dict[str, Run]) -> RunAll:
    """One network after the other."""
    return lambda inputs: {name: run(inputs[name]) for name, run in runs.items()}


def native(folder: Path, threads: int) -> Load:
    """Our engine; its modules count as imports, as those of the others do."""
    import edgeid.runtime.native.engine  # noqa: F401
    from edgeid.runtime.engine import make_engine
    from edgeid.runtime.errors import EngineError
    from edgeid.runtime.format import read_model

    def load() -> RunAll:
        graph = read_model(folder / "model.edgeid").graph
        try:
            engine = make_engine(graph, "native", threads)
        except EngineError as error:
            raise AbsentError(str(error)) from error
        return engine.run_together

    return load


def onnxruntime(folder: Path, threads: int, ending: str = ".onnx") -> Load:
    """A session an entry, otherwise as onnxruntime comes."""
    import onnxruntime as ort

    def load() -> RunAll:
        return in_turn({name: session(f"{folder}/{name}{ending}") for name in entries(folder)})

    def session(path: str) -> Run:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        made = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = made.get_inputs()[0].name
        return lambda x: np.asarray(made.run(None, {name: x})[0])

    return load


def litert(folder: Path, threads: int, ending: str = ".tflite") -> Load:
    """An interpreter an entry, with XNNPACK; one input at a time."""
    from ai_edge_litert.interpreter import Interpreter

    def load() -> RunAll:
        return in_turn({name: interpreter(f"{folder}/{name}{ending}") for name in entries(folder)})

    def interpreter(path: str) -> Run:
        made = Interpreter(model_path=path, num_threads=threads)
        made.allocate_tensors()
        source = made.get_input_details()[0]["index"]
        sink = made.get_output_details()[0]["index"]

        def one(x: Floats) -> Floats:
            made.set_tensor(source, x)
            made.invoke()
            return np.asarray(made.get_tensor(sink))

        return lambda batch: np.concatenate([one(x[None]) for x in batch])

    return load


KINDS: dict[str, Callable[[Path, int], Load]] = {
    "nothing": nothing,
    "native": native,
    "onnxruntime": onnxruntime,
    "onnxruntime-int8": partial(onnxruntime, ending=".int8.onnx"),
    "litert": litert,
    "litert-int8": partial(litert, ending=".int8.tflite"),
}


def entries(folder: Path) -> list[str]:
    """Names of the networks in a folder."""
    return [path.stem for path in sorted(folder.glob("*.tflite")) if "." not in path.stem]
