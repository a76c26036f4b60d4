"""The parts of a TFLite model, and its bytes (https://ai.google.dev/edge/litert, schema.fbs).

Field, operator and option numbers are those of the schema's version 3, of 2016 and since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.flatbuffer import Scalar, Table, pack_table

SIGNATURE = "serving_default"
_VERSION = 3
_TYPES = {"float32": 0, "int32": 2}  # TensorType
_OPERATORS = {
    "ADD": 0,
    "AVERAGE_POOL_2D": 1,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 4,
    "FULLY_CONNECTED": 9,
    "GATHER": 36,
    "L2_NORMALIZATION": 11,
    "MAXIMUM": 55,
    "MAX_POOL_2D": 17,
    "MINIMUM": 57,
    "MUL": 18,
    "PAD": 34,
    "PRELU": 54,
    "RELU": 19,
    "RELU6": 21,
    "RELU_0_TO_1": 152,
    "RELU_N1_TO_1": 20,
    "RESHAPE": 22,
    "TRANSPOSE": 39,
}
# BuiltinOptions; operators without have none of their own
_OPTIONS = {
    "ADD": 11,
    "AVERAGE_POOL_2D": 5,
    "CONCATENATION": 10,
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 2,
    "FULLY_CONNECTED": 8,
    "GATHER": 23,
    "L2_NORMALIZATION": 12,
    "MAXIMUM": 39,
    "MAX_POOL_2D": 5,
    "MINIMUM": 39,
    "MUL": 21,
    "PAD": 22,
    "RESHAPE": 17,
    "TRANSPOSE": 26,
}


class TFLiteModel:
    """Collects the activations, constants and operators of one network.

    Activations and constants are known by the number that they are given. The first axis of
    every activation is the batch; it is 1, and whoever runs the model may resize it.
    """

    def __init__(self) -> None:
        self._tensors: list[Table] = []
        self._names: set[str] = set()
        self._buffers = [Table({})]  # number 0 means "no data"
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._codes: dict[str, int] = {}
        self._operators: list[Table] = []

    def activation(self, name: str, shape: Sequence[int]) -> int:
        """A float32 activation of (1, ...); the name gets a number where it is taken."""
        self._tensor(name, shape, "float32", {7: _integers([-1, *shape[1:]])})
        return len(self._tensors) - 1

    def constant(self, name: str, values: NDArray[Any]) -> int:
        """A float32 or int32 constant; equal ones are stored once."""
        stored = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        key = (stored.dtype.name, stored.shape, stored.tobytes())
        if key not in self._constants:
            buffer = {2: Scalar("I", len(self._buffers))}
            self._tensor(name, stored.shape, stored.dtype.name, buffer)
            self._buffers.append(Table({0: np.frombuffer(key[2], np.uint8)}))
            self._constants[key] = len(self._tensors) - 1
        return self._constants[key]

    def operator(
        self, kind: str, inputs: Sequence[int], output: int, options: Table | None = None
    ) -> None:
        """Append an operator; ``kind`` is its name in the schema, ``options`` its table, which
        may be left out where all of it is default."""
        code = self._codes.setdefault(kind, len(self._codes))
        fields: dict[int, Any] = {0: Scalar("I", code)}
        fields |= {1: _integers(inputs), 2: _integers([output])}
        if kind in _OPTIONS:
            fields |= {3: Scalar("B", _OPTIONS[kind]), 4: options or Table({})}
        self._operators.append(Table(fields))

    def to_bytes(
        self, inputs: Mapping[str, int], outputs: Mapping[str, int], description: str
    ) -> bytes:
        """The file. ``inputs`` and ``outputs`` name activations for callers; the description
        is text for people."""
        ends = {1: _integers([*inputs.values()]), 2: _integers([*outputs.values()])}
        graph = Table({0: self._tensors, **ends, 3: self._operators, 4: "main"})
        signature = Table({0: _named(inputs), 1: _named(outputs), 2: SIGNATURE, 4: Scalar("I", 0)})
        model: dict[int, Any] = {
            0: Scalar("I", _VERSION),
            1: [_operator_code(_OPERATORS[kind]) for kind in self._codes],
            2: [graph],
            3: description,
            4: self._buffers,
            7: [signature],
        }
        return pack_table(Table(model), b"TFL3")

    def _tensor(
        self, name: str, shape: Sequence[int], dtype: str, fields: Mapping[int, Any]
    ) -> None:
        unique, number = name, 2
        while unique in self._names:
            unique, number = f"{name}:{number}", number + 1
        self._names.add(unique)
        own: dict[int, Any] = {0: _integers(shape), 1: Scalar("b", _TYPES[dtype]), 3: unique}
        self._tensors.append(Table(own | dict(fields)))


def _operator_code(number: int) -> Table:
    # field 0 is what readers from before 2020 look at; it has one byte, 127 says "see field 3"
    old, version = Scalar("b", min(number, 127)), Scalar("i", 1)
    return Table({0: old, 2: version, 3: Scalar("i", number)})


def _named(places: Mapping[str, int]) -> list[Table]:
    return [Table({0: name, 1: Scalar("I", place)}) for name, place in places.items()]


def _integers(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)
