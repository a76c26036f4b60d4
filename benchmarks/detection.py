"""How many faces are found, how well they are aligned, and what it costs.

    python benchmarks/detection.py [--landmarks work/landmarks.pt] [--every 1] [--json]

On the development photographs (``EDGEID_DATA``), for the Haar detector with the landmark network
and for YuNet: the share of photos with exactly one accepted face, milliseconds a photo (one
thread, detection to quality), and the accuracy of a public face network on LFW fold 5 when its
crops come from here. A photo without a face counts as an error in each of its pairs. The
threshold is chosen on the given aligned crops of fold 4; "given" are those of fold 5.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.alignment import TEMPLATE, similarity, similarity_scale, to_grey
from edgeid.runtime.errors import QualityError
from edgeid.runtime.face import FaceFrontEnd, FaceSample, FaceSpec
from edgeid.runtime.image import load_image

Image = NDArray[np.uint8]
DATA = Path(os.environ.get("EDGEID_DATA", "../shared/data"))
MODELS = DATA.parent / "models"
EYES = float(TEMPLATE[1, 0] - TEMPLATE[0, 0])


def images(archive: str, every: int = 1) -> dict[str, Image]:
    """Every n-th image of a zip file in the faces folder, by name."""
    with zipfile.ZipFile(DATA / "faces" / archive) as file:
        return {name: load_image(file.read(name)) for name in sorted(file.namelist())[::every]}


@dataclass
class Outcome:
    """What one front end made of one set of photos."""

    photos: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed_checks: Counter[str] = field(default_factory=Counter)
    found: dict[str, FaceSample] = field(default_factory=dict)
    milliseconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        return {
            "photos": self.photos,
            "one face": self.photos - self.refused.total(),
            "refused": dict(self.refused),
            "a face found": len(self.found),
            "failed checks": dict(self.failed_checks),
            "ms a photo": round(self.milliseconds / max(self.photos, 1), 1),
        }


def read_all(front_end: FaceFrontEnd, photos: dict[str, Image]) -> Outcome:
    """Read every photo as for enrolment (one face), and as for a test (the main face)."""
    outcome = Outcome(photos=len(photos))
    for name, photo in photos.items():
        start = time.perf_counter()
        try:
            sample = front_end.read(photo, checks=False)
        except QualityError as error:
            outcome.refused[error.code] += 1
            sample = None
        outcome.milliseconds += 1e3 * (time.perf_counter() - start)
        if sample is not None:
            failures = front_end.spec.limits.failures(sample.quality)
            outcome.failed_checks.update({error.code for error in failures})
            outcome.failed_checks["any"] += bool(failures)
        else:
            sample = main_face(front_end, photo)
        if sample is not None:
            outcome.found[name] = sample
    return outcome


def main_face(front_end: FaceFrontEnd, photo: Image) -> FaceSample | None:
    try:
        return front_end.read(photo, checks=False, several="largest")
    except QualityError:
        return None


def difference(a: dict[str, FaceSample], b: dict[str, FaceSample]) -> dict[str, float]:
    """Distance of the points of a from those of b, in percent of b's eye distance."""
    apart = []
    for name in sorted(a.keys() & b.keys()):
        eyes = EYES * similarity_scale(similarity(TEMPLATE, b[name].points))
        apart.append(100 * np.linalg.norm(a[name].points - b[name].points, axis=1).mean() / eyes)
    return {
        "mean": round(float(np.mean(apart)), 2),
        "median": round(float(np.median(apart)), 2),
        "over 25 %": int((np.array(apart) > 25).sum()),
    }


def public_network() -> Callable[[Image], NDArray[np.float32]]:
    """Aligned grey crops (N, 112, 112) -> embeddings of length 1 (N, 128)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(MODELS / "mobilefacenet.onnx"), options)

    def embed(crops: Image) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(crops), 32):
            x = np.repeat(crops[start : start + 32, None].astype(np.float32), 3, axis=1)
            parts.append(session.run(None, {"image": x})[0])
        found = np.concatenate(parts)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)

    return embed


@dataclass(frozen=True)
class Pairs:
    """The pairs of one fold, and whether both photos show one person."""

    names: list[tuple[str, str]]
    same: NDArray[np.bool_]

    @classmethod
    def read(cls, fold: str) -> Pairs:
        with open(DATA / "faces" / "lfw_pairs.csv", newline="", encoding="utf-8") as table:
            rows = [row for row in csv.DictReader(table) if row["fold"] == fold]
        names = [(row["a"], row["b"]) for row in rows]
        return cls(names, np.array([row["same"] == "1" for row in rows]))

    def scores(self, embedded: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """Cosines; NaN where a photo is missing."""
        return np.array(
            [
                float(embedded[a] @ embedded[b]) if a in embedded and b in embedded else np.nan
                for a, b in self.names
            ]
        )

    def accuracy(self, embedded: dict[str, NDArray[np.float32]], threshold: float) -> float:
        """In percent; a pair with a missing photo is wrong."""
        scores = self.scores(embedded)
        right = ((scores >= threshold) == self.same) & ~np.isnan(scores)
        return round(100 * float(right.mean()), 2)

    def best_threshold(self, embedded: dict[str, NDArray[np.float32]]) -> float:
        """The middle one of the thresholds with the fewest errors."""
        scores = self.scores(embedded)
        thresholds = np.sort(scores)
        rates = np.array([((scores >= t) == self.same).mean() for t in thresholds])
        best = np.flatnonzero(rates == rates.max())
        return float(thresholds[best[len(best) // 2]])


def lfw(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Pair accuracy on fold 5 from the given crops and from each front end's."""
    embed = public_network()

    def embedded(crops: dict[str, Image]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(crops, embed(np.stack(list(crops.values()))), strict=True))

    given = embedded({name: to_grey(image) for name, image in images("lfw_aligned.zip").items()})
    threshold = Pairs.read("4").best_threshold(given)
    fold5 = Pairs.read("5")
    result: dict[str, Any] = {"given": {"accuracy": fold5.accuracy(given, threshold)}}
    for name, outcome in outcomes.items():
        own = embedded({photo: sample.crop for photo, sample in outcome.found.items()})
        alike = [float(own[photo] @ given[photo]) for photo in own]
        result[name] = {
            "accuracy": fold5.accuracy(own, threshold),
            "cosine to the given crop": round(float(np.mean(alike)), 3),
        }
    return result


def locator(path: Path | None) -> Callable[[Image], NDArray[np.float32]]:
    """The landmark network of a training checkpoint, or that of the default model."""
    if path is None:
        from edgeid.runtime.model import Model

        return Model.load("default")._locator()
    import torch

    from edgeid.converters.training.landmarks import load_landmarks
    from edgeid.runtime.alignment import landmark_input, landmark_points

    torch.set_num_threads(1)
    network = load_landmarks(path)

    @torch.no_grad()
    def locate(crops: Image) -> NDArray[np.float32]:
        return landmark_points(network(torch.from_numpy(landmark_input(crops))).numpy())

    return locate


def main() -> None:
    """Measure and print."""
    import cv2

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--landmarks", type=Path, help="checkpoint; default: the default model's")
    parser.add_argument("--every", type=int, default=1, help="only every n-th portrait")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    locate = locator(options.landmarks)
    detectors = {"haar": "haar", "yunet": str(MODELS / "yunet.onnx")}
    front_ends = {name: FaceFrontEnd(FaceSpec(), locate, d) for name, d in detectors.items()}
    report: dict[str, Any] = {}
    for archive, every in (("portraits.zip", options.every), ("lfw_photos.zip", 1)):
        photos = images(archive, every)
        outcomes = {name: read_all(front_end, photos) for name, front_end in front_ends.items()}
        report[archive] = {name: outcome.summary() for name, outcome in outcomes.items()}
        report[archive]["points, haar against yunet, % of eye distance"] = difference(
            outcomes["haar"].found, outcomes["yunet"].found
        )
        if archive == "lfw_photos.zip":
            report["LFW fold 5"] = lfw(outcomes)
    if options.json:
        print(json.dumps(report))
        return
    for title, table in report.items():
        print(title)
        for row, values in table.items():
            print(f"  {row}: {values}")


if __name__ == "__main__":
    main()
