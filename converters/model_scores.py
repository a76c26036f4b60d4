"""What the scores of a model mean: thresholds, fusion and learnt back ends, from people."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgeid.converters.people import People
from edgeid.converters.scores.calibration import CalibrationOptions, calibrate
from edgeid.converters.scores.scoring import HeldPeople, choose_shrinkage, learn_backend
from edgeid.converters.training.faces import FaceSet
from edgeid.converters.training.speech import SpeechSet
from edgeid.runtime.errors import CalibrationError
from edgeid.runtime.model import FACE, VOICE, Model
from edgeid.runtime.score import Backend, Calibration
from edgeid.runtime.voice import VoiceSpec, cut_windows

Embedded = dict[str, NDArray[np.float32]]  # who -> (n, d)
Scoring = Literal["cosine", "joint-bayesian"]
OPTIONS = CalibrationOptions(probes=9)


def score_model(model: Model, people: People, scoring: Scoring = "cosine") -> Calibration:
    """Measure the scores of the people who were held out.

    Args:
        model: embeds; its own calibration is not looked at.
        scoring: "cosine", or "joint-bayesian": a back end for each modality is learnt from
            the people who are not held out (paper 001, section 3), as far as that helps to tell
            apart those who are.

    Raises:
        CalibrationError: nobody is named, or too few people are.
    """
    held: dict[str, Embedded] = {}
    if people.faces:
        held[FACE] = embed_people(model, people.faces[1])
    if people.speech:
        held[VOICE] = embed_speakers(model, people.speech[1], people.voice)
    backends = _learn_backends(model, people, held) if scoring == "joint-bayesian" else {}
    by_voice = one_set(held.get(VOICE, {}))
    return calibrate(held.get(FACE, {}), by_voice, options=OPTIONS, backends=backends)


def _learn_backends(model: Model, people: People, held: dict[str, Embedded]) -> dict[str, Backend]:
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
        others = HeldPeople(*_stacked(held[kind])) if held[kind] else None
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


def one_set(embedded: Embedded) -> Embedded:
    """The speakers of the set (the part of the name before "/") with the most comparisons.

    Speakers of different sets differ in room, microphone and accent too. Comparing them would
    make impostors look easier to tell apart than the users of one device are.
    """
    sets = {name.rpartition("/")[0] for name in embedded}
    groups = [
        {n: e for n, e in embedded.items() if n.rpartition("/")[0] == s} for s in sorted(sets)
    ]
    return max(groups, key=lambda group: len(group) * sum(map(len, group.values())), default={})
