"""The squared error of what a layer puts out, as a function of its weight.

The inputs of a layer are strongly correlated, so an error in one weight can be made good by
another: what counts is the error over whole input patches (their second moments, and those
with the wanted outputs), not weight by weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgeid.converters.codebook.subvectors import cut
from edgeid.runtime.graph import Conv, Gemm

PATCHES = 16384  # of the inputs, at most
RIDGE = 0.2  # how much errors of the weights themselves count, times weights of a filter a patch
BATCH = 32


@dataclass(frozen=True)
class Patches:
    """What the filters of a layer meet, and what the original puts out there.

    Attributes:
        inputs: (n, in * taps), channels outside, kernel taps inside; means taken off.
        outputs: (n, out), of the original; means taken off.
        reach: (out,) what a squared error of an output costs.
    """

    inputs: Tensor
    outputs: Tensor
    reach: Tensor


@dataclass(frozen=True)
class OutputError:
    """The squared error of a layer's outputs as a function of its weight.

    It is sum over outputs o of reach_o * (|rows^T w_o - targets_o|^2 + ridge * |w_o -
    start_o|^2), w_o the filter, cut into blocks of r weights of one sub-space and tap.

    Attributes:
        rows: (blocks, r, n) n equations; no more of them than weights of a filter.
        targets: (n, out).
        start: (blocks, r, out) the original weight.
        ridge: see above.
        reach: (out,).
        triangular: equation i does not have the blocks that end before it.
    """

    rows: Tensor
    targets: Tensor
    start: Tensor
    ridge: float
    reach: Tensor
    triangular: bool

    def residual(self, weight: Tensor) -> Tensor:
        """(n, out) of a weight (blocks, r, out)."""
        return self.rows.flatten(0, 1).T @ weight.flatten(0, 1) - self.targets

    def value(self, weight: Tensor) -> float:
        """The error of a weight (blocks, r, out)."""
        fit = self.residual(weight).square().sum(0)
        kept = self.ridge * (weight - self.start).square().sum((0, 1))
        return float(((fit + kept) * self.reach).sum())

    def normal(self, weight: Tensor) -> Tensor:
        """Half the error's second derivative applied to a weight (blocks, r, out)."""
        flat = self.rows.flatten(0, 1)
        product = flat @ (flat.T @ weight.flatten(0, 1))
        return (product.reshape(weight.shape) + self.ridge * weight) * self.reach

    def slope(self, weight: Tensor) -> Tensor:
        """Half the error's derivative at a weight (blocks, r, out)."""
        flat = self.rows.flatten(0, 1) @ self.residual(weight)
        away = self.ridge * (weight - self.start)
        return (flat.reshape(weight.shape) + away) * self.reach


def patches_of(
    layer: Conv | Gemm, inputs: Tensor, outputs: Tensor, kernel: Sequence[int], reach: Tensor
) -> Patches:
    """Patches of a layer without groups, at positions drawn evenly.

    Args:
        layer: that reads ``inputs``.
        inputs: (N, in[, rows, columns]) as the layer will meet them.
        outputs: (N, out[, rows, columns]) of the original layer, without bias.
        kernel: shape of the weight.
        reach: (out,) what a squared error of an output costs.
    """
    if isinstance(layer, Gemm):
        rows, wanted = inputs[:PATCHES], outputs[:PATCHES]
        return Patches(rows - rows.mean(0), wanted - wanted.mean(0), reach)
    generator = torch.Generator().manual_seed(len(inputs))
    positions = outputs.shape[2] * outputs.shape[3]
    count = min(positions, max(1, PATCHES // len(inputs)))
    top, left, bottom, right = layer.pad
    found, wanted_parts = [], []
    for start in range(0, len(inputs), BATCH):
        some = slice(start, start + BATCH)
        padded = functional.pad(inputs[some], (left, right, top, bottom))
        columns = functional.unfold(padded, tuple(kernel[2:]), stride=layer.stride)
        chosen = torch.randperm(positions, generator=generator)[:count]
        found.append(columns[:, :, chosen].transpose(1, 2).flatten(0, 1))
        wanted_parts.append(outputs[some].flatten(2)[:, :, chosen].transpose(1, 2).flatten(0, 1))
    rows, wanted = torch.cat(found), torch.cat(wanted_parts)
    return Patches(rows - rows.mean(0), wanted - wanted.mean(0), reach)


def output_error(parts: Sequence[Patches], weight: Tensor, r: int) -> OutputError:
    """The error of a weight that one or more layers read, each as its reach says.

    Args:
        parts: of each layer that reads the weight.
        weight: the original (out, in[, height, width]).
        r: length of a sub-vector.
    """
    size = weight[0].numel()
    whole = torch.stack([part.reach.mean() for part in parts]).sum()
    # one reader: the reach of each output; several: what each reader's outputs cost together
    reach = parts[0].reach if len(parts) == 1 else whole.expand(len(weight)).clone()
    share = [1.0 if len(parts) == 1 else float(p.reach.mean() / whole) for p in parts]
    scales = [(s / len(p.inputs)) ** 0.5 for s, p in zip(share, parts, strict=True)]
    inputs = torch.cat([p.inputs * s for p, s in zip(parts, scales, strict=True)])
    outputs = torch.cat([p.outputs * s for p, s in zip(parts, scales, strict=True)])
    # the fewer patches, the less they say of other inputs: the nearer to the original weights
    ridge = RIDGE * float(inputs.square().sum()) / sum(len(p.inputs) for p in parts)
    order = _block_order(weight.shape, r)
    start = _blocks(weight, r)
    if len(inputs) <= size:
        rows = _padded_rows(inputs, order, r)
        return OutputError(rows, outputs, start, max(ridge, 1e-30), reach, triangular=False)
    moments = inputs.T @ inputs
    cross = inputs.T @ outputs + ridge * weight.flatten(1).T
    moments.diagonal().add_(max(ridge, 1e-30))
    real = order >= 0
    moments = moments[order[real]][:, order[real]]
    factor = torch.linalg.cholesky(moments.double(), upper=True)
    cross = cross[order[real]].double()
    targets = torch.linalg.solve_triangular(factor.T, cross, upper=False).float()
    rows = torch.zeros(len(order), len(factor))
    rows[real] = factor.T.float()
    rows = rows.reshape(-1, r, len(factor))
    return OutputError(rows, targets, start, 0.0, reach, triangular=bool(real.all()))


def _blocks(weight: Tensor, r: int) -> Tensor:
    """(out, in[, height, width]) -> (blocks, r, out), padded with zeros."""
    grid = cut(weight, r)
    return grid.reshape(-1, len(weight), r).transpose(1, 2).contiguous()


def _block_order(shape: Sequence[int], r: int) -> Tensor:
    """For each place in the blocks its place in a flattened filter; -1 is padding."""
    number = torch.arange(1, 1 + int(torch.tensor(shape[1:]).prod()), dtype=torch.float64)
    places = _blocks(number.reshape(1, *shape[1:]), r)
    return places.flatten().long() - 1


def _padded_rows(inputs: Tensor, order: Tensor, r: int) -> Tensor:
    """(n, filter) -> (blocks, r, n), padding 0."""
    rows = inputs.T[order.clamp_min(0)] * (order >= 0)[:, None]
    return rows.reshape(-1, r, len(inputs)).contiguous()
