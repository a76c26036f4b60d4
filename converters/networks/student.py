"""Students: the one of paper 001 (Table 1), and a compact one for inputs of any size.

Nine tenths of the weights of Table 1 lie in its wide layer. ``CompactStudent`` has one weight
for each position and channel in its place, residual units and batch norm (which folds away),
and is for teachers that are small themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PLAN = ((32, 32), (64, 64), (128, 128))  # two convolutions a block, then 2x2 max pooling
FEATURES = 1024


class TransferStudent(nn.Module):
    """6,709,088 weights, biases not counted, for three input channels.

    Args:
        channels: of the input; the paper has 3, EdgeID's grey faces 1.
        dim: size of the linear projection used by the Siamese stage; None gives the
            1024 features themselves.
        dropout: of the features while training.

    Maps (N, channels, 56, 56) float32 to (N, dim or 1024).
    """

    def __init__(self, channels: int = 3, dim: int | None = None, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = channels
        for block in PLAN:
            for c_out in block:
                layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU()]
                c_in = c_out
            layers.append(nn.MaxPool2d(2))
        self.trunk = nn.Sequential(*layers)
        self.features = nn.Linear(c_in * 7 * 7, FEATURES)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Identity() if dim is None else nn.Linear(FEATURES, dim)

    def forward(self, x: Tensor) -> Tensor:
        # x: (N, channels, 56, 56) -> 28 -> 14 -> 7
        x = self.trunk(x).flatten(1)  # (N, 6272)
        x = self.dropout(self.features(x).relu())  # (N, 1024)
        projection: Tensor = self.project(x)
        return projection


CHANNELS = (32, 64, 96, 128)
UNITS = (0, 1, 1, 0)  # residual units of each stage


class CompactStudent(nn.Module):
    """A residual network that halves its maps four times; 445,984 weights at these defaults.

    ReLU and few channels at the full size, where a processor spends its time on reading and
    writing maps: it trains about four times as fast as a CNN-20 of half width.

    Args:
        shape: of the input, (channels, height, width).
        dim: number of outputs.
        channels, units: of each stage; a stage begins with a 3x3 convolution of stride 2.

    Maps (N, *shape) float32 to (N, dim), not normalised.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (1, 112, 96),
        dim: int = 128,
        channels: tuple[int, ...] = CHANNELS,
        units: tuple[int, ...] = UNITS,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in, height, width = shape
        for c_out, count in zip(channels, units, strict=True):
            layers.append(_unit(c_in, c_out, stride=2))
            layers += [_Residual(c_out) for _ in range(count)]
            c_in, height, width = c_out, (height + 1) // 2, (width + 1) // 2
        self.trunk = nn.Sequential(*layers)
        # a weight for each position, as in MobileFaceNet: eyes and chin do not count alike
        self.pool = nn.Conv2d(c_in, c_in, (height, width), groups=c_in, bias=False)
        self.norm = nn.BatchNorm2d(c_in)
        self.embed = nn.Linear(c_in, dim)

    def forward(self, x: Tensor) -> Tensor:
        # x: (N, 1, 112, 96) -> 56x48 -> 28x24 -> 14x12 -> 7x6
        x = self.norm(self.pool(self.trunk(x)))  # (N, 128, 1, 1)
        embedding: Tensor = self.embed(x.flatten(1))
        return embedding

    def keep_outputs(self, count: int, mean: Tensor, spread: Tensor) -> None:
        """Drop all outputs but the first ``count``, and give y * spread + mean for them."""
        with torch.no_grad():
            kept = nn.Linear(self.embed.in_features, count)
            kept.weight.copy_(self.embed.weight[:count] * spread[:count, None])
            kept.bias.copy_(self.embed.bias[:count] * spread[:count] + mean[:count])
        self.embed = kept

    def project_outputs(self, after: nn.Linear) -> None:
        """Give ``after`` of the outputs, as one layer: two linear ones are one."""
        with torch.no_grad():
            joined = nn.Linear(self.embed.in_features, after.out_features)
            joined.weight.copy_(after.weight @ self.embed.weight)
            joined.bias.copy_(after.weight @ self.embed.bias + after.bias)
        self.embed = joined


def _unit(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Sequential(_unit(channels, channels), _unit(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.change(x)
        return x + change
