"""ONNX operators that slide a window over an image, or average all of it."""

from __future__ import annotations

import math

from edgeid.converters.graphs.graph_builder import GraphBuilder, Node
from edgeid.runtime.graph import AveragePool, Conv, Flatten, GlobalAveragePool, MaxPool


def convert_conv(builder: GraphBuilder, node: Node) -> None:
    x, weight = builder.activation(node), builder.constant(node, 1)
    if weight.ndim != 4:
        raise node.unsupported(f"weight of shape {weight.shape}; convolutions are 2-D")
    kernel = (weight.shape[2], weight.shape[3])
    stride, pad = _window(builder, node, kernel)
    groups = int(node.attributes.get("group", 1))
    layer = Conv(node.name, (x,), node.outputs[0], "", None, stride, pad, groups)
    builder.emit_weighted(layer, weight, builder.optional(node, 2))


def _window(
    builder: GraphBuilder, node: Node, kernel: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """stride and pad of a convolution or pooling."""
    attributes = node.attributes
    if any(d != 1 for d in attributes.get("dilations", ())):
        raise node.unsupported(f"dilations {attributes['dilations']}; only 1 is")
    stride = tuple(int(s) for s in attributes.get("strides", (1, 1)))
    pad = tuple(int(p) for p in attributes.get("pads", (0, 0, 0, 0)))
    if len(stride) != 2 or len(pad) != 4 or min(stride) < 1:
        raise node.unsupported(f"strides {stride}, pads {pad}; windows are 2-D")
    size = builder.shapes[builder.activation(node)][1:]
    if len(size) != 2:
        raise node.error(f"needs an input (channels, height, width), got {size}")
    auto = attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pad = _same_padding(auto, (size[0], size[1]), kernel, (stride[0], stride[1]))
    elif auto not in ("NOTSET", "VALID"):
        raise node.unsupported(f"auto_pad {auto!r}")
    if attributes.get("ceil_mode") and any(
        (size[i] + pad[i] + pad[i + 2] - kernel[i]) % stride[i] for i in (0, 1)
    ):
        raise node.unsupported("ceil_mode 1 where it changes the size")
    return (stride[0], stride[1]), (pad[0], pad[1], pad[2], pad[3])


def _same_padding(
    auto: str, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]
) -> tuple[int, int, int, int]:
    total = [
        max((math.ceil(size[i] / stride[i]) - 1) * stride[i] + kernel[i] - size[i], 0)
        for i in (0, 1)
    ]
    first = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total]
    return first[0], first[1], total[0] - first[0], total[1] - first[1]


def convert_pool(builder: GraphBuilder, node: Node) -> None:
    x = builder.activation(node)
    kernel = tuple(int(k) for k in node.attributes["kernel_shape"])
    if len(kernel) != 2 or len(node.outputs) > 1:
        raise node.unsupported(f"kernel {kernel} with {len(node.outputs)} outputs")
    stride, pad = _window(builder, node, (kernel[0], kernel[1]))
    if node.op == "AveragePool" and node.attributes.get("count_include_pad") and any(pad):
        raise node.unsupported("count_include_pad 1 with padding")
    kind = MaxPool if node.op == "MaxPool" else AveragePool
    builder.emit(kind(node.name, (x,), node.outputs[0], (kernel[0], kernel[1]), stride, pad))


def convert_global_pool(builder: GraphBuilder, node: Node) -> None:
    builder.emit(GlobalAveragePool(node.name, (builder.activation(node),), node.outputs[0]))


def convert_reduce_mean(builder: GraphBuilder, node: Node) -> None:
    x = builder.activation(node)
    if len(builder.shapes[x]) != 3 or builder.axes(node, 4) != (2, 3):
        raise node.unsupported("other than over height and width (axes 2 and 3)")
    output = node.outputs[0]
    if node.attributes.get("keepdims", 1):
        builder.emit(GlobalAveragePool(node.name, (x,), output))
    else:
        builder.emit(GlobalAveragePool(node.name, (x,), f"{output}:pooled"))
        builder.emit(Flatten(f"{node.name}:flatten", (f"{output}:pooled",), output))
