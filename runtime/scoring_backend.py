"""Joint Bayesian scores in place of the cosine, by factors that make them fast.

An embedding is taken as mean + identity + variation, two Gaussian parts with covariances
S_mu and S_epsilon (Chen et al., "Bayesian face revisited: a joint formulation", ECCV 2012).
That x and y are of one person rather than of two then has the log-likelihood ratio

    LLR(x, y) = constant + (x'A x + y'A y - 2 x'G y) / 2      (x and y without the mean)

One matrix W makes both A and G diagonal (Ioffe, "Probabilistic linear discriminant analysis",
ECCV 2006): u = W (x - mean) varies by 1 in each dimension within an identity and by psi
between identities. W takes the PCA in as well, so a file keeps one small matrix and two
vectors, and many templates are compared by one matrix product.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.blobs import DTYPES
from edgeid.runtime.curve import fields, number
from edgeid.runtime.encoding import Dense, Int8, Tensor, all_finite
from edgeid.runtime.errors import GraphError, InputError, ModelFormatError
from edgeid.runtime.graph import Graph

Array = NDArray[np.float64]

LOWEST_SCORE = -1.0
MAX_DIMENSION = 4096
LARGEST = 1e6  # of any number in a back end: sums of squares stay far within float64
ENCODINGS: dict[str, type[Tensor]] = {"int8": Int8, "dense": Dense}
PARTS = {"int8": {"values": 2, "scale": 1}, "dense": {"values": 2}}  # axes of each part


@dataclass(frozen=True, eq=False)
class Backend:
    """Scores of one modality, learnt by ``converters.joint_bayesian``.

    Attributes:
        projection: W, (k, d) with k <= d, stored as int8 or float16.
        offset: W mean, float32 (k,).
        variance_ratio: psi, float32 (k,), >= 0: variance between over within identities.
        scale: the log-likelihood ratio, in nats, that becomes the score 1; the largest one,
            of either sign, met while learning.

    Raises:
        ModelFormatError: members that do not fit together, are not finite, or beyond 1e6.
    """

    projection: Tensor
    offset: NDArray[np.float32]
    variance_ratio: NDArray[np.float32]
    scale: float

    def __post_init__(self) -> None:
        shape = self.projection.shape
        if len(shape) != 2 or not 1 <= shape[0] <= shape[1] <= MAX_DIMENSION:
            raise ModelFormatError(
                f"scoring projection {shape}: needs (k, d), k <= d <= {MAX_DIMENSION}"
            )
        for name in ("offset", "variance_ratio"):
            vector = getattr(self, name)
            if vector.dtype != np.float32 or vector.shape != shape[:1]:
                raise ModelFormatError(
                    f"scoring {name} is {vector.dtype} {vector.shape}, needs float32 {shape[:1]}"
                )
            _check_size(vector, name)
        _check_size(self.projection.decode(), "projection")
        if self.variance_ratio.min() < 0 or not self.variance_ratio.max() > 0:
            raise ModelFormatError("scoring variance ratios must be >= 0, and one of them above 0")
        if not LARGEST**-1 <= self.scale <= LARGEST:
            raise ModelFormatError(f"the scoring scale must lie in 1e-6..1e6, got {self.scale!r}")

    @property
    def dimension(self) -> int:
        """d, the size of the embeddings it scores."""
        return self.projection.shape[1]

    @cached_property
    def _matrix(self) -> Array:
        return self.projection.decode().astype(np.float64)

    @cached_property
    def _factors(self) -> tuple[Array, Array, float]:
        """The diagonals of A and G (k,), and the constant."""
        psi = self.variance_ratio.astype(np.float64)
        a = -(psi**2) / ((psi + 1) * (2 * psi + 1))
        g = -psi / (2 * psi + 1)
        return a, g, float(np.log((psi + 1) / np.sqrt(2 * psi + 1)).sum())

    def log_likelihood_ratio(self, templates: Array, probes: Array) -> Array:
        """(n, q) log-likelihood ratios, in nats, of (n, d) against (q, d) embeddings.

        The embeddings have unit length. Raises InputError for another dimension.
        """
        a, g, constant = self._factors
        u, v = self._projected(templates), self._projected(probes)
        own = (u**2 @ a)[:, None] + (v**2 @ a)[None, :]
        return np.asarray(constant + own / 2 - (u * g) @ v.T)

    def scores(self, templates: Array, probes: Array) -> Array:
        """(n, q) scores: log-likelihood ratio / scale, and never below -1.

        Embeddings of length 0 score -1. Nothing is cut off above, where thresholds lie.
        """
        ratios = self.log_likelihood_ratio(templates, probes) / self.scale
        alive = np.outer(np.any(templates, axis=1), np.any(probes, axis=1))
        return np.where(alive, np.maximum(ratios, LOWEST_SCORE), LOWEST_SCORE)

    def _projected(self, rows: Array) -> Array:
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            raise InputError(
                f"the model scores embeddings of {self.dimension} values, got shape {rows.shape}: "
                "were the templates made by another model?"
            )
        return np.asarray(rows @ self._matrix.T - self.offset)

    def check_entry(self, graph: Graph, entry: str) -> None:
        """Raise ModelFormatError unless an entry of the graph gives embeddings of d values."""
        if all(one.name != entry for one in graph.entries):
            raise ModelFormatError(f"the model scores {entry} embeddings, but gives none")
        shape = graph.infer_shapes(entry)[graph.entry(entry).output]
        if shape != (self.dimension,):
            raise ModelFormatError(
                f"the {entry} network gives {shape}, its scores are for {(self.dimension,)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: arrays as base64 of little-endian bytes."""
        parts = {name: _pack(part) for name, part in self.projection.parts().items()}
        return {
            "projection": {"encoding": self.projection.encoding, **parts},
            "offset": _pack(self.offset),
            "variance_ratio": _pack(self.variance_ratio),
            "scale": self.scale,
        }

    @classmethod
    def from_dict(cls, data: object) -> Backend:
        """What ``to_dict`` wrote; ModelFormatError for anything else."""
        parts = fields(data, "scoring", ("projection", "offset", "variance_ratio", "scale"))
        return cls(
            projection=_read_projection(parts["projection"]),
            offset=_unpack(parts["offset"], "offset", 1),
            variance_ratio=_unpack(parts["variance_ratio"], "variance_ratio", 1),
            scale=number(parts["scale"], "scoring scale"),
        )


def _read_projection(data: object) -> Tensor:
    encoding = data.get("encoding") if isinstance(data, dict) else None
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        raise ModelFormatError(
            f"scoring projection: encoding {encoding!r:.80}; known are {', '.join(ENCODINGS)}"
        )
    axes = PARTS[encoding]
    found = fields(data, "scoring projection", ("encoding", *axes))
    parts = {name: _unpack(found[name], f"projection {name}", n) for name, n in axes.items()}
    try:
        return ENCODINGS[encoding].from_parts(parts["values"].shape, parts)
    except GraphError as error:
        raise ModelFormatError(f"scoring projection: {error}") from error


def _check_size(array: NDArray[Any], what: str) -> None:
    if not all_finite(array) or float(np.abs(array).max()) > LARGEST:
        raise ModelFormatError(f"the scoring {what} holds values not finite or beyond {LARGEST:g}")


def _pack(array: NDArray[Any]) -> dict[str, Any]:
    name = array.dtype.name
    data = np.ascontiguousarray(array, dtype=DTYPES[name]).tobytes()
    return {"dtype": name, "shape": list(array.shape), "data": base64.b64encode(data).decode()}


def _unpack(value: object, what: str, axes: int) -> NDArray[Any]:
    """An array that ``_pack`` wrote, read-only; every size is checked before it is used."""
    found = fields(value, f"scoring {what}", ("dtype", "shape", "data"))
    dtype, shape, text = found["dtype"], found["shape"], found["data"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ModelFormatError(f"scoring {what}: dtype {dtype!r:.80}")
    if not isinstance(shape, list) or len(shape) != axes or not all(map(_is_size, shape)):
        raise ModelFormatError(
            f"scoring {what}: shape {shape!r:.80}, needs {axes} sizes of 1..{MAX_DIMENSION}"
        )
    size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if not isinstance(text, str) or len(text) != -(-size // 3) * 4:
        raise ModelFormatError(f"scoring {what}: the data is not base64 of {size} bytes")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ModelFormatError(f"scoring {what}: not base64: {error}") from error
    # one array has one text: a second way to write it (spare bits set) is refused
    if len(data) != size or base64.b64encode(data).decode() != text:
        raise ModelFormatError(f"scoring {what}: the data is not base64 of {size} bytes")
    return np.frombuffer(data, DTYPES[dtype]).reshape(shape)


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_DIMENSION
