"""The detector network: boxes and five points of all faces in a small grey picture.

    edgeid train detector --out work/detector.pt

trains it on scenes made of the training photos (``detector_scenes``), whose boxes and points are
YuNet's; twenty minutes on one core. Scenes of people it has not seen then say what its log-odds
are worth, and how many faces it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgeid.converters.training.checkpoint import read_state, write_state
from edgeid.converters.training.detector_check import Recall, calibrate, measure
from edgeid.converters.training.detector_scenes import Bytes, Floats, Scene, make_scene
from edgeid.converters.training.face_pictures import Faces
from edgeid.converters.training.muon import Muon
from edgeid.runtime.errors import DataError
from edgeid.runtime.network_detector import (
    CELL,
    OUTPUT_SHAPE,
    UNIT,
    cell_centres,
    detector_input,
)

__all__ = [
    "DetectorNetwork",
    "DetectorTraining",
    "detector_loss",
    "load_detector",
    "targets",
    "train_detector",
]

SAVED = 500  # steps between two checkpoints


class DetectorNetwork(nn.Module):
    """(N, 1, 256, 256) standardised pictures -> (N, 15, 16, 16), see ``OUTPUT_SHAPE``.

    70 thousand parameters, 36 million multiplications a picture. The last cells see 300 pixels,
    so that a face as large as the picture is seen whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(1, 24, 8, stride=4, pad=2),  # 24 x 64 x 64
            *_block(24, 32, 3, stride=2),  # 32 x 32 x 32
            *_block(32, 32, 3),
            *_block(32, 32, 3),
            *_block(32, 64, 3, stride=2),  # 64 x 16 x 16
            *_separable(64),
            *_separable(64),
            *_separable(64),
            *_separable(64),
        )
        self.maps = nn.Conv2d(64, OUTPUT_SHAPE[0], 1)
        nn.init.normal_(self.maps.weight, std=1e-2)
        assert self.maps.bias is not None
        nn.init.zeros_(self.maps.bias)
        nn.init.constant_(self.maps.bias[:1], -4.0)  # faces are rare among cells

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.maps(self.features(pictures))
        return found


def _block(
    inputs: int, outputs: int, kernel: int, stride: int = 1, pad: int | None = None, groups: int = 1
) -> list[nn.Module]:
    around = kernel // 2 if pad is None else pad
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, around, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def _separable(channels: int) -> list[nn.Module]:
    return [*_block(channels, channels, 5, groups=channels), *_block(channels, channels, 1)]


@dataclass(frozen=True)
class DetectorTraining:
    """How to train.

    ``seed`` and the step fix every scene, so that a resumed run equals an unbroken one;
    ``checked`` scenes calibrate, and as many others measure.
    """

    steps: int = 5500
    batch: int = 32
    rate: float = 0.02
    checked: int = 1500
    seed: int = 1


def targets(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """What the network should answer: maps (N, 15, rows, columns), the weight of the log-odds
    (N, rows, columns), and where box and points count (N, rows, columns).

    Cells whose centre is within a seventh of a face's size of its middle, but at least within
    three quarters of a cell, hold it. Those around, up to twice as far, may do as they like.
    """
    centres = cell_centres().astype(np.float64)
    maps = np.zeros((len(scenes), *OUTPUT_SHAPE), np.float32)
    weights = np.ones((len(scenes), *OUTPUT_SHAPE[1:]), np.float32)
    for scene, goal, weight in zip(scenes, maps, weights, strict=True):
        for face in sorted(scene.faces, key=lambda face: -face[2] * face[3]):
            _mark(face, centres, goal, weight)
    held = (maps[:, 0] > 0).astype(np.float32)
    return torch.from_numpy(maps), torch.from_numpy(weights), torch.from_numpy(held)


def _mark(face: Floats, centres: Floats, goal: NDArray[Any], weight: NDArray[Any]) -> None:
    size = float(np.sqrt(face[2] * face[3]))
    away = np.hypot(*(centres - face[:2, None, None]))
    core = max(size / 7, 0.75 * CELL)
    weight[(away < 2 * core) & (goal[0] == 0)] = 0
    if not face[14]:
        weight[away < 0.5 * size] = 0
        return
    held = away < core
    weight[held] = 1
    places = np.concatenate([face[:2], face[4:14]]).reshape(6, 2, 1, 1)
    offsets = ((places - centres) / size).reshape(12, *centres.shape[1:])
    goal[0, held] = 1
    goal[1:3, held] = offsets[:2][:, held]
    goal[3:5, held] = np.log(face[2:4] / UNIT)[:, None]
    goal[5:, held] = offsets[2:][:, held]


def detector_loss(found: Tensor, goal: Tensor, weight: Tensor, held: Tensor) -> Tensor:
    """Focal loss of the log-odds (Lin et al. 2017, gamma 2) and smooth distance of the rest, each
    over the number of cells that hold a face."""
    count = held.sum().clamp(min=1)
    odds = found[:, 0]
    plain = functional.binary_cross_entropy_with_logits(odds, held, reduction="none")
    right = torch.where(held > 0, odds.sigmoid(), 1 - odds.sigmoid())
    focal = ((1 - right) ** 2 * plain * weight).sum() / count
    apart = functional.smooth_l1_loss(found[:, 1:], goal[:, 1:], reduction="none", beta=0.05)
    return focal + 4 * (apart.mean(1) * held).sum() / count


def train_detector(
    faces: Faces,
    held_out: Faces,
    options: DetectorTraining,
    path: Path,
    backgrounds: Sequence[Bytes] = (),
) -> tuple[DetectorNetwork, Recall]:
    """Train, writing ``path`` (state dict) and ``path`` + ".checkpoint" (to resume from).

    Args:
        faces: to learn from.
        held_out: of other people, to calibrate on.
        backgrounds: see ``make_scene``.

    Returns:
        The network, and what it finds in further scenes of ``held_out``.
    """
    from tqdm import tqdm

    torch.manual_seed(options.seed)
    network = DetectorNetwork().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(network, options)
    checkpoint = path.with_name(path.name + ".checkpoint")
    first = _resume(checkpoint, network, optimizer, options)
    network.train()
    mean = 0.0
    for step in (bar := tqdm(range(first, options.steps), initial=first, total=options.steps)):
        share = _rate(step, options.steps)
        for group, rate in zip(optimizer.param_groups, (options.rate, 3e-3), strict=True):
            group["lr"] = rate * share
        rng = np.random.default_rng([options.seed, step])
        scenes = [make_scene(faces, rng, backgrounds) for _ in range(options.batch)]
        loss = _step(network, optimizer, scenes)
        mean = loss if step == first else 0.98 * mean + 0.02 * loss
        if step % 50 == 49:
            bar.set_postfix(loss=f"{mean:.3f}")
        if (step + 1) % SAVED == 0:
            _save(checkpoint, network, optimizer, options, step + 1)
    network = network.to(memory_format=torch.contiguous_format).eval()
    calibrate(network, network.maps, _scenes(held_out, options, 1, options.checked))
    write_state(path, network.state_dict())
    return network, measure(network, _scenes(held_out, options, 2, options.checked))


def _scenes(faces: Faces, options: DetectorTraining, part: int, count: int) -> list[Scene]:
    """Scenes that no step of the training sees."""
    draws = (np.random.default_rng([options.seed, part, i]) for i in range(count))
    return [make_scene(faces, rng) for rng in draws]


def _rate(step: int, steps: int) -> float:
    """Up over 100 steps, then down in a straight line."""
    return min(1.0, (step + 1) / 100) * (1 - step / steps)


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, scenes: Sequence[Scene]) -> float:
    goal, weight, held = targets(scenes)
    x = torch.from_numpy(detector_input([scene.picture for scene in scenes]))
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x.to(memory_format=torch.channels_last))
    loss = detector_loss(found.float(), goal, weight, held)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _optimizer(network: nn.Module, options: DetectorTraining) -> torch.optim.Optimizer:
    dense: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            whole = isinstance(module, nn.Conv2d) and module.groups == 1 and parameter.ndim > 1
            (dense if whole else others).append(parameter)
    return Muon(dense, others, options.rate)


def _save(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: DetectorTraining,
    step: int,
) -> None:
    parts = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    write_state(path, {**parts, "step": step, "options": vars(options)})


def _resume(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, options: DetectorTraining
) -> int:
    """Load a checkpoint of the same options, if there is one; the first step still to do."""
    if not path.exists():
        return 0
    state = read_state(path)
    if state.get("options") != vars(options):
        raise DataError(f"{path} belongs to a training with other options; delete it to start anew")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def load_detector(path: str | Path) -> DetectorNetwork:
    """The trained network, in evaluation mode, from ``train_detector``'s state dict.

    Raises:
        DataError: the file is missing, unreadable, or of another network.
    """
    network = DetectorNetwork()
    state = read_state(Path(path))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{path} does not hold a detector network: {error}") from error
    return network.eval()
