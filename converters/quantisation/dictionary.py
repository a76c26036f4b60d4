"""Weights replaced by indices into a dictionary: what log min-max and palette have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeid.converters.recipe import Figures, PassResult, stored_bytes
from edgeid.runtime.encoding import Dense, FloatArray
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Conv, Graph
from edgeid.runtime.indexed import Indexed, make_indexed

Scope = Literal["convolutions", "all"]
Precision = Literal["float16", "float32"]

SCOPES = ("convolutions", "all")
PRECISIONS = ("float16", "float32")
MAX_BITS = 12
ROUNDING = 1e-3  # relative error that a float16 dictionary may add


def check_options(bits: int, scope: str, dictionary: str) -> None:
    """Raise DataError unless the options that both passes have are in range."""
    if type(bits) is not int or not 1 <= bits <= MAX_BITS:
        raise DataError(f"bits {bits!r} must be a whole number, 1..{MAX_BITS}")
    if scope not in SCOPES:
        raise DataError(f"scope {scope!r} is none of {', '.join(SCOPES)}")
    if dictionary not in PRECISIONS:
        raise DataError(f"dictionary {dictionary!r} is none of {', '.join(PRECISIONS)}")


def dense_weights(graph: Graph, scope: Scope) -> dict[str, FloatArray]:
    """Uncompressed weights: of convolutions, or of all layers with biases and slopes.

    Weights that another pass has compressed are left out.

    Raises:
        GraphError: there are none.
    """
    if scope == "all":
        names = {name for layer in graph.layers for name in layer.tensor_names()}
    else:
        names = {layer.weight for layer in graph.layers if isinstance(layer, Conv)}
    tensors = {name: graph.tensors[name] for name in sorted(names)}
    found = {name: t.decode() for name, t in tensors.items() if isinstance(t, Dense)}
    if not found:
        raise GraphError(f"scope {scope!r}: none of its {len(names)} weights is uncompressed")
    return found


def rounded(values: NDArray[np.float64], dictionary: Precision) -> NDArray[Any]:
    """The values as a dictionary holds them.

    float16 is taken where it adds a relative error of at most 0.1 % to the whole tensor;
    tensors of tiny or huge values, which it cannot hold, get float32.
    """
    values = values + 0.0  # -0 and 0 are one value
    if dictionary == "float16" and np.abs(values).max() <= 65504:
        half = values.astype(np.float16)
        if relative_error(values, half) <= ROUNDING:
            return half
    return values.astype(np.float32)


def index_values(values: NDArray[Any]) -> Indexed:
    """Store values, float16 or float32, of which few are distinct."""
    dictionary, indices = np.unique(values, return_inverse=True)
    return make_indexed(dictionary, indices.reshape(values.shape))


def relative_error(before: NDArray[Any], after: NDArray[Any]) -> float:
    """|before - after| / |before|, in the Euclidean norm; 0 where nothing has changed."""
    change = float(np.linalg.norm(before.astype(np.float64).ravel() - after.ravel()))
    length = float(np.linalg.norm(before.astype(np.float64).ravel()))
    return change / length if change else 0.0


def replace_weights(graph: Graph, indexed: Mapping[str, Indexed]) -> PassResult:
    """The graph with the weights that indexing makes smaller, and what that did.

    A weight that would not be smaller, because a dictionary outweighs what the indices save,
    stays as it is.
    """
    smaller = {
        name: tensor
        for name, tensor in indexed.items()
        if _share(tensor, indexed) < graph.tensors[name].nbytes
    }
    after = replace(graph, tensors=graph.tensors | smaller)
    before = {name: graph.tensors[name].decode() for name in smaller}
    errors = {name: relative_error(before[name], smaller[name].decode()) for name in smaller}
    figures = _figures(graph, smaller, errors, len(indexed))
    return PassResult(after, _lines(figures, errors), figures)


def _share(tensor: Indexed, others: Mapping[str, Indexed]) -> float:
    """Bytes of a tensor, with its share of a dictionary that several use."""
    users = sum(other.dictionary is tensor.dictionary for other in others.values())
    return tensor.indices.nbytes + tensor.dictionary.nbytes / users


def _figures(
    graph: Graph, smaller: Mapping[str, Indexed], errors: Mapping[str, float], chosen: int
) -> Figures:
    old = replace(graph, tensors={name: graph.tensors[name] for name in smaller})
    new = replace(graph, tensors=dict(smaller))
    weights = sum(math.prod(tensor.shape) for tensor in smaller.values())
    lengths = {name: float(np.linalg.norm(old.tensors[name].decode())) for name in smaller}
    change = math.hypot(*(errors[name] * lengths[name] for name in smaller))
    return {
        "tensors": len(smaller),
        "tensors_kept": chosen - len(smaller),
        "weights": weights,
        "bytes_before": stored_bytes(old),
        "bytes_after": stored_bytes(new),
        "bits_per_weight": round(8 * stored_bytes(new) / max(1, weights), 3),
        "relative_error": round(change / (math.hypot(*lengths.values()) or 1.0), 6),
    }


def _lines(figures: Figures, errors: Mapping[str, float]) -> tuple[str, ...]:
    lines = [
        f"{figures['tensors']} tensors of {figures['weights']:,} weights: "
        f"{figures['bytes_before']:,} -> {figures['bytes_after']:,} bytes, "
        f"{figures['bits_per_weight']} bits a weight with the dictionaries"
    ]
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        lines.append(
            f"relative error {figures['relative_error']:.2%}, "
            f"the largest {errors[worst]:.2%} in {worst!r}"
        )
    if figures["tensors_kept"]:
        lines.append(f"{figures['tensors_kept']} tensors stay: indexed they would be no smaller")
    return tuple(lines)


def check_replaced(before: Graph, after: Graph) -> None:
    """Raise GraphError unless some weights became indexed, and nothing else has changed."""
    if (before.layers, before.entries) != (after.layers, after.entries):
        raise GraphError("layers or entries have changed, only weights may")
    for name, tensor in before.tensors.items():
        now = after.tensors.get(name)
        if now is not tensor and (not isinstance(now, Indexed) or now.shape != tensor.shape):
            raise GraphError(f"tensor {name!r} was not replaced by indices of its shape")
