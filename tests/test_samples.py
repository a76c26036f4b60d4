"""How the synthetic people are made: no face of theirs is anybody's."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("tqdm")

from edgeid.converters.samples import (
    BLENDED,
    PEOPLE,
    PHOTOS,
    SENTENCES,
    SHOTS,
    Candidate,
    blend_shot,
    choose_groups,
    compose,
    speak,
)

RNG = np.random.default_rng(0)


def candidates(count):
    centres = RNG.standard_normal((count, 6)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    photos = RNG.integers(60, 200, (count, PHOTOS, 112, 112)).astype(np.uint8)
    return [Candidate(p, c) for p, c in zip(photos, centres, strict=True)]


def test_groups_are_of_eight_and_share_nobody():
    groups = choose_groups(candidates(60), 4)
    assert [len(group) for group in groups] == [BLENDED] * 4
    members = [id(person) for group in groups for person in group]
    assert len(set(members)) == len(members)


def test_a_blend_is_equally_far_from_all_it_is_made_of():
    """Photos of independent noise: each of the sixteen is a sixteenth of the blend."""
    group = candidates(BLENDED)
    shot = blend_shot(group, 0, np.random.default_rng(1)).astype(float)
    used = [photo for person in group for photo in person.photos[:2]]
    likeness = [np.corrcoef(shot.ravel(), photo.ravel())[0, 1] for photo in used]
    assert max(likeness) < 0.4
    assert min(likeness) > 0.1


def test_shots_differ_and_there_is_a_sentence_for_each():
    group = candidates(BLENDED)
    shots = [blend_shot(group, n, np.random.default_rng(1)) for n in range(SHOTS)]
    assert len({shot.tobytes() for shot in shots}) == SHOTS == len(SENTENCES)
    assert len({person.name for person in PEOPLE}) == len(PEOPLE) >= 3


def test_composed_picture():
    face = RNG.integers(60, 200, (112, 112)).astype(np.uint8)
    picture = compose(face, np.random.default_rng(0))
    assert picture.shape == (320, 280)
    assert picture.dtype == np.uint8


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_speech_is_made_at_the_models_rate():
    samples = speak(PEOPLE[0], SENTENCES[0])
    assert 2 < len(samples) / 16000 < 8
    assert np.abs(samples).max() > 0.05
