"""The landmark network: a small CNN that finds five points in a 96x96 grey face crop.

    python -m edgeid.converters.training.landmarks --out work/landmarks.pt

trains it on ``faces/landmarks.zip`` (a quarter of an hour on one core) and prints the mean error
on people it has not seen, in percent of the inter-ocular distance. The crops are cut as the
device cuts them (``edgeid.runtime.alignment``), around boxes displaced as a Haar detector's are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeid.converters.training.checkpoint import read_state, write_state
from edgeid.converters.training.landmark_set import (
    Bytes,
    Floats,
    LandmarkSet,
    augment,
    displaced,
    read_landmark_set,
)
from edgeid.runtime import alignment
from edgeid.runtime.errors import DataError

__all__ = [
    "LandmarkNetwork",
    "LandmarkTraining",
    "load_landmarks",
    "mean_error",
    "read_landmark_set",
    "train_landmarks",
]


class LandmarkNetwork(nn.Module):
    """(N, 1, 96, 96) standardised crops -> (N, 10) displacements from the mean face.

    ``runtime.alignment.landmark_input`` and ``landmark_points`` make the one and read the other.
    137 thousand parameters, 16 million multiplications a crop.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(1, 16, 2),  # 16 x 48 x 48
            *_block(16, 32, 2),  # 32 x 24 x 24
            *_block(32, 32, 1),
            *_block(32, 48, 2),  # 48 x 12 x 12
            *_block(48, 48, 1),
            *_block(48, 64, 2),  # 64 x 6 x 6
            *_block(64, 64, 1),
        )
        self.points = nn.Linear(64 * 6 * 6, 10)
        nn.init.normal_(self.points.weight, std=1e-3)
        nn.init.zeros_(self.points.bias)

    def forward(self, crops: Tensor) -> Tensor:
        found: Tensor = self.points(self.features(crops).flatten(1))
        return found


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.PReLU(outputs)]


@dataclass(frozen=True)
class LandmarkTraining:
    """How to train.

    ``held_out`` is the share of people kept for the final error; ``seed`` fixes the split, the
    first weights and every augmentation, so that a resumed run equals an unbroken one.
    """

    epochs: int = 80
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    held_out: float = 0.15
    seed: int = 1


def _batches(
    data: LandmarkSet, options: LandmarkTraining, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng([options.seed, epoch])
    order = rng.permutation(len(data.people))
    for start in range(0, len(order) - options.batch + 1, options.batch):
        chosen = order[start : start + options.batch]
        made = [augment(data.pictures[i], data.points[i], rng) for i in chosen]
        yield _tensors([crop for crop, _ in made], [points for _, points in made])


def _tensors(crops: Sequence[Bytes], points: Sequence[Floats]) -> tuple[Tensor, Tensor]:
    """The network's input, and its target in output units (16 crop pixels)."""
    target = (np.stack(points) - alignment.crop_shape()).reshape(-1, 10) / 16.0
    x = alignment.landmark_input(np.stack(crops))
    return torch.from_numpy(x), torch.from_numpy(target.astype(np.float32))


def landmark_loss(found: Tensor, target: Tensor) -> Tensor:
    """Wing loss (Feng et al. 2018, equation 5) with w = 4 and epsilon = 1 crop pixels."""
    distance = 16.0 * (found - target).abs()
    width, curvature = 4.0, 1.0
    offset = width - width * float(np.log(1 + width / curvature))
    near = width * torch.log1p(distance / curvature)
    return torch.where(distance < width, near, distance - offset).mean()


@torch.no_grad()
def mean_error(network: nn.Module, data: LandmarkSet, seed: int = 0, looks: int = 2) -> float:
    """Mean point error in percent of the inter-ocular distance, from displaced boxes.

    The first look is at a crop displaced like a detector's box; each further look re-crops
    around the points found, as the device does.
    """
    network.eval()
    rng = np.random.default_rng(seed)
    matrices = [displaced(alignment.points_to_crop(p), 0.5, rng) for p in data.points]
    for _ in range(looks):
        found = _look(network, data.pictures, matrices)
        matrices = [alignment.points_to_crop(points) for points in found]
    eyes = np.linalg.norm(data.points[:, 0] - data.points[:, 1], axis=1)
    distance = np.linalg.norm(found - data.points, axis=2).mean(1)
    return float(100 * (distance / eyes).mean())


def _look(network: nn.Module, pictures: Bytes, matrices: Sequence[Floats]) -> Floats:
    """Points (N, 5, 2) in picture pixels, seen through crops cut with the matrices."""
    crops = [
        alignment.cut(picture, matrix, alignment.LANDMARK_SIZE)
        for picture, matrix in zip(pictures, matrices, strict=True)
    ]
    output = network(torch.from_numpy(alignment.landmark_input(np.stack(crops)))).numpy()
    points = alignment.landmark_points(output)
    back = [alignment.invert(matrix) for matrix in matrices]
    return np.stack([alignment.apply(m, p) for m, p in zip(back, points, strict=True)])


def train_landmarks(
    data: LandmarkSet, options: LandmarkTraining, path: Path
) -> tuple[LandmarkNetwork, float]:
    """Train, writing ``path`` (state dict) and ``path`` + ".checkpoint" (to resume from).

    Returns:
        The network and its ``mean_error`` on the held-out people.
    """
    from tqdm import tqdm

    training, held_out = data.split(options.held_out, options.seed)
    torch.manual_seed(options.seed)
    network = LandmarkNetwork()
    optimizer = torch.optim.AdamW(
        network.parameters(), options.learning_rate, weight_decay=options.weight_decay
    )
    steps = options.epochs * (len(training.people) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, steps)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    checkpoint = path.with_name(path.name + ".checkpoint")
    first = _resume(checkpoint, parts, options)
    for epoch in (bar := tqdm(range(first, options.epochs), initial=first, total=options.epochs)):
        loss = _epoch(network, optimizer, schedule, _batches(training, options, epoch))
        write_state(
            checkpoint,
            {
                **{k: v.state_dict() for k, v in parts.items()},
                "epoch": epoch + 1,
                "options": vars(options),
            },
        )
        if epoch % 10 == 9:
            bar.set_postfix(loss=f"{loss:.3f}", error=f"{mean_error(network, held_out):.2f} %")
    write_state(path, network.state_dict())
    return network.eval(), mean_error(network, held_out)


def _epoch(
    network: LandmarkNetwork,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batches: Iterator[tuple[Tensor, Tensor]],
) -> float:
    network.train()
    losses = []
    for crops, target in batches:
        loss = landmark_loss(network(crops), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


def _resume(path: Path, parts: dict[str, Any], options: LandmarkTraining) -> int:
    """Load a checkpoint of the same options, if there is one; the first epoch still to do."""
    if not path.exists():
        return 0
    state = read_state(path)
    if state.get("options") != vars(options):
        raise DataError(f"{path} belongs to a training with other options; delete it to start anew")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["epoch"])


def load_landmarks(path: str | Path) -> LandmarkNetwork:
    """The trained network, in evaluation mode, from ``train_landmarks``'s state dict.

    Raises:
        DataError: the file is missing, unreadable, or of another network.
    """
    network = LandmarkNetwork()
    state = read_state(Path(path))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{path} does not hold a landmark network: {error}") from error
    return network.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgeid.converters.training.landmarks")
    data = Path(os.environ.get("EDGEID_DATA", "../shared/data"))
    parser.add_argument("--faces", type=Path, default=data / "faces", help="folder with the set")
    parser.add_argument("--out", type=Path, default=Path("work/landmarks.pt"))
    parser.add_argument("--epochs", type=int, default=LandmarkTraining.epochs)
    parser.add_argument("--seed", type=int, default=LandmarkTraining.seed)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    options = LandmarkTraining(epochs=chosen.epochs, seed=chosen.seed)
    network, error = train_landmarks(read_landmark_set(chosen.faces), options, chosen.out)
    count = sum(p.numel() for p in network.parameters())
    print(f"{chosen.out}: {count} parameters, held-out error {error:.2f} % of eye distance")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
