"""What a graph costs before it is run: bytes of its file, weights, multiply-adds."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from edgeid.runtime.encoding import Tensor
from edgeid.runtime.format import ModelFile, dump_model
from edgeid.runtime.graph import Conv, Gemm, Graph


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        file: bytes of the ``.edgeid`` file, without score calibration and golden vectors.
        weights: numbers in the tensors that an entry alone reads.
        weights_shared: in the tensors that several entries read.
        bytes: stored for the tensors of an entry alone.
        bytes_shared: stored once for several entries (weights, codewords).
    """

    file: int
    weights: dict[str, int]
    weights_shared: int
    bytes: dict[str, int]
    bytes_shared: int


@dataclass(frozen=True)
class LayerCost:
    """One convolution or fully connected layer.

    Attributes:
        shape: of the weight, (out, in / groups, height, width) or (out, in).
        encoding: of the weight; "float32" and "float16" for plain ones.
        multiply_adds: of one input.
        bits: stored for each weight, with its share of a dictionary or codebooks.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    encoding: str
    multiply_adds: int
    bits: float


def measure_size(graph: Graph) -> Size:
    """Bytes and weights; parts that are equal count once, as the file stores them once."""
    names = [entry.name for entry in graph.entries]
    readers: dict[str, set[str]] = defaultdict(set)
    for entry in names:
        for layer in graph.layers_of(entry):
            for tensor in layer.tensor_names():
                readers[tensor].add(entry)
    weights, shared = dict.fromkeys(names, 0), 0
    owners: dict[bytes, set[str]] = defaultdict(set)
    sizes: dict[bytes, int] = {}
    for tensor, users in readers.items():
        count = math.prod(graph.tensors[tensor].shape)
        if len(users) == 1:
            weights[next(iter(users))] += count
        else:
            shared += count
        for key, size in _parts(graph.tensors[tensor]).items():
            owners[key] |= users
            sizes[key] = size
    return Size(
        file=len(dump_model(ModelFile(graph))),
        weights=weights,
        weights_shared=shared,
        bytes={
            name: sum(sizes[key] for key, users in owners.items() if users == {name})
            for name in names
        },
        bytes_shared=sum(sizes[key] for key, users in owners.items() if len(users) > 1),
    )


def _parts(tensor: Tensor) -> dict[bytes, int]:
    """Bytes of the parts by a checksum of their content."""
    found = {}
    for part in tensor.parts().values():
        head = f"{part.dtype.str}{part.shape}".encode()
        key = hashlib.sha256(head + np.ascontiguousarray(part).tobytes()).digest()
        found[key] = part.nbytes
    return found


def layer_costs(graph: Graph, entry: str) -> tuple[LayerCost, ...]:
    """The entry's weighted layers, front to back.

    Only convolutions and fully connected layers multiply; what an activation function or an
    addition costs is left out, as is usual.
    """
    shapes = graph.infer_shapes(entry)
    users: dict[bytes, int] = defaultdict(int)
    for tensor in graph.tensors.values():
        for key in _parts(tensor):
            users[key] += 1
    found = []
    for layer in graph.layers_of(entry):
        if not isinstance(layer, Conv | Gemm):
            continue
        tensor = graph.tensors[layer.weight]
        stored = sum(size / users[key] for key, size in _parts(tensor).items())
        # every output value is one dot product with a filter
        outputs = math.prod(shapes[layer.output])
        found.append(
            LayerCost(
                name=layer.name,
                op=layer.op,
                shape=tensor.shape,
                encoding=encoding_name(tensor),
                multiply_adds=outputs * math.prod(tensor.shape[1:]),
                bits=8 * stored / math.prod(tensor.shape),
            )
        )
    return tuple(found)


def encoding_name(tensor: Tensor) -> str:
    """The tensor's encoding; of plain values their type."""
    values = tensor.parts().get("values")
    return (
        str(values.dtype)
        if tensor.encoding == "dense" and values is not None
        else (tensor.encoding)
    )
