"""The parts of a TFLite model, and its bytes: a FlatBuffer, written with the schema that
ai-edge-litert brings along (https://ai.google.dev/edge/litert, schema.fbs)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

SIGNATURE = "serving_default"
_VERSION = 3  # of the schema, since 2016
_ALIGNMENT = 16  # of constants, as schema.fbs demands: kernels read them where they lie
_TYPES = {"float32": "FLOAT32", "int32": "INT32"}


class TFLiteModel:
    """Collects the activations, constants and operators of one network.

    Activations and constants are known by the number that they are given. The first axis of
    every activation is the batch; it is 1, and whoever runs the model may resize it.
    """

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._names: set[str] = set()
        self._buffers: list[Any] = [schema.BufferT()]  # number 0 means "no data"
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._codes: dict[str, int] = {}
        self._operators: list[Any] = []

    def activation(self, name: str, shape: Sequence[int]) -> int:
        """A float32 activation of (1, ...); the name gets a number where it is taken."""
        tensor = self._tensor(name, shape, "float32")
        tensor.shapeSignature = [-1, *shape[1:]]
        return len(self._tensors) - 1

    def constant(self, name: str, values: NDArray[Any]) -> int:
        """A float32 or int32 constant; equal ones are stored once."""
        stored = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        key = (stored.dtype.name, stored.shape, stored.tobytes())
        if key not in self._constants:
            tensor = self._tensor(name, stored.shape, stored.dtype.name)
            tensor.buffer = len(self._buffers)
            self._buffers.append(schema.BufferT(data=np.frombuffer(key[2], np.uint8)))
            self._constants[key] = len(self._tensors) - 1
        return self._constants[key]

    def operator(self, kind: str, inputs: Sequence[int], output: int, options: Any = None) -> None:
        """Append an operator; ``kind`` is its name in the schema, ``options`` its table."""
        made = schema.OperatorT()
        made.opcodeIndex = self._codes.setdefault(kind, len(self._codes))
        made.inputs, made.outputs = list(inputs), [output]
        if options is not None:
            table = type(options).__name__.removesuffix("T")
            made.builtinOptionsType = getattr(schema.BuiltinOptions, table)
            made.builtinOptions = options
        self._operators.append(made)

    def to_bytes(
        self, inputs: Mapping[str, int], outputs: Mapping[str, int], description: str
    ) -> bytes:
        """The file. ``inputs`` and ``outputs`` name activations for callers; the description
        is text for people."""
        graph = schema.SubGraphT()
        graph.name = "main"
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
        signature.inputs, signature.outputs = _named(inputs), _named(outputs)
        model = schema.ModelT()
        model.version, model.description = _VERSION, description
        model.subgraphs, model.signatureDefs = [graph], [signature]
        model.operatorCodes = [_operator_code(kind) for kind in self._codes]
        model.buffers = self._buffers
        return pack_model(model)

    def _tensor(self, name: str, shape: Sequence[int], dtype: str) -> Any:
        unique, number = name, 2
        while unique in self._names:
            unique, number = f"{name}:{number}", number + 1
        self._names.add(unique)
        tensor = schema.TensorT()
        tensor.name, tensor.shape = unique, list(shape)
        tensor.type = getattr(schema.TensorType, _TYPES[dtype])
        tensor.buffer = 0
        self._tensors.append(tensor)
        return tensor


def pack_model(model: Any) -> bytes:
    """The bytes of a ``ModelT``, its constants aligned."""
    builder = _AlignedBuilder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc]
    # the generated code drops the alignment that the schema asks for
    def CreateNumpyVector(self, x: NDArray[Any]) -> int:  # noqa: N802
        self.Prep(_ALIGNMENT, x.nbytes)
        return int(super().CreateNumpyVector(x))


def _operator_code(kind: str) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    # what readers from before 2020 look at; it has one byte, 127 says "see the other field"
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = 1
    return code


def _named(places: Mapping[str, int]) -> list[Any]:
    maps = []
    for name, place in places.items():
        item = schema.TensorMapT()
        item.name, item.tensorIndex = name, place
        maps.append(item)
    return maps
