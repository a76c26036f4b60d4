"""From layers to steps: what is joined, which forms are stored, and that the numbers stay.

Where nothing else is said, weights, scales and inputs are small multiples of powers of two,
so that float32 is exact in any order and the answers have to be equal to the bit.
"""

from __future__ import annotations

import numpy as np
import pytest

from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.codebook import make_codebook
from edgeid.runtime.encoding import Int8, encode_float32
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import (
    Add,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv,
    Entry,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Graph,
    L2Normalize,
    Layer,
    MaxPool,
    Mul,
    PRelu,
    Relu,
    Reshape,
)
from edgeid.runtime.native import oracle
from edgeid.runtime.native import program as p
from edgeid.runtime.native.planner import plan
from edgeid.runtime.native.weights import MAX_PRODUCTS, lookup_weights, pays
from edgeid.runtime.reference import ReferenceEngine

SIZE = (6, 4, 4)
PAD = (1, 1, 1, 1)
SCALE = ActivationScale(2.0**-4, 128)


def int8(*shape, seed=0):
    rng = np.random.default_rng(seed)
    scale = 2.0 ** rng.integers(-4, 0, shape[0])
    return Int8(rng.integers(-3, 4, shape).astype(np.int8), scale.astype(np.float32))


def dyadic(*shape, seed=0):
    return encode_float32(np.random.default_rng(seed).integers(-8, 9, shape) / 8)


TENSORS = {
    "w1": int8(6, 6, 3, 3, seed=1),
    "w2": int8(6, 6, 3, 3, seed=2),
    "point": int8(5, 6, 1, 1, seed=3),
    "deep": int8(6, 1, 3, 3, seed=4),
    "grouped": int8(4, 3, 3, 3, seed=5),
    "pairs": int8(12, 1, 3, 3, seed=6),
    "fc": int8(5, 96, seed=7),
    "fc6": int8(5, 6, seed=8),
    "b": dyadic(6, seed=9),
    "b5": dyadic(5, seed=10),
    "s": dyadic(6, seed=11),
    "g": dyadic(6, seed=12),
    "h": dyadic(6, seed=13),
}


def graph_of(layers, scales=(), size=SIZE, tensors=TENSORS, **more):
    """From x to the output of the last layer; ``scales``: activations read in eight bits."""
    used = {name: tensors[name] for layer in layers for name in layer.tensor_names()}
    entry = Entry("face", "x", size, layers[-1].output)
    graph = Graph((entry,), tuple(layers), used, dict.fromkeys(scales, SCALE), **more)
    graph.validate()
    return graph


def batch(size=SIZE, count=3):
    """Multiples of 1/16 from -9 to 9, some of which saturate."""
    return (np.random.default_rng(0).integers(-144, 145, (count, *size)) / 16).astype(np.float32)


def check(layers, steps, scales=("x",), size=SIZE):
    """Plans, compares with the reference to the bit, and the steps by the layers behind them."""
    graph = graph_of(layers, scales, size)
    program = plan(graph, "face")
    assert [step.name for step in program.steps[1:]] == steps
    x = batch(size)
    expected = ReferenceEngine(graph, quantised=bool(scales)).run("face", x)
    got = oracle.run(program, x)
    assert got.dtype == np.float32
    assert np.array_equal(got, expected)
    return program


def conv(name, source, target, weight="w1", bias="b"):
    return Conv(name, (source,), target, weight, bias, (1, 1), PAD)


FIRST = conv("c1", "x", "a")


def test_affine_prelu_residual_and_relu_join_a_convolution():
    program = check(
        [
            FIRST,
            conv("c2", "a", "b", "w2", None),
            Affine("affine", ("b",), "c", "g", "h"),
            PRelu("prelu", ("c",), "d", "s"),
            Add("add", ("a", "d"), "e"),
            Relu("relu", ("e",), "y"),
        ],
        ["c1", "c2"],
        ("x", "a"),
    )
    source, first, second = program.steps
    assert (source.output.scale, source.output.real) == (SCALE, False)
    assert (first.output.scale, first.output.real) == (SCALE, True)  # the residual is real
    assert (second.output.name, second.output.scale, second.output.real) == ("y", None, True)
    end = second.epilogue
    weight = TENSORS["g"].decode()
    assert np.array_equal(end.gain, SCALE.scale * TENSORS["w2"].scale * weight)
    assert np.array_equal(end.shift, TENSORS["h"].decode())
    assert np.array_equal(end.first.slope, TENSORS["s"].decode())
    assert (end.residual, end.first.low, end.second.low, end.second.high) == (
        "a",
        -np.inf,
        0,
        np.inf,
    )
    assert end.second.slope is None


def test_an_affine_multiplies_the_bias_before_it():
    layers = [FIRST, Affine("f", ("a",), "c", "g", "h"), Affine("f2", ("c",), "y", "s", "b")]
    check(layers, ["c1"])


def test_an_activation_that_is_read_twice_is_stored():
    program = check(
        [FIRST, PRelu("prelu", ("a",), "b", "s"), Add("add", ("a", "b"), "y")],
        ["c1", "prelu", "add"],
    )
    assert program.steps[1].output.name == "a"


def test_add_joins_the_side_that_comes_later():
    sides = [FIRST, conv("c2", "x", "b", "w2")]
    for inputs in (("a", "b"), ("b", "a")):
        program = check([*sides, Add("add", inputs, "y")], ["c1", "c2"])
        assert program.steps[-1].epilogue.residual == "a"


def test_add_after_a_pool_that_comes_later_is_a_step():
    pool = MaxPool("pool", ("x",), "b", (3, 3), (1, 1), PAD)
    check([FIRST, pool, Add("add", ("a", "b"), "c"), Relu("r", ("c",), "y")], ["c1", "pool", "add"])


def test_the_input_as_residual():
    program = check([FIRST, Add("add", ("a", "x"), "y")], ["c1"])
    assert (program.steps[0].output.scale, program.steps[0].output.real) == (SCALE, True)


def test_a_second_residual_is_a_step():
    layers = [FIRST, Add("add", ("x", "a"), "b"), Add("again", ("b", "x"), "y")]
    check(layers, ["c1", "again"])


def test_one_tensor_added_to_itself():
    check([FIRST, Add("add", ("a", "a"), "y")], ["c1", "add"])
    check([Add("add", ("x", "x"), "y")], ["add"], scales=())
    check([FIRST, Mul("mul", ("a", "a"), "b"), Relu("r", ("b",), "y")], ["c1", "mul"])
    check([FIRST, Concat("join", ("a", "x", "a"), "y")], ["c1", "join"])


def test_clip_joins_a_prelu_but_not_the_other_way_round():
    prelu, clip = PRelu("prelu", ("a",), "b", "s"), Clip("clip", ("b",), "y", -1.5, 2)
    check([FIRST, prelu, clip], ["c1"])
    clip, prelu = Clip("clip", ("a",), "b", -1.5, 2), PRelu("prelu", ("b",), "y", "s")
    check([FIRST, clip, prelu], ["c1", "prelu"])
    # what is clipped already may not be clipped, or changed by an affine, in the same epilogue
    check([FIRST, clip, Clip("again", ("b",), "y", -3, 1)], ["c1", "again"])
    check([FIRST, clip, Affine("affine", ("b",), "y", "g", "h")], ["c1", "affine"])
    check([FIRST, Relu("r", ("a",), "b"), Clip("again", ("b",), "y", -1, 1)], ["c1", "again"])


def test_two_prelus_and_an_affine_behind_a_prelu():
    prelu = PRelu("prelu", ("a",), "b", "s")
    check([FIRST, prelu, PRelu("again", ("b",), "y", "g")], ["c1", "again"])
    check([FIRST, prelu, Affine("affine", ("b",), "y", "g", "h")], ["c1", "affine"])


def test_both_activations_of_an_epilogue():
    check(
        [
            FIRST,
            PRelu("p1", ("a",), "b", "s"),
            Clip("k1", ("b",), "c", -2, 3),
            Add("add", ("c", "x"), "d"),
            PRelu("p2", ("d",), "e", "g"),
            Clip("k2", ("e",), "f", -1, 4),
            Affine("affine", ("f",), "y", "h", "b"),
        ],
        ["c1", "affine"],
    )


def test_products_and_what_follows_them():
    layers = [
        FIRST,
        conv("c2", "x", "b", "w2"),
        Mul("mul", ("a", "b"), "c"),
        Affine("affine", ("c",), "d", "g", "h"),
        PRelu("prelu", ("d",), "e", "s"),
        Clip("clip", ("e",), "y", -3, 3),
    ]
    check(layers, ["c1", "c2", "mul"])


@pytest.mark.parametrize(
    "layer",
    [
        MaxPool("l", ("a",), "y", (2, 2), (2, 2), (1, 0, 1, 0)),
        MaxPool("l", ("a",), "y", (3, 3), (1, 2), (2, 2, 0, 1)),
        AveragePool("l", ("a",), "y", (2, 2), (1, 1), (0, 1, 1, 0)),
        GlobalAveragePool("l", ("a",), "y"),
        Flatten("l", ("a",), "y"),
        Reshape("l", ("a",), "y", (4, 8, 3)),
        Reshape("l", ("a",), "y", (3, -1)),
        Reshape("l", ("a",), "y", (2, 3, 4, 4)),
        Clip("l", ("a",), "y", -1, 1),
        Concat("l", ("x", "a"), "y"),
    ],
    ids=lambda layer: f"{layer.op}{getattr(layer, 'shape', '')}",
)
def test_layers_without_weights(layer):
    check([FIRST, layer], ["c1"] if layer.op == "Clip" else ["c1", "l"])


@pytest.mark.parametrize("shape", [(6, 4, 4), (12, 8), (96,)])
def test_normalisation(shape):
    """Within float32 rounding of a sum of squares: 2^-24 for each of up to 96 of them."""
    graph = graph_of([Reshape("r", ("x",), "a", shape), L2Normalize("n", ("a",), "y")])
    x = batch()
    x[0] = 0
    expected = ReferenceEngine(graph).run("face", x)
    assert oracle.run(plan(graph, "face"), x) == pytest.approx(expected, rel=96 * 2**-24, abs=1e-9)


def test_a_pool_that_is_read_in_eight_bits():
    layers = [MaxPool("pool", ("x",), "a", (2, 2)), conv("c2", "a", "y")]
    program = check(layers, ["pool", "c2"], ("a",))
    assert (program.steps[1].output.scale, program.steps[1].output.real) == (SCALE, False)


def kinds(program):
    return [type(s.weights) for s in program.steps if isinstance(s, p.Convolution)]


def test_without_a_scale_a_layer_is_computed_in_floats():
    layers = [FIRST, conv("c2", "a", "y", "w2")]
    assert kinds(check(layers, ["c1", "c2"], ())) == [p.FloatWeights] * 2
    assert kinds(check(layers, ["c1", "c2"], ("x",))) == [p.DenseWeights, p.FloatWeights]
    program = check(layers, ["c1", "c2"], ("a",))
    assert kinds(program) == [p.FloatWeights, p.DenseWeights]
    assert [(s.output.scale, s.output.real) for s in program.steps] == [
        (None, True),
        (SCALE, False),
        (None, True),
    ]


def test_groups():
    """Depth-wise in integers; other groups in floats, from what is not rounded."""
    deep = Conv("c", ("x",), "y", "deep", "b", (1, 1), PAD, 6)
    assert kinds(check([deep], ["c"])) == [p.DenseWeights]
    pairs = Conv("c", ("x",), "y", "pairs", None, (2, 2), PAD, 6)
    grouped = Conv("c", ("x",), "y", "grouped", None, (1, 2), (0, 0, 1, 2), 2)
    for layer in (pairs, grouped):
        graph = graph_of([layer], ("x",))
        program = plan(graph, "face")
        assert kinds(program) == [p.FloatWeights]
        assert program.steps[0].output.scale is None
        expected = ReferenceEngine(graph).run("face", batch())
        assert np.array_equal(oracle.run(program, batch()), expected)


def test_strides_and_uneven_padding():
    layer = Conv("c", ("x",), "y", "w1", "b", (2, 3), (2, 0, 1, 2))
    check([layer], ["c"])


def test_fully_connected_behind_a_flatten():
    layers = [Flatten("flat", ("x",), "v"), Gemm("fc", ("v",), "y", "fc", "b5")]
    program = check(layers, ["flat", "fc"], ("v",))
    assert program.values["v"].size == (96, 1, 1)
    assert kinds(program) == [p.DenseWeights]
    check(layers, ["flat", "fc"], ())
    pooled = [
        GlobalAveragePool("pool", ("x",), "m"),
        Flatten("flat", ("m",), "v"),
        Gemm("fc", ("v",), "y", "fc6"),
    ]
    check(pooled, ["pool", "flat", "fc"], ("v",))


def test_activations_of_a_vector():
    layers = [
        GlobalAveragePool("pool", ("x",), "m"),
        Flatten("flat", ("m",), "v"),
        PRelu("prelu", ("v",), "y", "s"),
    ]
    check(layers, ["pool", "flat", "prelu"], ())


def test_an_output_that_another_entry_reads_on():
    first = Entry("one", "x", SIZE, "a")
    layers = (FIRST, Relu("r", ("a",), "y"))
    used = {name: TENSORS[name] for name in ("w1", "b")}
    graph = Graph((first, Entry("two", "x", SIZE, "y")), layers, used, {"x": SCALE})
    reference = ReferenceEngine(graph, quantised=True)
    for name in ("one", "two"):
        program = plan(graph, name)
        assert len(program.steps) == 2
        assert np.array_equal(oracle.run(program, batch()), reference.run(name, batch()))


def test_sums_that_could_leave_32_bits_are_computed_in_floats():
    assert MAX_PRODUCTS * 255 * 127 < 2**31 <= (MAX_PRODUCTS + 1) * 255 * 127
    for count, expected in ((MAX_PRODUCTS, p.DenseWeights), (MAX_PRODUCTS + 1, p.FloatWeights)):
        tensors = {"w": Int8(np.ones((1, count), np.int8), np.ones(1, np.float32))}
        graph = graph_of([Gemm("fc", ("x",), "y", "w")], ("x",), (count,), tensors)
        assert kinds(plan(graph, "face")) == [expected]


def test_weights_in_floats_are_rounded_to_int8():
    """Half a step of 1 / 127 of the largest weight, times what is read, at each product."""
    weight = np.random.default_rng(0).standard_normal((5, 6, 3, 3)).astype(np.float32)
    tensors = {"w": encode_float32(weight)}
    graph = graph_of([Conv("c", ("x",), "y", "w")], ("x",), tensors=tensors)
    got = oracle.run(plan(graph, "face"), batch())
    exact = ReferenceEngine(graph, quantised=True).run("face", batch())
    bound = 54 * 8 * np.abs(weight).max() / 254
    assert 0 < np.abs(got - exact).max() <= bound


# ---- codebooks ----


def codebook(shape, count=16, length=8, seed=0, spare=0, kind=np.float32):
    rng = np.random.default_rng(seed)
    spaces = -(-shape[1] // length)
    codewords = rng.standard_normal((spaces + spare, count, length)).astype(kind)
    indices = rng.integers(0, count, (spaces, *(shape[2:] or (1, 1)), shape[0]))
    return make_codebook(codewords, indices, shape)


@pytest.mark.parametrize(
    ("outputs", "kernel", "stride", "count", "length", "expected"),
    [
        (64, (1, 1), (1, 1), 16, 8, True),
        (63, (1, 1), (1, 1), 16, 8, False),
        (64, (1, 1), (1, 1), 16, 4, False),
        (256, (1, 1), (1, 1), 16, 4, True),
        (8, (3, 3), (1, 1), 16, 8, True),
        (28, (3, 3), (2, 2), 16, 8, False),  # 9 / 4 * 28 = 63
        (29, (3, 3), (2, 2), 16, 8, True),
        (4096, (3, 3), (1, 1), 16, 2, False),
        (64, (7, 9), (1, 1), 16, 8, True),
        (64, (8, 8), (1, 1), 16, 8, False),  # sums could leave 16 bits
        (64, (1, 32), (1, 1), 16, 8, True),
        (64, (1, 33), (1, 1), 16, 8, False),
    ],
)
def test_where_look_up_pays(outputs, kernel, stride, count, length, expected):
    """From 4 K look-ups an input position on for r = 8, 16 K for r = 4, never for r = 2."""
    weight = codebook((outputs, 8, *kernel), count, length)
    assert pays(weight, p.Window(kernel, stride, (0, 0, 0, 0))) is expected


@pytest.mark.parametrize(
    ("shape", "size", "count", "length", "more"),
    [
        ((24, 8, 3, 3), (8, 4, 5), 16, 8, {}),
        ((70, 13, 1, 1), (13, 3, 3), 16, 8, {}),
        ((40, 10, 3, 3), (10, 3, 3), 16, 4, {"spare": 2}),
        ((24, 11, 3, 3), (11, 4, 3), 32, 8, {"kind": np.float16}),
        ((64, 96), (96,), 16, 8, {}),
        ((256, 50), (50,), 16, 4, {}),
    ],
)
def test_look_up_layers_are_near_the_dense_layer(shape, size, count, length, more):
    """Each look-up is off by the roundings of its table entry, see the head of ``program``.

    Half a step, half a step of u, and what the multiplier is off; and codewords in int8 are
    off by half of 1 / 127 of the largest, r times with inputs of at most 9.
    """
    tensors = {"w": codebook(shape, count, length, **more)}
    window = p.Window(shape[2:] or (1, 1), (1, 1), (0, 0, 0, 0))
    layer = Conv("c", ("x",), "y", "w") if len(shape) == 4 else Gemm("c", ("x",), "y", "w")
    graph = graph_of([layer], ("x",), size, tensors, table_scales={"c": 0.5})
    program = plan(graph, "face")
    assert kinds(program) == [p.LookupWeights]
    weights, gain = program.steps[-1].weights, program.steps[-1].epilogue.gain
    assert (gain == 0.5).all()
    spaces = -(-shape[1] // length)
    assert weights.codewords.shape == (spaces, count, length)
    x = batch(size)
    exact = ReferenceEngine(graph, quantised=True).run("face", x)
    entry = 0.5 + weights.multipliers.max() / 2**16 + 32640 / 2**16
    codewords = length * 9 * np.abs(tensors["w"].decode_codewords()).max() / 254
    bound = spaces * np.prod(window.kernel) * (0.5 * entry + codewords)
    assert np.abs(oracle.run(program, x) - exact).max() <= bound
    # and far below on the average: independent errors grow with the root of their number
    error = np.sqrt(np.mean((oracle.run(program, x) - exact) ** 2))
    assert error <= 0.5 * np.sqrt(spaces * np.prod(window.kernel))


def test_what_lies_beyond_the_last_channel_is_zero():
    """Codewords that two layers share may reach beyond the channels of the narrower one."""
    weight = codebook((70, 13, 1, 1), spare=1)
    made, _ = lookup_weights(weight, SCALE, None)
    assert made.codewords.shape == (2, 16, 8)
    assert made.codewords[1, :, :5].any()
    assert not made.codewords[1, :, 5:].any()


@pytest.mark.parametrize("table_scale", [None, 2.0**-119, 1e-3, 0.5, 1e6, 2.0**100])
@pytest.mark.parametrize("scale", [2.0**-119, 0.1, 2.0**90])
def test_multipliers_stay_in_their_range(table_scale, scale):
    made, gain = lookup_weights(codebook((70, 16, 1, 1)), ActivationScale(scale, 3), table_scale)
    assert made.multipliers.dtype == np.int16
    assert made.multipliers.min() >= 1
    assert np.isfinite(gain).all()
    assert (gain > 0).all()


def test_codewords_of_zeros():
    weight = make_codebook(
        np.zeros((1, 16, 8), np.float32), np.zeros((1, 3, 3, 9), np.int64), (9, 8, 3, 3)
    )
    graph = graph_of([Conv("c", ("x",), "y", "w")], ("x",), (8, 3, 3), {"w": weight})
    assert not oracle.run(plan(graph, "face"), batch((8, 3, 3))).any()


def test_a_codebook_where_look_up_does_not_pay_is_multiplied():
    graph = graph_of(
        [Conv("c", ("x",), "y", "w")], ("x",), (8, 4, 4), {"w": codebook((4, 8, 1, 1))}
    )
    assert kinds(plan(graph, "face")) == [p.DenseWeights]


# ---- errors ----


def test_an_unknown_entry():
    with pytest.raises(GraphError, match="no entry 'voice'"):
        plan(graph_of([FIRST], ("x",)), "voice")


def test_an_unknown_operator_is_named():
    class Odd(Layer):
        op = "Odd"

        def output_shape(self, inputs, _tensors):
            return inputs[0]

    graph = Graph((Entry("face", "x", SIZE, "y"),), (Odd("o", ("x",), "y"),), {})
    with pytest.raises(GraphError, match=r"layer 'o' .*does not know this operator"):
        plan(graph, "face")
