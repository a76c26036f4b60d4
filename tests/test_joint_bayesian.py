"""Joint Bayesian: against general Gaussian densities, planted covariances, hand-worked pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import block_diag
from scipy.stats import multivariate_normal

from edgeid.converters.scores.joint_bayesian import JointBayesian, fit_joint_bayesian
from edgeid.runtime.errors import DataError


def covariance(size, rng):
    root = rng.standard_normal((size, size))
    return root @ root.T / size + 0.1 * np.eye(size)


def people(between, within, counts, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    k = len(between)
    means = rng.multivariate_normal(np.zeros(k), between, len(counts))
    return means[labels] + rng.multivariate_normal(np.zeros(k), within, len(labels)), labels


def stacked(between, within, count):
    """Covariance of ``count`` samples of one person, one after the other."""
    return np.kron(np.ones((count, count)), between) + np.kron(np.eye(count), within)


def test_ratio_of_one_dimension_by_hand():
    # psi = 1, S_epsilon = 1: together [[2, 1], [1, 2]] / determinant 3, apart 2 each.
    model = JointBayesian(np.zeros(1), np.eye(1), np.eye(1))
    a, g, constant = model.ratio_matrices()
    assert a == pytest.approx(np.array([[1 / 2 - 2 / 3]]))
    assert g == pytest.approx(np.array([[-1 / 3]]))
    assert constant == pytest.approx(math.log(2) - math.log(3) / 2)
    # x = y = 1: constant + (-1/6 - 1/6 + 2/3) / 2
    ratio = model.log_likelihood_ratio(np.ones((1, 1)), np.ones((1, 1)))
    assert ratio[0] == pytest.approx(math.log(2) - math.log(3) / 2 + 1 / 6)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_ratio_is_the_difference_of_log_densities(size):
    rng = np.random.default_rng(size)
    mean, between, within = rng.standard_normal(size), covariance(size, rng), covariance(size, rng)
    model = JointBayesian(mean, between, within)
    x, y = rng.standard_normal((2, 20, size)) * 2
    pairs = np.concatenate([x, y], axis=1)
    total = between + within
    together = multivariate_normal(np.tile(mean, 2), stacked(between, within, 2))
    apart = multivariate_normal(np.tile(mean, 2), block_diag(total, total))
    expected = together.logpdf(pairs) - apart.logpdf(pairs)
    np.testing.assert_allclose(model.log_likelihood_ratio(x, y), expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 6))
def test_ratio_is_symmetric_and_the_basis_diagonal(seed, size):
    rng = np.random.default_rng(seed)
    model = JointBayesian(rng.standard_normal(size), covariance(size, rng), covariance(size, rng))
    x, y = rng.standard_normal((2, 8, size))
    forth, back = model.log_likelihood_ratio(x, y), model.log_likelihood_ratio(y, x)
    np.testing.assert_allclose(forth, back, rtol=1e-9, atol=1e-9)
    basis, psi = model.diagonalised()
    np.testing.assert_allclose(basis @ model.within @ basis.T, np.eye(size), atol=1e-8)
    np.testing.assert_allclose(basis @ model.between @ basis.T, np.diag(psi), atol=1e-8)
    assert (np.diff(psi) <= 1e-12).all()


def test_likelihood_is_that_of_all_samples_of_everybody():
    rng = np.random.default_rng(3)
    counts = [1, 4, 2, 3, 3, 2]
    x, labels = people(covariance(2, rng), covariance(2, rng), counts, seed=4)
    model = fit_joint_bayesian(x, labels, iterations=3, tolerance=0.0)
    total = sum(
        multivariate_normal(
            np.tile(model.mean, count), stacked(model.between, model.within, count)
        ).logpdf(x[labels == person].ravel())
        for person, count in enumerate(counts)
    )
    assert model.log_likelihoods[-1] == pytest.approx(total / len(x), abs=1e-10)
    assert len(model.log_likelihoods) == 4


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 4))
def test_every_iteration_raises_the_likelihood(seed, size):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, 30)
    counts[:5] = 5  # enough to tell the variation
    x, labels = people(covariance(size, rng), covariance(size, rng), counts, seed)
    model = fit_joint_bayesian(x, labels, iterations=15, tolerance=0.0)
    assert (np.diff(model.log_likelihoods) > -1e-10).all()


def test_planted_covariances_are_found():
    rng = np.random.default_rng(7)
    between, within = covariance(3, rng), covariance(3, rng)
    # half of the people have a single sample, as in LFW
    counts = np.where(np.arange(4000) % 2, 1, rng.integers(2, 8, 4000))
    x, labels = people(between, within, counts, seed=8)
    model = fit_joint_bayesian(x + 5.0, labels)
    assert np.linalg.norm(model.between - between) < 0.08 * np.linalg.norm(between)
    assert np.linalg.norm(model.within - within) < 0.05 * np.linalg.norm(within)
    np.testing.assert_allclose(model.mean, 5.0, atol=0.1)


def test_labels_may_be_names_in_any_order():
    rng = np.random.default_rng(1)
    x, labels = people(np.eye(2), np.eye(2), [3] * 10, seed=2)
    names = np.array([f"p{9 - label}" for label in labels])
    shuffled = rng.permutation(len(x))
    a = fit_joint_bayesian(x, labels)
    b = fit_joint_bayesian(x[shuffled], names[shuffled])
    np.testing.assert_allclose(a.between, b.between, rtol=1e-6)


def test_shrinking_keeps_the_variances_on_average():
    rng = np.random.default_rng(5)
    model = JointBayesian(np.zeros(3), covariance(3, rng), covariance(3, rng))
    none, half, full = (model.shrunk(share) for share in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(none.between, model.between)
    np.testing.assert_allclose(half.within, (model.within + full.within) / 2)
    np.testing.assert_allclose(full.between, np.trace(model.between) / 3 * np.eye(3))


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0), "need"),
        (np.zeros(4), np.zeros(4), "need"),
        (np.ones((4, 2)), np.zeros(3), "need"),
        (np.full((4, 2), np.nan), [0, 0, 1, 1], "NaN"),
        (np.full((4, 2), np.inf), [0, 0, 1, 1], "NaN or infinity"),
        (np.eye(4), [0, 0, 0, 0], "at least two"),
        (np.eye(4), [0, 0, 1, 1], "cannot tell the variation in 4 dimensions"),
        (np.eye(4), [0, 1, 2, 3], "cannot tell"),
        (np.ones((6, 2)), [0, 0, 0, 1, 1, 1], "all embeddings are equal"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(x, labels, message):
    with pytest.raises(DataError, match=message):
        fit_joint_bayesian(x, labels)
