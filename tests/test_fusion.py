"""Fusion that knows how good the probe was: by hand, fitted, and hostile parameters."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("torch")

from edgeid.converters.scores.calibration import CalibrationOptions, calibrate
from edgeid.converters.scores.fusion import FusionOptions, fit_fusion
from edgeid.converters.scores.views import Views
from edgeid.decision import compare
from edgeid.probe import Probe
from edgeid.runtime.errors import CalibrationError, InputError, ModelFormatError
from edgeid.runtime.fusion import Fusion, QualityTerm
from edgeid.runtime.score import Calibration, FmrCurve
from edgeid.templates import Templates

CURVE = FmrCurve((1.0, 0.003), (-1.0, 0.8), (0.0, 0.5), 1000, 50, 20)
SHARPNESS = QualityTerm(low=0.1, usual=0.4, high=1.6, bias=-1.0, weight=2.0)
SPEECH = QualityTerm(low=0.5, usual=2.0, high=4.0, bias=0.5, weight=-1.0)
FUSION = Fusion(-4.0, 10.0, 5.0, SHARPNESS, SPEECH)
CALIBRATION = Calibration(CURVE, CURVE, CURVE, FUSION)
Array = NDArray[np.float64]


def quality(sharpness: Any = 0.4, speech: Any = 2.0) -> Any:
    return {"face": {"sharpness": sharpness, "yaw": 3.0}, "voice": {"speech": speech}}


def test_log_odds_by_hand() -> None:
    # Twice as sharp as usual and half as long.
    level = math.log(2)
    expected = -4 + 10 * 0.5 + 5 * 0.2 + level * (-1 + 2 * 0.5) - level * (0.5 - 0.2)
    assert CALIBRATION.fuse(0.5, 0.2, quality(0.8, 1.0)) == pytest.approx(expected)
    both = FUSION.log_odds([0.5, 0.5], [0.2, 0.2], [0.8, 0.4], [1.0, 2.0])
    np.testing.assert_allclose(both, [expected, 2.0])


def test_what_is_not_known_counts_as_usual() -> None:
    plain = -4 + 5 + 1
    assert CALIBRATION.fuse(0.5, 0.2) == pytest.approx(plain)
    assert CALIBRATION.fuse(0.5, 0.2, {}) == pytest.approx(plain)
    assert CALIBRATION.fuse(0.5, 0.2, {"face": {"yaw": 1.0}}) == pytest.approx(plain)
    assert CALIBRATION.fuse(0.5, 0.2, quality()) == pytest.approx(plain)
    fixed = Calibration(fused=CURVE, fusion=Fusion(-4.0, 10.0, 5.0))
    assert fixed.fuse(0.5, 0.2, quality(0.1, 9.0)) == pytest.approx(plain)


def test_quality_is_cut_off_where_calibration_ends() -> None:
    for inside, outside in ((0.1, 0.0), (0.1, -3.0), (1.6, 500.0)):
        assert CALIBRATION.fuse(0.5, 0.2, quality(outside)) == CALIBRATION.fuse(
            0.5, 0.2, quality(inside)
        )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_quality_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        CALIBRATION.fuse(0.5, 0.2, quality(value))
    with pytest.raises(InputError, match="not finite"):
        CALIBRATION.fuse(0.5, 0.2, quality(0.4, value))


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 0.5))
def test_more_similar_is_never_less_likely(
    sharpness: float, speech: float, face: float, voice: float, more: float
) -> None:
    least = CALIBRATION.fuse(face, voice, quality(sharpness, speech))
    assert CALIBRATION.fuse(face + more, voice, quality(sharpness, speech)) >= least - 1e-9
    assert CALIBRATION.fuse(face, voice + more, quality(sharpness, speech)) >= least - 1e-9


def test_decisions_pass_the_quality_of_the_probe_on() -> None:
    row = np.array([1, 0], np.float32)
    probe = Probe(row, row, quality(0.8, 2.0))
    found = compare("ann", Templates(row[None], row[None]), probe, CALIBRATION)
    assert found is not None
    assert found.score == pytest.approx(-4 + 10 + 5 + math.log(2) * (-1 + 2))


def test_round_trip_through_json() -> None:
    assert Calibration.from_dict(json.loads(json.dumps(CALIBRATION.to_dict()))) == CALIBRATION
    # as before there was quality, and readable by what knows none
    assert Fusion(1.0, 2.0, 3.0).to_dict() == {"bias": 1.0, "face": 2.0, "voice": 3.0}
    assert Fusion.from_dict({"bias": 1.0, "face": 2.0, "voice": 3.0}) == Fusion(1.0, 2.0, 3.0)


def _term(**changes: object) -> dict[str, object]:
    return {"low": 0.1, "usual": 0.4, "high": 1.6, "bias": -1.0, "weight": 2.0, **changes}


@pytest.mark.parametrize(
    "term",
    [
        None,
        [],
        {},
        _term(extra=1),
        _term(low=0.0),
        _term(low=-1.0),
        _term(low=0.5),
        _term(high=0.3),
        _term(high=1e9),
        _term(usual=math.nan),
        _term(bias=math.inf),
        _term(bias="1"),
        _term(bias=True),
        _term(weight=math.nan),
        _term(weight=10**400),
        _term(weight=8.0),  # 10 + 8 log(0.1 / 0.4) < 0
        _term(weight=-8.0),  # 10 - 8 log(1.6 / 0.4) < 0
    ],
)
def test_hostile_terms_are_refused(term: object) -> None:
    with pytest.raises(ModelFormatError):
        Fusion.from_dict({"bias": 0.0, "face": 10.0, "voice": 1.0, "face_quality": term})


def test_quality_of_a_modality_without_weight_is_refused() -> None:
    with pytest.raises(ModelFormatError, match="negative at some quality"):
        Fusion(0.0, 0.0, 1.0, SHARPNESS)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.dictionaries(
            st.sampled_from(
                ["bias", "face", "voice", "face_quality", "low", "usual", "high", "weight"]
            ),
            inner,
        ),
        max_leaves=12,
    )
)
def test_from_dict_never_fails_otherwise(data: object) -> None:
    with contextlib.suppress(ModelFormatError):
        Fusion.from_dict(data)


def trials(seed: int, count: int = 60_000, people: int = 40) -> tuple[Array, ...]:
    """Face scores whose genuine mean is 2 + level of sharpness, voices that know no quality."""
    rng = np.random.default_rng(seed)
    identities = rng.integers(people, size=(count, 2))
    identities[: count // 3, 1] = identities[: count // 3, 0]
    labels = identities[:, 0] == identities[:, 1]
    level = rng.uniform(-1, 1, count)
    face, voice = rng.normal(labels * (2.0 + level)), rng.normal(labels * 1.0)
    return face, voice, labels, identities, np.exp(level), rng.uniform(1, 4, count)


def test_fit_finds_what_quality_tells() -> None:
    face, voice, labels, identities, sharpness, speech = trials(1)
    fit = fit_fusion(face, voice, labels, identities, None, sharpness, speech)
    # Unit normals shifted by m = 2 + u: m x - m^2 / 2, of which u^2 / 2 is not linear in u.
    assert fit.fusion.face == pytest.approx(2.0, abs=0.1)
    assert fit.fusion.voice == pytest.approx(1.0, abs=0.1)
    term = fit.fusion.face_quality
    assert term is not None
    assert term.weight == pytest.approx(1.0, abs=0.1)
    assert term.bias == pytest.approx(-2.0, abs=0.2)
    assert term.usual == pytest.approx(1.0, abs=0.02)
    assert fit.fusion.voice_quality is None  # it tells nothing, so it is left out
    plain = fit_fusion(face, voice, labels, identities)
    assert plain.fusion.face_quality is None
    kept = np.isfinite(fit.held_out)
    assert (kept == np.isfinite(plain.held_out)).all()
    scores = [np.where(labels, -f.held_out, f.held_out)[kept] for f in (fit, plain)]
    assert np.logaddexp(0, scores[0]).mean() < 0.97 * np.logaddexp(0, scores[1]).mean()


def test_held_out_scores_come_from_other_people_only() -> None:
    face, voice, labels, identities, sharpness, speech = trials(2, 6000, 30)
    fit = fit_fusion(face, voice, labels, identities, None, sharpness, speech)
    assert fit.fusion.face_quality is not None
    person = identities[0, 0]
    touched = (identities == person).any(axis=1)
    changed = np.where(touched, face - 3.0, face)
    again = fit_fusion(changed, voice, labels, identities, None, sharpness, speech)
    same = np.isfinite(fit.held_out) & ~touched & (fit.held_out == again.held_out)
    assert len(set(identities[same].ravel())) == 30 // 5 - 1
    assert again.fusion != fit.fusion


def test_no_weight_becomes_negative_at_any_quality() -> None:
    """Above the usual sharpness faces tell the less the sharper they are, in the end nothing."""
    rng = np.random.default_rng(3)
    face, voice, labels, identities, sharpness, _ = trials(3, 20_000)
    face = rng.normal(labels * (0.5 - 1.5 * np.log(sharpness)))
    fit = fit_fusion(face, voice, labels, identities, None, sharpness)
    term = fit.fusion.face_quality
    assert term is None or term.least(fit.fusion.face) >= 0
    levels = np.geomspace(1e-3, 1e3, 50)
    low, high = (fit.fusion.log_odds(s, 0.0, levels) for s in (0.0, 1.0))
    assert (high - low).min() >= -1e-9


def test_a_misleading_modality_gets_no_quality_either() -> None:
    face, voice, labels, identities, sharpness, speech = trials(4, 6000)
    fusion = fit_fusion(-face, voice, labels, identities, None, sharpness, speech).fusion
    assert (fusion.face, fusion.face_quality) == (0.0, None)


def test_fit_refuses() -> None:
    face, voice, labels, identities, sharpness, speech = trials(5, 600)
    with pytest.raises(CalibrationError, match="finite measures"):
        fit_fusion(face, voice, labels, identities, None, sharpness[1:])
    with pytest.raises(CalibrationError, match="finite measures"):
        fit_fusion(face, voice, labels, identities, None, sharpness, speech * np.nan)


SMALL = CalibrationOptions(impostors=2000, probes=3, fusion=FusionOptions(folds=3))


def viewed(count: int, samples: int, seed: int) -> dict[str, Views]:
    """Samples with little noise, and a view with much noise whose quality says so."""
    rng = np.random.default_rng(seed)
    people = {}
    for i in range(count):
        own = rng.standard_normal(24)
        rows = [own + level * rng.standard_normal((samples, 24)) for level in (0.6, 3.0)]
        measure = np.array([[1.0], [0.2]]) * rng.uniform(0.9, 1.1, (2, samples))
        people[f"p{i:03d}"] = Views(np.stack(rows), measure)
    return people


def test_calibration_with_worse_views() -> None:
    faces, voices = viewed(24, 6, 1), viewed(18, 6, 2)
    result = calibrate(faces, voices, seed=3, options=SMALL)
    recorded = {name: own.embeddings[0] for name, own in faces.items()}
    alone = calibrate(recorded, {}, seed=3, options=SMALL)
    assert result.face is not None
    assert alone.face is not None
    # curves of one modality are of the samples as they were recorded
    assert (result.face.genuine, result.face.impostors) == (24 * 6, 24 * 23 * 6)
    assert result.face.fnmr_at(0.01) == pytest.approx(alone.face.fnmr_at(0.01), abs=0.05)
    assert result.fusion is not None
    assert result.fused is not None
    term = result.fusion.face_quality
    assert term is not None
    assert term.weight > 0
    assert result.fused.impostors >= 2000
    assert Calibration.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert result == calibrate(faces, voices, seed=3, options=SMALL)


def test_one_modality_without_quality() -> None:
    faces, voices = viewed(24, 6, 1), viewed(18, 6, 2)
    plain = {name: own.embeddings[0] for name, own in faces.items()}
    result = calibrate(plain, voices, seed=3, options=SMALL)
    assert result.fusion is not None
    assert result.fusion.face_quality is None
    assert result.fusion.voice_quality is not None


def test_views_that_do_not_fit() -> None:
    with pytest.raises(CalibrationError, match=r"\(v, n\)"):
        Views(np.zeros((2, 3, 4)), np.zeros((2, 4)))
    mixed = viewed(12, 6, 1) | {"x": Views(np.zeros((1, 6, 24)), np.ones((1, 6)))}
    with pytest.raises(CalibrationError, match="same number of views"):
        calibrate(mixed, {}, options=SMALL)
