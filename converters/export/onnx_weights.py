"""Stored weights as ONNX constants with the few nodes that decode them.

The nodes read constants only, so that onnxruntime works them out once, when it loads the
model, and then runs it as fast as one with decoded weights. Operators are those of opset 18.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeid.runtime.codebook import Codebook, index_shape, sub_spaces
from edgeid.runtime.encoding import Dense, Int8, Tensor
from edgeid.runtime.indexed import Indexed


class WeightDecoder:
    """Collects the constants and nodes of the weights of a model.

    Attributes:
        initializers: the constants, each content once.
        nodes: in the order in which they can be run.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Args: tensors: all that will be added; those that share codewords are known then."""
        self.initializers: list[Any] = []
        self.nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._outputs: dict[tuple[str, ...], str] = {}
        self._spaces: dict[bytes, int] = {}
        for tensor in tensors:
            if isinstance(tensor, Codebook):
                key, needed = _digest(tensor.codewords), _sub_spaces(tensor)
                self._spaces[key] = max(needed, self._spaces.get(key, 0))

    def add(self, name: str, tensor: Tensor, shape: Sequence[int]) -> None:
        """Make the weight an activation ``name`` of the shape, float32."""
        if isinstance(tensor, Codebook):
            decoded = self._codebook(tensor)
        elif isinstance(tensor, Indexed):
            decoded = self._indexed(tensor)
        elif isinstance(tensor, Int8):
            scale = tensor.scale.reshape(-1, *[1] * (tensor.values.ndim - 1))
            decoded = self._node("Mul", self._float(tensor.values), self._constant(scale))
        elif isinstance(tensor, Dense):
            decoded = self._float(tensor.array)
        else:
            decoded = self._constant(tensor.decode())
        self.nodes.append(helper.make_node("Reshape", [decoded, self._integers(*shape)], [name]))

    def _codebook(self, tensor: Codebook) -> str:
        """Row number (sub-space * K + index) of all codewords, then the axes in order."""
        shape = index_shape(tensor.weight_shape, tensor.length)
        spaces, height, width, out = shape
        indices = self._indices(tensor.indices, tensor.bits, shape)
        count = tensor.codewords.shape[1]
        first = np.arange(spaces, dtype=np.int32).reshape(-1, 1, 1, 1) * np.int32(count)
        rows = self._node("Add", indices, self._constant(first))
        vectors = self._node("Gather", self._codewords(tensor), rows, axis=0)
        weight = self._node("Transpose", vectors, perm=(3, 0, 4, 1, 2))  # (out, spaces, r, h, w)
        channels = tensor.weight_shape[1]
        padded = self._integers(out, spaces * tensor.length, height, width)
        weight = self._node("Reshape", weight, padded)
        if channels % tensor.length:
            weight = self._first(weight, channels, axis=1)
        return weight

    def _codewords(self, tensor: Codebook) -> str:
        """(sub-spaces * K, r): as many sub-spaces as some weight of the model reads."""
        spaces = self._spaces[_digest(tensor.codewords)]
        codewords = self._float(tensor.codewords[:spaces])
        if tensor.scale is not None:
            scale = self._constant(tensor.scale[:spaces].reshape(-1, 1, 1))
            codewords = self._node("Mul", codewords, scale)
        return self._node("Reshape", codewords, self._integers(-1, tensor.length))

    def _indexed(self, tensor: Indexed) -> str:
        indices = self._indices(tensor.indices, tensor.bits, tensor.weight_shape)
        return self._node("Gather", self._float(tensor.dictionary), indices, axis=0)

    def _indices(self, packed: NDArray[np.uint8], bits: int, shape: tuple[int, ...]) -> str:
        """Packed indices (``runtime/packing.py``) as int32 of the shape.

        Eight indices take ``bits`` bytes. Each lies in two or three of them: those are
        gathered, put together, and what is around the index is divided off.
        """
        count = int(np.prod(shape))
        if bits == 8:
            return self._integer(self._constant(packed.reshape(shape)))
        groups = -(-count // 8)
        stored = np.zeros(groups * bits, np.uint8)
        stored[: packed.size] = packed
        grid = self._integer(self._constant(stored.reshape(groups, bits)))
        start, shift = np.divmod(np.arange(8) * bits, 8)
        value = self._bytes(grid, start)
        for place in (1, 2) if bits > 8 else (1,):
            # a byte beyond the group adds nothing to the index, so any will do
            byte = self._bytes(grid, np.minimum(start + place, bits - 1))
            factor = self._constant(np.array(256**place, np.int32))
            value = self._node("Add", value, self._node("Mul", byte, factor))
        value = self._node("Div", value, self._constant((1 << shift).astype(np.int32)))
        value = self._node("Mod", value, self._constant(np.array(1 << bits, np.int32)))
        if groups * 8 > count:
            value = self._first(self._node("Reshape", value, self._integers(-1)), count, axis=0)
        return self._node("Reshape", value, self._integers(*shape))

    def _bytes(self, grid: str, columns: NDArray[np.int64]) -> str:
        return self._node("Gather", grid, self._integers(*columns), axis=1)

    def _first(self, value: str, count: int, axis: int) -> str:
        ends = [self._integers(n) for n in (0, count, axis)]
        return self._node("Slice", value, *ends)

    def _float(self, values: NDArray[Any]) -> str:
        constant = self._constant(values)
        if values.dtype == np.float32:
            return constant
        return self._node("Cast", constant, to=onnx.TensorProto.FLOAT)

    def _integer(self, value: str) -> str:
        return self._node("Cast", value, to=onnx.TensorProto.INT32)

    def _integers(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, values: NDArray[Any]) -> str:
        """Name of a constant; equal ones are stored once."""
        stored = np.ascontiguousarray(values).reshape(values.shape)
        key = (stored.dtype.name, stored.shape, stored.tobytes())
        if key not in self._constants:
            self._constants[key] = f"const:{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(stored, self._constants[key]))
        return self._constants[key]

    def _node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Name of what a node writes; equal nodes are written once."""
        key = (op, *inputs, repr(attributes))
        if key not in self._outputs:
            self._outputs[key] = f"decoded:{len(self._outputs)}"
            made = helper.make_node(op, list(inputs), [self._outputs[key]], **attributes)
            self.nodes.append(made)
        return self._outputs[key]


def _sub_spaces(tensor: Codebook) -> int:
    return sub_spaces(tensor.weight_shape, tensor.length)


def _digest(values: NDArray[Any]) -> bytes:
    described = f"{values.dtype.name} {values.shape}".encode()
    return hashlib.sha256(described + values.tobytes()).digest()
