"""A TFLite model in int8: weights with a scale a channel, activations with a scale and a zero.

ai-edge-quantizer does the work. The range of each activation is the smallest and the largest
value that the samples give: its own moving averages cut off rare large values, and of the
default model's faces some then keep a cosine of 0.95 only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_quantizer import qtyping, quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from numpy.typing import NDArray

from edgeid.converters.export.channel_balance import balance_channels
from edgeid.converters.export.entry_graph import single_entry
from edgeid.converters.export.tflite_layers import tflite_bytes
from edgeid.converters.graphs.normalisation import fold_norms
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.flatbuffer import VECTOR_ALIGNMENT
from edgeid.runtime.graph import Graph

CALIBRATION_SAMPLES = 128
"""More than these do not widen the ranges by much, and each takes a tenth of a second."""

BALANCE_SAMPLES = 32
"""Enough to see which channels reach far."""

Ranges = Mapping[str, Mapping[str, FloatArray]]

# TFLite has integer kernels for these, ai-edge-quantizer leaves them in float
_INTEGER_KERNELS = {
    getattr(schema.BuiltinOperator, name)
    for name in ("PRELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1")
}


def tflite_int8_bytes(
    graph: Graph,
    entry: str,
    samples: FloatArray,
    description: str = "",
    *,
    integer_only: bool = False,
) -> bytes:
    """A TFLite model of one entry, quantised to int8 after training.

    Input and output are float32, as ``tflite_bytes`` has them, and PRelu, Clip and
    L2Normalize work in float between integer layers: on a CPU that is several times faster
    than TFLite's integer PRelu.

    Args:
        graph: a valid graph.
        entry: the name of the entry.
        samples: float32 (n, *shape), what the entry will see: a few of each kind. The first
            128 of them in a fixed random order are used.
        description: text for people that the file carries.
        integer_only: no float operator anywhere and int8 at input and output, for processors
            without floats.

    Raises:
        DataError: samples of another shape or dtype, none, or not finite.
        GraphError: see ``tflite_bytes``; with ``integer_only`` also a layer that TFLite
            computes in float only.
    """
    check_samples(graph, entry, samples)
    order = np.random.default_rng(0).permutation(len(samples))[:CALIBRATION_SAMPLES]
    chosen = samples[np.sort(order)]
    prepared = fold_norms(single_entry(graph, entry))
    with _silence():
        reach = _channel_reach(tflite_bytes(prepared, entry), chosen[:BALANCE_SAMPLES])
        model = tflite_bytes(balance_channels(prepared, reach), entry, description)
        ranges = _activation_ranges(model, chosen)
        quantised = _unpacked(_quantise(model, ranges, integer_only))
    if integer_only:
        _use_integer_kernels(quantised)
    return _packed(quantised)


def _quantise(model: bytes, ranges: Ranges, integer_only: bool) -> bytes:
    made = quantizer.Quantizer(bytearray(model))
    every = qtyping.TFLOperationName.ALL_SUPPORTED
    made.add_static_config(".*", every, activation_num_bits=8, weight_num_bits=8)
    if not integer_only:
        for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            made.update_quantization_recipe(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    result = made.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


@contextmanager
def _silence() -> Iterator[None]:
    """No progress bars, and no warning that keeping all activations takes memory."""
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore", UserWarning)
        yield


def check_samples(graph: Graph, entry: str, samples: FloatArray) -> None:
    """Raise DataError unless the samples are one or more inputs of the entry."""
    shape = graph.entry(entry).shape
    if samples.dtype != np.float32 or samples.shape[1:] != shape or not len(samples):
        wanted = ", ".join(str(size) for size in shape)
        raise DataError(
            f"entry {entry!r} is calibrated with float32 (n, {wanted}), n of 1 or more, "
            f"not {samples.dtype} {samples.shape}"
        )
    if not np.isfinite(samples).all():
        raise DataError(f"the samples of entry {entry!r} hold NaN or infinity")


def _channel_reach(model: bytes, samples: FloatArray) -> dict[str, FloatArray]:
    """The greatest absolute value of every channel (last axis) of every activation."""
    reach: dict[str, FloatArray] = {}
    for name, values in _activations(model, samples):
        found = np.abs(values.reshape(-1, values.shape[-1])).max(axis=0)
        reach[name] = np.maximum(reach.get(name, found), found)
    return reach


def _activation_ranges(model: bytes, samples: FloatArray) -> Ranges:
    """Least and greatest value of every activation, in the form that the quantizer reads."""
    ranges: dict[str, dict[str, FloatArray]] = {}
    for name, values in _activations(model, samples):
        least, greatest = (f(values, keepdims=True) for f in (np.min, np.max))
        known = ranges.setdefault(name, {"min": least, "max": greatest})
        np.minimum(known["min"], least, out=known["min"])
        np.maximum(known["max"], greatest, out=known["max"])
    return ranges


def _activations(model: bytes, samples: FloatArray) -> Iterator[tuple[str, FloatArray]]:
    """Name and value of every activation, sample by sample."""
    interpreter = Interpreter(
        model_content=model,
        num_threads=1,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    # of all tensors, those with a free batch are no constants
    activations = [d for d in interpreter.get_tensor_details() if -1 in d["shape_signature"]]
    for sample in samples:
        interpreter.set_tensor(entry["index"], sample[None])
        interpreter.invoke()
        for detail in activations:
            yield detail["name"], interpreter.get_tensor(detail["index"])


def _unpacked(data: bytes) -> Any:
    """The model as objects, with its constants inside: the quantizer puts them behind it,
    where not every runtime looks for them."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(data))
    for buffer in model.buffers:
        if buffer.data is None and buffer.offset > 1:
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    return model


def _packed(model: Any) -> bytes:
    """The bytes of a ``ModelT``, its constants aligned."""
    builder = _AlignedBuilder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc]
    # the generated code drops the alignment that the schema asks for
    def CreateNumpyVector(self, x: NDArray[Any]) -> int:  # noqa: N802
        self.Prep(VECTOR_ALIGNMENT, x.nbytes)
        return int(super().CreateNumpyVector(x))


def _use_integer_kernels(model: Any) -> None:
    """Dequantize, operator, quantize -> the operator on integers."""
    (graph,) = model.subgraphs
    kinds = {id(op): model.operatorCodes[op.opcodeIndex].builtinCode for op in graph.operators}
    writers = {place: op for op in graph.operators for place in op.outputs}
    dropped: set[int] = set()
    for op in graph.operators:
        if kinds[id(op)] not in _INTEGER_KERNELS:
            continue
        before = writers.get(op.inputs[0])
        readers = [reader for reader in graph.operators if op.outputs[0] in reader.inputs]
        if before is None or len(readers) != 1:
            continue
        around = (kinds[id(before)], kinds[id(readers[0])])
        if around != (schema.BuiltinOperator.DEQUANTIZE, schema.BuiltinOperator.QUANTIZE):
            continue
        constants = [_quantised_constant(model, place) for place in op.inputs[1:]]
        op.inputs, op.outputs = [before.inputs[0], *constants], list(readers[0].outputs)
        dropped |= {id(before), id(readers[0])}
    graph.operators = [op for op in graph.operators if id(op) not in dropped]
    _check_integers(graph)


def _quantised_constant(model: Any, place: int) -> int:
    """The place of an int8 copy of a float32 constant."""
    (graph,) = model.subgraphs
    tensor = graph.tensors[place]
    values = np.frombuffer(model.buffers[tensor.buffer].data.tobytes(), "<f4")
    scale = float(np.abs(values).max()) / 127 or 1.0
    copy = schema.TensorT()
    copy.name, copy.shape = tensor.name + b":int8", tensor.shape
    copy.type, copy.buffer = schema.TensorType.INT8, len(model.buffers)
    copy.quantization = schema.QuantizationParametersT()
    copy.quantization.scale, copy.quantization.zeroPoint = [scale], [0]
    data = np.rint(values / scale).astype(np.int8).view(np.uint8)
    model.buffers.append(schema.BufferT(data=data))
    graph.tensors.append(copy)
    return len(graph.tensors) - 1


def _check_integers(graph: Any) -> None:
    for op in graph.operators:
        for place in (*op.inputs, *op.outputs):
            tensor = graph.tensors[place]
            if tensor.type == schema.TensorType.FLOAT32:
                raise GraphError(
                    f"the activation {tensor.name.decode()!r} stays in float: TFLite has no "
                    "integer operator for its layer; export without asking for integers only"
                )
