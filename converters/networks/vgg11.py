"""VGG11 with batch norm on grey faces: the network that paper 003 compresses."""

from __future__ import annotations

from torch import Tensor, nn

PLAN = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")


class VGG11(nn.Module):
    """VGG11-bn (Simonyan and Zisserman 2015, configuration A) with one embedding layer.

    Args:
        width: multiplies every channel count.
        dim: size of the embedding.
        pooled: the embedding layer reads the average over all positions, as in paper 003,
            and the network takes images of any size from 32 x 32 pixels.

    Maps (N, 1, 112, 96) float32 to (N, dim), not normalised.
    """

    def __init__(self, width: float = 1.0, dim: int = 512, *, pooled: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 1
        for step in PLAN:
            if isinstance(step, str):
                layers.append(nn.MaxPool2d(2))
                continue
            c_out = round(step * width)
            layers += [
                nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU(),
            ]
            c_in = c_out
        self.trunk = nn.Sequential(*layers)
        self.pooled = pooled
        self.embed = nn.Linear(c_in if pooled else c_in * 3 * 3, dim)

    def forward(self, x: Tensor) -> Tensor:
        # x: (N, 1, 112, 96) -> 56x48 -> 28x24 -> 14x12 -> 7x6 -> 3x3
        x = self.trunk(x)
        embedding: Tensor = self.embed(x.mean((2, 3)) if self.pooled else x.flatten(1))
        return embedding
