"""Neuron selection: planted units, brute force over all subsets, statistics by hand."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import f_oneway, pearsonr

from edgeid.converters.distillation.neuron_selection import (
    SelectionOptions,
    SelectionProblem,
    correlations,
    fisher_ratios,
    select_units,
    solve_greedily,
    solve_mean_field,
)
from edgeid.runtime.errors import DataError

SOLVERS = {"greedy": solve_greedily, "mean_field": solve_mean_field}


def planted(seed=0, people=60, samples=6):
    """Units 0-4 carry identity, 5-9 are noise, 10-14 copy 0-4, 15 is constant."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people), samples)
    good = rng.standard_normal((people, 5))[labels] + 0.4 * rng.standard_normal((len(labels), 5))
    noise = rng.standard_normal((len(labels), 5))
    copies = -3 * good + 0.01 * rng.standard_normal(good.shape) + 7
    constant = np.full((len(labels), 1), 2.5)
    return np.concatenate([good, noise, copies, constant], axis=1), labels


def random_problem(seed, size=10):
    rng = np.random.default_rng(seed)
    gains = rng.uniform(-0.1, 1, size)
    features = rng.standard_normal((40, 4)) @ rng.standard_normal((4, size))
    penalties = np.maximum(np.abs(np.corrcoef(features.T)) - 0.3, 0) / 0.7
    np.fill_diagonal(penalties, 0)
    return SelectionProblem(gains, penalties)


def objective(problem, chosen):
    """The formula of the docstring, term by term."""
    pairs = itertools.combinations(chosen, 2)
    return sum(problem.gains[i] for i in chosen) - sum(problem.penalties[p] for p in pairs)


def brute_force(problem, count=None):
    size = len(problem.gains)
    counts = range(size + 1) if count is None else [count]
    subsets = (s for n in counts for s in itertools.combinations(range(size), n))
    return max(objective(problem, subset) for subset in subsets)


@pytest.mark.parametrize("solver", SOLVERS)
def test_informative_units_are_kept_once_and_noise_is_not(solver):
    features, labels = planted()
    selection = select_units(features, labels, SelectionOptions(solver=solver))
    assert sorted(int(i) % 10 for i in selection.indices) == [0, 1, 2, 3, 4]
    assert (selection.scores > 3).all()
    assert selection.fisher[5:10].max() < 0.2
    assert selection.fisher[15] == 0


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(12))
def test_solvers_against_all_1024_subsets(solver, seed):
    problem = random_problem(seed)
    kept = SOLVERS[solver](problem)
    assert problem.value(kept) == pytest.approx(objective(problem, np.flatnonzero(kept)))
    assert problem.value(kept) >= 0.99 * brute_force(problem)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("seed", "count"), [(0, 3), (1, 5), (2, 8), (3, 1), (4, 10)])
def test_a_fixed_number_of_units(solver, seed, count):
    problem = random_problem(seed)
    kept = SOLVERS[solver](problem, count)
    assert kept.sum() == count
    best = brute_force(problem, count)
    assert problem.value(kept) >= best - 0.01 * abs(best)


def test_a_problem_that_misleads_the_first_greedy_step():
    # Unit 0 is best alone, but stands against 1 and 2, which are better together.
    penalties = np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0]], float)
    problem = SelectionProblem(np.array([1.0, 0.9, 0.9]), penalties)
    for solve in SOLVERS.values():
        assert solve(problem).tolist() == [False, True, True]
        assert problem.value(solve(problem)) == pytest.approx(1.8)


def test_fisher_ratio_by_hand():
    # Two people, two samples: means -2 and 2, within 1 + 1 + 1 + 1 over 4 - 2 = 2.
    # Between: 2 * 4 + 2 * 4 over 1 = 16; (16 - 2) / 2 samples = 7; 7 / 2.
    features = np.array([[-3.0], [-1.0], [1.0], [3.0]])
    assert fisher_ratios(features, np.array([0, 0, 1, 1])) == pytest.approx([3.5])


def test_fisher_ratio_agrees_with_an_f_test():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 5)
    features = rng.standard_normal((8, 3))[labels] + rng.standard_normal((40, 3))
    groups = [features[labels == person] for person in range(8)]
    expected = np.maximum(f_oneway(*groups).statistic - 1, 0) / 5
    np.testing.assert_allclose(fisher_ratios(features, labels), expected)


def test_chance_is_taken_off_with_uneven_people():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(200), rng.integers(1, 9, 200))
    people = np.sqrt(0.5) * rng.standard_normal((200, 400))
    noise = rng.standard_normal((len(labels), 400))
    assert fisher_ratios(noise, labels).mean() < 0.03
    assert fisher_ratios(people[labels] + noise, labels).mean() == pytest.approx(0.5, abs=0.03)


def test_correlations():
    features, _ = planted()
    found = correlations(features)
    assert found[0, 7] == pytest.approx(pearsonr(features[:, 0], features[:, 7]).statistic)
    assert found[2, 12] < -0.999
    assert not found[15].any()


def test_a_constant_unit_far_from_zero_is_not_correlated():
    constant = np.full(50, 0.1 + 1e6)
    ramp = np.arange(50.0)
    assert correlations(np.stack([constant, ramp], axis=1))[0, 1] == 0


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_scale_and_offset_of_units_do_not_matter(seed, scale, shift):
    features, labels = planted(seed, people=10, samples=3)
    a, b = (fisher_ratios(f, labels) for f in (features, scale * features + shift))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_selection_is_json_and_repeats_itself():
    features, labels = planted()
    first, second = (select_units(features, labels) for _ in range(2))
    assert json.loads(json.dumps(first.to_dict())) == second.to_dict()
    assert first.to_dict()["kept"] == first.indices.tolist()


def test_perfect_units_have_finite_scores():
    labels = np.repeat(np.arange(4), 3)
    features = np.stack([labels, labels % 2], axis=1).astype(float)
    selection = select_units(features, labels)
    assert np.isfinite(selection.scores).all()
    assert selection.indices.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0), "needs"),
        (np.ones((4, 3)), np.zeros(3), "needs"),
        (np.ones(4), np.zeros(4), "needs"),
        (np.full((4, 3), np.nan), [0, 0, 1, 1], "NaN"),
        (np.eye(4), [0, 0, 0, 0], "4 samples of 1 identities"),
        (np.eye(4), [0, 1, 2, 3], "4 samples of 4 identities"),
        (np.ones((4, 3)), [0, 0, 1, 1], "no unit carries identity"),
    ],
)
def test_what_cannot_be_selected_from_is_refused(features, labels, message):
    with pytest.raises(DataError, match=message):
        select_units(features, labels)


@pytest.mark.parametrize(
    "options",
    [
        {"cost": -0.1}, {"cost": 2.0}, {"cost": float("nan")}, {"penalty": -1.0},
        {"tolerance": 1.0}, {"count": 0}, {"solver": "magic"},
    ],
)  # fmt: skip
def test_options_are_checked(options):
    with pytest.raises(DataError):
        SelectionOptions(**options)


def test_more_units_than_there_are():
    features, labels = planted()
    with pytest.raises(DataError, match="17 units asked for, the layer has 16"):
        select_units(features, labels, SelectionOptions(count=17))
