"""What the native engine runs: a list of steps, each a whole layer with all that follows it.

The arithmetic is defined here, once, to the bit. ``oracle`` computes it in numpy; every
instruction set of the C kernels has to give the same bits.

Values. An activation is stored as uint8 q (``ActivationScale``: real = scale * (q - zero)),
as float32, or as both; that is decided by who reads it. Channels lie in blocks of eight,
(channels / 8, height, width, 8), so that a sub-vector of eight input channels is eight bytes
in a row. Channels that fill up the last block are written but never read.

Look-up convolution. Of a position and a sub-space with codewords c[k] (int8, r values) the
table is, for all k:

1. t[k] = sum_j (q[j] - zero) * c[k][j], exact in int32; outside the image q is zero;
2. u[k] = (t[k] + 2^(s-1)) >> s with s = log2(r): fits int16 whatever q and c are;
3. v[k] = (u[k] * m + 2^14) >> 15, m of the sub-space in 1..32767, then saturated to
   -128..127 (pmulhrsw on x86, sqrdmulh on ARM, then a saturating narrowing).

An output is the sum of v[index] over kernel positions and sub-spaces, exact in int32: one
look-up stands for r multiply-adds. Dense and depth-wise convolutions are
sum (q - zero) * w, exact in int32.

Epilogue, on the sum as float32 (rounded to nearest), each operation rounded on its own:
x = sum * gain; x = x + shift; first activation; x = x + residual; second activation. An
activation is x > 0 ? x : x * slope (where there are slopes), then x > low ? x : low, then
x < high ? x : high. What is stored is x, or x in eight bits, or both.

Everything else is float32 in the order that ``oracle`` writes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.tensor import FloatArray

BLOCK = 8
"""Channels that lie side by side."""

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Value:
    """An activation of (channels, height, width), and the forms in which it is stored."""

    name: str
    size: Size
    scale: ActivationScale | None = None
    """Of the uint8 form; None where nobody reads that."""
    real: bool = True
    """Whether the float32 form is stored."""


@dataclass(frozen=True, eq=False)
class Activation:
    """PReLU and clipping; see the head of this file."""

    slope: FloatArray | None = None
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, eq=False)
class Epilogue:
    """What happens to a sum before it is stored; see the head of this file."""

    gain: FloatArray
    shift: FloatArray
    first: Activation = field(default_factory=Activation)
    residual: str | None = None
    second: Activation = field(default_factory=Activation)


@dataclass(frozen=True, eq=False)
class LookupWeights:
    """Weights that are computed by table look-up.

    Attributes:
        codewords: (sub-spaces, K, r) int8; zero beyond the last input channel.
        indices: bit-packed, in the order (sub-space, kernel row, kernel column, output).
        multipliers: (sub-spaces,) int16, 1..32767.
    """

    codewords: NDArray[np.int8]
    indices: NDArray[np.uint8]
    multipliers: NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class DenseWeights:
    """(out, in / groups, height, width) int8: multiplied exactly."""

    values: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class FloatWeights:
    """(out, in / groups, height, width) float32: where the input has no eight-bit form."""

    values: FloatArray


@dataclass(frozen=True)
class Window:
    """Of a convolution or pooling; pad is (top, left, bottom, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a kernel: reads ``inputs``, writes ``output``."""

    name: str
    inputs: tuple[str, ...]
    output: Value


@dataclass(frozen=True, eq=False)
class Pack(Step):
    """The input of an entry: from (channels, height, width) float32 into blocks of channels."""


@dataclass(frozen=True, eq=False)
class Convolution(Step):
    """Convolutions of all kinds; a fully connected layer is one with a window of (1, 1)."""

    window: Window
    groups: int
    weights: LookupWeights | DenseWeights | FloatWeights
    epilogue: Epilogue


@dataclass(frozen=True, eq=False)
class Elementwise(Step):
    """Of one input, or the sum or product of two; then the epilogue without a residual."""

    product: bool
    epilogue: Epilogue


@dataclass(frozen=True, eq=False)
class Pool(Step):
    """Largest value or mean of each window, over what is inside the image."""

    window: Window
    largest: bool


@dataclass(frozen=True, eq=False)
class Concat(Step):
    """Inputs one after the other along the channels."""


@dataclass(frozen=True, eq=False)
class Reshape(Step):
    """The same values in the row-major order of (channels, height, width), other axes."""


@dataclass(frozen=True, eq=False)
class Normalise(Step):
    """x / max(|x|, eps) over the channels of every position."""

    eps: float


@dataclass(frozen=True, eq=False)
class Program:
    """The steps of one entry, in order.

    Attributes:
        values: every activation that is stored, by name.
        output: name of the one to read at the end, in float32.
        output_shape: its shape without batch.
    """

    entry: str
    input_shape: tuple[int, ...]
    steps: tuple[Step, ...]
    values: dict[str, Value]
    output: str
    output_shape: tuple[int, ...]


def as_size(shape: tuple[int, ...]) -> Size:
    """(channels, height, width) in which an activation of any shape is stored."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    return shape[0], 1, math.prod(shape[1:])
