"""Palette: k-means on a line by hand, against an exhaustive oracle, and as a pass."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeid.converters.quantisation.palette import Palette, cluster, nearest_centroid
from edgeid.converters.recipe import Context, run_recipe
from edgeid.runtime.encoding import Indexed, encode_float32
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Conv, Entry, Graph, Relu


@pytest.mark.parametrize("seed", range(5))
def test_two_clusters_by_hand(seed):
    # wherever the seeds fall, 0 and 2 go to one cluster, 10 and 14 to the other
    weight = np.array([[14, 0], [2, 10]], np.float32)
    assert cluster(weight, 2, seed, 100).tolist() == [1, 12]
    assert nearest_centroid(weight, np.array([1.0, 12.0])).tolist() == [[1, 0], [0, 1]]


def test_few_values_are_kept():
    assert cluster(np.array([3, -1, 3, 0.5], np.float32), 4, 0, 100).tolist() == [-1, 0.5, 3]


def test_of_two_as_near_the_lower():
    assert nearest_centroid(np.array([1, 3], np.float32), np.array([0.0, 2.0, 4.0])).tolist() == [
        0,
        1,
    ]


VALUES = hnp.arrays(np.float32, st.integers(1, 9), elements=st.floats(-100, 100, width=16))


def error(values, centroids) -> float:
    """Sum of squared distances to the nearest, one value at a time."""
    return sum(min((float(v) - float(c)) ** 2 for c in centroids) for v in values)


@given(VALUES, st.integers(1, 4), st.integers(0, 9))
def test_the_end_is_a_fixed_point_and_no_better_than_the_best(values, count, seed):
    centroids = cluster(values, count, seed, 100)
    assert (np.diff(centroids) >= 0).all()
    assert 1 <= centroids.size <= count
    nearest = nearest_centroid(values, centroids)
    for index, value in zip(nearest, values, strict=True):
        assert (value - centroids[index]) ** 2 <= min((value - centroids) ** 2) + 1e-9
    for index in np.unique(nearest):
        own = values[nearest == index].astype(np.float64)
        assert centroids[index] == pytest.approx(own.mean(), abs=1e-9)
    # oracle: the best division of the sorted values into intervals, by trying all
    ordered = np.sort(values).astype(np.float64)
    best = min(
        sum(float(((part - part.mean()) ** 2).sum()) for part in np.split(ordered, borders))
        for k in range(min(count, values.size))
        for borders in itertools.combinations(range(1, values.size), k)
    )
    assert error(values, centroids) >= best - 1e-6


def test_far_apart_magnitudes():
    weight = np.array([-3e38, 1, 2, 3e38], np.float32)
    assert cluster(weight, 3, 0, 100).tolist() == [
        np.float64(weight[0]),
        1.5,
        np.float64(weight[3]),
    ]


def test_seeding_is_better_than_chance_and_deterministic():
    weight = np.random.default_rng(2).standard_normal(5000).astype(np.float32)
    errors = [error(weight, cluster(weight, 16, seed, 100)) / 5000 for seed in range(3)]
    # 16 levels of a normal distribution can do 0.009497 (Max 1960, Table I)
    assert max(errors) < 0.0125
    assert np.array_equal(cluster(weight, 16, 7, 100), cluster(weight, 16, 7, 100))


def network(channels: int = 8) -> Graph:
    weight = np.random.default_rng(0).standard_normal((16, channels, 3, 3)).astype(np.float32)
    layers = (Conv("c", ("x",), "h", "w", None), Relu("r", ("h",), "y"))
    return Graph(
        (Entry("face", "x", (channels, 4, 4), "y"),), layers, {"w": encode_float32(weight)}
    )


def test_as_a_pass(tmp_path):
    graph = network()
    context = Context({}, tmp_path, progress=False)
    step = Palette(bits=4, dictionary="float32")
    after, (report,) = run_recipe([step], graph, context)
    tensor = after.tensors["w"]
    assert isinstance(tensor, Indexed)
    assert (tensor.bits, tensor.nbytes) == (4, 1152 // 2 + 16 * 4)
    weight = graph.tensors["w"].decode()
    expected = np.linalg.norm(tensor.decode() - weight) / np.linalg.norm(weight)
    assert report.figures["relative_error"] == pytest.approx(expected, abs=1e-6)
    assert report.figures["relative_error"] < 0.13
    assert report.figures["bits_per_weight"] == pytest.approx(8 * tensor.nbytes / 1152, abs=1e-3)
    again, _ = run_recipe([step], graph, Context({}, tmp_path / "again", progress=False))
    assert again.tensors["w"].decode().tobytes() == tensor.decode().tobytes()
    with pytest.raises(GraphError, match="uncompressed"):
        run_recipe([step], after, context)


@pytest.mark.parametrize(
    "options", [{"bits": 0}, {"bits": 13}, {"iterations": 0}, {"iterations": 1.5}, {"scope": ""}]
)
def test_options_that_cannot_be(options):
    with pytest.raises(DataError):
        Palette(**options)


def test_json_form():
    assert Palette.from_dict({"pass": "palette", "bits": 3}) == Palette(bits=3)
