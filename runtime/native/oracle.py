"""The arithmetic of the native engine in numpy: slow, plain, and right by definition.

Every instruction set of the C kernels gives the same bits (``program`` has the definition).
Values here are in row-major order (N, channels, height, width), without blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.codebook import index_shape
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.native import program as p
from edgeid.runtime.packing import unpack_bits

T = TypeVar("T", bound=np.generic)
Integers = NDArray[np.int32]
Bytes = NDArray[np.uint8]


def run(program: p.Program, x: FloatArray) -> FloatArray:
    """Run a batch (N, *input shape) float32 -> (N, *output shape) float32."""
    reals: dict[str, FloatArray] = {}
    coded: dict[str, Bytes] = {}
    for step in program.steps:
        size = (len(x), *step.output.size)
        if isinstance(step, p.Pack):
            result = x.reshape(size)
        elif isinstance(step, p.Convolution):
            result = _convolution(step, program, reals, coded)
        else:
            result = _plain(step, [reals[name] for name in step.inputs], size)
        if step.output.scale is not None:
            coded[step.output.name] = step.output.scale.quantise(result)
        if step.output.real:
            reals[step.output.name] = result
    return reals[program.output].reshape(len(x), *program.output_shape)


def _convolution(
    step: p.Convolution,
    program: p.Program,
    reals: dict[str, FloatArray],
    coded: dict[str, Bytes],
) -> FloatArray:
    name = step.inputs[0]
    if isinstance(step.weights, p.FloatWeights):
        total: NDArray[np.generic] = _float_sums(step, step.weights.values, reals[name])
    else:
        scale = program.values[name].scale
        assert scale is not None  # the planner stores what an integer layer reads
        centred = coded[name].astype(np.int32) - scale.zero
        if isinstance(step.weights, p.LookupWeights):
            total = _lookup_sums(step, step.weights, centred)
        else:
            total = _dense_sums(step, step.weights.values, centred)
    residual = step.epilogue.residual
    return finish(total, step.epilogue, None if residual is None else reals[residual])


def finish(
    total: NDArray[np.generic], epilogue: p.Epilogue, residual: FloatArray | None = None
) -> FloatArray:
    """The epilogue over sums (N, channels, ...)."""
    x = total.astype(np.float32) * _along(epilogue.gain, total)
    x += _along(epilogue.shift, total)
    x = _activated(x, epilogue.first)
    if residual is not None:
        x += residual
    return _activated(x, epilogue.second)


def _activated(x: FloatArray, activation: p.Activation) -> FloatArray:
    if activation.slope is not None:
        x = np.where(x > 0, x, x * _along(activation.slope, x))
    if activation.low != -math.inf or activation.high != math.inf:
        low, high = np.float32(activation.low), np.float32(activation.high)
        x = np.where(x > low, x, low)
        x = np.where(x < high, x, high)
    return x


def _along(values: FloatArray, x: NDArray[np.generic]) -> FloatArray:
    return values.reshape(-1, *[1] * (x.ndim - 2))


def tables(weights: p.LookupWeights, centred: Integers) -> NDArray[np.int8]:
    """The tables (N, sub-spaces, K, height, width) of an input (N, channels, height, width)."""
    spaces, _, length = weights.codewords.shape
    n, channels, height, width = centred.shape
    padded = np.zeros((n, spaces * length, height, width), np.int64)
    padded[:, :channels] = centred
    vectors = padded.reshape(n, spaces, length, height, width)
    exact = np.einsum("nsjhw,skj->nskhw", vectors, weights.codewords.astype(np.int64))
    shift = length.bit_length() - 1
    halved = (exact + (1 << shift >> 1)) >> shift
    scaled = (halved * weights.multipliers[None, :, None, None, None] + (1 << 14)) >> 15
    entries: NDArray[np.int8] = np.clip(scaled, -128, 127).astype(np.int8)
    return entries


def _lookup_sums(step: p.Convolution, weights: p.LookupWeights, centred: Integers) -> Integers:
    window, (outputs, rows, columns) = step.window, step.output.size
    spaces, count, length = weights.codewords.shape
    bits = count.bit_length() - 1
    shape = index_shape((outputs, spaces * length, *window.kernel), length)
    indices = unpack_bits(weights.indices, bits, math.prod(shape)).reshape(shape)
    padded = _padded(tables(weights, centred), window.pad, 0)
    total = np.zeros((len(centred), outputs, rows, columns), np.int32)
    for i, j, rows_of, columns_of in _taps(window, rows, columns):
        seen = padded[:, :, :, rows_of, columns_of]
        for space in range(spaces):
            total += seen[:, space, indices[space, i, j]]
    return total


def _dense_sums(step: p.Convolution, values: NDArray[np.int8], centred: Integers) -> Integers:
    weight = values.astype(np.int32)
    window, (outputs, rows, columns) = step.window, step.output.size
    padded = _padded(centred, window.pad, 0)
    total = np.zeros((len(centred), outputs, rows, columns), np.int32)
    for i, j, rows_of, columns_of in _taps(window, rows, columns):
        seen = padded[:, :, rows_of, columns_of]
        if step.groups == 1:
            total += np.einsum("nchw,oc->nohw", seen, weight[:, :, i, j])
        else:
            total += seen * weight[None, :, 0, i, j, None, None]
    return total


def _float_sums(step: p.Convolution, weight: FloatArray, x: FloatArray) -> FloatArray:
    """Products added one after the other: input channels outside, then kernel rows, columns."""
    window, (outputs, rows, columns) = step.window, step.output.size
    padded = _padded(x, window.pad, 0)
    total = np.zeros((len(x), outputs, rows, columns), np.float32)
    per_group = outputs // step.groups
    for channel in range(weight.shape[1]):
        for i, j, rows_of, columns_of in _taps(window, rows, columns):
            seen = padded[:, channel :: weight.shape[1], rows_of, columns_of]
            total += np.repeat(seen, per_group, axis=1) * weight[None, :, channel, i, j, None, None]
    return total


def _padded(x: NDArray[T], pad: tuple[int, int, int, int], value: float) -> NDArray[T]:
    top, left, bottom, right = pad
    around = [(0, 0)] * (x.ndim - 2) + [(top, bottom), (left, right)]
    return np.pad(x, around, constant_values=value)


def _taps(window: p.Window, rows: int, columns: int) -> list[tuple[int, int, slice, slice]]:
    """Kernel row and column, and the input rows and columns that they meet."""
    (height, width), (down, right) = window.kernel, window.stride
    return [
        (
            i,
            j,
            slice(i, i + down * (rows - 1) + 1, down),
            slice(j, j + right * (columns - 1) + 1, right),
        )
        for i in range(height)
        for j in range(width)
    ]


def _plain(step: p.Step, inputs: list[FloatArray], size: tuple[int, int, int, int]) -> FloatArray:
    if isinstance(step, p.Elementwise):
        return finish(_combined(inputs, product=step.product), step.epilogue)
    if isinstance(step, p.Pool):
        return _pooled(step, inputs[0])
    if isinstance(step, p.Concat):
        return np.concatenate(inputs, axis=1)
    if isinstance(step, p.Reshape):
        return inputs[0].reshape(size)
    assert isinstance(step, p.Normalise)
    return _normalised(inputs[0], step.eps)


def _combined(inputs: list[FloatArray], *, product: bool) -> FloatArray:
    if len(inputs) == 1:
        return inputs[0]
    return inputs[0] * inputs[1] if product else inputs[0] + inputs[1]


def _pooled(step: p.Pool, x: FloatArray) -> FloatArray:
    """Windows row by row: the largest, or the sum divided by the number inside the image."""
    rows, columns = step.output.size[1:]
    around = -math.inf if step.largest else 0.0
    join: Callable[..., FloatArray] = _larger if step.largest else np.add
    padded = _padded(x, step.window.pad, around)
    inside = _padded(np.ones((1, 1, *x.shape[2:]), np.float32), step.window.pad, 0)
    result = np.full((*x.shape[:2], rows, columns), around, np.float32)
    count = np.zeros((1, 1, rows, columns), np.float32)
    for _, _, rows_of, columns_of in _taps(step.window, rows, columns):
        result = join(result, padded[:, :, rows_of, columns_of])
        count += inside[:, :, rows_of, columns_of]
    return result if step.largest else np.asarray(result / count, np.float32)


def _larger(x: FloatArray, other: FloatArray) -> FloatArray:
    return np.where(other > x, other, x)  # unlike np.maximum one answer for zeros of two signs


def _normalised(x: FloatArray, eps: float) -> FloatArray:
    total = np.zeros_like(x[:, :1])
    for channel in range(x.shape[1]):
        total += np.square(x[:, channel : channel + 1])
    length = np.sqrt(total)
    divisor = np.where(length > np.float32(eps), length, np.float32(eps))
    return np.asarray(x / divisor, np.float32)
