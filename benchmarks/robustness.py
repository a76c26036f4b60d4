"""What poor light and poor cameras cost: accuracy on the LFW pairs, the second photo made worse.

    python -m benchmarks.robustness [--model M] [--teacher mobilefacenet.onnx]

needs the development data (EDGEID_DATA). Thresholds come from the other fold, whose second photos
are as poor. A teacher stands beside the model where it is given (some ten minutes).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.papers.figures import lfw_crops, owner, per_cent, table
from edgeid.command import data_directory
from edgeid.converters.training.teacher import OnnxTeacher
from edgeid.intervals import Rate, binomial_rate
from edgeid.metrics import cross_accuracy
from edgeid.protocol import Pair, read_pairs
from edgeid.roc import Trials
from edgeid.runtime.model import Model

Crop = NDArray[np.uint8]
Embed = Callable[[Crop], NDArray[np.float32]]  # (N, 112, 112) -> unit (N, d)


def gamma(crop: Crop, power: float) -> Crop:
    return np.asarray(255 * (crop / 255) ** power, np.uint8)


def shadow(crop: Crop, left: float) -> Crop:
    """One half darker, with a soft edge."""
    ramp = left + (1 - left) / (1 + np.exp(-(np.arange(112) - 55.5) / 6))
    return np.asarray(crop * ramp, np.uint8)


def far(crop: Crop, side: int) -> Crop:
    """A face of ``side`` pixels."""
    small = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (112, 112), interpolation=cv2.INTER_LINEAR), np.uint8)


def blur(crop: Crop, sigma: float) -> Crop:
    return np.asarray(cv2.GaussianBlur(crop, (0, 0), sigma), np.uint8)


def jpeg(crop: Crop, quality: int) -> Crop:
    _, encoded = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), np.uint8)


def noise(crop: Crop, level: float) -> Crop:
    rng = np.random.default_rng(int(crop.sum()))
    return np.asarray(np.clip(crop + rng.normal(0, level, crop.shape), 0, 255), np.uint8)


CONDITIONS: dict[str, Callable[[Crop], Crop]] = {
    "as it is": lambda crop: crop,
    "brighter (gamma 0.5)": lambda crop: gamma(crop, 0.5),
    "darker (gamma 2)": lambda crop: gamma(crop, 2.0),
    "left half in shadow (x 0.35)": lambda crop: shadow(crop, 0.35),
    "32 pixels": lambda crop: far(crop, 32),
    "24 pixels": lambda crop: far(crop, 24),
    "blurred (sigma 2)": lambda crop: blur(crop, 2.0),
    "JPEG at quality 15": lambda crop: jpeg(crop, 15),
    "noise (sigma 15)": lambda crop: noise(crop, 15.0),
}


def accuracy(pairs: list[Pair], crops: dict[str, Crop], embed: Embed, worse: Any) -> Rate:
    """Of verification, the first photo as it is, the second made ``worse``."""
    first = embed(np.stack([crops[pair.a] for pair in pairs]))
    second = embed(np.stack([worse(crops[pair.b]) for pair in pairs]))
    claimed, probe = (np.array([owner(getattr(p, side)) for p in pairs]) for side in "ab")
    same = np.array([pair.same for pair in pairs])
    trials = Trials((first * second).sum(1), same, claimed, probe)
    rates = cross_accuracy(trials, np.array([pair.fold for pair in pairs]))
    return binomial_rate(sum(rate.errors for rate in rates.values()), len(pairs)).complement()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--teacher", type=Path)
    options = parser.parse_args()
    data = data_directory()
    pairs = read_pairs(data / "faces" / "lfw_pairs.csv")
    crops = dict(zip(*lfw_crops(), strict=True))
    networks: dict[str, Embed] = {options.model: Model.load(options.model).embed_aligned}
    if options.teacher is not None:
        source = OnnxTeacher(options.teacher)
        networks["teacher"] = lambda faces: np.concatenate(
            [source.embed_mirrored(faces[i : i + 16]) for i in range(0, len(faces), 16)]
        )
    rows = [
        [condition]
        + [per_cent(accuracy(pairs, crops, embed, worse).to_dict()) for embed in networks.values()]
        for condition, worse in tqdm(CONDITIONS.items(), unit="condition")
    ]
    print(table(["second photo", *(f"{name}, %" for name in networks)], rows))


if __name__ == "__main__":
    main()
