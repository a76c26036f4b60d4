"""Lighter structures in place of 3x3 convolutions, and slimmer networks around them.

Paper 003 ("1.13MB Model for 2360 Classes Face Recognition"). From c_in to c_out channels,
weights without biases; the last column is for 256 -> 512:

    standard    3x3                                                    1,179,648
    Fire        1x1 to s = ratio * c_out, then 1x1 and 3x3 to c_out/2      180,224
    depth-wise  3x3 on each channel, then 1x1 to c_out                     133,376
    Flame       Fire with depth-wise 3x3 and 1x1 for its 3x3                49,728

They keep the size of the feature map, strides included. Batch norm and ReLU follow every
inner convolution that another one reads; what follows the structure is left as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeid.converters.networks.cnn20 import CNN20, STAGES, ConvUnit, ResidualUnit
from edgeid.converters.networks.vgg11 import PLAN, VGG11
from edgeid.runtime.errors import DataError

Structure = Literal["fire", "depthwise", "flame"]
RATIO = 0.125  # the paper's s_ratio
SHALLOW = (3, 5, 7)  # layers that "shallow" removes, counted from 1


class InnerUnit(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(
            nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
        )


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and by 3x3 side by side (SqueezeNet)."""

    def __init__(
        self, c_in: int, c_out: int, stride: int = 1, *, ratio: float = RATIO, bias: bool = False
    ) -> None:
        super().__init__()
        squeezed = squeeze_width(c_out, ratio)
        left, right = c_out // 2, c_out - c_out // 2
        self.squeeze = InnerUnit(c_in, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, left, 1, stride, bias=bias)
        self.spread: nn.Module = nn.Conv2d(squeezed, right, 3, stride, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.expand(x), self.spread(x)], dim=1)


class DepthwisePointwise(nn.Sequential):
    """3x3 on each channel, then 1x1 across them (MobileNet)."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, *, bias: bool = False) -> None:
        super().__init__(
            InnerUnit(c_in, c_in, 3, stride, groups=c_in), nn.Conv2d(c_in, c_out, 1, bias=bias)
        )


class Flame(Fire):
    """Fire whose 3x3 is a depth-wise 3x3 on the squeezed channels and a 1x1."""

    def __init__(
        self, c_in: int, c_out: int, stride: int = 1, *, ratio: float = RATIO, bias: bool = False
    ) -> None:
        super().__init__(c_in, c_out, stride, ratio=ratio, bias=bias)
        squeezed = squeeze_width(c_out, ratio)
        self.spread = DepthwisePointwise(squeezed, c_out - c_out // 2, stride, bias=bias)


def squeeze_width(c_out: int, ratio: float) -> int:
    """Channels after squeezing, at least one; DataError where the structure cannot be built."""
    if c_out < 2 or not 0 < ratio <= 1:
        raise DataError(f"{c_out} channels (2 or more) squeezed by {ratio} (above 0, up to 1)")
    return max(1, round(c_out * ratio))


def make_structure(
    structure: Structure, c_in: int, c_out: int, stride: int = 1, ratio: float = RATIO
) -> nn.Module:
    """The structure of that name, without biases in its last layers."""
    return _make(structure, c_in, c_out, stride, ratio, bias=False)


def _make(
    structure: str, c_in: int, c_out: int, stride: int, ratio: float, *, bias: bool
) -> nn.Module:
    if structure == "fire":
        return Fire(c_in, c_out, stride, ratio=ratio, bias=bias)
    if structure == "depthwise":
        return DepthwisePointwise(c_in, c_out, stride, bias=bias)
    if structure == "flame":
        return Flame(c_in, c_out, stride, ratio=ratio, bias=bias)
    raise DataError(f"structure {structure!r} is none of {', '.join(get_args(Structure))}")


def substitute(network: nn.Module, structure: Structure, ratio: float = RATIO) -> int:
    """Replace, in place, every 3x3 convolution that reads more than one channel.

    Convolutions with groups, dilation or another padding than 1 stay, as does the first one
    on grey images, which has next to no weights. Everything else keeps its weights.

    Returns:
        How many were replaced.
    """
    count = 0
    for name, child in list(network.named_children()):
        if isinstance(child, nn.Conv2d) and _replaceable(child):
            bias, stride = child.bias is not None, child.stride[0]
            made = _make(structure, child.in_channels, child.out_channels, stride, ratio, bias=bias)
            setattr(network, name, made)
            count += 1
        else:
            count += substitute(child, structure, ratio)
    return count


def _replaceable(conv: nn.Conv2d) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.padding == (1, 1)
        and conv.dilation == (1, 1)
        and conv.stride[0] == conv.stride[1]
        and conv.groups == 1
        and conv.in_channels > 1
    )


def count_weights(network: nn.Module) -> int:
    """Weights of convolutions and fully connected layers, biases and norms not counted."""
    kinds = (nn.Conv2d, nn.Linear)
    return sum(m.weight.numel() for m in network.modules() if isinstance(m, kinds))


@dataclass(frozen=True)
class SlimOptions:
    """How a network is made smaller (paper 003, stage 1).

    Attributes:
        structure: in place of 3x3 convolutions; None: they stay.
        shrink: halve the filters, except in the last two convolutions.
        shallow: drop layers 3, 5 and 7 (VGG11 only: residual units cannot miss one).
        ratio: squeezed over output channels.
    """

    structure: Structure | None = "flame"
    shrink: bool = False
    shallow: bool = False
    ratio: float = RATIO


def slim_vgg11(
    options: SlimOptions, width: float = 1.0, dim: int = 512, *, pooled: bool = False
) -> VGG11:
    """A VGG11 with the options applied, its weights untrained."""
    network = VGG11(width, dim, pooled=pooled)
    if options.shrink or options.shallow:
        network.trunk = _vgg_trunk(_slim_plan(options), width)
    if options.structure is not None:
        substitute(network, options.structure, options.ratio)
    return network


def slim_cnn20(
    options: SlimOptions, width: float = 1.0, dim: int = 512, *, average_time: bool = False
) -> CNN20:
    """A CNN-20 with the options applied, its weights untrained.

    Its last two convolutions are joined by a shortcut with the one before them: shrinking
    halves the first three stages and keeps the last.

    Raises:
        DataError: "shallow" is asked for.
    """
    if options.shallow:
        raise DataError("shallow removes single layers of VGG11; CNN-20 has shortcuts over pairs")
    network = CNN20(width, dim, average_time=average_time)
    if options.shrink:
        network.trunk = _cnn_trunk(width)
    if options.structure is not None:
        substitute(network, options.structure, options.ratio)
    return network


def _slim_plan(options: SlimOptions) -> tuple[int | str, ...]:
    plan, number = list[int | str](), 0
    for step in PLAN:
        number += not isinstance(step, str)
        if isinstance(step, str) or not (options.shallow and number in SHALLOW):
            plan.append(step)
    if options.shrink:
        places = [i for i, step in enumerate(plan) if not isinstance(step, str)]
        for i in places[:-2]:
            plan[i] = int(plan[i]) // 2
    return tuple(plan)


def _vgg_trunk(plan: Sequence[int | str], width: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    c_in = 1
    for step in plan:
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(2))
            continue
        c_out = round(step * width)
        conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(c_out), nn.ReLU()]
        c_in = c_out
    return nn.Sequential(*layers)


def _cnn_trunk(width: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    c_in = 1
    for channels, units in STAGES:
        half = (channels, units) != STAGES[-1]
        c_out = round(channels * width / 2) if half else round(channels * width)
        layers.append(ConvUnit(c_in, c_out, stride=2))
        layers += [ResidualUnit(c_out) for _ in range(units)]
        c_in = c_out
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class DistillationLoss:
    """Distillation with an L2 norm on the feature (paper 003, "training tips").

    The features of student and teacher are brought to unit length and their squared
    distance is the feature loss. With logits, the teacher's softened probabilities are
    matched too; with labels, the true classes.

    Attributes:
        feature: weight of the feature loss.
        soft: weight of the softened cross-entropy (times temperature squared, so that its
            gradient does not depend on it; Hinton et al. 2015).
        hard: weight of the cross-entropy with the labels.
        temperature: of the softening.
    """

    feature: float = 1.0
    soft: float = 1.0
    hard: float = 1.0
    temperature: float = 4.0

    def __call__(
        self,
        features: tuple[Tensor, Tensor],
        logits: tuple[Tensor, Tensor] | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            features: of the student and of the teacher, (N, d) each.
            logits: of the student and of the teacher, (N, classes) each.
            labels: (N,); -1 where a sample has none.
        """
        student, teacher = (F.normalize(part) for part in features)
        loss: Tensor = self.feature * (student - teacher).square().sum(1).mean()
        if logits is None:
            return loss
        ours, theirs = (part / self.temperature for part in logits)
        softened = F.kl_div(
            F.log_softmax(ours, 1), F.log_softmax(theirs, 1), log_target=True, reduction="batchmean"
        )
        loss = loss + self.soft * self.temperature**2 * softened
        if labels is None or not bool((labels >= 0).any()):
            return loss
        return loss + self.hard * F.cross_entropy(logits[0], labels, ignore_index=-1)
