"""The scales of activations: ranges by hand and against brute force, and as a pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgeid.converters.quantisation.activations import (
    ActivationScales,
    Histogram,
    centred_error,
    weighted_inputs,
)
from edgeid.converters.quantisation.encode import Encode
from edgeid.converters.quantisation.palette import Palette
from edgeid.converters.recipe import Context, run_recipe
from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Conv, Entry, Gemm, Graph, Relu, merge_graphs
from edgeid.runtime.reference import ReferenceEngine
from tests.networks import inputs, residual_graph


def counted(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    tensors = [torch.from_numpy(np.asarray(part, np.float32)) for part in parts]
    for part in tensors:
        histogram.widen(part)
    for part in tensors:
        histogram.count(part)
    return histogram


def squared_error(values: np.ndarray, low: float, high: float) -> float:
    scale = ActivationScale.covering(low, high)
    return float(np.square(scale.dequantise(scale.quantise(values)) - values).mean())


def test_histogram_by_hand():
    seen = counted([0, 0, -1, 2], [[0.001, -0.5]])
    assert (seen.low, seen.high, seen.total) == (-1, 2, 6)
    assert (seen.below.sum(), seen.above.sum()) == (2, 2)
    assert (seen.above[0], seen.above[-1], seen.below[-1]) == (1, 1, 1)
    assert seen.range("max", 99) == (-1, 2)


def test_zeros_alone():
    seen = counted(np.zeros(5))
    for method in ("max", "mse", "percentile"):
        assert ActivationScale.covering(*seen.range(method, 99.9)) == ActivationScale(1.0, 0)


def test_values_that_are_not_finite():
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(GraphError, match="NaN or infinite"):
            counted([1, bad])


@pytest.mark.parametrize("percentile", [60, 90, 99, 99.9])
def test_percentile_cuts_off_the_right_share(percentile):
    values = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    values[:4000] = 0
    low, high = counted(values[:7000], values[7000:]).range("percentile", percentile)
    beyond = 20_000 * (100 - percentile) / 100
    for side, end in ((values, high), (-values, -low)):
        width = side.max() / 1024  # of a bin: the cut is at the lowest edge that will do
        assert (side > end + 1e-6).sum() <= beyond < (side > end - width - 1e-6).sum()
    assert counted(values).range("percentile", 100)[0] == pytest.approx(values.min())


def samples_of(shape: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.standard_normal(40_000),
        "heavy tails": rng.standard_t(3, 40_000),
        "relu": np.maximum(rng.standard_normal(40_000), 0),
        "leaky": np.where((x := rng.laplace(size=40_000)) > 0, x, 0.1 * x),
        "negative": -rng.exponential(size=40_000),
        "outlier": np.append(rng.standard_normal(40_000), 60),
    }[shape]
    return values.astype(np.float32)


@pytest.mark.parametrize("shape", ["normal", "heavy tails", "relu", "leaky", "negative", "outlier"])
def test_least_error_against_brute_force(shape):
    values = samples_of(shape)
    low, high = counted(values).range("mse", 0)
    found = squared_error(values, low, high)
    grid = np.linspace(0.02, 1, 50)
    best = min(
        squared_error(values, a * min(values.min(), 0), b * max(values.max(), 0))
        for a in (grid if values.min() < 0 else [0])
        for b in (grid if values.max() > 0 else [0])
    )
    assert found <= 1.02 * best
    assert found <= squared_error(values, values.min(), values.max())
    assert values.min() <= low <= 0 <= high <= max(values.max(), 0)


def test_weighted_layers_that_read_one_activation_count_once():
    graph = residual_graph(0)
    names = weighted_inputs(graph, "face")
    assert names[0] == "x"
    assert names[-1] == "flat"
    assert len(names) == len(set(names)) == 21


def context(tmp_path, **samples: np.ndarray) -> Context:
    return Context(samples, tmp_path, progress=False)


@pytest.mark.parametrize("method", ["mse", "percentile", "max"])
def test_as_a_pass(tmp_path, method):
    graph = residual_graph(3)
    given = context(tmp_path, face=inputs(40))
    step = ActivationScales(method=method)
    after, (report,) = run_recipe([step], graph, given)
    assert set(after.scales) == set(weighted_inputs(graph, "face"))
    assert after.tensors == graph.tensors
    figures = report.figures
    assert figures["activations"] == 21
    # the same on samples that it has not seen
    x = inputs(30, seed=9)
    float32 = ReferenceEngine(after).run("face", x)
    eight = ReferenceEngine(after, quantised=True).run("face", x)
    assert 0 < centred_error(float32, eight) < 0.12
    assert figures["cosine/face"] > 0.998
    assert 0 < figures["relative_error/face"] < 0.12
    # the input is normal: 256 levels over +-4 give 20 log10(255 sqrt(12) / 8) = 40.9 dB
    assert 37 < figures["sqnr/x"] < 42
    assert min(v for k, v in figures.items() if k.startswith("sqnr/")) > 25
    # read from the work folder, with the scales
    again, (resumed,) = run_recipe([step], graph, given)
    assert resumed.resumed
    assert again.scales == after.scales


def test_covering_all_clips_nothing_that_it_has_seen(tmp_path):
    graph = residual_graph(4)
    x = inputs(10)
    after, _ = run_recipe([ActivationScales(method="max")], graph, context(tmp_path, face=x))
    order = np.random.default_rng(1).permutation(10)[:8]  # two are held out
    scale = after.scales["x"]
    seen = x[order]
    assert np.abs(scale.dequantise(scale.quantise(seen)) - seen).max() <= 0.5001 * scale.scale


def test_an_entry_without_samples_stays_as_it_is(tmp_path):
    pair = merge_graphs(face=residual_graph(1), voice=residual_graph(2, average=True))
    kept = ActivationScale(3.0, 3)
    pair = replace(pair, scales={"voice/x": kept, "face/x": kept})
    given = context(tmp_path, face=inputs(6))
    after, (report,) = run_recipe([ActivationScales()], pair, given)
    assert after.scales["voice/x"] == kept
    assert after.scales["face/x"] != kept
    assert set(after.scales) == {"voice/x", *weighted_inputs(pair, "face")}
    assert "cosine/voice" not in report.figures


def test_what_two_entries_compute_is_seen_from_both(tmp_path):
    eye = encode_float32(np.eye(2, dtype=np.float32))
    layers = (Gemm("a", ("x",), "y", "w"), Gemm("b", ("x",), "z", "w"))
    entries = (Entry("small", "x", (2,), "y"), Entry("large", "x", (2,), "z"))
    graph = Graph(entries, layers, {"w": eye})
    x = np.full((4, 2), 1, np.float32)
    given = context(tmp_path, small=x, large=100 * x)
    after, _ = run_recipe([ActivationScales(method="max")], graph, given)
    assert after.scales == {"x": ActivationScale(float(np.float32(100 / 255)), 0)}


def test_activations_that_are_always_zero(tmp_path):
    layers = (Gemm("a", ("x",), "h", "w"), Relu("r", ("h",), "p"), Gemm("b", ("p",), "y", "w"))
    minus = encode_float32(-np.eye(2, dtype=np.float32))
    graph = Graph((Entry("face", "x", (2,), "y"),), layers, {"w": minus})
    given = context(tmp_path, face=np.ones((5, 2), np.float32))
    after, (report,) = run_recipe([ActivationScales()], graph, given)
    assert after.scales["p"] == ActivationScale(1.0, 0)
    assert report.figures["sqnr/p"] == "inf"


def test_scales_come_after_what_changes_weights(tmp_path):
    graph = residual_graph(0)
    given = context(tmp_path, face=inputs(6))
    with pytest.raises(GraphError, match=r"pass 2 of 2, 'palette'.*before"):
        run_recipe([ActivationScales(), Palette(bits=2)], graph, given)
    after, _ = run_recipe([Palette(bits=2), ActivationScales(), Encode("int8")], graph, given)
    assert len(after.scales) == 21


def test_what_cannot_be_calibrated(tmp_path):
    graph = residual_graph(0)
    with pytest.raises(DataError, match="2 samples, 3 are needed"):
        run_recipe([ActivationScales()], graph, context(tmp_path, face=inputs(2)))
    with pytest.raises(DataError, match="there are none"):
        run_recipe([ActivationScales()], graph, context(tmp_path))
    with pytest.raises(DataError, match="no sample inputs"):
        run_recipe([ActivationScales(entries=("face",))], graph, context(tmp_path))
    with pytest.raises(GraphError, match="no entry 'iris'"):
        run_recipe([ActivationScales(entries=("iris",))], graph, context(tmp_path, face=inputs(3)))
    plain = Graph((Entry("face", "x", (2,), "y"),), (Relu("r", ("x",), "y"),), {})
    given = context(tmp_path, face=np.ones((3, 2), np.float32))
    with pytest.raises(GraphError, match="no convolution"):
        run_recipe([ActivationScales()], plain, given)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "entropy"},
        {"percentile": 49.0},
        {"percentile": 100.1},
        {"percentile": float("nan")},
        {"samples": 2},
        {"samples": 10.0},
    ],
)
def test_options_that_cannot_be(options):
    with pytest.raises(DataError):
        ActivationScales(**options)


def test_json_form():
    step = ActivationScales(entries=("face",), method="percentile", samples=10)
    assert ActivationScales.from_dict(step.to_dict()) == step


def test_centred_error_by_hand():
    before = np.array([[3, 4], [3, -4]], np.float32)  # unit: (0.6, +-0.8); the mean is (0.6, 0)
    after = np.array([[6, 8], [1, 0]], np.float32)  # (0.6, 0.8), (1, 0): off by (0.4, 0.8)
    assert centred_error(before, after) == pytest.approx(np.sqrt(0.8) / np.sqrt(2 * 0.64))
    assert centred_error(before[:1], before[:1]) == 0


def test_grouped_convolutions_are_weighted(tmp_path):
    weight = np.ones((2, 1, 1, 1), np.float32)
    layer = Conv("c", ("x",), "y", "w", groups=2)
    graph = Graph((Entry("face", "x", (2, 3, 3), "y"),), (layer,), {"w": encode_float32(weight)})
    x = np.random.default_rng(0).random((5, 2, 3, 3)).astype(np.float32)
    after, _ = run_recipe([ActivationScales()], graph, context(tmp_path, face=x))
    assert after.scales["x"].zero == 0
