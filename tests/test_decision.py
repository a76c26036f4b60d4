from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeid.decision import Comparison, compare, decide, search, search_fmr
from edgeid.policy import Policy
from edgeid.probe import Probe
from edgeid.runtime.errors import CalibrationError
from edgeid.runtime.score import Calibration
from edgeid.templates import Templates

ANY = Policy(face_alone=True, voice_alone=True)


def vector(degrees: float) -> Any:
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], np.float32)


def person(face: float | None = None, voice: float | None = None) -> Templates:
    parts = {"face": face, "voice": voice}
    return Templates(**{key: vector(v)[None] for key, v in parts.items() if v is not None})


def probe(face: float | None = None, voice: float | None = None) -> Probe:
    return Probe(
        None if face is None else vector(face), None if voice is None else vector(voice), {}
    )


@pytest.fixture
def calibration(fake_model: Any) -> Calibration:
    found = fake_model.calibration
    assert isinstance(found, Calibration)
    return found


def test_cosine_of_the_angle_is_the_score(calibration: Calibration) -> None:
    found = compare("ann", person(face=10), probe(face=70), calibration)
    assert found is not None
    assert found.score == found.face == pytest.approx(0.5, abs=1e-6)
    assert (found.modality, found.voice, found.reasons) == ("face", None, ())


def test_two_modalities_are_fused(calibration: Calibration) -> None:
    found = compare("ann", person(0, 0), probe(60, 90), calibration)
    assert found is not None
    assert found.modality == "fused"
    assert found.score == pytest.approx(-10 + 15 * 0.5 + 10 * 0, abs=1e-5)


def test_what_only_one_side_has_is_left_out_and_said(calibration: Calibration) -> None:
    face = compare("ann", person(face=0), probe(0, 0), calibration)
    voice = compare("ann", person(voice=0), probe(0, 0), calibration)
    assert face is not None
    assert voice is not None
    assert (face.modality, [r.code for r in face.reasons]) == ("face", ["no-voice-template"])
    assert (voice.modality, [r.code for r in voice.reasons]) == ("voice", ["no-face-template"])
    assert compare("ann", person(face=0), probe(voice=0), calibration) is None


@pytest.mark.parametrize(
    ("score", "modality", "policy", "accepted", "codes"),
    [
        (0.6, "face", Policy(), True, []),
        (0.6, "fused", Policy(face_alone=False), True, []),
        (0.6, "face", Policy(face_alone=False), False, ["face-alone-not-allowed"]),
        (0.6, "voice", Policy(), False, ["voice-alone-not-allowed"]),
        (0.6, "voice", ANY, True, []),
        (0.59, "face", Policy(), False, ["score-below-threshold"]),
        (0.59, "voice", Policy(), False, ["voice-alone-not-allowed", "score-below-threshold"]),
        (math.nan, "face", Policy(), False, ["score-below-threshold"]),
    ],
)
def test_decisions(
    score: float, modality: Any, policy: Policy, accepted: bool, codes: list[str]
) -> None:
    comparison = Comparison("ann", score, modality, None, None)
    candidate, reasons = decide(comparison, 0.6, policy)
    assert candidate.accepted is accepted
    assert [reason.code for reason in reasons] == codes


def test_search_threshold_is_that_of_the_rate_over_the_people(calibration: Calibration) -> None:
    people = [(str(n), person(face=n)) for n in range(0, 100, 20)]
    found = search(people, probe(face=41), calibration, Policy(), 1e-3)
    assert found.best is not None
    assert (found.best.user, found.best.accepted, found.compared) == ("40", True, 5)
    # On the curve, FMR 2e-4 lies between 1e-2 at 0.4 and 1e-4 at 0.8, linear in its logarithm.
    expected = 0.4 + 0.4 * math.log(1e-2 / 2e-4) / math.log(100)
    assert found.best.threshold == pytest.approx(expected)
    assert found.fmr_bound == 1e-3
    assert found.reasons == ()


def test_search_beyond_the_calibration_states_the_bound_that_holds(
    calibration: Calibration,
) -> None:
    # 20 people at 1e-3 would need 5e-5 each; the curve ends at 1e-4, threshold 0.8.
    people = [(str(n), person(face=n)) for n in range(20)]
    found = search(people, probe(face=3), calibration, Policy(), 1e-3)
    assert found.best is not None
    assert found.best.threshold == pytest.approx(0.8)
    assert found.fmr_bound == pytest.approx(20 * 1e-4)
    assert [reason.code for reason in found.reasons] == ["fmr-bound-raised"]


def test_bound_is_a_probability(calibration: Calibration) -> None:
    people = [(str(n), person(voice=n % 90)) for n in range(2000)]
    found = search(people, probe(voice=3), calibration, ANY, 1e-3)
    assert found.fmr_bound == 1.0


def test_search_fails_closed_where_even_one_comparison_is_beyond(calibration: Calibration) -> None:
    with pytest.raises(CalibrationError, match="rule of three"):
        search([("ann", person(voice=0))], probe(voice=0), calibration, ANY, 1e-4)


@pytest.mark.parametrize(
    ("people", "code"),
    [([], "nobody-enrolled"), ([("ann", person(voice=0))], "no-template")],
)
def test_search_without_anything_to_compare(
    calibration: Calibration, people: Any, code: str
) -> None:
    found = search(people, probe(face=0), calibration, Policy(), 1e-3)
    assert (found.best, found.compared) == (None, 0)
    assert [reason.code for reason in found.reasons] == [code]


def test_search_ranks_scores_of_different_kinds_by_their_rate(calibration: Calibration) -> None:
    # bob's voice does not fit: log-odds 5, FMR 1e-3, though 5 is a larger number than any
    # cosine. ann has no voice; her face has cosine 0.985, FMR 1e-4.
    people = [("ann", person(face=10)), ("bob", person(face=0, voice=90))]
    found = search(people, probe(face=0, voice=0), calibration, Policy(), 1e-2)
    assert found.best is not None
    assert (found.best.user, found.best.modality) == ("ann", "face")
    people[1] = ("bob", person(face=0, voice=0))  # now both fit: log-odds 15, FMR 1e-5
    found = search(people, probe(face=0, voice=0), calibration, Policy(), 1e-2)
    assert found.best is not None
    assert found.best.user == "bob"


def test_search_at_the_end_of_the_curve_prefers_the_higher_score(
    calibration: Calibration,
) -> None:
    people = [("ann", person(face=10)), ("bob", person(face=5)), ("cem", person(face=20))]
    found = search(people, probe(face=0), calibration, Policy(), 1e-3)
    assert found.best is not None
    assert found.best.user == "bob"


@given(
    fmr=st.floats(1e-4, 0.5),
    count=st.integers(1, 100_000),
    modality=st.sampled_from(["face", "fused"]),
)
def test_rate_of_a_search_is_supported_and_never_above_the_rate_asked_for(
    fmr: float, count: int, modality: Any
) -> None:
    calibration = _calibration()
    rate = search_fmr(calibration, modality, fmr, count)
    assert calibration.curve(modality).smallest_fmr <= rate <= fmr
    calibration.threshold(modality, rate)


def _calibration() -> Calibration:
    curve = {"fmrs": [1.0, 1e-4], "thresholds": [0.0, 1.0], "fnmrs": [0.0, 1.0],
             "impostors": 30_000, "genuine": 10, "people": 10}  # fmt: skip
    fusion = {"bias": 0.0, "face": 1.0, "voice": 1.0}
    return Calibration.from_dict({"face": curve, "fused": curve, "fusion": fusion})
