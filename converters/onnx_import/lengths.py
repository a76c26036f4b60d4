"""The ways in which exporters write an L2 normalisation over the channels.

LpNormalization, or ReduceL2 -> (Clip, Max, Expand) -> Div: the nodes up to the division
only give a name the meaning "length of x, at least eps".
"""

from __future__ import annotations

from edgeid.converters.graphs.graph_builder import GraphBuilder, Node
from edgeid.runtime.graph import L2Normalize


def convert_lp_normalization(builder: GraphBuilder, node: Node) -> None:
    x = builder.activation(node)
    axis = int(node.attributes.get("axis", -1)) % (len(builder.shapes[x]) + 1)
    if node.attributes.get("p", 2) != 2 or axis != 1:
        raise node.unsupported(f"p {node.attributes.get('p', 2)}, axis {axis}; p 2, axis 1 is")
    builder.emit(L2Normalize(node.name, (x,), node.outputs[0]))


def convert_reduce_l2(builder: GraphBuilder, node: Node) -> None:
    x = builder.activation(node)
    axes = builder.axes(node, len(builder.shapes[x]) + 1)
    if axes != (1,) or not node.attributes.get("keepdims", 1):
        raise node.unsupported(f"axes {axes}, keepdims {node.attributes.get('keepdims', 1)}")
    builder.lengths[node.outputs[0]] = (x, 1e-12)


def floor_length(builder: GraphBuilder, node: Node, index: int, floor: float) -> None:
    x, _ = builder.lengths[builder.resolve(node.inputs[index])]
    if not 0 < floor < 1:
        raise node.unsupported(f"a vector length bounded below by {floor}")
    builder.lengths[node.outputs[0]] = (x, floor)


def convert_maximum(builder: GraphBuilder, node: Node) -> None:
    names = [builder.resolve(name) for name in node.inputs]
    index = next((i for i, name in enumerate(names) if name in builder.lengths), None)
    if index is None or len(names) != 2:
        raise node.unsupported("other than to bound the length of a vector before a division")
    floor = builder.constant(node, 1 - index)
    if floor.size != 1:
        raise node.unsupported(f"with a constant of shape {floor.shape}")
    floor_length(builder, node, index, float(floor.reshape(-1)[0]))


def convert_expand(builder: GraphBuilder, node: Node) -> None:
    name = builder.resolve(node.inputs[0])
    if name not in builder.lengths:
        raise node.unsupported("other than of the length of a vector before a division")
    builder.lengths[node.outputs[0]] = builder.lengths[name]


def convert_l2_division(builder: GraphBuilder, node: Node, names: list[str]) -> None:
    x, eps = builder.lengths[names[1]]
    if names[0] != x:
        raise node.unsupported("of one activation by the length of another")
    builder.emit(L2Normalize(node.name, (x,), node.outputs[0], eps))
