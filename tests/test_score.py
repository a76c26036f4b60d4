from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeid.runtime.errors import CalibrationError, InputError, ModelFormatError
from edgeid.runtime.score import (
    Calibration,
    FmrCurve,
    Fusion,
    similarity,
    similarity_matrix,
)

CURVE = FmrCurve(
    fmrs=(1.0, 0.1, 0.01, 0.003),
    thresholds=(-0.2, 0.2, 0.6, 0.8),
    fnmrs=(0.0, 0.1, 0.2, 0.5),
    impostors=1000,
    genuine=50,
    people=20,
)
FUSION = Fusion(bias=-4.0, face=10.0, voice=5.0)
CALIBRATION = Calibration(CURVE, None, CURVE, FUSION)


def test_similarity_by_hand() -> None:
    # Templates at right angles: the centroid lies between, at 45 degrees to either.
    templates = [[1.0, 0.0], [0.0, 2.0]]
    assert similarity(templates, [3.0, 0.0]) == pytest.approx(math.sqrt(0.5))
    assert similarity(templates, [1.0, 1.0]) == pytest.approx(1.0)
    assert similarity([[0.0, 1.0]], [0.0, -1.0]) == -1.0


def test_one_template_is_the_cosine() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 16))
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert similarity(a[None], b) == pytest.approx(expected)


def test_a_zero_embedding_is_similar_to_nothing() -> None:
    assert similarity([[1.0, 0.0]], [0.0, 0.0]) == 0.0
    # Opposite templates have no centroid.
    assert similarity([[1.0, 0.0], [-1.0, 0.0]], [1.0, 0.0]) == 0.0


def test_matrix_equals_single_similarities() -> None:
    rng = np.random.default_rng(1)
    galleries = [rng.standard_normal((n, 8)).astype(np.float32) for n in (1, 3, 2)]
    probes = rng.standard_normal((5, 8)).astype(np.float32)
    matrix = similarity_matrix(galleries, probes)
    assert matrix.shape == (3, 5)
    for i, templates in enumerate(galleries):
        unit = templates / np.linalg.norm(templates, axis=1, keepdims=True)
        centre = unit.mean(axis=0)
        for j, probe in enumerate(probes / np.linalg.norm(probes, axis=1, keepdims=True)):
            expected = centre @ probe / np.linalg.norm(centre)
            assert matrix[i, j] == pytest.approx(expected, abs=1e-6)
            assert matrix[i, j] == pytest.approx(similarity(templates, probe), abs=1e-6)


@given(seed=st.integers(0, 10_000), n=st.integers(1, 5), d=st.integers(1, 9))
def test_similarity_is_bounded_and_ignores_lengths(seed: int, n: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    templates, probe = rng.standard_normal((n, d)), rng.standard_normal(d)
    value = similarity(templates, probe)
    assert -1 <= value <= 1
    scales = rng.uniform(0.1, 10, (n, 1))
    assert similarity(templates * scales, probe * 7) == pytest.approx(value)


@pytest.mark.parametrize(
    ("templates", "probe"),
    [
        (np.zeros((0, 4)), np.ones(4)),
        (np.ones((2, 4)), np.ones(5)),
        (np.ones(4), np.ones(4)),
        (np.ones((2, 4)), np.ones((1, 4))),
        (np.ones((2, 0)), np.ones(0)),
        (np.full((2, 4), np.nan), np.ones(4)),
        (np.ones((2, 4)), np.full(4, np.inf)),
    ],
)
def test_similarity_refuses(templates: Any, probe: Any) -> None:
    with pytest.raises(InputError):
        similarity(templates, probe)


def test_threshold_at_and_between_points() -> None:
    assert CURVE.threshold(0.1) == 0.2
    assert CURVE.threshold(0.01) == 0.6
    assert CURVE.threshold(0.003) == 0.8
    # Half-way in log FMR is half-way in the threshold.
    assert CURVE.threshold(math.sqrt(0.1 * 0.01)) == pytest.approx(0.4)
    assert CURVE.threshold(0.5) == pytest.approx(-0.2 + 0.4 * math.log10(2))


def test_threshold_just_below_a_point_lies_above_its_score() -> None:
    assert CURVE.threshold(math.nextafter(0.1, 0)) > 0.2


@pytest.mark.parametrize("fmr", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_fmr_outside_zero_and_one(fmr: float) -> None:
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        CURVE.threshold(fmr)


def test_rule_of_three() -> None:
    with pytest.raises(CalibrationError, match=r"1,000 impostor .* smallest that can is 0\.003"):
        CURVE.threshold(0.0029)


def test_a_round_fmr_is_stated_from_exactly_three_over_n() -> None:
    curve = FmrCurve((1.0, 1e-4), (0.0, 0.5), (0.0, 0.1), 30_000, 10, 40)
    assert curve.threshold(1e-4) == 0.5


@given(st.floats(0.003, 0.999), st.floats(0.003, 0.999))
def test_thresholds_rise_as_the_fmr_falls(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert CURVE.threshold(low) >= CURVE.threshold(high)


@given(st.floats(0.003, 0.999))
def test_fmr_of_inverts_threshold(fmr: float) -> None:
    assert CURVE.fmr_of(CURVE.threshold(fmr)) == pytest.approx(fmr)


def test_fmr_of_is_bounded() -> None:
    assert CURVE.fmr_of(-5.0) == 1.0
    assert CURVE.fmr_of(-math.inf) == 1.0
    assert CURVE.fmr_of(0.8) == CURVE.fmr_of(100.0) == CURVE.fmr_of(math.inf) == 0.003
    with pytest.raises(InputError):
        CURVE.fmr_of(math.nan)


def test_fnmr_at_takes_the_next_measured_threshold() -> None:
    assert CURVE.fnmr_at(0.01) == 0.2
    assert CURVE.fnmr_at(0.02) == 0.2
    assert CURVE.fnmr_at(0.0099) == 0.5


def test_fuse_is_the_log_odds() -> None:
    assert CALIBRATION.fuse(0.5, 0.2) == pytest.approx(-4 + 5 + 1)
    assert FUSION.log_odds([0.0, 1.0], [1.0, 0.0]).tolist() == [1.0, 6.0]
    with pytest.raises(InputError):
        CALIBRATION.fuse(math.nan, 0.1)


def test_parts_that_were_not_measured() -> None:
    with pytest.raises(CalibrationError, match="not calibrated for voice"):
        CALIBRATION.threshold("voice", 0.01)
    with pytest.raises(CalibrationError, match="no such kind"):
        CALIBRATION.fmr_of("iris", 0.0)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="fused"):
        Calibration(face=CURVE).fuse(0.1, 0.2)


def test_round_trip_through_json() -> None:
    assert Calibration.from_dict(json.loads(json.dumps(CALIBRATION.to_dict()))) == CALIBRATION
    assert Calibration.from_dict({}) == Calibration()


def test_round_trip_is_exact_for_odd_floats() -> None:
    curve = FmrCurve((1.0, 3 / 7), (-1 / 3, math.pi), (0.1 + 0.2, 2 / 3), 7, 3, 2)
    assert FmrCurve.from_dict(json.loads(json.dumps(curve.to_dict()))) == curve


def _curve(**changes: object) -> dict[str, object]:
    return {**CURVE.to_dict(), **changes}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "face",
        {"iris": CURVE.to_dict()},
        {"face": None},
        {"face": []},
        {"face": {}},
        {"face": _curve(extra=1)},
        {"face": _curve(fmrs=[1.0, 0.1, 0.1, 0.003])},
        {"face": _curve(fmrs=[1.0, 0.01, 0.1, 0.003])},
        {"face": _curve(fmrs=[0.9, 0.1, 0.01, 0.003])},
        {"face": _curve(fmrs=[1.0, 0.1, 0.01, 0.001])},
        {"face": _curve(fmrs=[1.0, 0.1, 0.003])},
        {"face": _curve(fmrs=[1.0], thresholds=[0.0], fnmrs=[0.0])},
        {"face": _curve(fmrs=[], thresholds=[], fnmrs=[])},
        {"face": _curve(fmrs=[1.0, True, 0.01, 0.003])},
        {"face": _curve(fmrs=[1.0, "0.1", 0.01, 0.003])},
        {"face": _curve(thresholds=[-0.2, 0.2, 0.2, 0.8])},
        {"face": _curve(thresholds=[-0.2, 0.2, math.nan, 0.8])},
        {"face": _curve(thresholds=[-0.2, 0.2, 0.6, math.inf])},
        {"face": _curve(thresholds=[-0.2, 0.2, 0.6, 10**400])},
        {"face": _curve(thresholds="-0.2")},
        {"face": _curve(fnmrs=[0.0, 0.2, 0.1, 0.5])},
        {"face": _curve(fnmrs=[0.0, 0.1, 0.2, 1.5])},
        {"face": _curve(fnmrs=[-0.1, 0.1, 0.2, 0.5])},
        {"face": _curve(thresholds=list(range(5000)))},
        {"face": _curve(impostors=0)},
        {"face": _curve(impostors=-1000)},
        {"face": _curve(impostors=1000.0)},
        {"face": _curve(impostors=True)},
        {"face": _curve(genuine=0)},
        {"face": _curve(people=1)},
        {"face": _curve(people=2**60)},
        {"fused": CURVE.to_dict()},
        {"fusion": FUSION.to_dict()},
        {"fused": CURVE.to_dict(), "fusion": {"bias": 0.0, "face": -1.0, "voice": 1.0}},
        {"fused": CURVE.to_dict(), "fusion": {"bias": 0.0, "face": 0.0, "voice": 0.0}},
        {"fused": CURVE.to_dict(), "fusion": {"bias": math.nan, "face": 1.0, "voice": 1.0}},
        {"fused": CURVE.to_dict(), "fusion": {"bias": 0.0, "face": 1.0}},
    ],
)
def test_from_dict_refuses(data: object) -> None:
    with pytest.raises(ModelFormatError):
        Calibration.from_dict(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["face", "fusion", "fused", "fmrs", "thresholds", "bias"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_from_dict_never_fails_otherwise(data: object) -> None:
    with contextlib.suppress(ModelFormatError):
        Calibration.from_dict(data)
