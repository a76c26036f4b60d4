"""What a trained detector finds in scenes, and what its log-odds are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from edgeid.converters.training.detector_scenes import Scene
from edgeid.runtime.detection import suppress
from edgeid.runtime.errors import DataError
from edgeid.runtime.network_detector import answers, decode

__all__ = ["Recall", "calibrate", "measure"]


@dataclass(frozen=True)
class Recall:
    """What was found in scenes.

    Attributes:
        faces, found: faces that count, and those met by a detection at the right place.
        false: detections where no face is.
        scenes: how many there were.
        error: mean distance of the points, in % of the face's size.
    """

    faces: int
    found: int
    false: int
    scenes: int
    error: float

    def line(self) -> str:
        """For people."""
        return (
            f"{self.found} of {self.faces} faces found and {self.false} that are none, in "
            f"{self.scenes} scenes; points {self.error:.1f} % of the face's size away"
        )


@dataclass(frozen=True)
class _Seen:
    """A detection: its log-odds, whether a face is there, and, where one has to be found, how far
    its points are off, in face sizes."""

    odds: float
    right: bool
    error: float | None


@torch.no_grad()
def _detected(network: nn.Module, scenes: Sequence[Scene], odds: float) -> list[_Seen]:
    """A detection is right whose centre lies within a quarter of a face's size of the face's."""
    network.eval()
    seen = []
    for scene in scenes:
        maps = answers(lambda x: network(torch.from_numpy(x)).numpy(), [scene.picture])
        left = list(scene.faces)
        for d in suppress(decode(maps[0], odds)):
            middle = np.array([d.box[0] + (d.box[2] - 1) / 2, d.box[1] + (d.box[3] - 1) / 2])
            sizes = [float(np.sqrt(face[2] * face[3])) for face in left]
            away = [float(np.hypot(*(face[:2] - middle))) for face in left]
            near = [i for i, size in enumerate(sizes) if away[i] < 0.25 * size]
            if not near:
                seen.append(_Seen(d.score, False, None))
                continue
            face, size = left.pop(near[0]), sizes[near[0]]
            assert d.points is not None
            apart = np.linalg.norm(d.points - face[4:14].reshape(5, 2), axis=1).mean()
            seen.append(_Seen(d.score, True, float(apart) / size if face[14] else None))
    return seen


def measure(network: nn.Module, scenes: Sequence[Scene], odds: float = 0.0) -> Recall:
    """What the network finds in scenes, from these log-odds on."""
    seen = _detected(network, scenes, odds)
    errors = [d.error for d in seen if d.error is not None]
    return Recall(
        faces=int(sum(scene.faces[:, 14].sum() for scene in scenes)),
        found=len(errors),
        false=sum(not d.right for d in seen),
        scenes=len(scenes),
        error=100 * float(np.mean(errors)) if errors else float("nan"),
    )


def calibrate(network: nn.Module, maps: nn.Conv2d, scenes: Sequence[Scene]) -> tuple[float, float]:
    """Scale and shift the network's log-odds so that they are those of a detection's being right
    in such scenes (logistic regression, Platt 1999); the focal loss leaves them too near to 0.

    Args:
        maps: the network's last layer.

    Returns:
        The factor and the shift.

    Raises:
        DataError: the scenes have no right or no wrong detections.
    """
    seen = _detected(network, scenes, -5.0)
    x = np.array([(d.odds, 1.0) for d in seen]).reshape(-1, 2)
    right = np.array([d.right for d in seen])
    if right.all() or not right.any():
        raise DataError(
            f"{int(right.sum())} of {len(seen)} detections are right: nothing to calibrate with"
        )
    found = np.array([1.0, 0.0])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-x @ found))
        curvature = (x * (chance * (1 - chance))[:, None]).T @ x + 1e-6 * np.eye(2)
        found += np.linalg.solve(curvature, x.T @ (right - chance))
    factor, shift = (float(v) for v in found)
    if not factor > 0:
        raise DataError(f"higher log-odds are wrong more often (slope {factor:.3f}): train longer")
    with torch.no_grad():
        maps.weight[0] *= factor
        assert maps.bias is not None
        maps.bias[0] = factor * maps.bias[0] + shift
    return factor, shift
