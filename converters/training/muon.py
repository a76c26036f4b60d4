"""Muon: momentum whose matrices are made orthogonal before each step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
BETAS, EPS = (0.9, 0.95), 1e-8  # of Adam
# The quintic whose iteration pushes every singular value towards one, from Jordan et al. 2024.
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the weights of a network, Adam for everything else.

    All directions of a weight learn equally fast, which takes fewer samples than SGD.
    ``torch.optim.Muon`` knows matrices only.

    Args:
        matrices: parameters of two dimensions and more, as matrices of (outputs, rest).
        others: biases, slopes, norms, classification heads.
        rate: learning rate of the matrices; their steps have singular values of about ``rate``.
        decay: weight decay of the matrices, relative to the rate.
        other_rate: learning rate of Adam.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        rate: float = 0.02,
        decay: float = 0.025,
        other_rate: float = 3e-3,
    ) -> None:
        groups = [
            {"params": [*matrices], "lr": rate, "decay": decay, "matrices": True},
            {"params": [*others], "lr": other_rate, "decay": 0.0, "matrices": False},
        ]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step along the gradients that there are."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                move = _matrix_step if group["matrices"] else _adam_step
                parameter.mul_(1 - group["lr"] * group["decay"])
                parameter.sub_(group["lr"] * move(parameter.grad, state))


def _matrix_step(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    momentum: Tensor = state.setdefault("momentum", torch.zeros_like(gradient))
    momentum.lerp_(gradient, 1 - MOMENTUM)
    ahead = gradient.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov
    rows, columns = ahead.shape
    wide = float(max(1.0, rows / columns) ** 0.5)
    return wide * orthogonal(ahead).reshape(gradient.shape)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with singular values of some 0.7 to 1.2, by Newton-Schulz iterations."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    found: Tensor = (x.T if tall else x).to(matrix.dtype)
    return found


def _adam_step(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    first: Tensor = state.setdefault("first", torch.zeros_like(gradient))
    second: Tensor = state.setdefault("second", torch.zeros_like(gradient))
    steps = state["steps"] = state.get("steps", 0) + 1
    first.lerp_(gradient, 1 - BETAS[0])
    second.lerp_(gradient.square(), 1 - BETAS[1])
    mean = first / (1 - BETAS[0] ** steps)
    found: Tensor = mean / ((second / (1 - BETAS[1] ** steps)).sqrt() + EPS)
    return found
