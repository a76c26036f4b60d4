"""The compressed student of paper 001 (Table 1): six 3x3 convolutions and one wide layer."""

from __future__ import annotations

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
