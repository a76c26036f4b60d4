"""ONNX -> graph: the door for a customer's network, and for torch through its exporter."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgeid.converters.graphs.graph_builder import GraphBuilder, Node
from edgeid.converters.onnx_import.operators import OPERATORS, convert_node
from edgeid.runtime.errors import (
    GraphError,
    MissingExtraError,
    ModelFormatError,
    UnsupportedOperatorError,
)
from edgeid.runtime.graph import MAX_ELEMENTS, Entry, Graph

MIN_OPSET = 9  # before it BatchNormalization and Upsample meant something else
MAX_NAME = 120


def import_onnx(
    source: str | os.PathLike[str] | bytes, entry: str = "face", *, output: str | None = None
) -> Graph:
    """Read an ONNX network as a graph with one entry; batch norms are folded.

    Args:
        source: path or bytes of an ONNX file, weights inside, float32.
        entry: name of the entry.
        output: which output to take; needed where there is more than one.

    Raises:
        MissingExtraError: the onnx package is not installed.
        ModelFormatError: the file cannot be read, or is not a valid ONNX file.
        UnsupportedOperatorError: naming the node, the operator and what is supported.
        GraphError: the network does not fit together, or is not one input to one output.
    """
    onnx = _import_onnx()
    model = _load(onnx, source)
    _check_domains(model)
    graph = model.graph
    initial = {t.name for t in graph.initializer}
    input_name, shape = _input(onnx, [i for i in graph.input if i.name not in initial])
    wanted = _output(output, [o.name for o in graph.output])
    taken = Counter(node.name for node in graph.node)
    nodes = [_node(onnx, n, i, taken) for i, n in enumerate(graph.node)]
    nodes = _needed(nodes, wanted)
    builder = GraphBuilder(readers=_readers(nodes, wanted))
    builder.constants.update({t.name: _array(onnx, t) for t in graph.initializer})
    builder.shapes[input_name] = shape
    for node in nodes:
        convert_node(builder, node)
    return builder.graph(Entry(entry, input_name, shape, wanted))


def _import_onnx() -> Any:
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise MissingExtraError(
            "importing ONNX needs the onnx package: pip install edgeid[convert]"
        ) from error
    return onnx


def _load(onnx: Any, source: str | os.PathLike[str] | bytes) -> Any:
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise ModelFormatError(f"{error.filename}: cannot be read: {error.strerror}") from error
    where = "the ONNX bytes" if isinstance(source, bytes) else os.fspath(source)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError, which we must not import by name
        raise ModelFormatError(f"{where}: not an ONNX file: {error}") from error
    # weights in other files are refused before anything follows a path out of the model
    for tensor in model.graph.initializer:
        if tensor.data_location or tensor.external_data:
            raise ModelFormatError(
                f"{where}: weight {tensor.name!r} is in another file; save the model in one file"
            )
    if any(isinstance(text, bytes) for text in _names(model.graph)):  # so protobuf hands it out
        raise ModelFormatError(f"{where}: a name is not UTF-8")
    for output in model.graph.output:
        # the checker insists on a shape that engines do without; it is worked out here anyway
        output.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise ModelFormatError(f"{where}: not a valid ONNX model: {error}") from error
    return model


def _names(graph: Any) -> Iterator[Any]:
    """Every name in a graph that is used below."""
    for item in (*graph.input, *graph.output, *graph.initializer):
        yield item.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _check_domains(model: Any) -> None:
    opset = {o.domain: o.version for o in model.opset_import}.get("", 0)
    if opset < MIN_OPSET:
        raise GraphError(f"opset {opset}; export with opset {MIN_OPSET} or later (18 is good)")
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            raise UnsupportedOperatorError(
                f"node {node.name or list(node.output)!r}: operator {node.op_type!r} of domain "
                f"{node.domain or 'ai.onnx'!r} is not supported; supported: {', '.join(OPERATORS)}"
            )


def _input(onnx: Any, inputs: list[Any]) -> tuple[str, tuple[int, ...]]:
    if len(inputs) != 1:
        raise GraphError(f"the network needs one input, has {[i.name for i in inputs]}")
    kind = inputs[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        raise GraphError(f"input {inputs[0].name!r} must be float32")
    shape = tuple(int(d.dim_value) for d in kind.shape.dim)[1:]
    if not shape or min(shape) < 1:
        raise GraphError(
            f"input {inputs[0].name!r} must have fixed sizes after the batch, has {shape}; "
            "export with a fixed height and width"
        )
    if math.prod(shape) > MAX_ELEMENTS:
        raise GraphError(f"input {inputs[0].name!r} is too large: {shape}")
    return inputs[0].name, shape


def _output(wanted: str | None, names: list[str]) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None or wanted not in names:
        raise GraphError(f"the network has the outputs {names}, asked for {wanted!r}")
    return wanted


def _node(onnx: Any, proto: Any, index: int, taken: Counter[str]) -> Node:
    name = proto.name
    if not name or len(name) > MAX_NAME or not name.isprintable() or taken[name] > 1:
        name = f"{proto.op_type}_{index}"
    attributes = {a.name: _attribute(onnx, a) for a in proto.attribute}
    return Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), attributes)


def _attribute(onnx: Any, attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        if value.data_location or value.external_data:
            raise ModelFormatError(f"constant {attribute.name!r} is in another file")
        return _array(onnx, value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, Iterable):
        return tuple(value)
    return value


def _array(onnx: Any, tensor: Any) -> Any:
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (LookupError, TypeError, ValueError) as error:
        raise ModelFormatError(f"weight {tensor.name!r} cannot be read: {error}") from error


def _needed(nodes: list[Node], output: str) -> list[Node]:
    """The nodes that the output depends on, in their order."""
    wanted = {output}
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _readers(nodes: list[Node], output: str) -> Counter[str]:
    """How many nodes read each activation; being the output counts as one."""
    readers = Counter(name for node in nodes for name in set(node.inputs))
    readers[output] += 1
    return readers
