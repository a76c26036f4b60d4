"""ONNX operators on constants alone: what exporters leave of the arithmetic on shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.converters.graphs.graph_builder import GraphBuilder, Node

MAX_ELEMENTS = 1 << 24  # of a result; shapes and scales are small, weights are left as they are
_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}

Values = list[NDArray[Any]]


def fold_constant(builder: GraphBuilder, node: Node) -> bool:
    """Work the node out if it reads constants alone; says whether it did."""
    names = [builder.resolve(name) for name in node.inputs if name]
    if node.op not in CONSTANT_OPERATORS or any(n not in builder.constants for n in names):
        return False
    value = CONSTANT_OPERATORS[node.op](node, [builder.constants[n] for n in names])
    builder.constants[node.outputs[0]] = np.asarray(value)
    return True


def _check_size(node: Node, size: int) -> None:
    if size > MAX_ELEMENTS:
        raise node.error(f"a constant of {size} values is too large")


def _constant(node: Node, _values: Values) -> NDArray[Any]:
    (key, value), *more = node.attributes.items()
    if more or key not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise node.unsupported(f"attributes {sorted(node.attributes)}")
    if key == "value":
        return np.asarray(value)
    return np.array(value, dtype=np.float32 if "float" in key else np.int64)


def _cast(node: Node, values: Values) -> NDArray[Any]:
    kind = node.attributes["to"]
    if kind not in _DTYPES:
        raise node.unsupported(f"to data type {kind}")
    return values[0].astype(_DTYPES[kind])


def _axes(node: Node, values: Values) -> tuple[int, ...]:
    axes = values[1].reshape(-1) if len(values) > 1 else node.attributes.get("axes", ())
    return tuple(int(a) for a in axes)


def _squeeze(node: Node, values: Values) -> NDArray[Any]:
    return np.squeeze(values[0], axis=_axes(node, values) or None)


def _unsqueeze(node: Node, values: Values) -> NDArray[Any]:
    return np.expand_dims(values[0], _axes(node, values))


def _concat(node: Node, values: Values) -> NDArray[Any]:
    _check_size(node, sum(value.size for value in values))
    return np.concatenate(values, axis=int(node.attributes["axis"]))


def _gather(node: Node, values: Values) -> NDArray[Any]:
    _check_size(node, values[0].size * values[1].size)
    return np.take(values[0], values[1].astype(np.int64), axis=int(node.attributes.get("axis", 0)))


def _reshape(node: Node, values: Values) -> NDArray[Any]:
    if 0 in values[1]:
        raise node.unsupported("a constant to a shape with 0")
    return values[0].reshape([int(n) for n in values[1]])


def _transpose(node: Node, values: Values) -> NDArray[Any]:
    return np.transpose(values[0], node.attributes.get("perm"))


def _arithmetic(
    ufunc: Callable[..., Any],
) -> Callable[[Node, Values], NDArray[Any]]:
    def work_out(node: Node, values: Values) -> NDArray[Any]:
        _check_size(node, math.prod(np.broadcast_shapes(*(value.shape for value in values))))
        if values[0].dtype.kind in "iu" and ufunc is np.divide:
            return np.asarray(np.floor_divide(*values))
        return np.asarray(ufunc(*values))

    return work_out


CONSTANT_OPERATORS: dict[str, Callable[[Node, Values], NDArray[Any]]] = {
    "Add": _arithmetic(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "Div": _arithmetic(np.divide),
    "Gather": _gather,
    "Identity": lambda _node, values: values[0],
    "Mul": _arithmetic(np.multiply),
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
