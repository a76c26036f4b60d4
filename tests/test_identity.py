from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeid import EdgeID, Policy, TemplateStore
from edgeid.runtime.errors import (
    AudioError,
    CalibrationError,
    DuplicateUserError,
    FaceBlurredError,
    ImageError,
    InputError,
    StoreError,
    TooLittleSpeechError,
    UnknownUserError,
    WrongKeyError,
)
from edgeid.runtime.score import Calibration

KEY = bytes(range(32))


def angle(degrees: int) -> bytes:
    """An image or a recording of the fake model."""
    return bytes([degrees])


@pytest.fixture
def eid(fake_model: Any) -> Iterator[EdgeID]:
    with TemplateStore(":memory:", KEY) as store:
        yield EdgeID(fake_model, store)


# ---- verify


def test_face_alone(eid: EdgeID) -> None:
    eid.enroll("ann", images=[angle(0)])
    near = eid.verify(angle(50), user="ann")
    assert near.accepted
    assert (near.user, near.modality, near.voice, near.reasons) == ("ann", "face", None, ())
    assert near.score == near.face == pytest.approx(math.cos(math.radians(50)), abs=1e-6)
    assert near.threshold == pytest.approx(0.6)
    assert near.fmr == 1e-3
    far = eid.verify(angle(55), user="ann")
    assert not far.accepted
    assert far.user == "ann"
    assert [reason.code for reason in far.reasons] == ["score-below-threshold"]


def test_face_and_voice(eid: EdgeID) -> None:
    eid.enroll("ann", images=[angle(0)], audio=[angle(0)])
    result = eid.verify(angle(45), angle(45), user="ann")
    expected = -10 + 25 * math.cos(math.radians(45))
    assert (result.modality, result.accepted) == ("fused", True)
    assert result.score == pytest.approx(expected, abs=1e-5)
    assert result.threshold == pytest.approx(5)
    # The right voice does not carry the wrong face.
    assert not eid.verify(angle(120), angle(0), user="ann").accepted


def test_several_templates_count(eid: EdgeID) -> None:
    eid.enroll("ann", images=[angle(0), angle(60)])
    result = eid.verify(angle(60), user="ann")
    # The centroid lies at 30 degrees.
    assert result.score == pytest.approx(math.cos(math.radians(30)), abs=1e-6)


def test_recordings_with_rate(eid: EdgeID) -> None:
    eid.enroll("ann", images=[angle(0)], audio=[(np.zeros(4, np.float32), 16000)])
    result = eid.verify(np.zeros((2, 2), np.uint8), (np.zeros(4, np.float32), 16000), "ann")
    assert result.accepted


def test_voice_of_somebody_enrolled_without_one_is_left_out(eid: EdgeID) -> None:
    eid.enroll("ann", images=[angle(0)])
    result = eid.verify(angle(0), angle(0), user="ann")
    assert (result.accepted, result.modality) == (True, "face")
    assert [reason.code for reason in result.reasons] == ["no-voice-template"]


def test_voice_alone_is_not_accepted_by_default(eid: EdgeID) -> None:
    eid.enroll("ann", images=[angle(0)], audio=[angle(0)])
    result = eid.verify(audio=angle(0), user="ann")
    assert (result.accepted, result.modality) == (False, "voice")
    assert result.score == pytest.approx(1)
    assert [reason.code for reason in result.reasons] == ["voice-alone-not-allowed"]


def test_voice_alone_by_policy(fake_model: Any) -> None:
    with TemplateStore(":memory:", KEY) as store:
        eid = EdgeID(fake_model, store, policy=Policy(voice_alone=True))
        eid.enroll("ann", audio=[angle(0)])
        assert eid.verify(audio=angle(30), user="ann").accepted
        nothing = eid.verify(image=angle(0), user="ann")
    assert not nothing.accepted
    assert (nothing.score, nothing.threshold, nothing.modality) == (None, None, None)
    assert [reason.code for reason in nothing.reasons] == ["no-template"]


def test_face_alone_can_be_forbidden(fake_model: Any) -> None:
    with TemplateStore(":memory:", KEY) as store:
        eid = EdgeID(fake_model, store, policy=Policy(face_alone=False))
        with pytest.raises(InputError, match="--audio"):
            eid.enroll("ann", images=[angle(0)])
        eid.enroll("ann", images=[angle(0)], audio=[angle(0)])
        assert not eid.verify(angle(0), user="ann").accepted
        assert eid.verify(angle(0), angle(0), user="ann").accepted


def test_poor_half_is_an_error_and_nothing_falls_back(eid: EdgeID) -> None:
    eid.enroll("ann", images=[angle(0)], audio=[angle(0)])
    for user in ("ann", None):
        with pytest.raises(TooLittleSpeechError):
            eid.verify(angle(0), angle(255), user=user)
        with pytest.raises(FaceBlurredError):
            eid.verify(angle(255), angle(0), user=user)


def test_nothing_to_verify(eid: EdgeID) -> None:
    eid.enroll("ann", images=[angle(0)])
    for attempt in (eid.verify, eid.identify, lambda: eid.verify(user="ann")):
        with pytest.raises(InputError, match="give an image"):
            attempt()


def test_unreadable_inputs(eid: EdgeID, tmp_path: Path) -> None:
    eid.enroll("ann", images=[angle(0)])
    with pytest.raises(ImageError):
        eid.verify(tmp_path / "missing.jpg", user="ann")
    with pytest.raises(AudioError):
        eid.verify(angle(0), b"", user="ann")


def test_unknown_user(eid: EdgeID) -> None:
    with pytest.raises(UnknownUserError, match="'bob'"):
        eid.verify(angle(0), user="bob")
    with pytest.raises(UnknownUserError):
        eid.remove("bob")
    with pytest.raises(InputError, match="user name"):
        eid.verify(angle(0), user="")


# ---- identify


def test_identify_finds_the_nearest_or_nobody(eid: EdgeID) -> None:
    for name, degrees in (("ann", 0), ("bob", 100), ("cem", 200)):
        eid.enroll(name, images=[angle(degrees)])
    found = eid.identify(angle(90))
    assert (found.accepted, found.user, found.compared) == (True, "bob", 3)
    assert (found.fmr, found.fmr_bound) == (1e-3, 1e-3)
    # 50 degrees from two people: cosine 0.64 would do for one comparison, not for three.
    nobody = eid.identify(angle(50))
    assert (nobody.accepted, nobody.user) == (False, None)
    assert nobody.best is not None
    assert nobody.best.threshold == pytest.approx(0.4 + 0.4 * math.log(30) / math.log(100))
    assert eid.verify(angle(50), user="bob").accepted


def test_identify_with_nobody_enrolled(eid: EdgeID) -> None:
    found = eid.identify(angle(0))
    assert (found.accepted, found.best, found.compared) == (False, None, 0)
    assert [reason.code for reason in found.reasons] == ["nobody-enrolled"]


def test_verify_without_a_claim_identifies_first(eid: EdgeID) -> None:
    assert not eid.verify(angle(0)).accepted
    eid.enroll("ann", images=[angle(0)])
    eid.enroll("bob", images=[angle(90)])
    found = eid.verify(angle(85))
    assert (found.accepted, found.user, found.modality) == (True, "bob", "face")
    stranger = eid.verify(angle(180))
    assert (stranger.accepted, stranger.user) == (False, None)
    assert stranger.score is not None


def test_search_bound_is_stated(eid: EdgeID) -> None:
    for number in range(20):
        eid.enroll(f"person {number}", images=[angle(number)])
    found = eid.verify(angle(0))
    assert found.fmr == pytest.approx(20 * 1e-4)
    assert [reason.code for reason in found.reasons] == ["fmr-bound-raised"]


def test_policy_holds_in_a_search(eid: EdgeID) -> None:
    eid.enroll("ann", images=[angle(0)], audio=[angle(0)])
    found = eid.identify(audio=angle(0))
    assert (found.accepted, found.user) == (False, None)
    assert [reason.code for reason in found.reasons] == ["voice-alone-not-allowed"]


# ---- enroll


def test_enrolment_is_reported(eid: EdgeID) -> None:
    first = eid.enroll("ann", images=[angle(0), angle(5)], audio=[angle(0)])
    assert (first.user.name, first.user.faces, first.user.voices) == ("ann", 2, 1)
    assert not first.replaced
    assert first.quality == {"face": ({"level": 1.0},) * 2, "voice": ({"level": 1.0},)}
    assert eid.enroll("ann", images=[angle(0)], replace=True).replaced
    assert [(user.name, user.faces) for user in eid.list()] == [("ann", 1)]
    assert eid.remove("ann").name == "ann"
    assert eid.list() == ()


def test_bad_sample_is_named_and_nothing_is_stored(eid: EdgeID, tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    good.write_bytes(angle(0))
    missing = tmp_path / "missing.jpg"
    with pytest.raises(ImageError, match=r"image 2 \(.*missing\.jpg\): cannot read"):
        eid.enroll("ann", images=[good, missing])
    with pytest.raises(FaceBlurredError, match="image 3: the face is out of focus"):
        eid.enroll("ann", images=[angle(0), angle(1), angle(255)])
    with pytest.raises(TooLittleSpeechError, match="recording 1: "):
        eid.enroll("ann", images=[angle(0)], audio=[angle(255)])
    assert eid.list() == ()


def test_failed_replacement_keeps_the_old(eid: EdgeID) -> None:
    eid.enroll("ann", images=[angle(0)])
    with pytest.raises(FaceBlurredError):
        eid.enroll("ann", images=[angle(90), angle(255)], replace=True)
    assert eid.verify(angle(0), user="ann").accepted


def test_photo_of_somebody_else_is_named(eid: EdgeID) -> None:
    with pytest.raises(InputError, match="image 2 does not agree with the others") as caught:
        eid.enroll("ann", images=[angle(0), angle(100), angle(10)])
    assert "at least 0.26" in str(caught.value)
    with pytest.raises(InputError, match="the other "):
        eid.enroll("ann", images=[angle(0), angle(80)])
    with pytest.raises(InputError, match="recording 3 "):
        eid.enroll("ann", images=[angle(0)], audio=[angle(0), angle(1), angle(99)])
    assert eid.list() == ()
    eid.enroll("ann", images=[angle(0), angle(60)])  # cosine 0.5: a different look


def test_duplicate_is_told_before_anything_is_read(eid: EdgeID) -> None:
    eid.enroll("ann", images=[angle(0)])
    with pytest.raises(DuplicateUserError):
        eid.enroll("ann", images=[angle(255)])


@pytest.mark.parametrize(
    ("images", "audio", "message"),
    [
        ((), (), "nothing to enroll"),
        ((), [b"\0"], "--image"),
        (5, (), "images must be a list, not int"),
        ([b"\0"], 5.0, "audio must be a list"),
    ],
)
def test_unusable_sets_of_samples(eid: EdgeID, images: Any, audio: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        eid.enroll("ann", images=images, audio=audio)


def test_a_single_recording_with_its_rate_needs_no_list(eid: EdgeID) -> None:
    recording: Any = (np.zeros(4, np.float32), 16000)
    assert eid.enroll("ann", images=[angle(0)], audio=recording).user.voices == 1


@pytest.mark.parametrize("single", [b"\0", np.zeros((2, 2), np.uint8)])
def test_a_single_image_needs_no_list(eid: EdgeID, single: Any) -> None:
    assert eid.enroll("ann", images=single).user.faces == 1


def test_a_single_path_needs_no_list(eid: EdgeID, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(angle(0))
    path = str(tmp_path / "a")
    assert eid.enroll("ann", images=path, audio=path).user.voices == 1
    result = eid.enroll("bob", images=(path, path), audio=(path, path))
    assert (result.user.faces, result.user.voices) == (2, 2)


# ---- model, store, rate


def test_store_of_another_model_asks_to_enroll_again(fake_model: Any) -> None:
    with TemplateStore(":memory:", KEY) as store:
        EdgeID(fake_model, store).enroll("ann", images=[angle(0)])
        other = EdgeID(type(fake_model)(weight=2.0), store)
        for attempt in (other.identify, lambda image: other.verify(image, user="ann")):
            with pytest.raises(StoreError, match="another model"):
                attempt(angle(0))
        assert [user.name for user in other.list()] == ["ann"]
        other.enroll("ann", images=[angle(0)], replace=True)
        assert other.verify(angle(0), user="ann").accepted


def test_new_calibration_keeps_the_templates(fake_model: Any) -> None:
    with TemplateStore(":memory:", KEY) as store:
        EdgeID(fake_model, store).enroll("ann", images=[angle(0)])
        calibration = replace(fake_model.calibration, fused=None, fusion=None)
        again = EdgeID(type(fake_model)(calibration=calibration), store)
        assert again.verify(angle(0), user="ann").accepted


@pytest.mark.parametrize("fmr", [0, 1, -1e-3, 2.0, math.nan, 1e-9, "0.001", None, True])
def test_unusable_rate_is_refused_at_once(fake_model: Any, home: Path, fmr: Any) -> None:
    with pytest.raises(CalibrationError):
        EdgeID(fake_model, fmr=fmr)
    assert not home.exists()  # neither key nor store were made


def test_model_without_calibration_is_refused(fake_model: Any, home: Path) -> None:
    with pytest.raises(CalibrationError, match="calibrate"):
        EdgeID(type(fake_model)(calibration=Calibration()))
    assert not home.exists()


def test_default_store_and_key(fake_model: Any, home: Path) -> None:
    with EdgeID(fake_model) as eid:
        eid.enroll("ann", images=[angle(0)])
    assert sorted(os.listdir(home)) == ["key", "templates.db"]
    with pytest.raises(StoreError, match="closed"):
        eid.list()
    with EdgeID(fake_model) as eid:
        assert eid.verify(angle(0), user="ann").accepted


def test_key_of_the_callers_own(fake_model: Any, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.db"
    with EdgeID(fake_model, path, key=KEY) as eid:
        eid.enroll("ann", images=[angle(0)])
    assert not home.exists()
    with pytest.raises(WrongKeyError):
        EdgeID(fake_model, path, key=bytes(32))


def test_store_that_was_handed_in_stays_open(fake_model: Any) -> None:
    with TemplateStore(":memory:", KEY) as store:
        with EdgeID(fake_model, store) as eid:
            eid.enroll("ann", images=[angle(0)])
        assert "ann" in store


# ---- results


def test_results_are_json_without_embeddings(eid: EdgeID) -> None:
    enrolled = eid.enroll("ann", images=[angle(20)], audio=[angle(20)])
    verified = eid.verify(angle(20), angle(20), user="ann")
    for result in (enrolled, verified, eid.identify(angle(20)), eid.verify(angle(100))):
        text = json.dumps(result.to_dict(), allow_nan=False)
        assert "0.9396" not in text  # cos 20 degrees, the first value of the embedding
        assert "0.3420" not in text
    assert {"read_face", "embed_face", "read_voice", "embed_voice"} < set(verified.timings)
    assert {"store", "compare", "total"} < set(verified.timings)
    stages = sum(spent for stage, spent in verified.timings.items() if stage != "total")
    assert 0 < stages <= verified.timings["total"]
    assert verified.quality == {"face": {"level": 1.0}, "voice": {"level": 1.0}}
