"""Speaker networks as users find them, in shape: ResNet34 and ECAPA-TDNN, with random weights.

Written from the papers: He et al. 2016 with the widths 32-64-128-256 and statistics pooling that
speaker toolkits use (Zeinali et al. 2019, "BUT system description to VoxCeleb 2019"), and
Desplanques et al. 2020, "ECAPA-TDNN", with 512 channels. What they take is (N, frames, 80) of
log-mel features; speed and memory do not depend on what the weights are worth.
"""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

MELS = 80
FRAMES = 297  # of 3 s, 32 ms long, every 10 ms


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = functional.relu(self.body(x) + self.shortcut(x))
        return changed


class ResNet34(nn.Module):
    """6.6 M weights, embedding of 256."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)]
        layers.append(nn.ReLU())
        c_in = 32
        for c_out, blocks, stride in ((32, 3, 1), (64, 4, 2), (128, 6, 2), (256, 3, 2)):
            for block in range(blocks):
                layers.append(BasicBlock(c_in, c_out, stride if block == 0 else 1))
                c_in = c_out
        self.trunk = nn.Sequential(*layers)
        self.embed = nn.Linear(2 * 256 * MELS // 8, 256)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x.transpose(1, 2)[:, None]).flatten(1, 2)  # (N, 2560, frames / 8)
        deviation = torch.sqrt(x.var(-1) + 1e-7)
        embedding: Tensor = self.embed(torch.cat([x.mean(-1), deviation], 1))
        return embedding


class ConvUnit(nn.Sequential):
    """Convolution along time, ReLU, batch norm."""

    def __init__(self, c_in: int, c_out: int, kernel: int, dilation: int = 1) -> None:
        pad = dilation * (kernel - 1) // 2
        super().__init__(
            nn.Conv1d(c_in, c_out, kernel, padding=pad, dilation=dilation),
            nn.ReLU(),
            nn.BatchNorm1d(c_out),
        )


class SERes2Block(nn.Module):
    """1x1, eight groups that feed each other, 1x1, squeeze and excitation, shortcut."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.first = ConvUnit(channels, channels, 1)
        part = channels // 8
        self.parts = nn.ModuleList(ConvUnit(part, part, 3, dilation) for _ in range(7))
        self.last = ConvUnit(channels, channels, 1)
        self.down, self.up = nn.Linear(channels, 128), nn.Linear(128, channels)

    def forward(self, x: Tensor) -> Tensor:
        rest, *parts = reversed(self.first(x).chunk(8, 1))
        found, before = [rest], torch.zeros(())
        for part, unit in zip(parts, self.parts, strict=True):
            before = unit(part + before)
            found.append(before)
        y = self.last(torch.cat(found, 1))
        gate = torch.sigmoid(self.up(functional.relu(self.down(y.mean(-1)))))
        gated: Tensor = x + y * gate[:, :, None]
        return gated


class ECAPA(nn.Module):
    """ECAPA-TDNN of 512 channels: 6.2 M weights, embedding of 192."""

    def __init__(self, channels: int = 512) -> None:
        super().__init__()
        self.first = ConvUnit(MELS, channels, 5)
        self.blocks = nn.ModuleList(SERes2Block(channels, d) for d in (2, 3, 4))
        self.join = nn.Conv1d(3 * channels, 1536, 1)
        self.attend = nn.Sequential(
            nn.Conv1d(3 * 1536, 128, 1), nn.Tanh(), nn.Conv1d(128, 1536, 1), nn.Softmax(2)
        )
        self.embed = nn.Sequential(nn.BatchNorm1d(3072), nn.Linear(3072, 192))

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.first(x.transpose(1, 2)), []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        x = functional.relu(self.join(torch.cat(found, 1)))  # (N, 1536, frames)
        mean, deviation = x.mean(2, keepdim=True), torch.sqrt(x.var(2, keepdim=True) + 1e-7)
        weights = self.attend(torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], 1))
        mean = (x * weights).sum(2)
        spread = torch.sqrt(((x * x * weights).sum(2) - mean * mean).clamp_min(1e-7))
        embedding: Tensor = self.embed(torch.cat([mean, spread], 1))
        return embedding


def write_onnx(network: nn.Module, path: Path) -> None:
    """Export for inputs of (1, 297, 80); batch norms folded by the exporter."""
    # it warns that torchvision, which nothing here needs, is not installed
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # deprecations inside the exporter itself
        torch.onnx.export(
            network.eval(),
            (torch.randn(1, FRAMES, MELS),),
            path,
            input_names=["features"],
            output_names=["embedding"],
            external_data=False,
            dynamo=True,
        )
