"""Golden vectors catch an engine that answers something else."""

from __future__ import annotations

import numpy as np
import pytest

from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import GoldenVectorError
from edgeid.runtime.golden import check_golden, golden_input, make_golden
from edgeid.runtime.graph import Entry, Gemm, Graph

WEIGHT = np.array([[1, 0, 2], [0, -1, 0.5]], np.float32)
GRAPH = Graph(
    (Entry("voice", "x", (3,), "y"),),
    (Gemm("fc", ("x",), "y", "w"),),
    {"w": encode_float32(WEIGHT)},
)


class Skewed:
    """An engine whose answers go through ``change``."""

    name = "skewed"

    def __init__(self, change):
        self._engine, self._change = make_engine(GRAPH, "reference"), change

    def run(self, entry, x):
        return self._change(self._engine.run(entry, x))


def test_the_input_never_changes():
    # the first values of numpy's PCG64 standard normal stream for seed 1
    expected = [0.34558418, 0.8216181, 0.33043706]
    assert golden_input(1, (3,)).ravel() == pytest.approx(expected, abs=1e-7)
    assert golden_input(1, (1, 112, 96)).shape == (1, 1, 112, 96)
    assert golden_input(1, (3,)).dtype == np.float32


def test_made_by_hand_and_accepted():
    engine = make_engine(GRAPH, "reference")
    golden = make_golden(engine, GRAPH, "voice", 1)
    x = golden_input(1, (3,))[0]
    by_hand = [x[0] + 2 * x[2], -x[1] + 0.5 * x[2]]
    assert golden["embedding"] == pytest.approx(by_hand, abs=1e-6)
    assert (golden["entry"], golden["seed"]) == ("voice", 1)
    check_golden(engine, GRAPH, golden)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y * np.float32(1.001),
        lambda y: y + np.float32(1e-4),
    ],
)
def test_rounding_is_forgiven(change):
    golden = make_golden(make_engine(GRAPH, "reference"), GRAPH, "voice", 1)
    check_golden(Skewed(change), GRAPH, golden)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y: -y, r"cosine -1\.0+"),
        (lambda y: y[:, ::-1], "cosine"),
        (lambda y: y * np.float32(2), r"cosine 1\.0.*relative error 1\.0"),
        (lambda y: y * np.float32(0), r"cosine 0\.0"),
        (lambda y: y * np.float32("nan"), "relative error nan"),
        (lambda y: y[:, :1], "1 values, the golden vector has 2"),
    ],
)
def test_a_wrong_engine_is_named_with_what_was_measured(change, says):
    golden = make_golden(make_engine(GRAPH, "reference"), GRAPH, "voice", 1)
    with pytest.raises(GoldenVectorError, match="engine 'skewed', entry 'voice'") as caught:
        check_golden(Skewed(change), GRAPH, golden)
    caught.match(says)


@pytest.mark.parametrize("change", [lambda y: y * np.float32(0), lambda y: y / np.float32("nan")])
def test_no_golden_vector_of_nothing(change):
    with pytest.raises(GoldenVectorError, match="zero or not finite"):
        make_golden(Skewed(change), GRAPH, "voice", 1)
