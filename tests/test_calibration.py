from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize

from edgeid.converters.scores.calibration import CalibrationOptions, build_curve, calibrate
from edgeid.converters.scores.fusion import FusionOptions, fit_fusion, newton
from edgeid.runtime.errors import CalibrationError
from edgeid.runtime.score import Calibration

Embeddings = dict[str, NDArray[np.float64]]


def _people(count: int, samples: int, noise: float, seed: int) -> Embeddings:
    rng = np.random.default_rng(seed)
    return {
        f"p{i:03d}": rng.standard_normal(24) + noise * rng.standard_normal((samples, 24))
        for i in range(count)
    }


def _observed(impostor: NDArray[np.float64], threshold: float) -> float:
    return float(np.mean(impostor >= threshold))


def test_curve_by_hand() -> None:
    curve = build_curve([0.5, 0.95], np.arange(10) / 10, people=4)
    assert (curve.impostors, curve.genuine, curve.people) == (10, 2, 4)
    assert curve.fmrs[0] == 1.0
    assert curve.fmrs[-1] == 0.3
    # Three impostors (0.7, 0.8, 0.9) score at least 0.7.
    assert curve.thresholds[-1] == 0.7
    assert curve.threshold(0.3) == 0.7
    assert curve.fnmrs[-1] == 0.5


def test_curve_of_tied_impostors() -> None:
    curve = build_curve([1.0], [0.2, 0.2, 0.2, 0.2, 0.2], people=2)
    threshold = curve.threshold(0.6)
    assert threshold == math.nextafter(0.2, 1)
    assert _observed(np.full(5, 0.2), curve.threshold(0.9)) == 0.0


@settings(deadline=None)
@given(
    scores=st.lists(st.integers(-50, 50), min_size=4, max_size=200),
    fmr=st.floats(0.001, 0.999),
    scale=st.sampled_from([1.0, 0.01, 37.5]),
)
def test_observed_fmr_never_exceeds_the_one_stated(
    scores: list[int], fmr: float, scale: float
) -> None:
    impostor = np.array(scores) * scale
    curve = build_curve([0.0], impostor, people=2)
    if fmr >= curve.smallest_fmr:
        assert _observed(impostor, curve.threshold(fmr)) <= fmr
    for score in {*impostor.tolist(), float(impostor.mean())}:
        assert curve.fmr_of(score) >= _observed(impostor, score) * (1 - 1e-9)
    assert len(curve.fmrs) < 100


@pytest.mark.parametrize("kind", ["normal", "exponential", "heavy", "mixture"])
def test_curve_follows_large_samples(kind: str) -> None:
    rng = np.random.default_rng(2)
    n = 20_000
    impostor = {
        "normal": rng.normal(0, 0.1, n),
        "exponential": rng.exponential(0.1, n),
        "heavy": rng.standard_t(2, n),
        # As with mislabelled people: a few impostors who score like genuine ones.
        "mixture": np.where(rng.random(n) < 2e-3, rng.normal(0.8, 0.05, n), rng.normal(0, 0.1, n)),
    }[kind]
    curve = build_curve(rng.normal(0.7, 0.1, 500), impostor, people=100)
    assert len(curve.fmrs) < 200
    for fmr in np.geomspace(3 / n, 0.9, 60):
        observed = _observed(impostor, curve.threshold(fmr))
        assert observed <= fmr
        # Within a tenth of a decade, plus the granularity of one impostor.
        assert observed >= fmr / 10**0.1 - 2 / n


@pytest.mark.parametrize(
    ("genuine", "impostor"),
    [
        ([], [0.1, 0.2, 0.3, 0.4]),
        ([0.5], [0.1, 0.2, 0.3]),
        ([math.nan], [0.1, 0.2, 0.3, 0.4]),
        ([0.5], [0.1, 0.2, 0.3, math.inf]),
    ],
)
def test_curve_refuses(genuine: list[float], impostor: list[float]) -> None:
    with pytest.raises(CalibrationError):
        build_curve(genuine, impostor, people=2)


def test_newton_agrees_with_a_general_minimiser() -> None:
    rng = np.random.default_rng(3)
    y = rng.random(200) < 0.3
    x = np.column_stack([np.ones(200), rng.standard_normal((200, 2)) + y[:, None]])
    weights = rng.uniform(0.1, 1.0, 200) / 100
    l2 = 0.01

    def loss(b: NDArray[np.float64]) -> float:
        data = weights @ np.log1p(np.exp(-np.where(y, 1, -1) * (x @ b)))
        return float(data + l2 / 2 * (b[1:] ** 2).sum())

    expected = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(newton(x, y, weights, l2), expected, atol=1e-5)


def test_newton_by_hand() -> None:
    # Only a constant: the log-odds of the weighted share of ones, 0.3 of 0.4.
    y = np.array([True, False])
    solution = newton(np.ones((2, 1)), y, np.array([0.3, 0.1]), 1.0)
    assert solution[0] == pytest.approx(math.log(3))


def _fusion_trials(
    seed: int, n: int = 1200, people: int = 30
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    identities = rng.integers(people, size=(n, 2))
    identities[: n // 3, 1] = identities[: n // 3, 0]
    labels = identities[:, 0] == identities[:, 1]
    return rng.normal(labels * 2.0), rng.normal(labels * 1.0), labels, identities


def test_fusion_finds_the_log_likelihood_ratio() -> None:
    # Unit normals shifted by m have log-likelihood ratio m x - m^2 / 2.
    face, voice, labels, identities = _fusion_trials(4, n=60_000)
    fusion = fit_fusion(face, voice, labels, identities).fusion
    assert fusion.face == pytest.approx(2.0, abs=0.06)
    assert fusion.voice == pytest.approx(1.0, abs=0.06)
    assert fusion.bias == pytest.approx(-2.5, abs=0.08)


def test_prior_shifts_the_bias_by_its_log_odds() -> None:
    face, voice, labels, identities = _fusion_trials(5, n=60_000)
    rare = fit_fusion(face, voice, labels, identities, FusionOptions(prior=0.01)).fusion
    assert rare.bias == pytest.approx(-2.5 + math.log(0.01 / 0.99), abs=0.25)


def test_held_out_scores_come_from_other_people_only() -> None:
    face, voice, labels, identities = _fusion_trials(6)
    fit = fit_fusion(face, voice, labels, identities)
    kept = np.isfinite(fit.held_out)
    assert kept[labels].all()
    assert 0.1 < kept[~labels].mean() < 0.35
    # Whatever happens to a person's trials, the held-out scores of that group stay put
    # except through the person's own scores.
    changed = face.copy()
    person = identities[0, 0]
    touched = (identities == person).any(axis=1)
    changed[touched] = -50.0
    again = fit_fusion(changed, voice, labels, identities)
    group = kept & ~touched & np.isclose(fit.held_out, again.held_out, rtol=0, atol=0)
    same_group = set(identities[group].ravel())
    assert len(same_group) == 30 // 5 - 1
    assert again.fusion != fit.fusion


def test_separable_trials_give_finite_parameters() -> None:
    labels = np.array([1, 0] * 20)
    identities = np.stack([np.arange(40) // 2, np.arange(40) // 2], axis=1)
    fit = fit_fusion(labels.astype(float), labels * 2.0, labels, identities)
    assert np.isfinite([fit.fusion.bias, fit.fusion.face, fit.fusion.voice]).all()
    assert fit.held_out[labels == 1].min() > fit.held_out[labels == 0].max()


def test_a_misleading_modality_gets_no_weight() -> None:
    face, voice, labels, identities = _fusion_trials(7)
    assert fit_fusion(face, -voice, labels, identities).fusion.voice == 0.0
    assert fit_fusion(np.zeros_like(face), voice, labels, identities).fusion.face == 0.0
    with pytest.raises(CalibrationError, match="neither score"):
        fit_fusion(-face, -voice, labels, identities)


def test_fit_refuses() -> None:
    face, voice, labels, identities = _fusion_trials(8, n=60)
    with pytest.raises(CalibrationError, match="one length"):
        fit_fusion(face[1:], voice, labels, identities)
    with pytest.raises(CalibrationError, match="identities"):
        fit_fusion(face, voice, labels, identities[1:])
    with pytest.raises(CalibrationError, match="not finite"):
        fit_fusion(face * np.nan, voice, labels, identities)
    with pytest.raises(CalibrationError, match="labels must be"):
        fit_fusion(face, voice, labels * 2.0, identities)
    with pytest.raises(CalibrationError, match="both kinds"):
        fit_fusion(face, voice, np.ones(60), identities)
    with pytest.raises(CalibrationError, match="groups"):
        fit_fusion(face, voice, labels, np.zeros((60, 2)))
    with pytest.raises(CalibrationError):
        FusionOptions(prior=1.0)


SMALL = CalibrationOptions(impostors=2000, probes=3)


def test_calibrate() -> None:
    faces, voices = _people(30, 6, 0.8, 1), _people(14, 8, 1.5, 2)
    result = calibrate(faces, voices, seed=3, options=SMALL)
    assert result.face is not None
    assert result.voice is not None
    assert result.fused is not None
    # Every probe against everybody: 3 + 3 probes a person in the two enrolments.
    assert (result.face.genuine, result.face.impostors) == (30 * 6, 30 * 29 * 6)
    assert (result.voice.genuine, result.voice.impostors) == (14 * 6, 14 * 13 * 6)
    assert result.fused.impostors >= 2000
    assert (result.face.people, result.voice.people, result.fused.people) == (30, 14, 14)
    assert result.fused.fnmr_at(0.01) <= result.face.fnmr_at(0.01)
    assert Calibration.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_calibrate_is_reproducible() -> None:
    faces, voices = _people(12, 5, 0.8, 1), _people(12, 5, 1.5, 2)
    turned = dict(reversed(faces.items()))
    assert calibrate(faces, voices, 1, SMALL) == calibrate(turned, voices, 1, SMALL)
    assert calibrate(faces, voices, 1, SMALL) != calibrate(faces, voices, 2, SMALL)


def test_stored_threshold_holds_for_other_people() -> None:
    options = CalibrationOptions(enrolments=((3, 3),), impostors=20_000, probes=3)
    result = calibrate(_people(60, 6, 0.9, 1), _people(60, 6, 1.2, 2), options=options)
    faces, voices = _people(40, 4, 0.9, 11), _people(40, 4, 1.2, 12)
    pairs = list(zip(faces.values(), voices.values(), strict=True))
    fused = np.array(
        [
            [
                result.fuse(
                    result.similarity("face", f[:3], g[3]), result.similarity("voice", v[:3], w[3])
                )
                for g, w in pairs
            ]
            for f, v in pairs
        ]
    )
    impostor = fused[~np.eye(40, dtype=bool)]
    assert _observed(impostor, result.threshold("fused", 0.05)) == pytest.approx(0.05, abs=0.03)


def test_one_modality_alone() -> None:
    faces = _people(12, 5, 0.8, 1)
    result = calibrate(faces, {}, options=SMALL)
    assert result.face is not None
    assert (result.voice, result.fused, result.fusion) == (None, None, None)
    assert calibrate({}, {}) == Calibration()


def test_people_with_few_samples_join_small_enrolments_only() -> None:
    faces = _people(12, 5, 0.8, 1) | {
        f"q{i}": rows[:2] for i, rows in enumerate(_people(6, 2, 0.8, 9).values())
    }
    result = calibrate(faces, {}, options=SMALL)
    assert result.face is not None
    assert result.face.people == 18
    # 3-image enrolment: 12 people with 2 probes; 1-image: 12 with 3, 6 with 1.
    assert result.face.genuine == 12 * 2 + 12 * 3 + 6
    assert result.face.impostors == 12 * 2 * 11 + (12 * 3 + 6) * 17


def test_calibrate_refuses() -> None:
    with pytest.raises(CalibrationError, match="9 people have 4 or more"):
        calibrate(_people(9, 5, 0.8, 1), {}, options=SMALL)
    with pytest.raises(CalibrationError, match="same d"):
        calibrate({**_people(12, 5, 0.8, 1), "x": np.zeros((4, 3))}, {}, options=SMALL)
    with pytest.raises(CalibrationError, match="same d"):
        calibrate({f"p{i}": np.zeros(4) for i in range(12)}, {}, options=SMALL)
    with pytest.raises(CalibrationError):
        CalibrationOptions(enrolments=())
    with pytest.raises(CalibrationError):
        CalibrationOptions(enrolments=((0, 3),))
