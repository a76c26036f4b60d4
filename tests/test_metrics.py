from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import betainc
from scipy.stats import beta

from edgeid.intervals import beta_quantile, bootstrap, incomplete_beta
from edgeid.metrics import (
    Rate,
    Trials,
    best_accuracy,
    best_threshold,
    clopper_pearson,
    cross_accuracy,
    eer_and_min_dcf,
    equal_error_rate,
    error_rates,
    fnmr_at_fmr,
    hter,
    min_dcf,
    roc,
    split_accuracy,
)
from edgeid.runtime.errors import DataError

Array = NDArray[np.float64]

labelled = st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def _arrays(rows: list[tuple[int, bool]]) -> tuple[Array, NDArray[np.bool_]]:
    return np.array([float(s) for s, _ in rows]), np.array([g for _, g in rows])


def _trials(people: int = 12, probes: int = 4, shift: float = 2.0, seed: int = 0) -> Trials:
    rng = np.random.default_rng(seed)
    names = np.array([f"p{i:02d}" for i in range(people)])
    owners = np.repeat(np.arange(people), probes)
    genuine = owners[None, :] == np.arange(people)[:, None]
    claimed, probe = np.broadcast_arrays(names[:, None], names[owners][None, :])
    scores = rng.standard_normal(genuine.shape) + shift * genuine
    return Trials(scores.ravel(), genuine.ravel(), claimed.ravel(), probe.ravel())


def test_roc_by_hand() -> None:
    curve = roc([0.9, 0.7, 0.7, 0.1], [True, True, False, False])
    assert curve.thresholds.tolist() == [np.inf, 0.9, 0.7, 0.1]
    assert curve.fmr.tolist() == [0, 0, 0.5, 1]
    assert curve.fnmr.tolist() == [1, 0.5, 0, 0]


@given(labelled)
def test_roc_counts_by_brute_force(rows: list[tuple[int, bool]]) -> None:
    scores, genuine = _arrays(rows)
    curve = roc(scores, genuine)
    for threshold, fmr, fnmr in zip(curve.thresholds, curve.fmr, curve.fnmr, strict=True):
        assert fmr == pytest.approx(np.mean(scores[~genuine] >= threshold))
        assert fnmr == pytest.approx(np.mean(scores[genuine] < threshold))


@pytest.mark.parametrize(
    ("genuine", "impostor", "eer"),
    [
        ([2, 3], [0, 1], 0.0),
        ([0, 1], [2, 3], 1.0),
        ([1], [1], 0.5),
        ([1, 1, 1], [1], 0.5),
        ([1, 3], [0, 2], 0.5),
        ([1, 4, 5, 6], [0, 1, 2, 3], 0.25),
        ([1, 4, 5, 6], [-2, -1, 0, 3], 0.25),
        # Vertices (0, 1/2) and (1/4, 1/2) and (1/4, 0): FMR = FNMR on the vertical edge.
        ([1, 9], [-2, -1, 0, 5], 0.25),
        # One tie: the line from (0, 1/2) to (1/2, 0).
        ([1, 2], [0, 1], 0.25),
    ],
)
def test_eer_by_hand(genuine: list[float], impostor: list[float], eer: float) -> None:
    labels = [True] * len(genuine) + [False] * len(impostor)
    assert equal_error_rate([*genuine, *impostor], labels) == pytest.approx(eer)


@given(labelled)
def test_eer_only_depends_on_the_order(rows: list[tuple[int, bool]]) -> None:
    scores, genuine = _arrays(rows)
    eer = equal_error_rate(scores, genuine)
    assert 0 <= eer <= 1
    for transformed in (3 * scores - 7, np.exp(scores / 10), np.cbrt(scores)):
        assert equal_error_rate(transformed, genuine) == eer
    assert equal_error_rate(-scores, ~genuine) == pytest.approx(eer)
    assert equal_error_rate(-scores, genuine) == pytest.approx(1 - eer)


@given(labelled, st.randoms(use_true_random=False))
def test_eer_does_not_depend_on_the_order_of_trials(
    rows: list[tuple[int, bool]], random: np.random.Generator
) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert equal_error_rate(*_arrays(shuffled)) == equal_error_rate(*_arrays(rows))


@given(labelled)
def test_eer_lies_between_the_rates_around_the_crossing(rows: list[tuple[int, bool]]) -> None:
    scores, genuine = _arrays(rows)
    curve = roc(scores, genuine)
    eer = equal_error_rate(scores, genuine)
    assert eer <= np.maximum(curve.fmr, curve.fnmr).min() + 1e-12
    assert eer >= np.minimum(curve.fmr, curve.fnmr).max() - 1e-12


@given(labelled, st.sampled_from([0.01, 0.05, 0.5]))
def test_min_dcf_by_brute_force(rows: list[tuple[int, bool]], p: float) -> None:
    scores, genuine = _arrays(rows)
    costs = [
        p * np.mean(scores[genuine] < t) + (1 - p) * np.mean(scores[~genuine] >= t)
        for t in [*scores, np.inf]
    ]
    assert min_dcf(scores, genuine, p) == pytest.approx(min(costs) / min(p, 1 - p))
    assert 0 <= min_dcf(scores, genuine, p) <= 1 + 1e-12


@given(labelled, st.floats(0.05, 0.95))
def test_fnmr_at_fmr_by_brute_force(rows: list[tuple[int, bool]], fmr: float) -> None:
    scores, genuine = _arrays(rows)
    point = fnmr_at_fmr(scores, genuine, fmr)
    impostors = int((~genuine).sum())
    assert point.impostors == impostors
    if fmr * impostors < 3 * (1 - 1e-12):
        assert point.fnmr is None
        assert point.threshold is None
        return
    if point.fnmr is None or point.threshold is None:
        assert fmr * impostors < 3 * (1 + 1e-12)
        return
    assert np.mean(scores[~genuine] >= point.threshold) <= fmr
    assert point.fnmr.errors == int((scores[genuine] < point.threshold).sum())
    allowed = [t for t in scores if np.mean(scores[~genuine] >= t) <= fmr]
    best = min((int((scores[genuine] < t).sum()) for t in allowed), default=int(genuine.sum()))
    assert point.fnmr.errors == best


def test_fnmr_at_fmr_that_is_not_supported() -> None:
    scores = np.append(np.ones(10), np.zeros(1000))
    labels = np.append(np.ones(10, bool), np.zeros(1000, bool))
    assert fnmr_at_fmr(scores, labels, 0.003).fnmr == Rate(0, 0, clopper_pearson(0, 10)[1], 0, 10)
    point = fnmr_at_fmr(scores, labels, 0.0029)
    assert point.to_dict()["supported"] is False
    for fmr in (0.0, 1.0, np.nan):
        with pytest.raises(DataError):
            fnmr_at_fmr(scores, labels, fmr)


def test_error_rates_by_hand() -> None:
    fmr, fnmr = error_rates([0.1, 0.5, 0.5, 0.9], [False, False, True, True], 0.5)
    assert (fmr.errors, fmr.trials, fnmr.errors, fnmr.trials) == (1, 2, 0, 2)
    # A score equal to the threshold is accepted.
    assert fmr.value == 0.5


@given(labelled)
def test_best_accuracy_by_brute_force(rows: list[tuple[int, bool]]) -> None:
    scores, genuine = _arrays(rows)
    threshold = best_threshold(scores, genuine)
    best = max(np.mean((scores >= t) == genuine) for t in [*scores, np.inf])
    assert np.mean((scores >= threshold) == genuine) == pytest.approx(best)
    rate = best_accuracy(scores, genuine)
    assert rate.value == pytest.approx(best)
    assert rate.low <= rate.value <= rate.high


def test_cross_accuracy_takes_the_threshold_of_the_other_folds() -> None:
    # Fold 1 separates at 0.5, fold 2 at 5: each other's threshold gets half right.
    scores = np.array([0.0, 1.0, 0.0, 1.0, 4.0, 6.0, 4.0, 6.0])
    genuine = np.array([False, True] * 4)
    names = np.array([f"p{i}" for i in range(8)])
    trials = Trials(scores, genuine, names, names)
    rates = cross_accuracy(trials, np.array([1, 1, 1, 1, 2, 2, 2, 2]))
    assert {fold: rate.value for fold, rate in rates.items()} == {1: 0.5, 2: 0.5}
    assert rates[1].trials == 4
    with pytest.raises(DataError, match="another fold"):
        cross_accuracy(trials, np.ones(8, int))


def test_split_accuracy() -> None:
    perfect = split_accuracy(_trials(shift=100))
    assert (perfect.value, perfect.errors) == (1.0, 0)
    rate = split_accuracy(_trials(shift=2))
    assert 0.8 < rate.low < rate.value < rate.high < 1
    assert rate.trials <= 12 * 12 * 4


def test_split_accuracy_of_scores_that_say_nothing_is_one_half() -> None:
    # As in LFW: as many genuine as impostor pairs, of which halving keeps only a half.
    rng = np.random.default_rng(0)
    people = np.array([f"p{i:03d}" for i in range(300)])
    claimed = np.concatenate([people, people])
    probe = np.concatenate([people, np.roll(people, 7)])
    genuine = np.arange(600) < 300
    rate = split_accuracy(Trials(rng.standard_normal(600), genuine, claimed, probe))
    assert rate.value == pytest.approx(0.5, abs=0.04)
    assert rate.low <= rate.value <= rate.high


def test_hter() -> None:
    assert hter(_trials(shift=100)).value == 0.0
    rate = hter(_trials(people=60, probes=10, shift=2.0))
    # Unit normals two apart: 15.87 % of each lie beyond the middle.
    assert rate.value == pytest.approx(0.1587, abs=0.02)
    assert rate.low < rate.value < rate.high
    # Two halves of 30 people: 30 * 30 * 10 trials in each.
    assert rate.trials == 2 * 30 * 30 * 10
    assert rate == hter(_trials(people=60, probes=10, shift=2.0))


def test_hter_threshold_is_not_from_the_test_half() -> None:
    # Two groups of people whose scores separate at different places.
    trials = _trials(people=2, probes=8, shift=100)
    with pytest.raises(DataError, match="both"):
        hter(trials)  # a half of one person has no impostor trial


@given(st.integers(1, 4000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_agrees_with_scipy(counts: tuple[int, int]) -> None:
    errors, trials = counts
    low, high = clopper_pearson(errors, trials)
    assert low <= errors / trials <= high
    expected_low = 0.0 if errors == 0 else beta.ppf(0.025, errors, trials - errors + 1)
    expected_high = 1.0 if errors == trials else beta.ppf(0.975, errors + 1, trials - errors)
    assert low == pytest.approx(expected_low, rel=1e-8, abs=1e-15)
    assert high == pytest.approx(expected_high, rel=1e-8)


def test_clopper_pearson_by_hand() -> None:
    # 0 of n: 1 - (alpha/2)^(1/n); the known figures of 0 in 150 and 0 in 20.
    assert clopper_pearson(0, 150)[1] == pytest.approx(1 - 0.025 ** (1 / 150))
    assert clopper_pearson(0, 20)[1] == pytest.approx(0.168, abs=5e-4)
    assert clopper_pearson(0, 10_000_000)[1] == pytest.approx(3.689e-7, rel=1e-3)
    for errors, trials in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(DataError):
            clopper_pearson(errors, trials)


@given(st.floats(0.5, 3000), st.floats(0.5, 3000), st.floats(0, 1))
def test_incomplete_beta_agrees_with_scipy(a: float, b: float, x: float) -> None:
    assert incomplete_beta(a, b, x) == pytest.approx(betainc(a, b, x), rel=1e-8, abs=1e-12)


def test_beta_quantile_inverts() -> None:
    assert incomplete_beta(3, 9, beta_quantile(0.3, 3, 9)) == pytest.approx(0.3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.floats(-1, 6))
def test_intervals_contain_the_point(seed: int, shift: float) -> None:
    for rate in eer_and_min_dcf(_trials(people=6, shift=shift, seed=seed), draws=50):
        assert 0 <= rate.low <= rate.value <= rate.high <= 1 + 1e-12
        assert 0 <= rate.errors <= rate.trials


def test_eer_without_errors_keeps_a_width() -> None:
    eer, dcf = eer_and_min_dcf(_trials(shift=100), draws=20)
    assert (eer.value, eer.low) == (0.0, 0.0)
    assert eer.high == clopper_pearson(0, 12 * 4)[1]
    assert (dcf.value, eer.errors, dcf.errors) == (0.0, 0, 0)


def test_bootstrap_weights_by_brute_force() -> None:
    # Three people, all pairs; the sum of weights of a draw is known from the counts.
    claimed = np.array(["a", "a", "b", "c"])
    probe = np.array(["a", "b", "c", "c"])
    drawn = bootstrap(claimed, probe, lambda w: w, draws=200, seed=1)
    rng = np.random.default_rng(1)
    for row in drawn:
        a, b, c = np.bincount(rng.integers(3, size=3), minlength=3)
        assert row.tolist() == [a, a * b, b * c, c]


def test_bootstrap_covers_the_true_eer() -> None:
    covered = 0
    for seed in range(20):
        eer, _ = eer_and_min_dcf(_trials(people=20, probes=3, seed=seed), draws=200)
        covered += eer.low <= 0.1587 <= eer.high
    assert covered >= 16


def test_bootstrap_leaves_out_undefined_draws() -> None:
    values = bootstrap(["a", "b"], ["a", "b"], lambda w: np.nan if w[0] == 0 else w[0], 50)
    assert 0 < len(values) < 50


@pytest.mark.parametrize(
    ("scores", "genuine"),
    [
        ([], []),
        ([1.0], [True]),
        ([1.0, 2.0], [True, True]),
        ([1.0, np.nan], [True, False]),
        ([1.0, np.inf], [True, False]),
        ([1.0, 2.0, 3.0], [True, False]),
        ([[1.0, 2.0]], [[True, False]]),
    ],
)
def test_figures_refuse(scores: list[float], genuine: list[bool]) -> None:
    with pytest.raises(DataError):
        equal_error_rate(scores, genuine)


def test_trials_refuse_vectors_of_different_length() -> None:
    names = np.array(["a", "b"])
    with pytest.raises(DataError):
        Trials(np.zeros(2), np.array([True, False]), names, names[:1])
