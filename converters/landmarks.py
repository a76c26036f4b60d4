"""The landmark network: a small CNN that finds five points in a 96x96 grey face crop.

    python -m edgeid.converters.landmarks --out work/landmarks.pt

trains it on ``faces/landmarks.zip`` (a quarter of an hour on one core) and prints the mean error
on people it has not seen, in percent of the inter-ocular distance. The crops are cut as the
device cuts them (``edgeid.runtime.alignment``), around boxes displaced as a Haar detector's are.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..runtime import alignment
from ..runtime.errors import DataError

__all__ = [
    "LandmarkNetwork",
    "LandmarkSet",
    "LandmarkTraining",
    "augment",
    "load_landmarks",
    "mean_error",
    "mirror",
    "read_landmark_set",
    "train_landmarks",
]

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]

_MIRRORED = (1, 0, 2, 4, 3)
# The set's points count from the pixels' corners of a larger picture: they lie 0.27 pixels right of
# what a network trained on the crops and their mirror images finds, which cannot prefer a side.
# Downwards the same shift must be there, where no mirror shows it.
_LABEL_SHIFT = 0.27


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


@dataclass(frozen=True)
class LandmarkSet:
    """Grey face pictures (N, 96, 96), points (N, 5, 2) in their pixels, and who each one is."""

    pictures: Bytes
    points: Floats
    people: tuple[str, ...]

    def split(self, held_out: float, seed: int) -> tuple[LandmarkSet, LandmarkSet]:
        """(training part, held-out part); nobody is in both."""
        names = sorted(set(self.people))
        order = np.random.default_rng(seed).permutation(len(names))
        kept = {names[i] for i in order[: round(held_out * len(names))]}
        outside = np.array([person in kept for person in self.people])
        return self._where(~outside), self._where(outside)

    def _where(self, mask: NDArray[np.bool_]) -> LandmarkSet:
        people = tuple(p for p, use in zip(self.people, mask, strict=True) if use)
        return LandmarkSet(self.pictures[mask], self.points[mask], people)


def read_landmark_set(faces: Path) -> LandmarkSet:
    """Read ``landmarks.zip`` and ``landmarks.csv`` from a folder."""
    import cv2

    try:
        with open(faces / "landmarks.csv", newline="", encoding="utf-8") as table:
            rows = list(csv.DictReader(table))
        with zipfile.ZipFile(faces / "landmarks.zip") as archive:
            files = [archive.read(row["file"]) for row in rows]
        points = np.array([_row_points(row) for row in rows])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"landmark set in {faces} cannot be read: {error}") from error
    pictures = [cv2.imdecode(np.frombuffer(f, np.uint8), cv2.IMREAD_GRAYSCALE) for f in files]
    people = tuple(row["source"].rpartition("/")[0] for row in rows)
    return LandmarkSet(np.asarray(np.stack(pictures), np.uint8), points, people)


def _row_points(row: dict[str, str]) -> list[tuple[float, float]]:
    names = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
    return [
        (float(row[f"{name}_x"]) - _LABEL_SHIFT, float(row[f"{name}_y"]) - _LABEL_SHIFT)
        for name in names
    ]


def mirror(picture: Bytes, points: Floats) -> tuple[Bytes, Floats]:
    """Picture and points seen in a mirror; left and right points change places."""
    turned = points[list(_MIRRORED)].copy()
    turned[:, 0] = picture.shape[1] - 1 - turned[:, 0]
    return np.ascontiguousarray(picture[:, ::-1]), turned


def augment(picture: Bytes, points: Floats, rng: np.random.Generator) -> tuple[Bytes, Floats]:
    """A landmark crop (96, 96) with its points (5, 2), randomly displaced, turned and spoilt."""
    if rng.random() < 0.5:
        picture, points = mirror(picture, points)
    # Half of the crops are as loose as a detector's box, half as close as a second look.
    loose = 1.0 if rng.random() < 0.5 else 0.4
    matrix = _displaced(alignment.points_to_crop(points), loose, rng)
    crop = alignment.cut(picture, matrix, alignment.LANDMARK_SIZE)
    return _spoil(crop, rng), alignment.apply(matrix, points)


def _displaced(matrix: Floats, loose: float, rng: np.random.Generator) -> Floats:
    """The crop's matrix with the scatter of a detector's boxes.

    Measured for Haar boxes on the training crops: 0.07 inter-ocular distances (2 pixels) in
    position and 9 % in size; about twice that is drawn, and 12 degrees of tilt.
    """
    scale = float(np.exp(rng.normal(0, 0.14 * loose)))
    angle = float(np.radians(rng.normal(0, 12 * loose)))
    turn = scale * np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    middle = np.full(2, (alignment.LANDMARK_SIZE - 1) / 2)
    shift = rng.normal(0, 4.0 * loose, 2)
    return np.column_stack([turn @ matrix[:, :2], turn @ (matrix[:, 2] - middle) + middle + shift])


def _spoil(crop: Bytes, rng: np.random.Generator) -> Bytes:
    """Gain, gamma, blur or sharpening, noise and a covered patch."""
    import cv2

    x = crop.astype(np.float32)
    kind = rng.random()
    if kind < 0.25:
        x = np.asarray(cv2.GaussianBlur(x, (0, 0), rng.uniform(0.5, 2.5)), np.float32)
    elif kind < 0.65:
        # The set's pictures are smaller than the crop; the device's are often larger, so sharper.
        soft = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.8, 1.6))
        x = x + rng.uniform(0.3, 2.0) * (x - np.asarray(soft, np.float32))
    x = 255 * (np.clip(x, 0, 255) / 255) ** float(np.exp(rng.normal(0, 0.35)))
    slope = rng.normal(0, 40, 2)
    ramp = np.linspace(-0.5, 0.5, x.shape[0])
    x = x * rng.uniform(0.4, 1.3) + slope[0] * ramp[None] + slope[1] * ramp[:, None]
    x = x + rng.normal(0, rng.uniform(0, 8), x.shape)
    if rng.random() < 0.25:
        top, left = rng.integers(0, 80, 2)
        x[top : top + rng.integers(8, 24), left : left + rng.integers(8, 24)] = rng.uniform(0, 255)
    return np.asarray(np.clip(x, 0, 255), np.uint8)


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
    matrices = [_displaced(alignment.points_to_crop(p), 0.5, rng) for p in data.points]
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
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    checkpoint = path.with_name(path.name + ".checkpoint")
    first = _resume(checkpoint, parts, options)
    for epoch in (bar := tqdm(range(first, options.epochs), initial=first, total=options.epochs)):
        loss = _epoch(network, optimizer, schedule, _batches(training, options, epoch))
        _write(
            checkpoint,
            {
                **{k: v.state_dict() for k, v in parts.items()},
                "epoch": epoch + 1,
                "options": vars(options),
            },
        )
        if epoch % 10 == 9:
            bar.set_postfix(loss=f"{loss:.3f}", error=f"{mean_error(network, held_out):.2f} %")
    _write(path, network.state_dict())
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
    state = _read(path)
    if state.get("options") != vars(options):
        raise DataError(f"{path} belongs to a training with other options; delete it to start anew")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["epoch"])


def _write(path: Path, state: dict[str, Any]) -> None:
    """Beside, then rename: a run that is cut short leaves the last whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    memory = io.BytesIO()
    torch.save(state, memory)
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(memory.getvalue())
    os.replace(beside, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error class of its own
        raise DataError(f"{path} is not a readable checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise DataError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors")
    return state


def load_landmarks(path: str | Path) -> LandmarkNetwork:
    """The trained network, in evaluation mode, from ``train_landmarks``'s state dict.

    Raises:
        DataError: the file is missing, unreadable, or of another network.
    """
    network = LandmarkNetwork()
    state = _read(Path(path))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{path} does not hold a landmark network: {error}") from error
    return network.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgeid.converters.landmarks")
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
