"""Make the synthetic people of the demo: blended faces and espeak-ng voices.

    python -m edgeid.converters.samples

needs the development data and the program ``espeak-ng``. Every face is the plain average
of sixteen photos of eight training identities that the teacher finds alike (so that the
blend stays sharp and has a look of its own). Nobody real is shown.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import soundfile
from numpy.typing import NDArray

from edgeid.converters.training.faces import Crops, FaceSet, data_directory, read_faces
from edgeid.converters.training.teacher import OnnxTeacher, normalise
from edgeid.runtime.audio import load_audio, resample
from edgeid.runtime.errors import DataError

BLENDED = 8  # identities in one face
PHOTOS = 4  # of each of them
SHOTS = 5  # pairs of photos that are averaged
SENTENCES = (
    "The quick brown fox jumps over the lazy dog beside the river bank.",
    "Please open the door of the laboratory, I have forgotten my badge again.",
    "Every morning we walk through the garden and count the yellow roses.",
    "My voice is my passport, verify me, and let me into the reading room.",
    "Seven small boats sailed north while the harbour lights went out.",
)


@dataclass(frozen=True)
class Speaker:
    """A name and an espeak-ng voice: variant, pitch 0-99, words a minute."""

    name: str
    voice: str
    pitch: int
    speed: int


PEOPLE = (
    Speaker("ada", "en-us+f3", 62, 150),
    Speaker("cora", "en-gb-scotland+f2", 45, 170),
    Speaker("dana", "en-us+f5", 80, 160),
    Speaker("bruno", "en-gb-x-rp+m7", 22, 135),
)


@dataclass(frozen=True)
class Candidate:
    """A training identity with its most ordinary photos (no hat, no hand, frontal)."""

    photos: Crops  # (PHOTOS, 112, 112)
    centre: NDArray[np.float32]  # unit (d,)


def find_candidates(faces: FaceSet, teacher: OnnxTeacher) -> list[Candidate]:
    """Identities whose photos all look much like the mean face, and are of one person."""
    middle = faces.crops[:, 20:108, 16:96].reshape(len(faces.crops), -1).astype(np.float32)
    middle -= middle.mean(axis=1, keepdims=True)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    mean = middle.mean(axis=0)
    ordinary = middle @ (mean / np.linalg.norm(mean))
    found = []
    for identity in np.flatnonzero(np.bincount(faces.labels) >= PHOTOS):
        members = np.flatnonzero(faces.labels == identity)
        best = members[np.argsort(-ordinary[members])][:PHOTOS]
        if ordinary[best[-1]] < 0.55:
            continue
        embeddings = teacher.embed(faces.crops[best])
        if (embeddings @ embeddings.T).min() > 0.3:  # not a mislabelled photo
            found.append(Candidate(faces.crops[best], normalise(embeddings.sum(0)[None])[0]))
    return found


def choose_groups(candidates: list[Candidate], people: int) -> list[list[Candidate]]:
    """For each synthetic person, eight candidates that look alike; the groups look different.

    Groups are grown around seeds picked by farthest-point sampling among tight
    neighbourhoods, since blends of a tight neighbourhood stay sharp.
    """
    centres = np.stack([candidate.centre for candidate in candidates])
    likeness = centres @ centres.T
    nearest = np.argsort(-likeness, axis=1)[:, :BLENDED]
    blends = normalise(centres[nearest].sum(axis=1))
    tightness = np.take_along_axis(likeness, nearest, axis=1).mean(axis=1)
    wanted = tightness >= np.percentile(tightness, 30)
    seeds = [int(tightness.argmax())]
    while len(seeds) < people:
        closest = (blends @ blends[seeds].T).max(axis=1)
        seeds.append(int(np.where(wanted, closest, np.inf).argmin()))
    groups: list[list[Candidate]] = []
    taken: set[int] = set()
    for seed in seeds:
        free = [int(i) for i in np.argsort(-likeness[seed]) if int(i) not in taken][:BLENDED]
        taken.update(free)
        groups.append([candidates[i] for i in free])
    return groups


def blend_shot(group: list[Candidate], shot: int, rng: np.random.Generator) -> Crops:
    """The average of two photos of each identity of the group, with its contrast restored."""
    pairs = [(0, 1), (2, 3), (0, 3), (1, 2), (0, 2)]
    photos = np.concatenate([person.photos[list(pairs[shot])] for person in group])
    mean = photos.mean(axis=0, dtype=np.float32)
    spread = photos.std(axis=(1, 2)).mean()
    light = rng.uniform(0.9, 1.1)
    mean = (mean - mean.mean()) * (spread / mean.std()) + mean.mean() * light
    # Averaging blurs; a mild unsharp mask brings edges back.
    sharp = mean + 0.7 * (mean - cv2.GaussianBlur(mean, (0, 0), 2.0))
    return np.asarray(np.clip(sharp, 0, 255).astype(np.uint8))


def compose(face: Crops, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Put an aligned (112, 112) face on a (320, 280) picture with a neck and a background."""
    height, width = 320, 280
    side = int(rng.integers(150, 176))
    canvas = np.full((height, width), rng.uniform(150, 210), np.float32)
    canvas += np.linspace(-25, 25, width, dtype=np.float32)[None] * rng.choice([-1, 1])
    left, top = (width - side) // 2 + int(rng.integers(-15, 16)), int(rng.integers(30, 60))
    centre = (left + side // 2, top + side // 2)
    shoulders = (centre[0], top + int(side * 1.55))
    cv2.ellipse(canvas, shoulders, (side * 3 // 4, side // 2), 0, 0, 360, 70, -1)
    neck = (centre[0], top + side)
    cv2.ellipse(canvas, neck, (side // 4, side // 3), 0, 0, 360, float(face.mean()), -1)
    canvas[:] = cv2.GaussianBlur(canvas, (0, 0), 5)
    large = cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    mask = np.zeros((side, side), np.float32)
    axes = (int(side * 0.40), int(side * 0.47))
    cv2.ellipse(mask, (side // 2, side // 2), axes, 0, 0, 360, 1, -1)
    mask[:] = cv2.GaussianBlur(mask, (0, 0), side / 28)
    area = canvas[top : top + side, left : left + side]
    area[:] = mask * large + (1 - mask) * area
    turn = cv2.getRotationMatrix2D(centre, rng.uniform(-6, 6), 1.0)
    canvas[:] = cv2.warpAffine(canvas, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    canvas += rng.normal(0, 2, canvas.shape)
    return np.asarray(np.clip(canvas, 0, 255).astype(np.uint8))


def speak(speaker: Speaker, sentence: str) -> NDArray[np.float32]:
    """One sentence at 16 kHz, by espeak-ng; DataError if the program is missing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        voice = ["-v", speaker.voice, "-p", str(speaker.pitch), "-s", str(speaker.speed)]
        try:
            subprocess.run(["espeak-ng", *voice, "-w", str(path), sentence], check=True)
        except FileNotFoundError:
            raise DataError("espeak-ng is not installed: apt-get install espeak-ng") from None
        return resample(*load_audio(path), 16000)


def make_samples(out: Path, data: Path, seed: int = 5) -> None:
    """Write ``out``/<name>-<n>.jpg and .ogg, and people.json that says which is which."""
    faces, _ = read_faces(data / "faces" / "train.zip").split()
    teacher = OnnxTeacher(data.parent / "models" / "mobilefacenet.onnx")
    out.mkdir(parents=True, exist_ok=True)
    listing: list[dict[str, object]] = []
    groups = choose_groups(find_candidates(faces, teacher), len(PEOPLE))
    for speaker, group in zip(PEOPLE, groups, strict=True):
        rng = np.random.default_rng((seed, len(listing)))
        for shot, sentence in enumerate(SENTENCES):
            picture = compose(blend_shot(group, shot, rng), rng)
            path = out / f"{speaker.name}-{shot + 1}.jpg"
            cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
            speech = speak(speaker, sentence)
            soundfile.write(path.with_suffix(".ogg"), speech, 16000, subtype="VORBIS")
        listing.append({"name": speaker.name, "voice": speaker.voice, "shots": SHOTS})
    about = {
        "synthetic": True,
        "faces": f"each blended from {BLENDED} training identities; nobody real is shown",
        "voices": "espeak-ng",
        "people": listing,
    }
    (out / "people.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    make_samples(Path(__file__).resolve().parents[1] / "edgeid" / "samples", data_directory())
