"""Log min-max quantisation: levels at even distances of log|w| (paper 003, "Method").

With f = log|x|, s = sign(x) and b bits::

    q = (max f - min f) / 2^b      Q'(f) = floor((f - min f) / q) * q + min f
    Q(x) = exp(Q'(f)) * s

What the formula leaves open, and what is done here:

- The maximum has a level of its own, number 2^b, which the floor gives to nothing else. So
  there are up to 2 (2^b + 1) values with their signs; the index takes as many bits as the
  values that occur need, usually b + 1. (The paper's file sizes count b bits a weight with
  nothing for the sign: 42.94 MB * 6/32 = 8.05 MB. ``bits=5`` gives a file of that size.)
- x = 0 has no logarithm. It takes no part in min f and max f, and stays 0, as s = 0 says.
- All |x| equal, q = 0: every weight is kept as it is. All x = 0: likewise.
- b = 1 has the levels min|x|, the geometric mean of min and max, and max|x| alone.

The floor makes every weight smaller. The variant "midpoint", which is not the paper's, takes
the middle of each step, exp((k + 1/2) q + min f) with k at most 2^b - 1: the same number of
levels without the one for the maximum, and on average no bias in log|w|.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from edgeid.converters.quantisation.dictionary import (
    Precision,
    Scope,
    check_options,
    check_replaced,
    dense_weights,
    index_values,
    replace_weights,
    rounded,
)
from edgeid.converters.recipe import Context, Pass, PassResult
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.errors import DataError
from edgeid.runtime.graph import Graph
from edgeid.runtime.indexed import Indexed, make_indexed

Rounding = Literal["floor", "midpoint"]
Limits = tuple[float, float]  # smallest and largest log2|w|


@dataclass(frozen=True)
class LogMinMax(Pass):
    """Store weights as indices into a dictionary of log-spaced values.

    Rules: only uncompressed weights in ``scope`` are changed; each keeps its sign and zeros
    stay zeros; a weight that would not get smaller stays as it is.

    Attributes:
        bits: b of the formula, 1..12: 2^b steps of log|w| for each sign.
        scope: "convolutions", or "all" weights, biases and slopes.
        rounding: "floor" as the paper, or "midpoint".
        limits: whether min f and max f, and with them the dictionary, are each "tensor"'s
            own or one for the "network"; the paper does not say.
        dictionary: float type of its values; float32 is taken where float16 would add an
            error of more than 0.1 %.
    """

    bits: int = 6
    scope: Scope = "convolutions"
    rounding: Rounding = "floor"
    limits: Literal["tensor", "network"] = "tensor"
    dictionary: Precision = "float16"

    name: ClassVar[str] = "logminmax"

    def __post_init__(self) -> None:
        check_options(self.bits, self.scope, self.dictionary)
        if self.rounding not in ("floor", "midpoint"):
            raise DataError(f"rounding {self.rounding!r} is neither floor nor midpoint")
        if self.limits not in ("tensor", "network"):
            raise DataError(f"limits {self.limits!r} are neither of a tensor nor of the network")

    def requires(self, graph: Graph, _context: Context) -> None:
        """Raise GraphError where no weight in the scope is uncompressed."""
        dense_weights(graph, self.scope)

    def call(self, graph: Graph, context: Context) -> PassResult:
        """Quantise, and store by index what gets smaller by it."""
        weights = dense_weights(graph, self.scope)
        if self.limits == "network":
            return replace_weights(graph, self._one_dictionary(weights))
        indexed = {
            name: index_values(rounded(self._quantise(weight, log_limits(weight)), self.dictionary))
            for name, weight in context.track(weights.items(), self.name, len(weights))
        }
        return replace_weights(graph, indexed)

    def ensures(self, before: Graph, after: Graph, _context: Context) -> None:
        """Raise GraphError unless only weights have changed, into indexed ones."""
        check_replaced(before, after)

    def _quantise(self, weight: FloatArray, limits: Limits | None) -> NDArray[np.float64]:
        return log_min_max(weight, self.bits, self.rounding, limits)

    def _one_dictionary(self, weights: dict[str, FloatArray]) -> dict[str, Indexed]:
        together = np.concatenate([weight.ravel() for weight in weights.values()])
        values = rounded(self._quantise(together, log_limits(together)), self.dictionary)
        dictionary, indices = np.unique(values, return_inverse=True)
        found, start = {}, 0
        for name, weight in weights.items():
            own = indices[start : start + weight.size].reshape(weight.shape)
            found[name] = make_indexed(dictionary, own)
            start += weight.size
        return found


def log_limits(weight: FloatArray) -> Limits | None:
    """(min, max) of log2|w| over the weights that are not 0; None where all are 0."""
    magnitude = np.abs(weight[weight != 0]).astype(np.float64)
    if not magnitude.size:
        return None
    return float(np.log2(magnitude.min())), float(np.log2(magnitude.max()))


def log_min_max(
    weight: FloatArray, bits: int, rounding: Rounding = "floor", limits: Limits | None = None
) -> NDArray[np.float64]:
    """Q(x) of the formula above, of the weight's shape.

    Args:
        weight: finite, any shape.
        bits: b.
        rounding: "floor" is the paper's.
        limits: (min, max) of log2|w|; None takes the weight's own.
    """
    limits = limits or log_limits(weight)
    values = np.zeros(weight.shape)
    if limits is None:
        return values
    low, high = limits
    some = weight != 0
    # to base 2, which cancels out: powers of two then come out exactly
    f = np.log2(np.abs(weight[some]).astype(np.float64))
    q = (high - low) / 2**bits
    if q > 0:
        step = np.floor((f - low) / q)
        f = (np.minimum(step, 2**bits - 1) + 0.5 if rounding == "midpoint" else step) * q + low
    values[some] = np.exp2(f) * np.sign(weight[some])
    return values
