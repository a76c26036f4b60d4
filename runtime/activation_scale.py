"""Activations in eight bits: the one definition that the converter and every engine share.

An activation x becomes q of 0..255, which stands for ``scale * (q - zero)``. One scale and
one zero point an activation ("per tensor"); zero is always exactly representable, so padding
costs nothing. All arithmetic is IEEE float32, each step rounded on its own:

1. t = x * inverse, where inverse = 1 / scale was divided once, when the graph was loaded;
2. t = fmax(t, -zero), then t = fmin(t, 255 - zero): saturation, before any conversion, so
   that no machine meets a float beyond its integers. NaN becomes the lower bound;
3. q = rint(t) + zero, to the nearest whole number, of two as near the even one.

Halves go to even because that is the one rounding that is a single instruction everywhere:
``rintf`` in C, ``cvtps2dq`` in SSE2, AVX2 and AVX-512, ``fcvtns`` in NEON; it needs no bias
and has none. Step 2 is ``maxps(t, bound)``, ``minps(t, bound)`` on x86 and ``fmaxnm``,
``fminnm`` on ARM. No step adds to a product, so contraction cannot change a bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.errors import GraphError
from edgeid.runtime.layer_json import check_keys, check_name
from edgeid.runtime.tensor import FloatArray

LEVELS = 256
MAX_SCALE = 2.0**119  # 255 * scale is still a float32
MIN_SCALE = 2.0**-119


@dataclass(frozen=True)
class ActivationScale:
    """How an activation is stored in eight bits: real = scale * (q - zero), q in 0..255.

    Attributes:
        scale: of one step, 2^-119..2^119; rounded to float32 where it is used.
        zero: the q that stands for 0, in 0..255: 0 for what is never negative, in the
            middle for what a PReLU writes.

    Raises:
        GraphError: a value is of another type or out of range.
    """

    scale: float
    zero: int

    def __post_init__(self) -> None:
        if type(self.scale) not in (int, float) or not MIN_SCALE <= self.scale <= MAX_SCALE:
            raise GraphError(f"scale {self.scale!r:.80} must be a number, 2^-119..2^119")
        if type(self.zero) is not int or not 0 <= self.zero < LEVELS:
            raise GraphError(f"zero {self.zero!r:.80} must be a whole number, 0..{LEVELS - 1}")

    @classmethod
    def covering(cls, low: float, high: float) -> ActivationScale:
        """The scale whose 256 levels span ``low`` <= 0 <= ``high``, both finite.

        As 0 is to be a level, the ends may lie up to half a step outside. Of an empty range
        the scale is 1.
        """
        step = min(max((high - low) / (LEVELS - 1), MIN_SCALE), MAX_SCALE) if high > low else 1.0
        scale = float(np.float32(step))
        return cls(scale, min(max(round(-low / scale), 0), LEVELS - 1))

    def quantise(self, x: FloatArray) -> NDArray[np.uint8]:
        """float32 of any shape -> uint8, by the steps at the head of this file."""
        inverse = np.float32(1) / np.float32(self.scale)
        with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 is beyond 255 too
            steps = np.multiply(x, inverse, dtype=np.float32)
            np.fmax(steps, np.float32(-self.zero), out=steps)
        np.fmin(steps, np.float32(LEVELS - 1 - self.zero), out=steps)
        np.rint(steps, out=steps)
        steps += np.float32(self.zero)  # whole numbers: exact
        return steps.astype(np.uint8)

    def dequantise(self, q: NDArray[np.uint8]) -> FloatArray:
        """uint8 -> float32: the exact difference to zero, times the scale."""
        steps = q.astype(np.float32) - np.float32(self.zero)
        return np.asarray(steps * np.float32(self.scale), np.float32)


def scales_to_dict(scales: Mapping[str, ActivationScale]) -> dict[str, Any]:
    """JSON form of a graph's scales, by activation."""
    return {name: {"scale": float(s.scale), "zero": s.zero} for name, s in scales.items()}


def scales_from_dict(value: object) -> dict[str, ActivationScale]:
    """The scales that ``scales_to_dict`` wrote.

    Raises:
        GraphError: naming the activation whose scale is malformed or out of range.
    """
    if not isinstance(value, dict):
        raise GraphError(f"graph, scales: expected an object, found {type(value).__name__}")
    scales = {}
    for name, item in value.items():
        where = f"scale of activation {check_name(name, 'graph, scales')!r}"
        found = check_keys(item, {"scale", "zero"}, where)
        try:
            scales[name] = ActivationScale(found["scale"], found["zero"])
        except GraphError as error:
            raise GraphError(f"{where}: {error}") from error
    return scales
