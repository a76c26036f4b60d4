"""What each ONNX operator becomes in a graph: one function an operator.

A function reads its node's constants, checks the attributes that a graph cannot keep, and
appends a layer, folds into the layer before, or gives a name another meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.converters.graphs.graph_builder import GraphBuilder, Node
from edgeid.converters.onnx_import.constants import CONSTANT_OPERATORS, fold_constant
from edgeid.converters.onnx_import.lengths import (
    convert_expand,
    convert_l2_division,
    convert_lp_normalization,
    convert_maximum,
    convert_reduce_l2,
    floor_length,
)
from edgeid.converters.onnx_import.spatial import (
    convert_conv,
    convert_global_pool,
    convert_pool,
    convert_reduce_mean,
)
from edgeid.runtime.graph import (
    Add,
    Clip,
    Concat,
    Flatten,
    Gemm,
    Mul,
    PRelu,
    Relu,
    Reshape,
)

FLOAT32_MAX = float(np.finfo(np.float32).max)


def convert_node(builder: GraphBuilder, node: Node) -> None:
    """Add one node to the graph; raises UnsupportedOperatorError or GraphError naming it."""
    try:
        with np.errstate(all="ignore"):  # the finished graph is checked for NaN and infinity
            _convert(builder, node)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # an attribute or constant of a form that no exporter writes
        raise node.error(f"malformed: {error}") from error


def _convert(builder: GraphBuilder, node: Node) -> None:
    if node.op == "Shape":
        # the batch is not known and reads -1, which is what Reshape makes of it
        shape = (-1, *builder.shapes[builder.activation(node)])
        builder.constants[node.outputs[0]] = np.array(shape, dtype=np.int64)
    elif not fold_constant(builder, node):
        if node.op not in _CONVERTERS:
            raise node.unsupported("is supported on constants only")
        _CONVERTERS[node.op](builder, node)


def _gemm(builder: GraphBuilder, node: Node) -> None:
    x, weight, attributes = builder.activation(node), builder.constant(node, 1), node.attributes
    if attributes.get("transA"):
        raise node.unsupported("transA 1")
    if not attributes.get("transB"):
        weight = weight.T
    weight = weight * attributes.get("alpha", 1.0)
    bias = builder.optional(node, 2)
    if bias is not None:
        if bias.size not in (1, len(weight)) or bias.shape[-1:] not in ((), (1,), (len(weight),)):
            raise node.unsupported(f"bias of shape {bias.shape} for {len(weight)} outputs")
        bias = np.broadcast_to(bias.reshape(-1), (len(weight),)) * attributes.get("beta", 1.0)
    builder.emit_weighted(Gemm(node.name, (x,), node.outputs[0], ""), weight, bias)


def _matmul(builder: GraphBuilder, node: Node) -> None:
    x, weight = builder.activation(node), builder.constant(node, 1)
    if weight.ndim != 2:
        raise node.unsupported(f"weight of shape {weight.shape}; it must have two axes")
    builder.emit(Gemm(node.name, (x,), node.outputs[0], ""), weight=weight.T)


def _batch_norm(builder: GraphBuilder, node: Node) -> None:
    x = builder.activation(node)
    if node.attributes.get("training_mode"):
        raise node.unsupported("training_mode 1; export the network in eval mode")
    gamma, beta, mean, var = (builder.constant(node, i).astype(np.float64) for i in range(1, 5))
    if {v.shape for v in (gamma, beta, mean, var)} != {builder.shapes[x][:1]}:
        raise node.error(f"parameters do not fit an input of shape {builder.shapes[x]}")
    variance = var + node.attributes.get("epsilon", 1e-5)
    if not (variance > 0).all():
        raise node.error(f"variance plus epsilon must be positive, found {variance.min()}")
    scale = gamma / np.sqrt(variance)
    builder.scale_shift(node, x, scale, beta - mean * scale)


def _per_channel(builder: GraphBuilder, node: Node, index: int, x: str) -> NDArray[Any]:
    """The constant at ``index`` as float64 (channels,), as ONNX broadcasts it over x."""
    value = builder.constant(node, index).astype(np.float64)
    shape = builder.shapes[x]
    axes = (1,) * (len(shape) + 1 - value.ndim) + value.shape
    if len(axes) != len(shape) + 1 or axes[1] not in (1, shape[0]) or math.prod(axes) != axes[1]:
        raise node.unsupported(
            f"constant of shape {value.shape} over activations {shape}; it must be one value, "
            "or one a channel"
        )
    return np.broadcast_to(value.reshape(-1), shape[:1])


def _elementwise(builder: GraphBuilder, node: Node) -> None:
    """Add, Sub, Mul, Div of an activation with a constant, Add and Mul of two activations."""
    names = [builder.resolve(name) for name in node.inputs]
    if node.op == "Div" and names[1] in builder.lengths:
        convert_l2_division(builder, node, names)
        return
    constant = [name in builder.constants for name in names]
    if not any(constant):
        if node.op not in ("Add", "Mul"):
            raise node.unsupported("of two activations; Add and Mul are")
        inputs = (builder.activation(node, 0), builder.activation(node, 1))
        kind = Add if node.op == "Add" else Mul
        builder.emit(kind(node.name, inputs, node.outputs[0]))
        return
    x = builder.activation(node, 1 if constant[0] else 0)
    value = _per_channel(builder, node, 0 if constant[0] else 1, x)
    one, zero = np.ones_like(value), np.zeros_like(value)
    if node.op == "Add":
        scale, shift = one, value
    elif node.op == "Sub":
        scale, shift = (-one, value) if constant[0] else (one, -value)
    elif node.op == "Mul":
        scale, shift = value, zero
    else:
        if constant[0] or not value.all():
            raise node.unsupported("of a constant by an activation, or by zero")
        scale, shift = 1 / value, zero
    builder.scale_shift(node, x, scale, shift)


def _prelu(builder: GraphBuilder, node: Node) -> None:
    x = builder.activation(node)
    builder.emit(
        PRelu(node.name, (x,), node.outputs[0], ""), slope=_per_channel(builder, node, 1, x)
    )


def _leaky_relu(builder: GraphBuilder, node: Node) -> None:
    x = builder.activation(node)
    slope = np.full(builder.shapes[x][0], node.attributes.get("alpha", 0.01))
    builder.emit(PRelu(node.name, (x,), node.outputs[0], ""), slope=slope)


def _relu(builder: GraphBuilder, node: Node) -> None:
    builder.emit(Relu(node.name, (builder.activation(node),), node.outputs[0]))


def _clip(builder: GraphBuilder, node: Node) -> None:
    low, high = builder.optional(node, 1), builder.optional(node, 2)
    lowest = float(node.attributes.get("min", -FLOAT32_MAX) if low is None else low)
    highest = float(node.attributes.get("max", FLOAT32_MAX) if high is None else high)
    if builder.resolve(node.inputs[0]) in builder.lengths and highest == FLOAT32_MAX:
        floor_length(builder, node, 0, lowest)
        return
    builder.emit(Clip(node.name, (builder.activation(node),), node.outputs[0], lowest, highest))


def _to_shape(builder: GraphBuilder, node: Node, x: str, shape: tuple[int, ...]) -> None:
    output = node.outputs[0]
    if shape == builder.shapes[x]:
        builder.alias(output, x)
    elif len(shape) == 1:
        builder.emit(Flatten(node.name, (x,), output))
    else:
        builder.emit(Reshape(node.name, (x,), output, shape))


def _flatten(builder: GraphBuilder, node: Node) -> None:
    x = builder.activation(node)
    if node.attributes.get("axis", 1) != 1:
        raise node.unsupported(f"axis {node.attributes['axis']}; only 1 is")
    _to_shape(builder, node, x, (math.prod(builder.shapes[x]),))


def _reshape(builder: GraphBuilder, node: Node) -> None:
    x = builder.activation(node)
    target = tuple(int(n) for n in builder.constant(node, 1).reshape(-1))
    old = builder.shapes[x]
    count = math.prod(old)
    literal_zero = 0 in target and node.attributes.get("allowzero")
    if len(target) < 2 or target[0] not in (-1, 0, 1) or literal_zero:
        raise node.unsupported(f"to {target}; the first axis must stay the batch")
    rest = [(*old, 0)[min(i, len(old))] if n == 0 else n for i, n in enumerate(target[1:])]
    known = math.prod(n for n in rest if n != -1)
    if rest.count(-1) == 1 and known > 0 and count % known == 0:
        rest[rest.index(-1)] = count // known
    if min(rest) < 1 or math.prod(rest) != count:
        raise node.unsupported(f"of {old} to {target}; the batch would change")
    _to_shape(builder, node, x, tuple(rest))


def _squeeze(builder: GraphBuilder, node: Node) -> None:
    x = builder.activation(node)
    old = builder.shapes[x]
    axes = builder.axes(node, len(old) + 1) or tuple(
        i + 1 for i, n in enumerate(old) if n == 1 and i
    )
    if 0 in axes or any(old[a - 1] != 1 for a in axes) or len(axes) >= len(old):
        raise node.unsupported(f"axes {axes} of {old}")
    _to_shape(builder, node, x, tuple(n for i, n in enumerate(old) if i + 1 not in axes))


def _concat(builder: GraphBuilder, node: Node) -> None:
    names = tuple(builder.activation(node, i) for i in range(len(node.inputs)))
    axis = int(node.attributes["axis"]) % (len(builder.shapes[names[0]]) + 1)
    if axis != 1:
        raise node.unsupported(f"axis {axis}; only channels (axis 1) are joined")
    builder.emit(Concat(node.name, names, node.outputs[0]))


def _pass_through(builder: GraphBuilder, node: Node) -> None:
    if node.op == "Dropout" and (mode := builder.optional(node, 2)) is not None and mode.any():
        raise node.unsupported("training_mode 1; export the network in eval mode")
    name = builder.resolve(node.inputs[0])
    if name in builder.lengths:
        builder.lengths[node.outputs[0]] = builder.lengths[name]
    else:
        builder.alias(node.outputs[0], builder.activation(node))


_CONVERTERS: dict[str, Callable[[GraphBuilder, Node], None]] = {
    **dict.fromkeys(("Add", "Div", "Mul", "Sub"), _elementwise),
    **dict.fromkeys(("AveragePool", "MaxPool"), convert_pool),
    **dict.fromkeys(("Dropout", "Identity"), _pass_through),
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": convert_conv,
    "Expand": convert_expand,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": convert_global_pool,
    "LeakyRelu": _leaky_relu,
    "LpNormalization": convert_lp_normalization,
    "MatMul": _matmul,
    "Max": convert_maximum,
    "PRelu": _prelu,
    "ReduceL2": convert_reduce_l2,
    "ReduceMean": convert_reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
}
OPERATORS = tuple(sorted({*_CONVERTERS, *CONSTANT_OPERATORS, "Shape"}))
