"""Closed-set identification: whose face of 253 people is it? Images, parts, views.

All identities of ``faces/train.zip`` with 8 images or more: 253 people, 6,440 images. Each
person's images are dealt, seeded, into validation (a quarter), tuning (a twelfth) and
training. The people of the task are the same in all parts, as in paper 003; calibration
people are among them. The images of everybody else train the feature, without labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeid.converters.training.faces import Crops, is_calibration, read_faces
from edgeid.converters.training.teacher import OnnxTeacher, label_view

FEWEST = 8  # images of a person
SIZE = 64  # pixels of the networks' square input
WINDOW = (8, 12, 96)  # left, top, side of the square of a 112x112 crop that they see
SPLIT_SEED = 3  # of the parts; the same for every training seed
MEAN, SCALE = 127.5, 1 / 128

TRAIN, TUNING, VALIDATION, OTHER = range(4)


@dataclass(frozen=True)
class ClosedSet:
    """Crops of people to tell apart, and of others.

    Attributes:
        crops: (N, 112, 112).
        labels: (N,) person, 0..people - 1; -1 for others.
        part: (N,) TRAIN, TUNING, VALIDATION or OTHER.
        targets: (N, 128) embeddings of the public MobileFaceNet, unit length; 0 where the
            part is TUNING or VALIDATION.
    """

    crops: Crops
    labels: NDArray[np.int64]
    part: NDArray[np.int64]
    targets: NDArray[np.float32]

    @property
    def people(self) -> int:
        """How many there are to tell apart."""
        return int(self.labels.max()) + 1

    def of(self, *parts: int) -> NDArray[np.int64]:
        """Indices of the crops in the parts."""
        return np.flatnonzero(np.isin(self.part, parts))


def read_closed_set(data: Path, teacher_cache: Path, work: Path) -> ClosedSet:
    """The task, and the public network's embeddings of all crops that may train.

    Args:
        data: the development data.
        teacher_cache: embeddings of the training people, made before or made now.
        work: where those of the calibration people are kept.
    """
    faces = read_faces(data / "faces" / "train.zip")
    counts = np.bincount(faces.labels)
    people = np.flatnonzero(counts >= FEWEST)
    number = np.full(len(counts), -1)
    number[people] = np.arange(len(people))
    labels = number[faces.labels]
    part = deal(labels)
    source = OnnxTeacher(data.parent / "models" / "mobilefacenet.onnx")
    held = np.array([is_calibration(name) for name in faces.identities])[faces.labels]
    targets = np.zeros((len(labels), 128), np.float32)
    usual, calibration = faces.split()
    targets[~held] = label_view(usual, source, 0, teacher_cache).targets
    targets[held] = label_view(calibration, source, 0, work / "teacher").targets
    targets[np.isin(part, (TUNING, VALIDATION))] = 0
    return ClosedSet(faces.crops, labels, part, targets)


def deal(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The part of every crop."""
    rng = np.random.default_rng(SPLIT_SEED)
    part = np.full(len(labels), OTHER)
    for person in range(labels.max() + 1):
        own = rng.permutation(np.flatnonzero(labels == person))
        validation, tuning = round(len(own) / 4), max(1, round(len(own) / 12))
        part[own] = TRAIN
        part[own[:validation]] = VALIDATION
        part[own[validation : validation + tuning]] = TUNING
    return part


def look(crop: Crops, size: int = SIZE) -> Crops:
    """The square of a crop that the networks see, (size, size)."""
    return warp(crop, size, 0.0, 1.0, np.zeros(2))


def warp(crop: Crops, size: int, turn: float, zoom: float, shift: NDArray[np.float64]) -> Crops:
    """Turn by degrees, enlarge and shift by pixels of the crop; then the square."""
    left, top, side = WINDOW
    middle = (left + side / 2 - 0.5, top + side / 2 - 0.5)
    matrix = cv2.getRotationMatrix2D(middle, turn, zoom * size / side)
    matrix[:, 2] = matrix[:, 2] + (size / 2 - 0.5) - np.array(middle) + shift * size / side
    made = cv2.warpAffine(crop, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(made, np.uint8)


def augment(crop: Crops, rng: np.random.Generator, size: int) -> Crops:
    """Mirror, rotation, zoom, shift, gain and offset, and a rectangle erased."""
    turn, zoom = rng.uniform(-8, 8), rng.uniform(0.92, 1.08)
    view = warp(crop, size, turn, zoom, rng.uniform(-4, 4, 2))
    if rng.random() < 0.5:
        view = view[:, ::-1]
    if rng.random() < 0.5:
        lit = view * np.float32(rng.uniform(0.7, 1.3)) + np.float32(rng.uniform(-25, 25))
        view = np.clip(lit, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        view = view.copy()
        high, wide = rng.integers(size // 8, size // 2, 2)
        top, left = rng.integers(0, size - high), rng.integers(0, size - wide)
        view[top : top + high, left : left + wide] = rng.integers(0, 256)
    return view


def network_input(views: Crops) -> Tensor:
    """(N, size, size) uint8 -> (N, 1, size, size) float32."""
    x = torch.from_numpy(np.ascontiguousarray(views[:, None])).float()
    return (x - MEAN) * SCALE
