"""How many faces are found, how well they are aligned, and what it costs.

    python -m benchmarks.detection [--model default] [--landmarks work/landmarks.pt] [--every 1]
        [--faceless DIR ...] [--json]

For the model's own detector, Haar and YuNet, each with the model's landmark network. On the
development photographs (``EDGEID_DATA``): in how many portraits the detector by itself finds
exactly one face, none or several; the share of photos with exactly one accepted face,
milliseconds a photo (one thread, detection to quality), and the accuracy of a public face network
on LFW fold 5 when its crops come from here. A photo without a face counts as an error in each of
its pairs. The threshold is chosen on the given aligned crops of fold 4; "given" are those of
fold 5. On folders of photos without faces: how many have a false one. Milliseconds of detection
alone are of a 640x480 image, the detectors taking turns.
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

from benchmarks.face_counts import (
    false_faces,
    found_exactly_one,
    milliseconds,
    read_folder,
    share,
)
from edgeid.runtime.alignment import TEMPLATE, similarity, similarity_scale, to_grey
from edgeid.runtime.detection import Detector, make_detector
from edgeid.runtime.errors import QualityError
from edgeid.runtime.face import FaceFrontEnd, FaceSample, FaceSpec
from edgeid.runtime.image import load_image
from edgeid.runtime.model import Model
from edgeid.runtime.network_detector import NetworkDetector

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
            "one face": share(self.photos - self.refused.total(), self.photos),
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


def locator(model: Model, path: Path | None) -> Callable[[Image], NDArray[np.float32]]:
    """The landmark network of a training checkpoint, or that of the model."""
    if path is None:
        return model._locator()
    import torch

    from edgeid.converters.training.landmarks import load_landmarks
    from edgeid.runtime.alignment import landmark_input, landmark_points

    torch.set_num_threads(1)
    network = load_landmarks(path)

    @torch.no_grad()
    def locate(crops: Image) -> NDArray[np.float32]:
        return landmark_points(network(torch.from_numpy(landmark_input(crops))).numpy())

    return locate


def detectors(model: Model) -> dict[str, Detector]:
    """The model's own, where it has one, and the others."""
    own = model.detector()
    found: dict[str, Detector] = {"own": own} if isinstance(own, NetworkDetector) else {}
    return found | {"haar": make_detector("haar"), "yunet": make_detector(MODELS / "yunet.onnx")}


def main() -> None:
    """Measure and print."""
    import cv2

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default", help="an .edgeid file")
    parser.add_argument("--landmarks", type=Path, help="checkpoint; default: the model's")
    parser.add_argument("--every", type=int, default=1, help="only every n-th portrait")
    parser.add_argument("--faceless", type=Path, nargs="*", default=[], help="photos without faces")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    model = Model.load(options.model)
    locate = locator(model, options.landmarks)
    found = detectors(model)
    front_ends = {name: FaceFrontEnd(FaceSpec(), locate, d) for name, d in found.items()}
    report: dict[str, Any] = {}
    portraits = images("portraits.zip", options.every)
    report["portraits, detector alone"] = {
        name: found_exactly_one(d, portraits) for name, d in found.items()
    }
    for folder in options.faceless:
        photos = read_folder(folder)
        report[f"without faces: {folder.name}"] = {
            name: false_faces(d, front_ends[name], photos) for name, d in found.items()
        }
    some = list(portraits.values())[:: max(1, len(portraits) // 20)]
    report["ms at 640x480, detector alone"] = milliseconds(found, some)
    for archive, photos in (
        ("portraits.zip", portraits),
        ("lfw_photos.zip", images("lfw_photos.zip")),
    ):
        outcomes = {name: read_all(front_end, photos) for name, front_end in front_ends.items()}
        report[archive] = {name: outcome.summary() for name, outcome in outcomes.items()}
        for name in outcomes.keys() - {"yunet"}:
            report[archive][f"points, {name} against yunet, % of eye distance"] = difference(
                outcomes[name].found, outcomes["yunet"].found
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
