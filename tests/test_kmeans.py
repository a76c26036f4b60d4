"""Weighted k-means: by hand, against brute force, and what must hold for any input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from edgeid.converters.codebook.kmeans import assign, centroids, errors_of, kmeans  # noqa: E402
from edgeid.runtime.errors import DataError  # noqa: E402


def rows(*values):
    """One sub-space."""
    return torch.tensor([values], dtype=torch.float32)


def test_two_clusters_by_hand():
    vectors = rows([0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 4.0])
    found = kmeans(vectors, torch.ones_like(vectors), 2, seed=0)
    order = found.codewords[0, :, 0].argsort()
    assert found.codewords[0, order].tolist() == [[0.0, 1.0], [10.0, 2.0]]
    assert found.indices[0].tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert found.errors.tolist() == [1 + 1 + 4 + 4]


def test_weights_move_the_centroid_and_the_choice():
    """The mean of 0 (weight 1) and 4 (weight 3) is 3; a dimension of weight 0 does not count."""
    vectors = rows([0.0, 100.0], [4.0, -100.0])
    weights = rows([1.0, 0.0], [3.0, 0.0])
    codewords = centroids(vectors, weights, torch.zeros(1, 2, dtype=torch.int64), 1)
    assert codewords.tolist() == [[[3.0, 0.0]]]
    assert errors_of(
        vectors, weights, codewords, torch.zeros(1, 2, dtype=torch.int64)
    ).tolist() == [[9.0, 3.0]]
    table = rows([1.0, 5.0], [3.0, -5.0])
    assert assign(rows([1.4, -5.0]), rows([1.0, 0.0]), table).tolist() == [[0]]
    assert assign(rows([1.4, -5.0]), rows([1.0, 1.0]), table).tolist() == [[1]]


def test_the_best_of_all_partitions_is_found_where_it_is_clear():
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(3, 2)) * 50
    points = np.concatenate([c + rng.normal(size=(3, 2)) for c in centres])
    weights = rng.uniform(0.5, 2, points.shape)
    best = min(_partition_error(points, weights, p) for p in itertools.product(range(3), repeat=9))
    found = kmeans(rows(*points.tolist()), rows(*weights.tolist()), 3, seed=1, tolerance=0)
    assert found.errors.item() == pytest.approx(best, rel=1e-4)


def _partition_error(points, weights, partition):
    error = 0.0
    for label in set(partition):
        chosen = np.array(partition) == label
        x, w = points[chosen], weights[chosen]
        error += (w * (x - (w * x).sum(0) / w.sum(0)) ** 2).sum()
    return error


def test_an_unused_codeword_moves_to_the_worst_vector():
    """Three equal vectors and one far away: two of three first codewords must coincide."""
    vectors = rows([0.0], [0.0], [0.0], [1.0], [9.0])
    found = kmeans(vectors, torch.ones_like(vectors), 3, seed=0, tolerance=0)
    assert sorted(found.codewords[0, :, 0].tolist()) == [0.0, 1.0, 9.0]
    assert found.errors.item() == 0


def test_more_codewords_than_vectors_gives_no_error():
    vectors = torch.randn(2, 5, 4)
    found = kmeans(vectors, torch.ones_like(vectors), 16, seed=0)
    assert found.codewords.shape == (2, 16, 4)
    assert torch.isfinite(found.codewords).all()
    assert found.errors.max() < 1e-10


def test_sub_spaces_do_not_touch_each_other():
    vectors = torch.randn(3, 40, 2)
    vectors[1] += 100
    found = kmeans(vectors, torch.ones_like(vectors), 4, seed=0)
    assert found.codewords[1].min() > 90
    assert found.codewords[[0, 2]].max() < 10


def test_equal_arguments_give_equal_results_and_the_seed_counts():
    vectors, weights = torch.randn(2, 300, 4), torch.rand(2, 300, 4)
    a, b, c = (kmeans(vectors, weights, 8, seed=s, iterations=3) for s in (5, 5, 6))
    assert torch.equal(a.codewords, b.codewords)
    assert torch.equal(a.indices, b.indices)
    assert not torch.equal(a.codewords, c.codewords)


def test_large_inputs_are_scored_in_parts(monkeypatch):
    vectors, weights = torch.randn(3, 50, 4), torch.rand(3, 50, 4)
    table = torch.randn(3, 8, 4)
    whole = assign(vectors, weights, table)
    monkeypatch.setattr("edgeid.converters.codebook.kmeans.MAX_SCORES", 100)
    assert torch.equal(assign(vectors, weights, table), whole)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.sampled_from([1, 2, 7, 16]),
    count=st.integers(1, 60),
    r=st.sampled_from([2, 4, 8]),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
)
def test_the_error_never_rises(seed, k, count, r, scale):
    generator = torch.Generator().manual_seed(seed)
    vectors = scale * torch.randn(2, count, r, generator=generator)
    vectors[:, ::3] = vectors[:, :1].clone()  # repeated vectors
    weights = torch.rand(2, count, r, generator=generator) ** 4
    weights[:, :, -1] = 0  # a padded dimension
    found = kmeans(vectors, weights, k, seed=seed, tolerance=0, iterations=12)
    for before, after in itertools.pairwise(found.history):
        # up to the rounding of float32 centroids: (6e-8 scale)^2 for each of 960 values
        assert after <= before * (1 + 1e-5) + 1e-11 * scale**2
    exact = errors_of(vectors, weights, found.codewords, found.indices).sum(1)
    torch.testing.assert_close(found.errors, exact, rtol=1e-4, atol=1e-12 * scale**2)
    best = errors_of(vectors, weights, found.codewords, assign(vectors, weights, found.codewords))
    assert best.sum() <= exact.sum() * (1 + 1e-4) + 1e-9 * scale**2


@pytest.mark.parametrize(
    ("vectors", "weights", "k", "message"),
    [
        (torch.zeros(1, 3, 2), torch.zeros(1, 3, 1), 2, "spaces, N, r"),
        (torch.zeros(1, 0, 2), torch.zeros(1, 0, 2), 2, "spaces, N, r"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), 0, "0 codewords"),
        (torch.full((1, 3, 2), torch.nan), torch.ones(1, 3, 2), 2, "NaN"),
        (torch.zeros(1, 3, 2), torch.full((1, 3, 2), -1.0), 2, "smallest weight is -1"),
    ],
)
def test_bad_arguments(vectors, weights, k, message):
    with pytest.raises(DataError, match=message):
        kmeans(vectors, weights, k)
