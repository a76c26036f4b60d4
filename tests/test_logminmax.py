"""Log min-max quantisation: the paper's formula by hand, what it leaves open, the pass."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeid.converters.quantisation.logminmax import LogMinMax, log_min_max
from edgeid.converters.recipe import Context, run_recipe
from edgeid.runtime.encoding import Dense, Indexed, encode_float16, encode_float32, encode_int8
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.format import read_model
from edgeid.runtime.graph import Conv, Entry, Flatten, Gemm, Graph, PRelu

FOUR = np.array([1, -3, 6, 16], np.float32)  # log2: 0, 1.58, 2.58, 4


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (1, [1, -1, 4, 16]),  # q = 2: levels 1, 4, and 16 for the maximum alone
        (2, [1, -2, 4, 16]),  # q = 1: levels 1, 2, 4, 8, 16
        (3, [1, -(2**1.5), 2**2.5, 16]),  # q = 1/2
    ],
)
def test_floor_by_hand(bits, expected):
    assert np.allclose(log_min_max(FOUR, bits), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (1, [2, -2, 8, 8]),  # the middles of 0..2 and 2..4 in log2
        (2, [2**0.5, -(2**1.5), 2**2.5, 2**3.5]),
    ],
)
def test_midpoint_by_hand(bits, expected):
    assert np.allclose(log_min_max(FOUR, bits, "midpoint"), expected, rtol=1e-14)


@pytest.mark.parametrize("rounding", ["floor", "midpoint"])
@pytest.mark.parametrize("bits", [1, 6, 12])
def test_zeros_and_constants(rounding, bits):
    zeros = np.array([0.0, -0.0, 0.0], np.float32)
    assert log_min_max(zeros, bits, rounding).tolist() == [0, 0, 0]
    # zeros take no part in the limits: what is left is constant, and kept
    constant = np.array([0.1, 0.0, -0.1, 0.1], np.float32)
    kept = log_min_max(constant, bits, rounding).astype(np.float32)
    assert kept.tolist() == constant.tolist()
    one = np.array([-3e-41], np.float32)  # a denormal number
    assert log_min_max(one, bits, rounding).astype(np.float32).tolist() == one.tolist()


def test_limits_from_elsewhere():
    # levels 1/4, 1/2, 1, 2, 4 of the limits -2 and 2, whatever the weight itself reaches
    assert log_min_max(np.array([0.7, 3], np.float32), 2, limits=(-2.0, 2.0)).tolist() == [0.5, 2]


def formula(x: float, low: float, high: float, bits: int) -> tuple[float, float]:
    """The paper's lines as they stand, to base e, for one weight; and its place among levels."""
    f, s = math.log(abs(x)), math.copysign(1, x)
    q = (math.log(high) - math.log(low)) / 2**bits
    place = (f - math.log(low)) / q
    return math.exp(math.floor(place) * q + math.log(low)) * s, place


MAGNITUDES = st.floats(2**-20, 2**10, width=32)
WEIGHTS = hnp.arrays(
    np.float32, st.integers(2, 12), elements=MAGNITUDES | MAGNITUDES.map(lambda x: -x)
)


@given(WEIGHTS, st.integers(1, 12))
def test_floor_is_the_formula(weight, bits):
    low, high = float(np.abs(weight).min()), float(np.abs(weight).max())
    if low == high:
        return
    for x, got in zip(weight.tolist(), log_min_max(weight, bits).tolist(), strict=True):
        expected, place = formula(x, low, high, bits)
        if abs(place - round(place)) > 1e-6:  # on a border the two logarithms may round apart
            assert math.isclose(got, expected, rel_tol=1e-9)


@given(WEIGHTS, st.integers(1, 12))
def test_bounds_of_both_roundings(weight, bits):
    magnitude = np.abs(weight).astype(np.float64)
    step = (magnitude.max() / magnitude.min()) ** (1 / 2**bits) * (1 + 1e-9)
    floor = log_min_max(weight, bits)
    assert (np.sign(floor) == np.sign(weight)).all()
    assert (np.abs(floor) <= magnitude * (1 + 1e-9)).all()  # towards zero
    assert (np.abs(floor) * step >= magnitude).all()  # by less than a step
    middle = np.abs(log_min_max(weight, bits, "midpoint"))
    assert (np.maximum(middle / magnitude, magnitude / middle) <= np.sqrt(step) * (1 + 1e-9)).all()
    assert np.unique(np.abs(floor)).size <= 2**bits + 1
    assert np.unique(middle).size <= 2**bits


def test_the_middle_has_no_bias_in_log():
    weight = np.random.default_rng(1).standard_normal(20_000).astype(np.float32)
    log = np.log2(np.abs(weight))
    bias = [
        float(np.mean(np.log2(np.abs(log_min_max(weight, 5, r))) - log))
        for r in ("floor", "midpoint")
    ]
    step = (log.max() - log.min()) / 32
    assert -0.6 * step < bias[0] < -0.4 * step
    assert abs(bias[1]) < 0.1 * step


# -- the pass


def network(seed: int = 0, dtype=encode_float32) -> Graph:
    rng = np.random.default_rng(seed)
    weights = {
        "conv": rng.standard_normal((16, 4, 3, 3)),
        "bias": rng.standard_normal(16),
        "slope": np.full(16, 0.25),
        "fc": rng.standard_normal((8, 16 * 4)) * 0.01,
    }
    layers = (
        Conv("c", ("x",), "h", "conv", "bias"),
        PRelu("p", ("h",), "i", "slope"),
        Flatten("f", ("i",), "j"),
        Gemm("g", ("j",), "y", "fc", None),
    )
    tensors = {name: dtype(weight) for name, weight in weights.items()}
    return Graph((Entry("face", "x", (4, 4, 4), "y"),), layers, tensors)


def context(tmp_path) -> Context:
    x = np.random.default_rng(9).standard_normal((3, 4, 4, 4)).astype(np.float32)
    return Context({"face": x}, tmp_path, progress=False)


def run(graph, step, tmp_path):
    after, (report,) = run_recipe([step], graph, context(tmp_path))
    return after, report


def test_convolutions_alone_are_stored_by_index(tmp_path):
    graph = network()
    after, report = run(graph, LogMinMax(bits=4, dictionary="float32"), tmp_path)
    conv = after.tensors["conv"]
    assert isinstance(conv, Indexed)
    assert all(after.tensors[name] is graph.tensors[name] for name in ("bias", "slope", "fc"))
    weight = graph.tensors["conv"].decode()
    assert np.array_equal(conv.decode(), log_min_max(weight, 4).astype(np.float32))
    assert np.array_equal(np.sign(conv.decode()), np.sign(weight))
    # 576 weights of 4 + 1 bits, and a dictionary of the values that occur
    assert conv.bits == 5
    assert conv.nbytes == 360 + 4 * np.unique(conv.decode()).size
    figures = report.figures
    assert (figures["weights"], figures["bytes_before"]) == (576, 2304)
    assert figures["bytes_after"] == conv.nbytes
    assert figures["bits_per_weight"] == pytest.approx(8 * conv.nbytes / 576, abs=1e-3)
    error = np.linalg.norm(conv.decode() - weight) / np.linalg.norm(weight)
    assert figures["relative_error"] == pytest.approx(error, abs=1e-6)
    assert report.bytes_before - report.bytes_after == 2304 - conv.nbytes
    assert f"2,304 -> {conv.nbytes:,} bytes" in report.lines[0]
    assert 0.9 < report.similarity["face"] < 1


def test_all_weights_but_those_that_would_grow(tmp_path):
    after, report = run(network(), LogMinMax(bits=4, scope="all"), tmp_path)
    assert isinstance(after.tensors["fc"], Indexed)
    assert isinstance(after.tensors["slope"], Indexed)  # one value for 16 channels
    assert after.tensors["slope"].decode().tolist() == [0.25] * 16
    assert report.figures["tensors"] == 4 - report.figures["tensors_kept"]


def test_a_dictionary_that_outweighs_the_saving(tmp_path):
    graph = network()
    after, report = run(graph, LogMinMax(bits=12, scope="all", dictionary="float32"), tmp_path)
    assert after.tensors["bias"] is graph.tensors["bias"]
    assert report.figures["tensors_kept"] >= 1
    assert "stay" in report.lines[-1]


def test_one_dictionary_for_the_network(tmp_path):
    step = LogMinMax(bits=4, scope="all", limits="network", dictionary="float32")
    graph = network()
    after, _ = run(graph, step, tmp_path)
    indexed = [tensor for tensor in after.tensors.values() if isinstance(tensor, Indexed)]
    assert len(indexed) == 4
    assert len({tensor.dictionary.tobytes() for tensor in indexed}) == 1
    weights = np.concatenate([tensor.decode().ravel() for tensor in graph.tensors.values()])
    magnitude = np.abs(weights).astype(np.float64)
    low, high = np.log2(magnitude.min()), np.log2(magnitude.max())
    expected = log_min_max(graph.tensors["fc"].decode(), 4, limits=(low, high))
    assert np.allclose(after.tensors["fc"].decode(), expected, rtol=1e-6)
    file = next(tmp_path.glob("01-logminmax-*.edgeid"))
    read = read_model(file).graph.tensors
    assert np.shares_memory(read["fc"].parts()["dictionary"], read["conv"].parts()["dictionary"])


def test_float16_dictionaries_only_where_they_do(tmp_path):
    graph = network()
    tiny = graph.tensors["conv"].decode() * np.float32(1e-6)
    graph = replace(graph, tensors=graph.tensors | {"conv": encode_float32(tiny)})
    after, report = run(graph, LogMinMax(bits=4, scope="all"), tmp_path)
    assert after.tensors["fc"].parts()["dictionary"].dtype == np.float16
    assert after.tensors["conv"].parts()["dictionary"].dtype == np.float32
    assert report.figures["relative_error"] < 0.4


def test_zeros_stay_zeros(tmp_path):
    graph = network()
    weight = graph.tensors["conv"].decode().copy()
    weight[:, 1] = 0
    graph = replace(graph, tensors=graph.tensors | {"conv": encode_float32(weight)})
    after, _ = run(graph, LogMinMax(bits=3), tmp_path)
    assert np.array_equal(after.tensors["conv"].decode() == 0, weight == 0)


@pytest.mark.parametrize("bits", range(1, 13))
def test_every_width(bits, tmp_path):
    after, report = run(network(), LogMinMax(bits=bits, rounding="midpoint"), tmp_path)
    conv = after.tensors["conv"]
    assert conv.bits <= bits + 1
    log = np.log(np.abs(network().tensors["conv"].decode()))
    half_step = (log.max() - log.min()) / 2**bits / 2
    assert report.figures["relative_error"] < np.expm1(half_step) + 1e-3  # float16 dictionary
    assert read_model(next(tmp_path.glob("*.edgeid"))).graph.tensors["conv"].bits == conv.bits


def test_float16_weights_are_taken_too(tmp_path):
    _, report = run(network(dtype=encode_float16), LogMinMax(bits=4), tmp_path)
    assert report.figures["bytes_before"] == 2 * 576


def test_compressed_weights_are_left_alone(tmp_path):
    graph = network()
    once, _ = run(graph, LogMinMax(bits=4), tmp_path)
    twice, _ = run(once, LogMinMax(bits=2, scope="all"), tmp_path)
    assert twice.tensors["conv"] is once.tensors["conv"]
    with pytest.raises(GraphError, match=r"pass 1 of 1, 'logminmax'.*none of its 1 weights"):
        run(once, LogMinMax(bits=4), tmp_path)
    int8 = replace(
        graph, tensors=graph.tensors | {"conv": encode_int8(graph.tensors["conv"].decode())}
    )
    with pytest.raises(GraphError, match="uncompressed"):
        run(int8, LogMinMax(bits=4), tmp_path)


def test_the_effect_is_checked(tmp_path):
    graph = network()
    step = LogMinMax(bits=4)
    changed = replace(graph, tensors=graph.tensors | {"bias": Dense(np.zeros(16, np.float32))})
    with pytest.raises(GraphError, match="'bias'"):
        step.ensures(graph, changed, context(tmp_path))


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 0},
        {"bits": 13},
        {"bits": 6.0},
        {"bits": True},
        {"scope": "some"},
        {"rounding": "nearest"},
        {"limits": "layer"},
        {"dictionary": "float64"},
    ],
)
def test_options_that_cannot_be(options):
    with pytest.raises(DataError, match=str(next(iter(options.values())))):
        LogMinMax(**options)
    with pytest.raises(DataError):
        LogMinMax.from_dict({"pass": "logminmax", **options})


def test_json_form():
    step = LogMinMax(bits=10, scope="all", rounding="midpoint")
    assert step.to_dict() == {
        "pass": "logminmax",
        "bits": 10,
        "scope": "all",
        "rounding": "midpoint",
        "limits": "tensor",
        "dictionary": "float16",
    }
    assert LogMinMax.from_dict(step.to_dict()) == step
