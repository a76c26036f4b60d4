"""What the scores of a model mean: thresholds, fusion and learnt back ends, from people."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgeid.converters.people import People
from edgeid.converters.scores.calibration import CalibrationOptions, calibrate
from edgeid.converters.scores.scoring import HeldPeople, choose_shrinkage, learn_backend
from edgeid.converters.scores.views import Views
from edgeid.converters.training.faces import Crops, FaceSet, degrade, relight
from edgeid.converters.training.speech import SpeechSet
from edgeid.runtime.audio import Samples
from edgeid.runtime.errors import CalibrationError, DataError
from edgeid.runtime.face_quality import sharpness
from edgeid.runtime.format import ModelFile
from edgeid.runtime.model import FACE, VOICE, Model
from edgeid.runtime.score import MODALITIES, Backend, Calibration
from edgeid.runtime.voice import VoiceSpec, cut_windows

Embedded = dict[str, NDArray[np.float32]]  # who -> (n, d)
Scoring = Literal["cosine", "joint-bayesian"]
OPTIONS = CalibrationOptions(probes=9)
WORSE_SHARE = 0.5  # chance of each fault of a camera, where a photo is made worse
WORSE_SIDES = 20, 80  # pixels of a crop, where a face is too far away
WORSE_SECONDS = 0.5, 4.0  # of speech, where a recording is cut short


def score_model(model: Model, people: People, scoring: Scoring = "cosine") -> Calibration:
    """Measure the scores of the people who were held out.

    Their photos and recordings are also made worse, so that the fusion can learn what quality
    tells.

    Args:
        model: embeds; its own calibration is not looked at.
        scoring: "cosine", or "joint-bayesian": a back end for each modality is learnt from
            the people who are not held out (paper 001, section 3), as far as that helps to tell
            apart those who are.

    Raises:
        CalibrationError: nobody is named, or too few people are.
    """
    faces = None if people.faces is None else people.faces[1]
    speech = None if people.speech is None else people.speech[1]
    views = _view(model, faces, speech, people.voice)
    backends = _learn_backends(model, people, views) if scoring == "joint-bayesian" else {}
    return _measure(views, backends)


def recalibrate(
    model: Model, faces: FaceSet | None, speech: SpeechSet | None, version: int | None = None
) -> ModelFile:
    """The model with what its scores mean measured anew; networks and back ends are kept.

    Args:
        faces, speech: people none of whom the networks were trained on, like those who will use
            the device; of each modality that the model has.
        version: of the new model; by default one more than it has.

    Raises:
        DataError: people are missing, or nobody is named; a version below 1.
        CalibrationError: too few people are.
    """
    file = model.file
    version = file.model_version + 1 if version is None else version
    if version < 1:
        raise DataError(f"a model's version is 1 or more, got {version}")
    for kind, there, given in ((FACE, model.face_spec, faces), (VOICE, model.voice_spec, speech)):
        if there is not None and (given is None or not given.labelled):
            raise DataError(
                f"the model compares {kind}s: give samples of people who are named by their folders"
            )
    spec = model.voice_spec
    views = _view(model, faces if model.face_spec else None, speech if spec else None, spec)
    kept = {str(kind): model.calibration.backend(kind) for kind in MODALITIES}
    scores = _measure(views, {kind: part for kind, part in kept.items() if part is not None})
    # measured error rates in the card were those of the old thresholds
    card = {name: part for name, part in file.card.items() if name != "metrics"}
    return replace(file, calibration=scores.to_dict(), card=card, model_version=version)


def _view(
    model: Model, faces: FaceSet | None, speech: SpeechSet | None, spec: VoiceSpec | None
) -> dict[str, dict[str, Views]]:
    return {
        FACE: {} if faces is None else view_people(model, faces),
        VOICE: {} if speech is None or spec is None else view_speakers(model, speech, spec),
    }


def _measure(views: dict[str, dict[str, Views]], backends: dict[str, Backend]) -> Calibration:
    return calibrate(views[FACE], one_set(views[VOICE]), options=OPTIONS, backends=backends)


def _recorded(views: dict[str, Views]) -> Embedded:
    """Embeddings (n, d) of the samples as they were recorded."""
    return {name: own.embeddings[0] for name, own in views.items()}


def _learn_backends(
    model: Model, people: People, views: dict[str, dict[str, Views]]
) -> dict[str, Backend]:
    known = {}
    if people.faces:
        known[FACE] = embed_people(model, people.faces[0])
    if people.speech:
        known[VOICE] = embed_speakers(model, people.speech[0], people.voice)
    backends = {}
    for kind, groups in known.items():
        if len(groups) < 2:
            raise CalibrationError(f"{kind}: nobody is named, so no back end can be learnt")
        rows, labels, sets = _stacked(groups)
        held = _recorded(views[kind])
        others = HeldPeople(*_stacked(held)) if held else None
        options, _ = choose_shrinkage(rows, labels, sets=sets, others=others)
        backends[kind] = learn_backend(rows, labels, options, sets)
    return backends


def _stacked(groups: Embedded) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.str_]]:
    """Embeddings (N, d), who (N,) and of which set (N,): the part of the name before "/"."""
    rows = np.concatenate([*groups.values()])
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups.values()])
    return rows, labels, np.array([name.rpartition("/")[0] for name in groups])[labels]


def embed_people(model: Model, faces: FaceSet) -> Embedded:
    """Embeddings of every person's crops."""
    embedded = model.embed_aligned(faces.crops)
    return {name: embedded[faces.labels == index] for index, name in enumerate(faces.identities)}


def embed_speakers(model: Model, speech: SpeechSet, spec: VoiceSpec) -> Embedded:
    """Embeddings of every speaker's utterances that are long enough to decide on."""
    embedded = {}
    groups = zip(speech.speakers, speech.utterances, strict=True)
    for name, utterances in tqdm(groups, total=len(speech.speakers), desc="speakers"):
        long = [u for u in utterances if len(u) >= spec.min_speech * spec.rate]
        if long:
            embedded[name] = np.stack([model.embed_windows(cut_windows(u, spec)) for u in long])
    return embedded


def view_people(model: Model, faces: FaceSet, seed: int = 0) -> dict[str, Views]:
    """Every person's crops as they are, and as a poor camera in poor light would see them."""
    rng = np.random.default_rng(seed)
    worse = [_poorly_seen(crop, rng) for crop in faces.crops]
    views: tuple[Crops, Crops] = faces.crops, np.stack(worse)
    embedded = np.stack([model.embed_aligned(crops) for crops in views])
    quality = np.array([[sharpness(crop) for crop in crops] for crops in views])
    return {
        name: Views(embedded[:, own], quality[:, own])
        for index, name in enumerate(faces.identities)
        if (own := faces.labels == index).any()
    }


def _poorly_seen(crop: Crops, rng: np.random.Generator) -> Crops:
    """A crop in other light, with the faults of a camera, and often from too far away."""
    crop = degrade(relight(crop, rng), rng, WORSE_SHARE)
    if rng.random() < WORSE_SHARE:
        side = round(np.exp(rng.uniform(*np.log(WORSE_SIDES))))
        small = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
        crop = np.asarray(cv2.resize(small, crop.shape, interpolation=cv2.INTER_LINEAR), np.uint8)
    return crop


def view_speakers(
    model: Model, speech: SpeechSet, spec: VoiceSpec, seed: int = 0
) -> dict[str, Views]:
    """Every speaker's utterances that are long enough to decide on, whole and cut short.

    They are cut to a length each, and all of a speaker's to one: some people say a sentence
    whenever they are asked, some a word.
    """
    rng = np.random.default_rng(seed)
    views = {}
    groups = zip(speech.speakers, speech.utterances, strict=True)
    for name, utterances in tqdm(groups, total=len(speech.speakers), desc="speakers"):
        long = [u for u in utterances if len(u) >= spec.min_speech * spec.rate]
        if long:
            each, one = (_lengths(count, spec, rng) for count in (len(long), 1))
            ways = long, _cut_short(long, each, rng), _cut_short(long, one * len(long), rng)
            embedded = [[model.embed_windows(cut_windows(u, spec)) for u in own] for own in ways]
            seconds = [[len(u) / spec.rate for u in own] for own in ways]
            views[name] = Views(np.array(embedded), np.array(seconds))
    return views


def _lengths(count: int, spec: VoiceSpec, rng: np.random.Generator) -> list[int]:
    """Samples of speech, as often few as many: uniform in the logarithm."""
    low, high = np.log(WORSE_SECONDS)
    seconds = np.exp(rng.uniform(low, high, count))
    return [round(each * spec.rate) for each in seconds]


def _cut_short(
    utterances: list[Samples], lengths: list[int], rng: np.random.Generator
) -> list[Samples]:
    """A stretch of each of so many samples, if there are."""
    pairs = zip(utterances, lengths, strict=True)
    starts = [(u, n, rng.integers(max(1, len(u) - n + 1))) for u, n in pairs]
    return [u[start : start + n] for u, n, start in starts]


def one_set(embedded: dict[str, Views]) -> dict[str, Views]:
    """The speakers of the set (the part of the name before "/") with the most comparisons.

    Speakers of different sets differ in room, microphone and accent too. Comparing them would
    make impostors look easier to tell apart than the users of one device are.
    """
    sets = {name.rpartition("/")[0] for name in embedded}
    groups = [
        {n: e for n, e in embedded.items() if n.rpartition("/")[0] == s} for s in sorted(sets)
    ]
    return max(groups, key=lambda group: len(group) * sum(map(len, group.values())), default={})
