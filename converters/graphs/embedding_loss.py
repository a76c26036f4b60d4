"""How far a network's embeddings are from those that it is to reproduce."""

from __future__ import annotations

from torch import Tensor

STRUCTURE_WEIGHT = 5.0  # of the similarities in a batch beside the cosine


def embedding_loss(unit: Tensor, target: Tensor) -> Tensor:
    """``1 - cos`` to the targets plus five times the error of the batch's similarities.

    In paper 001's spirit, on embeddings in place of log-probabilities.

    Args:
        unit: (N, D) of unit length.
        target: likewise.
    """
    cosine = 1 - (unit * target).sum(1).mean()
    return cosine + STRUCTURE_WEIGHT * structure_error(unit, target)


def structure_error(unit: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the similarities in a batch, both (N, any) of unit length."""
    return (unit @ unit.T - target @ target.T).square().mean()
