"""From stored weights to those of the native engine: which arithmetic a layer gets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.codebook import Codebook, quantise_codewords, sub_spaces
from edgeid.runtime.encoding import Int8, encode_int8
from edgeid.runtime.native.program import DenseWeights, LookupWeights, Window
from edgeid.runtime.tensor import FloatArray, Tensor

MAX_PRODUCTS = 2**31 // (255 * 127)  # of one output, so that the sum fits int32
TYPICAL_STEPS = 40.0  # root mean square of q - zero, where nothing was measured
SHIFT = {8: 3, 4: 2, 2: 1}
MAX_KERNEL = 63  # positions of a look-up: those of four sub-spaces fit an int16 sum
MAX_KERNEL_WIDTH = 32
PAYS_FROM = {8: 4, 4: 16}
"""By r: look-up from so many look-ups an input position for every codeword on.

Sub-vectors of two are multiplied. The kernels could look them up, 10 to 15 % faster on AVX2 and
8 % slower on AVX-512; but converters give them to the most sensitive layers, and there rounded
tables raise the error of embeddings (from 4.3 to 4.8 % for a pair compressed 40x)."""


def pays(codebook: Codebook, window: Window) -> bool:
    """Whether look-up takes less work than multiplying, by the shape of the layer alone.

    A table costs K * r multiply-adds a position and sub-space, and is worth it when many
    outputs read it. The rule may not depend on the machine: the two differ in the last bits.
    """
    _, count, length = codebook.codewords.shape
    positions = window.kernel[0] * window.kernel[1]
    if length not in PAYS_FROM or positions > MAX_KERNEL or window.kernel[1] > MAX_KERNEL_WIDTH:
        return False
    taps = positions / (window.stride[0] * window.stride[1])
    return bool(taps * codebook.weight_shape[0] >= PAYS_FROM[length] * count)


def lookup_weights(
    codebook: Codebook, scale: ActivationScale, table_scale: float | None
) -> tuple[LookupWeights, FloatArray]:
    """The weights for look-up, and the gain (out,) that makes real numbers of their sums.

    Args:
        codebook: of a convolution or fully connected layer.
        scale: of the layer's input.
        table_scale: what one step of a table entry stands for, as the converter measured it;
            None estimates it from the codewords.
    """
    spaces = sub_spaces(codebook.weight_shape, codebook.length)
    codewords: NDArray[np.int8]
    if codebook.scale is None:
        codewords, scales = quantise_codewords(codebook.decode_codewords()[:spaces])
    else:
        codewords = codebook.codewords[:spaces].astype(np.int8, copy=False)
        scales = codebook.scale[:spaces]
    beyond = spaces * codebook.length - codebook.weight_shape[1]
    if beyond:
        codewords = codewords.copy()
        codewords[-1, :, codebook.length - beyond :] = 0
    unit = table_scale or estimated_table_scale(codewords, scales, scale)
    steps = 2.0 ** SHIFT[codebook.length] * np.float64(scale.scale) * scales.astype(np.float64)
    unit = max(unit, float(steps.max()) * 32768 / 32767)  # so that no multiplier is above int16
    multipliers = np.clip(np.rint(steps / unit * 32768), 1, 32767).astype(np.int16)
    gain = np.full(codebook.weight_shape[0], unit, np.float32)
    return LookupWeights(np.ascontiguousarray(codewords), codebook.indices, multipliers), gain


def estimated_table_scale(
    codewords: NDArray[np.int8], scales: FloatArray, scale: ActivationScale
) -> float:
    """A table scale for a file that has none: entries of 3.5 times the expected size still fit."""
    lengths = np.sqrt(np.square(codewords.astype(np.float64)).sum(axis=2).mean(axis=1))
    largest = float((lengths * scales).max()) * TYPICAL_STEPS * scale.scale
    return max(3.5 * largest / 127, float(np.finfo(np.float32).tiny))


def dense_weights(tensor: Tensor, scale: ActivationScale) -> tuple[DenseWeights, FloatArray]:
    """The weights in int8, and the gain (out,) that makes real numbers of their sums."""
    int8 = tensor if isinstance(tensor, Int8) else encode_int8(tensor.decode())
    values = int8.values.reshape(*int8.values.shape[:2], *(int8.values.shape[2:] or (1, 1)))
    gain = np.float32(scale.scale) * int8.scale
    return DenseWeights(values), np.asarray(gain, np.float32)
