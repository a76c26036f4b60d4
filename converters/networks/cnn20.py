"""CNN-20: the SphereFace-20 residual network, for faces and for voices.

Both modalities use the same trunk on one input channel, so that the converter can merge
them layer by layer. The face network ends in a fully connected layer over all positions;
the voice network averages over time first, which is the same layer with weights that do
not depend on the time position.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeid.converters.networks.prelu import PReLU

STAGES = ((64, 1), (128, 2), (256, 4), (512, 1))  # channels, residual units
INPUT_SHAPE = (1, 112, 96)


class ConvUnit(nn.Sequential):
    """3x3 convolution, batch norm, PReLU; the batch norm folds away on export."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            PReLU(c_out),
        )


class ResidualUnit(nn.Module):
    """Two convolutions beside an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvUnit(channels, channels)
        self.second = ConvUnit(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(self.first(x))
        return x + change


class CNN20(nn.Module):
    """SphereFace-20 (Liu et al. 2017, Table 2) with a width multiplier.

    Args:
        width: multiplies the channel counts 64, 128, 256, 512; 1.0 is the paper's network.
        dim: size of the embedding.
        average_time: average the last feature map over its rows (time) before the fully
            connected layer. For voices, whose rows are frames.

    The forward pass maps (N, 1, 112, 96) float32 to (N, dim), not normalised.
    """

    def __init__(self, width: float = 1.0, dim: int = 512, *, average_time: bool = False) -> None:
        super().__init__()
        self.width, self.dim, self.average_time = width, dim, average_time
        layers: list[nn.Module] = []
        c_in = 1
        for channels, units in STAGES:
            c_out = round(channels * width)
            layers.append(ConvUnit(c_in, c_out, stride=2))
            layers += [ResidualUnit(c_out) for _ in range(units)]
            c_in = c_out
        self.trunk = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d((7, 1)) if average_time else nn.Identity()
        self.embed = nn.Linear(c_in * 6 * (1 if average_time else 7), dim)
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        # x: (N, 1, 112, 96)
        x = self.trunk(x)  # (N, 512w, 7, 6)
        x = self.pool(x)  # (N, 512w, 1, 6) for voices
        embedding: Tensor = self.norm(self.embed(x.flatten(1)))  # (N, dim)
        return embedding


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, a=0.25)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def settle_statistics(network: nn.Module, batches: list[Tensor]) -> None:
    """Recompute batch-norm statistics as plain averages over ``batches`` (after training)."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    network.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    network.eval()
