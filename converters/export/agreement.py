"""Does an exported file answer as the model does? It is run in the runtime it is made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.errors import ModelError

EXACT = 1e-4
"""Relative error that float arithmetic in another order may cause; usual is 1e-6."""

QUANTISED = 0.2
"""Relative error that int8 may cause; at the same length it is a cosine of 0.98."""


@dataclass(frozen=True)
class Agreement:
    """Outputs of one entry against those of the reference engine, over so many inputs.

    Attributes:
        inputs: how many.
        cosine: the lowest of the cosines between the two outputs.
        error: |difference| / |expected|, lengths taken over all inputs together: int8 is as
            coarse for an output that happens to be short as for the others.
    """

    inputs: int
    cosine: float
    error: float

    def require(self, limit: float, what: str) -> None:
        """Raise ModelError unless the error is at most ``limit``."""
        if not self.error <= limit:  # NaN fails too
            raise ModelError(
                f"{what} does not answer as the model does: relative error {self.error:.3g} over "
                f"{self.inputs} inputs, allowed is {limit:g}. Nothing was written"
            )


def agreement(expected: FloatArray, got: FloatArray) -> Agreement:
    """Compare (n, ...) outputs; raises ModelError where their shapes differ."""
    if expected.shape != got.shape:
        raise ModelError(f"the exported file answers {got.shape}, the model {expected.shape}")
    one, other = (x.reshape(len(x), -1).astype(np.float64) for x in (expected, got))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    products = np.maximum(lengths, np.finfo(np.float64).tiny)
    same = (one == other).all(axis=1)  # two outputs of zero have no cosine
    cosines = np.where(same, 1.0, (one * other).sum(axis=1) / products)
    error = float(np.linalg.norm(one - other)) / max(float(np.linalg.norm(one)), 1e-12)
    return Agreement(len(one), float(cosines.min()), error)


def run_onnx(data: bytes, feeds: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The outputs of an ONNX model by name, from onnxruntime, one input at a time.

    Args:
        data: the model, which has to pass ONNX's checker.
        feeds: by the name of the input; inputs that are not named get an empty batch.
    """
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors, which are raised as well
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    none = {value.name: _empty(value.shape) for value in session.get_inputs()}
    outputs: dict[str, FloatArray] = {}
    for name, x in feeds.items():
        wanted = name.removesuffix("_input") + "_output"
        rows = [session.run([wanted], none | {name: row[None]})[0] for row in x]
        outputs[wanted] = np.concatenate(rows)
    return outputs


def run_tflite(data: bytes, x: FloatArray) -> FloatArray:
    """The outputs of a TFLite model of one entry, from LiteRT, one input at a time.

    Integer inputs and outputs are quantised and decoded here.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    (source,), (sink,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for row in x:
        interpreter.set_tensor(source["index"], _quantised(row[None], source))
        interpreter.invoke()
        rows.append(_decoded(interpreter.get_tensor(sink["index"]), sink))
    return np.concatenate(rows)


def _empty(shape: list[Any]) -> FloatArray:
    return np.zeros((0, *shape[1:]), np.float32)


def _quantised(x: FloatArray, detail: Mapping[str, Any]) -> NDArray[Any]:
    if detail["dtype"] == np.float32:
        return x
    scale, zero = detail["quantization"]
    return np.asarray(np.clip(np.rint(x / scale) + zero, -128, 127), np.int8)


def _decoded(y: NDArray[Any], detail: Mapping[str, Any]) -> FloatArray:
    if detail["dtype"] == np.float32:
        return np.array(y)
    scale, zero = detail["quantization"]
    values = (y.astype(np.float32) - np.float32(zero)) * np.float32(scale)
    return np.asarray(values, np.float32)
