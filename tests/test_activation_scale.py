"""Eight-bit activations: the arithmetic by hand and by an oracle, in graphs and in files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeid.fingerprint import model_fingerprint
from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.errors import GraphError, ModelError
from edgeid.runtime.format import ModelFile, dump_model, read_model
from edgeid.runtime.graph import (
    Add,
    Conv,
    Entry,
    Gemm,
    Graph,
    graph_from_dict,
    graph_to_dict,
    merge_graphs,
)
from edgeid.runtime.reference import ReferenceEngine

FLOATS = st.floats(width=32, allow_nan=False)
SCALES = st.builds(
    lambda scale, zero: ActivationScale(float(np.float32(scale)), zero),
    st.floats(2.0**-119, 2.0**119),
    st.integers(0, 255),
)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_steps_by_hand():
    scale = ActivationScale(0.5, 10)
    x = f32(0, -0.0, 0.3, 1, -1, 7.4, -5, -5.5, 122.5, 123)
    assert scale.quantise(x).tolist() == [10, 10, 11, 12, 8, 25, 0, 0, 255, 255]
    assert scale.dequantise(np.array([0, 10, 11, 255], np.uint8)).tolist() == [-5, 0, 0.5, 122.5]


def test_halves_go_to_even_steps_from_zero():
    # in steps: -1.5, -0.5, 0.5, 1.5, 2.5; an odd zero point does not turn the rule round
    x = f32(-0.75, -0.25, 0.25, 0.75, 1.25)
    assert ActivationScale(0.5, 10).quantise(x).tolist() == [8, 10, 10, 12, 12]
    assert ActivationScale(0.5, 11).quantise(x).tolist() == [9, 11, 11, 13, 13]


def test_what_is_beyond_saturates_and_nan_is_the_lowest():
    x = f32(np.inf, 3e38, 1e10, -1e10, -3e38, -np.inf, np.nan)
    assert ActivationScale(2.0**-119, 7).quantise(x).tolist() == [255] * 3 + [0] * 4
    assert ActivationScale(1, 0).quantise(x).tolist() == [255] * 3 + [0] * 4


@given(SCALES, st.lists(FLOATS, min_size=1, max_size=20))
def test_one_value_at_a_time(scale, values):
    """The oracle: Python's own exact products and rounding."""
    inverse = float(np.float32(1 / scale.scale))
    expected = []
    for value in values:
        with np.errstate(over="ignore"):
            steps = float(np.float32(value * inverse))  # exact in double, then one rounding
        low, high = -scale.zero, 255 - scale.zero
        bounded = low if steps < low else high if steps > high else round(steps)
        expected.append(bounded + scale.zero)
    assert scale.quantise(f32(*values)).tolist() == expected


@given(SCALES)
def test_every_level_comes_back(scale):
    levels = np.arange(256, dtype=np.uint8)
    values = scale.dequantise(levels)
    assert np.isfinite(values).all()
    assert values[scale.zero] == 0
    assert np.array_equal(scale.quantise(values), levels)


@given(st.floats(-1000, 0), st.floats(0, 1000), st.lists(st.floats(0, 1), max_size=9))
def test_covering_is_within_half_a_step(low, high, places):
    scale = ActivationScale.covering(low, high)
    x = f32(low, high, *(low + place * (high - low) for place in places))
    error = np.abs(scale.dequantise(scale.quantise(x)) - x)
    assert error.max() <= 0.5001 * scale.scale + 1e-30
    assert scale.scale <= max((high - low) / 255 * 1.0001, 2.0**-119) or low == high


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [(0, 255, 1, 0), (-255, 0, 1, 255), (-127, 128, 1, 127), (-1, 50, 0.2, 5), (0, 0, 1, 0)],
)
def test_covering_by_hand(low, high, scale, zero):
    found = ActivationScale.covering(low, high)
    assert (found.scale, found.zero) == (pytest.approx(scale), zero)
    assert found.scale == float(np.float32(found.scale))


def test_covering_extremes():
    assert ActivationScale.covering(-3.4e38, 3.4e38).scale == 2.0**119
    assert ActivationScale.covering(0, 1e-45).scale == 2.0**-119


BAD = [
    *((scale, 0) for scale in (0, -1.0, 1e39, 1e-39, np.nan, np.inf, True, "1", None, [1.0])),
    *((1.0, zero) for zero in (-1, 256, 1.0, True, "1", None, 10**400)),
    (10**400, 0),
    (np.float32(1), 0),
]


@pytest.mark.parametrize(("scale", "zero"), BAD)
def test_scales_that_cannot_be(scale, zero):
    with pytest.raises(GraphError, match=r"scale|zero"):
        ActivationScale(scale, zero)


# -- in a graph


def residual(**scales: ActivationScale) -> Graph:
    """y = W x + x, W = [[1, 0], [2, 1]]."""
    layers = (Gemm("fc", ("x",), "h", "w"), Add("add", ("h", "x"), "y"))
    weights = {"w": encode_float32(f32(1, 0, 2, 1).reshape(2, 2))}
    return Graph((Entry("face", "x", (2,), "y"),), layers, weights, scales)


def test_only_weighted_layers_read_eight_bits():
    graph = residual(x=ActivationScale(0.5, 1), h=ActivationScale(100, 0))
    x = f32(0.7, -3)[None]
    # the layer reads (0.5, -0.5), the addition (0.7, -3); nothing weighted reads h
    assert ReferenceEngine(graph, quantised=True).run("face", x)[0].tolist() == [
        pytest.approx(0.5 + 0.7),
        pytest.approx(0.5 - 3),
    ]
    assert np.array_equal(
        ReferenceEngine(graph).run("face", x), ReferenceEngine(residual()).run("face", x)
    )


@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_reads_its_rounded_input_and_pads_with_exact_zeros(groups):
    rng = np.random.default_rng(groups)
    weight = rng.standard_normal((4, 4 // groups, 3, 3)).astype(np.float32)
    layer = Conv("c", ("x",), "y", "w", None, (2, 1), (1, 0, 2, 1), groups)
    graph = Graph((Entry("e", "x", (4, 6, 5), "y"),), (layer,), {"w": encode_float32(weight)})
    scale = ActivationScale(0.03125, 77)
    x = rng.standard_normal((3, 4, 6, 5)).astype(np.float32)
    rounded = scale.dequantise(scale.quantise(x))
    expected = ReferenceEngine(graph).run("e", rounded)
    engine = ReferenceEngine(replace(graph, scales={"x": scale}), quantised=True)
    assert np.array_equal(engine.run("e", x), expected)
    assert engine.run("e", x[:0]).shape == (0, *expected.shape[1:])


def test_running_quantised_needs_scales():
    with pytest.raises(GraphError, match="no activation scales"):
        ReferenceEngine(residual(), quantised=True)


def test_scales_must_be_of_activations_of_the_graph():
    with pytest.raises(GraphError, match=r"'gone'.*calibrate"):
        residual(gone=ActivationScale(1, 0)).validate()
    with pytest.raises(GraphError, match=r"'x' is a float"):
        residual(x=0.5).validate()


def test_merging_keeps_the_scales_of_each():
    one, two = ActivationScale(1, 1), ActivationScale(2, 2)
    merged = merge_graphs(face=residual(x=one), voice=residual(x=two, h=one), iris=residual())
    assert merged.scales == {"face/x": one, "voice/x": two, "voice/h": one}


# -- in a file


def test_round_trip():
    scales = {"x": ActivationScale(float(np.float32(0.1)), 3), "h": ActivationScale(2, 255)}
    data = dump_model(ModelFile(residual(**scales)))
    read = read_model(data)
    assert read.graph.scales == scales
    assert dump_model(read) == data
    form = graph_to_dict(residual(**scales))
    assert form["scales"]["h"] == {"scale": 2.0, "zero": 255}
    assert graph_from_dict(json.loads(json.dumps(form)), residual().tensors).scales == scales


def test_files_without_scales_stay_as_they_were():
    assert graph_to_dict(residual()).keys() == {"entries", "layers"}
    assert read_model(dump_model(ModelFile(residual()))).graph.scales == {}


def test_a_fingerprint_follows_the_scales():
    graphs = [residual(), residual(x=ActivationScale(1, 0)), residual(x=ActivationScale(1, 1))]
    assert len({model_fingerprint(ModelFile(graph)) for graph in graphs}) == 3


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "expected an object"),
        (None, "expected an object"),
        ({"x": 1}, "expected an object"),
        ({"x": {"scale": 1.0}}, r"activation 'x'.*missing: \['zero'\]"),
        ({"x": {"scale": 1.0, "zero": 0, "code": 1}}, r"unknown: .*code"),
        ({"x": {"scale": 1e300, "zero": 0}}, "activation 'x': scale 1e"),
        ({"x": {"scale": 2**53, "zero": 2**53}}, "activation 'x': zero 9007199254740992"),
        ({"x": {"scale": "1", "zero": 0}}, "activation 'x': scale '1'"),
        ({"x": {"scale": True, "zero": 0}}, "activation 'x': scale True"),
        ({"x": {"scale": 1.0, "zero": 0.5}}, "activation 'x': zero 0.5"),
        ({"y" * 201: {"scale": 1.0, "zero": 0}}, "not a name"),
        ({"w": {"scale": 1.0, "zero": 0}}, "activation 'w', which no layer"),
        ({"": {"scale": 1.0, "zero": 0}}, "not a name"),
        ({"x": {"scale": float("nan"), "zero": 0}}, "NaN"),
    ],
)
def test_hostile_scales(rewrite, value, says):
    data = dump_model(ModelFile(residual(x=ActivationScale(1, 0))))
    with pytest.raises(ModelError, match=says):
        read_model(rewrite(data, lambda header: header["graph"].update(scales=value)))


def test_damage_only_ever_raises_model_errors(rewrite):
    data = dump_model(ModelFile(residual(x=ActivationScale(1, 0), h=ActivationScale(0.25, 7))))
    rng = np.random.default_rng(3)
    values = [None, True, -1, 256, 0.5, 1e39, "x", [], {}, {"scale": 1.0, "zero": 0}]

    def damage(header):
        scales = header["graph"]["scales"]
        name = rng.choice(["x", "h", "y", "", "no"])
        field = rng.choice(["scale", "zero", "more"])
        value = values[rng.integers(len(values))]
        if rng.random() < 0.3 or not isinstance(scales.get(name), dict):
            scales[str(name)] = value
        else:
            scales[name][str(field)] = value

    accepted = 0
    for _ in range(300):
        try:
            read_model(rewrite(data, damage))
            accepted += 1
        except ModelError:
            pass
    assert 0 < accepted < 150
