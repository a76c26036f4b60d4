"""Weights cut into sub-vectors along the input channels, and joined again, in torch.

The order is that of ``runtime.codebook``: (sub-space, kernel row, kernel column, output).
A fully connected weight (out, in) is a kernel of 1x1. Where r does not divide the input
channels, the last sub-space is padded with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgeid.runtime.codebook import sub_spaces


def cut(weight: Tensor, r: int) -> Tensor:
    """(out, in[, height, width]) -> (spaces, height * width * out, r)."""
    outputs, channels = weight.shape[:2]
    spaces = sub_spaces(tuple(weight.shape), r)
    rows = weight.reshape(outputs, channels, -1).permute(1, 2, 0)  # in, taps, out
    padded = functional.pad(rows, (0, 0, 0, 0, 0, spaces * r - channels))
    grid = padded.reshape(spaces, r, -1, outputs).permute(0, 2, 3, 1)
    return grid.reshape(spaces, -1, r)


def join(vectors: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of ``cut``: (spaces, height * width * out, r) -> a weight of ``shape``."""
    spaces, _, r = vectors.shape
    grid = vectors.reshape(spaces, -1, shape[0], r).permute(2, 0, 3, 1)  # out, spaces, r, taps
    return grid.reshape(shape[0], spaces * r, -1)[:, : shape[1]].reshape(tuple(shape))


def index_grid(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """(spaces, N) indices in the order of ``cut`` -> (spaces, height, width, out)."""
    height, width = tuple(shape[2:]) or (1, 1)
    return rows.reshape(len(rows), height, width, shape[0])


def decode(codewords: Tensor, indices: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight that indices name; gradients reach the codewords.

    Args:
        codewords: (spaces or more, K, r); a narrower network reads the first sub-spaces.
        indices: (spaces, N) int64, in the order of ``cut``.
        shape: (out, in[, height, width]).
    """
    _, k, r = codewords.shape
    flat = indices + k * torch.arange(len(indices))[:, None]
    return join(functional.embedding(flat, codewords.reshape(-1, r)), shape)
