"""Encode: what is still float32 at the end of a recipe is stored in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from edgeid.converters.graphs.embedding_similarity import embed_samples, similarity
from edgeid.converters.recipe import Context, Figures, Pass, PassResult
from edgeid.runtime.encoding import Dense, Tensor, encode_float16, encode_int8
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Graph

Weights = Literal["float16", "int8"]
Encoder = Callable[[NDArray[np.float32]], Tensor]

ENCODERS: dict[str, Encoder] = {"float16": encode_float16, "int8": encode_int8}
HALF_MAX = 65504.0  # the largest float16


@dataclass(frozen=True)
class Encode(Pass):
    """Store weights that no other pass has compressed as float16 or int8.

    Rules: float32 tensors of two or more axes become ``weights``; those that are stored by
    codebook or index, or in fewer bits already, stay as they are. Vectors (biases, slopes,
    scales) stay float32, or all become float16 where ``vectors`` is set, they fit into its
    range, and the embeddings show no harm. Activation scales stay.

    Attributes:
        weights: "float16", or "int8" with one scale an output channel.
        vectors: whether to try float16 on vectors. It needs samples: vectors of entries
            without any stay float32.
        min_cosine: mean cosine to the embeddings with float32 vectors that every entry must
            keep for that, 0..1; otherwise all vectors stay float32.
    """

    weights: Weights = "float16"
    vectors: bool = False
    min_cosine: float = 0.9999

    name: ClassVar[str] = "encode"
    keeps_scales: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weights not in ENCODERS:
            raise DataError(f"weights {self.weights!r} is none of {', '.join(ENCODERS)}")
        if type(self.vectors) is not bool:
            raise DataError(f"vectors {self.vectors!r} must be true or false")
        if not 0 <= self.min_cosine <= 1:
            raise DataError(f"min_cosine {self.min_cosine!r} must be a number, 0..1")

    def requires(self, graph: Graph, context: Context) -> None:
        """Raise DataError where vectors are to be measured and no entry has samples."""
        if self.vectors and not any(entry.name in context.samples for entry in graph.entries):
            raise DataError("float16 vectors are measured on samples: give some, or vectors=False")

    def call(self, graph: Graph, context: Context) -> PassResult:
        """Encode the matrices, then try the vectors."""
        matrices = {
            name: _encoded(name, tensor, ENCODERS[self.weights])
            for name, tensor in graph.tensors.items()
            if _is_float32(tensor) and len(tensor.shape) > 1
        }
        after = replace(graph, tensors=graph.tensors | matrices)
        lines = [f"{len(matrices)} weights as {self.weights}"]
        figures: Figures = {"matrices": len(matrices), "vectors": 0}
        if self.vectors:
            vectors = _half_vectors(after, context)
            halved = replace(after, tensors=after.tensors | vectors)
            cosines = _cosines(after, halved, context)
            kept = min(cosines.values()) >= self.min_cosine
            figures |= {f"vector_cosine/{entry}": cosine for entry, cosine in cosines.items()}
            figures["vectors"] = len(vectors) if kept else 0
            lowest = f"the lowest cosine is {min(cosines.values()):.6f}"
            stored = "as float16" if kept else f"stay float32: needed is {self.min_cosine}"
            lines.append(f"{len(vectors)} vectors {stored}; {lowest}")
            after = halved if kept else after
        return PassResult(after, tuple(lines), figures)

    def ensures(self, before: Graph, after: Graph, _context: Context) -> None:
        """Raise GraphError unless float32 weights alone were encoded, and all of them."""
        if replace(after, tensors=before.tensors) != before:
            raise GraphError("layers, entries or scales have changed, only weights may")
        for name, tensor in before.tensors.items():
            now = after.tensors[name]
            if now is not tensor and not (_is_float32(tensor) and now.shape == tensor.shape):
                raise GraphError(f"tensor {name!r} was compressed already, and has changed")
            if _is_float32(now) and len(now.shape) > 1:
                raise GraphError(f"tensor {name!r} is still float32")


def _is_float32(tensor: Tensor) -> bool:
    return isinstance(tensor, Dense) and tensor.array.dtype == np.float32


def _encoded(name: str, tensor: Tensor, encode: Encoder) -> Tensor:
    try:
        return encode(tensor.decode())
    except GraphError as error:
        raise GraphError(f"tensor {name!r}: {error}") from error


def _half_vectors(graph: Graph, context: Context) -> dict[str, Tensor]:
    """The float32 vectors as float16, where they are in its range and samples can tell."""
    unseen = {
        name
        for entry in graph.entries
        if entry.name not in context.samples
        for layer in graph.layers_of(entry.name)
        for name in layer.tensor_names()
    }
    return {
        name: encode_float16(tensor.decode())
        for name, tensor in graph.tensors.items()
        if _is_float32(tensor)
        and len(tensor.shape) == 1
        and name not in unseen
        and float(np.abs(tensor.decode()).max()) <= HALF_MAX
    }


def _cosines(before: Graph, after: Graph, context: Context) -> Mapping[str, float]:
    return similarity(
        *(embed_samples(g, context.samples, context.threads) for g in (before, after))
    )
