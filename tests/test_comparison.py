"""The judge of a report: EER over all pairs of labelled samples."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from edgeid.comparison import MOST, judge_embeddings, make_judge
from edgeid.metrics import equal_error_rate
from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.errors import DataError
from edgeid.runtime.graph import Entry, Gemm, Graph


def unit(degrees: ArrayLike) -> NDArray[np.float32]:
    """(n, 2) unit vectors at these angles."""
    radians = np.deg2rad(np.asarray(degrees, np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def identity_graph() -> Graph:
    layer = Gemm("fc", ("x",), "y", "w")
    return Graph((Entry("face", "x", (2,), "y"),), (layer,), {"w": encode_float32(np.eye(2))})


def test_eer_of_known_angles() -> None:
    # genuine: 10, 10 degrees apart; impostor: 5 to 25, of which one is nearer than 10
    found = judge_embeddings(unit([0, 10, 15, 25]), np.array([0, 0, 1, 1]))
    scores = np.cos(np.deg2rad([10, 15, 25, 5, 15, 10]))
    genuine = np.array([True, False, False, False, False, True])
    assert found.value == pytest.approx(equal_error_rate(scores, genuine))
    assert found.low <= found.value <= found.high
    assert (found.name, found.trials, found.lower_is_better) == ("EER", 6, True)


def test_length_of_embeddings_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 12
    y = rng.standard_normal((60, 4)) + 1.5 * rng.standard_normal((12, 4))[labels]
    one = judge_embeddings(y.astype(np.float32), labels)
    assert judge_embeddings((y * rng.uniform(1, 9, (60, 1))).astype(np.float32), labels) == one
    assert 0 < one.low < one.value < one.high < 1


def test_many_impostors_widen_no_interval_and_move_no_value() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(450) % 90
    y = rng.standard_normal((450, 4)) + 1.5 * rng.standard_normal((90, 4))[labels]
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    found = judge_embeddings(y.astype(np.float32), labels)
    rows, columns = np.triu_indices(450, 1)
    assert found.trials == len(rows) > 50_000
    same = labels[rows] == labels[columns]
    assert found.value == pytest.approx(equal_error_rate((y @ y.T)[rows, columns], same), abs=1e-3)
    assert found.low < found.value < found.high < found.low + 0.15


def test_judge_runs_the_entries_that_it_has_labels_for() -> None:
    samples = {"face": unit([0, 1, 90, 91]), "voice": np.zeros((4, 3), np.float32)}
    labels = {"face": np.array([4, 4, 7, 7]), "voice": np.array([0, 0, 1, 1])}
    found = make_judge(samples, labels)(identity_graph())  # which has no voice
    assert [*found] == ["face"]
    assert found["face"].value == 0
    assert found["face"].high > 0.3  # two genuine comparisons say little


def test_of_many_samples_whole_people_are_taken() -> None:
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(900), np.arange(900), np.arange(900, 1900)])
    samples = {"face": unit(labels / 10 + rng.normal(0, 0.01, len(labels)))}
    found = make_judge(samples, {"face": labels})(identity_graph())["face"]
    # the 900 people with two samples come first, then 200 of the others
    assert found.trials == MOST * (MOST - 1) // 2
    one = np.zeros(2001, np.int64)  # one person may not take all the places
    one[:4] = 1
    samples = {"face": unit(rng.uniform(0, 90, 2001))}
    found = make_judge(samples, {"face": one})(identity_graph())["face"]
    assert found.trials == 204 * 203 // 2


def test_labels_that_cannot_judge_are_refused() -> None:
    x = {"face": unit([0, 1, 2])}
    with pytest.raises(DataError, match="needs labels"):
        make_judge(x, {})
    with pytest.raises(DataError, match=r"'voice', but there are samples of \['face'\]"):
        make_judge(x, {"voice": np.array([0])})
    with pytest.raises(DataError, match=r"face: labels int64 \(2,\) do not fit 3 samples"):
        make_judge(x, {"face": np.array([0, 1])})
    with pytest.raises(DataError, match="do not fit"):
        make_judge(x, {"face": np.array([0.0, 1.0, 1.0])})
    for labels in ([0, 0, 0], [0, 1, 2]):
        with pytest.raises(DataError, match="two people or more"):
            make_judge(x, {"face": np.array(labels)})
