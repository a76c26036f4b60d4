"""Thresholds from the people who were held out; learnt back ends from the others alone."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from edgeid.converters import model_scores
from edgeid.converters.model_scores import one_set, score_model, view_people, view_speakers
from edgeid.converters.people import People
from edgeid.converters.training.faces import FaceSet
from edgeid.converters.training.speech import SpeechSet
from edgeid.runtime.errors import CalibrationError
from edgeid.runtime.face import FaceSpec
from edgeid.runtime.voice import VoiceSpec

KNOWN, HELD, SHOTS, DIM = 60, 30, 6, 12


class GridModel:
    """Embeds by the grey levels at a few places; speech by the first samples."""

    def embed_aligned(self, crops):
        x = crops[:, 0, :DIM].astype(np.float32) - 128
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def embed_windows(self, windows):
        x = windows.mean(axis=(0, 1, 2))
        return x / np.linalg.norm(x)


def faces(seed, people):
    rng = np.random.default_rng(seed)
    centres = rng.normal(128, 30, (people, 1, 1, DIM))
    crops = np.zeros((people, SHOTS, 112, 112), np.uint8)
    levels = centres + rng.normal(0, 12, (people, SHOTS, 1, DIM))
    crops[:, :, :1, :DIM] = np.clip(levels, 0, 255)
    labels = np.repeat(np.arange(people), SHOTS)
    names = tuple(f"{seed}-{n:02}" for n in range(people))
    return FaceSet(crops.reshape(-1, 112, 112), labels, names)


def speech(seed, people):
    rng = np.random.default_rng(seed)
    time = np.arange(20_000) / 16_000
    utterances = []
    for _ in range(people):
        pitch = rng.uniform(90, 260)
        group = []
        for _ in range(4):
            wave = sum(np.sin(2 * np.pi * pitch * k * time + k) / k for k in range(1, 8))
            group.append((0.1 * wave + rng.normal(0, 0.01, len(time))).astype(np.float32))
        utterances.append(tuple(group))
    return SpeechSet(tuple(f"{seed}-{n:02}" for n in range(people)), tuple(utterances))


@pytest.fixture(scope="module")
def people():
    return People(
        (faces(1, KNOWN), faces(2, HELD)), (speech(3, 20), speech(4, 12)), FaceSpec(), VoiceSpec()
    )


def test_the_thresholds_are_of_the_people_held_out(people):
    scores = score_model(GridModel(), people)
    assert scores.face.people == HELD
    assert scores.voice.people == 12
    assert scores.fusion is not None
    assert scores.backend("face") is None


def test_poorer_views_teach_the_fusion_and_leave_the_curves_alone(people):
    scores = score_model(GridModel(), people)
    views = view_people(GridModel(), people.faces[1])
    assert set(views) == set(people.faces[1].identities)
    for index, own in enumerate(views.values()):
        assert own.embeddings.shape == (2, SHOTS, DIM)
        recorded = GridModel().embed_aligned(people.faces[1].crops[people.faces[1].labels == index])
        np.testing.assert_array_equal(own.embeddings[0], recorded)
    assert scores.face.genuine == HELD * (SHOTS - 3 + SHOTS - 1)
    assert score_model(GridModel(), people).to_dict() == scores.to_dict()  # to the bit


def test_recordings_are_cut_short_but_keep_their_speaker(people):
    views = view_speakers(GridModel(), people.speech[1], people.voice)
    own = np.stack([view.quality for view in views.values()])
    assert own.shape == (12, 3, 4)
    np.testing.assert_array_equal(own[:, 0], 20_000 / 16_000)
    assert (own[:, 1:] >= 0.5).all()
    assert (own[:, 1:] < 1.25).any(axis=(0, 2)).all()
    assert (own[:, 1:] <= 1.25).all()
    assert (np.ptp(own[:, 1], axis=1) > 0).any()
    # in the last view a speaker's are of one length, for people keep to what they say
    np.testing.assert_array_equal(own[:, 2], own[:, 2, :1].repeat(4, axis=1))
    assert len(np.unique(own[:, 2, 0])) > 2


def test_back_ends_are_learnt_from_the_others(people, monkeypatch):
    learnt = []
    real = model_scores.learn_backend

    def spy(rows, labels, options, sets):
        learnt.append((len(rows), len(np.unique(labels))))
        assert set(sets) == {""}
        return real(rows, labels, options, sets)

    monkeypatch.setattr(model_scores, "learn_backend", spy)
    scores = score_model(GridModel(), people, "joint-bayesian")
    assert learnt == [(KNOWN * SHOTS, KNOWN), (80, 20)]
    assert scores.backend("face") is not None
    assert scores.backend("voice") is not None
    assert scores.face.people == HELD


def test_nobody_named_is_told():
    unnamed = (faces(1, 1), faces(2, 1))
    people = People(unnamed, None, FaceSpec(), VoiceSpec())
    with pytest.raises(CalibrationError):
        score_model(GridModel(), people)
    with pytest.raises(CalibrationError, match="face: nobody is named"):
        score_model(GridModel(), people, "joint-bayesian")


def test_speakers_of_one_set_are_compared_alone():
    rows = np.zeros((3, 2), np.float32)
    embedded = {"a/x": rows, "b/x": rows, "b/y": rows, "b/z": rows[:1]}
    assert set(one_set(embedded)) == {"b/x", "b/y", "b/z"}
    flat = {"x": rows, "y": rows}
    assert one_set(flat) == flat
    assert one_set({}) == {}
