"""Additive angular margin softmax: the head that teaches embeddings who is who."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class MarginSoftmax(nn.Module):
    """ArcFace / AAM-softmax (Deng et al. 2019) over ``classes`` identities.

    Args:
        dim: size of the embedding.
        classes: number of identities.
        margin: radians added to the angle of the true class; ramps up from 0 by ``ramp``.
        scale: of the logits.
    """

    def __init__(self, dim: int, classes: int, margin: float = 0.2, scale: float = 30.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, dim) * 0.05)
        self.margin, self.scale = margin, scale

    def forward(self, embedding: Tensor, label: Tensor, ramp: float = 1.0) -> Tensor:
        # embedding: (N, dim), label: (N,); computed in float32 because acos is steep near 1
        with torch.autocast("cpu", enabled=False):
            cosine = functional.linear(
                functional.normalize(embedding.float()), functional.normalize(self.weight)
            )  # (N, classes)
            own = cosine.gather(1, label[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
            angle = torch.acos(own) + self.margin * ramp
            # Past pi the cosine would rise again; continue it as a falling line.
            shifted = torch.where(angle < math.pi, torch.cos(angle), -2 - torch.cos(angle))
            logits = cosine.scatter(1, label[:, None], shifted)
            return functional.cross_entropy(self.scale * logits, label)
