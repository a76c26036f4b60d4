"""PReLU whose gradient does not take a third of the training on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """``torch.nn.functional.prelu`` over channels, with a gradient some six times faster.

    PyTorch's own (2.13) takes its time in bfloat16. Outputs are the same; gradients too, but for
    the order in which the slopes' sums are rounded.

    Args:
        x: (N, C, ...).
        slope: (C,) or (1,).
    """
    found: Tensor = _Function.apply(x, slope)  # type: ignore[no-untyped-call]
    return found


class PReLU(nn.PReLU):
    """``torch.nn.PReLU`` that is trained by ``prelu``."""

    def forward(self, input: Tensor) -> Tensor:
        return (prelu if self.training else functional.prelu)(input, self.weight)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return functional.prelu(x, slope.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        above = torch.ops.aten.threshold_backward(grad[0], x, 0)  # the gradient where x > 0
        below = grad[0] - above
        single = slope.numel() == 1
        of_slope = x.clamp(max=0) * grad[0]
        summed = of_slope.sum().reshape(1) if single else of_slope.sum((0, *range(2, x.ndim)))
        along = slope if single else slope.view(-1, *[1] * (x.ndim - 2))
        return above + along.to(x.dtype) * below, summed.to(slope.dtype)
