"""Which channels lie in one sub-space: those whose weights say much about each other.

A codebook of K codewords spends log2(K) bits on r channels. What it leaves as error is
bounded below by the rate-distortion function of a Gaussian with the same second moments
(reverse water-filling; Cover and Thomas, "Elements of Information Theory", 10.3.3), which
is small where the channels are correlated. As in Martinez et al. 2021 (section 3.2, there
with the determinant, the limit for high rates) a greedy start is improved by swaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Order = NDArray[np.intp]


@dataclass(frozen=True)
class Reader:
    """Second moments of one weight that reads the channels.

    Attributes:
        moments: (channels, channels), of the weight's columns, times their importance.
        beside: (spaces, r, r) moments of the partner's sub-vectors, which share the
            codebooks; zeros where there is none.
    """

    moments: Floats
    beside: Floats


def distortion(moments: Floats, bits: float) -> Floats:
    """Least mean error of ``bits`` bits on Gaussian vectors: (..., r, r) -> (...)."""
    values = np.linalg.eigvalsh(moments)[..., ::-1].clip(min=0)  # largest first
    count = np.arange(1, values.shape[-1] + 1)
    with np.errstate(divide="ignore"):
        mean_log = np.cumsum(np.log2(values), axis=-1) / count
    level = np.exp2(mean_log - 2 * bits / count)  # error of each of the first ``count``
    rest = values.sum(-1, keepdims=True) - np.cumsum(values, axis=-1)
    active = (values > level).sum(-1).clip(min=1) - 1  # components that receive bits
    errors = count * level + rest.clip(min=0)
    found: Floats = np.take_along_axis(errors, active[..., None], -1)[..., 0]
    return found


def total_distortion(readers: Sequence[Reader], order: Order, r: int, bits: float) -> float:
    """Sum over readers and sub-spaces, for channels in the order given."""
    return sum(float(distortion(_blocks(x, order, r), bits).sum()) for x in readers)


def choose_order(readers: Sequence[Reader], r: int, bits: float, sweeps: int = 2) -> Order:
    """An order of the channels with little distortion, never worse than the present one.

    Args:
        readers: the coded weights that read the channels.
        r: length of a sub-vector.
        bits: of one index.
        sweeps: passes over all pairs of sub-spaces; 0 leaves the greedy start.
    """
    channels = len(readers[0].moments)
    present = np.arange(channels)
    if channels <= r:
        return present
    start = _greedy(sum((x.moments for x in readers), np.zeros((channels, channels))), r)
    before = [total_distortion(readers, order, r, bits) for order in (present, start)]
    order = (present if before[0] <= before[1] else start).copy()
    for _ in range(sweeps):
        if not _sweep(readers, order, r, bits):
            break
    return order


def _blocks(reader: Reader, order: Order, r: int) -> Floats:
    """(spaces, r, r) second moments of each sub-space, the last one padded with zeros."""
    spaces = -(-len(order) // r)
    padded = np.zeros((spaces * r, spaces * r))
    padded[: len(order), : len(order)] = reader.moments[np.ix_(order, order)]
    grid = padded.reshape(spaces, r, spaces, r)
    return grid[np.arange(spaces), :, np.arange(spaces)] + reader.beside


def _greedy(moments: Floats, r: int) -> Order:
    """The strongest channel left, then those most correlated with it."""
    scale = np.sqrt(np.diag(moments).clip(min=1e-30))
    affinity = np.abs(moments / scale[:, None] / scale[None, :])
    left = np.ones(len(moments), dtype=bool)
    order: list[int] = []
    while left.any():
        first = int(np.argmax(np.where(left, scale, -1)))
        left[first] = False
        likes = np.argsort(np.where(left, -affinity[first], 1), kind="stable")
        others = likes[: min(r - 1, int(left.sum()))]
        left[others] = False
        order += [first, *others.tolist()]
    return np.array(order, dtype=np.intp)


def _sweep(readers: Sequence[Reader], order: Order, r: int, bits: float) -> bool:
    """For each pair of sub-spaces make the best swap of a channel, if one helps; in place."""
    changed = False
    bounds = [(s, min(s + r, len(order))) for s in range(0, len(order), r)]
    for i, a in enumerate(bounds):
        for j in range(i + 1, len(bounds)):
            trials = _swaps(order, a, bounds[j])
            parts = [_pair_distortion(x, trials, r, (i, j), bits) for x in readers]
            errors = np.sum(parts, axis=0)
            best = int(np.argmin(errors))
            if errors[best] < errors[0] * (1 - 1e-9):
                order[a[0] : a[1]] = trials[0][best]
                order[bounds[j][0] : bounds[j][1]] = trials[1][best]
                changed = True
    return changed


def _swaps(order: Order, a: tuple[int, int], b: tuple[int, int]) -> tuple[Order, Order]:
    """The members of two sub-spaces as they are (row 0) and after each possible swap."""
    left, right = order[a[0] : a[1]], order[b[0] : b[1]]
    count = 1 + len(left) * len(right)
    lefts, rights = np.tile(left, (count, 1)), np.tile(right, (count, 1))
    for number in range(1, count):
        x, y = divmod(number - 1, len(right))
        lefts[number, x], rights[number, y] = right[y], left[x]
    return lefts, rights


def _pair_distortion(
    reader: Reader, trials: tuple[Order, Order], r: int, spaces: tuple[int, int], bits: float
) -> Floats:
    total = np.zeros(len(trials[0]))
    for members, space in zip(trials, spaces, strict=True):
        count = members.shape[1]
        block = np.zeros((len(members), r, r))
        block[:, :count, :count] = reader.moments[members[:, :, None], members[:, None, :]]
        total += distortion(block + reader.beside[space], bits)
    return total
