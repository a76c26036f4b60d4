"""The numpy definition of the native arithmetic: tables by hand, edges, and dense convolutions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.native import oracle
from edgeid.runtime.native import program as p
from edgeid.runtime.packing import pack_bits

from .native_programs import lookup, out_size

ONCE = p.Window((1, 1), (1, 1), (0, 0, 0, 0))


def column(*values):
    """One position: (1, channels, 1, 1)."""
    return np.array(values, np.int32).reshape(1, -1, 1, 1)


def one_table(codeword, centred, multiplier):
    """The first entry of the table of one sub-space, at one position."""
    codewords = np.zeros((1, 16, len(codeword)), np.int8)
    codewords[0, 0] = codeword
    weights = p.LookupWeights(codewords, np.zeros(0, np.uint8), np.array([multiplier], np.int16))
    found = oracle.tables(weights, column(*centred))
    assert found.shape == (1, 1, 16, 1, 1)
    assert not found[0, 0, 1:].any()  # codewords of zeros
    return int(found[0, 0, 0, 0, 0])


def test_a_table_entry_step_by_step():
    # t = 10 - 40 + 90 + 20 = 80; u = 82 >> 2 = 20; v = (20 * 16384 + 16384) >> 15 = 10
    assert one_table([1, 2, 3, 4], [10, -20, 30, 5], 16384) == 10
    # t = 8 * 100 = 800; u = 804 >> 3 = 100; v = (100 * 3277 + 16384) >> 15 = 344084 >> 15 = 10
    assert one_table([1] * 8, [100] * 8, 3277) == 10
    # t = 7 * 5 - 3 = 32; u = 33 >> 1 = 16; v = (16 * 32767 + 16384) >> 15 = 16
    assert one_table([7, -1], [5, 3], 32767) == 16


@pytest.mark.parametrize(
    ("total", "halved"), [(1, 0), (2, 1), (5, 1), (6, 2), (-1, 0), (-2, 0), (-3, -1), (-6, -1)]
)
def test_the_first_rounding_takes_halves_up(total, halved):
    """t / 4 rounded; m is so close to 1 that the second rounding gives u again."""
    assert one_table([1, 0, 0, 0], [total, 9, 9, 9], 32767) == halved


@pytest.mark.parametrize(("halved", "entry"), [(1, 1), (2, 1), (3, 2), (-1, 0), (-2, -1), (-3, -1)])
def test_the_second_rounding_takes_halves_up(halved, entry):
    """u / 2 rounded."""
    assert one_table([4, 0, 0, 0], [halved, 0, 0, 0], 16384) == entry


@pytest.mark.parametrize(
    ("codeword", "value", "multiplier", "entry"),
    [
        (127, 255, 32767, 127),  # t = 259080, u = 32385: the largest there is
        (-127, 255, 32767, -128),
        (127, -255, 32767, -128),
        (-127, -255, 32767, 127),
        (127, 255, 1, 1),  # 32385 / 32768 is nearest to 1
        (127, 255, 129, 127),  # 32385 * 129 / 32768 = 127.49
        (127, 255, 130, 127),  # 128.48 saturates
        (-127, 255, 130, -128),  # -128.48
        (-127, 255, 129, -127),
        (127, 0, 32767, 0),
    ],
)
def test_saturation(codeword, value, multiplier, entry):
    assert one_table([codeword] * 8, [value] * 8, multiplier) == entry


@pytest.mark.parametrize("length", [2, 4, 8])
def test_the_halved_sum_fits_16_bits(length):
    for sign in (-1, 1):
        exact = sign * 255 * 128 * length  # int8 reaches -128
        halved = (exact + length // 2) >> (length.bit_length() - 1)
        assert -(2**15) <= halved < 2**15


def test_a_look_up_layer_by_hand():
    """Two sub-spaces, two outputs, a kernel of one row and two columns."""
    codewords = np.zeros((2, 16, 4), np.int8)
    codewords[0, 1] = [4, 0, 0, 0]
    codewords[0, 2] = [0, 4, 0, 0]
    codewords[1, 3] = [0, 0, 0, 8]
    indices = np.zeros((2, 1, 2, 2), np.int64)  # (space, row, column, output)
    indices[0, 0, 0] = [1, 2]
    indices[0, 0, 1] = [2, 0]
    indices[1, 0, 1] = [3, 3]
    # m = 16384 halves: a codeword of 4 gives half of q - zero, one of 8 the whole
    weights = p.LookupWeights(codewords, pack_bits(indices, 4), np.full(2, 16384, np.int16))
    window = p.Window((1, 2), (1, 1), (0, 1, 0, 0))
    x = np.zeros((1, 8, 1, 2), np.float32)
    x[0, :, 0, 0] = [10, 20, 1, 1, 1, 1, 1, 5]
    x[0, :, 0, 1] = [-6, 8, 1, 1, 1, 1, 1, -7]
    # output 0 = half of channel 0 on the left + half of channel 1 + channel 7, on the right
    # output 1 = half of channel 1 on the left + channel 7 on the right; left of column 0 is 0
    expected = [[0 + 10 + 5, 5 + 4 - 7], [0 + 5, 10 - 7]]
    got = oracle.run(layer(weights, window, x, 2), x)
    assert got[0, :, 0].tolist() == expected


def layer(weights, window, x, outputs, scale=None, groups=1, epilogue=None):
    """The program of one convolution on an input like ``x``; the scale is 1, the zero 128."""
    scale = scale or ActivationScale(1.0, 128)
    ones = np.ones(outputs, np.float32)
    size = (outputs, *out_size(x.shape[1:], window))
    step = p.Convolution(
        *("c", ("x",), p.Value("y", size)),
        *(window, groups, weights, epilogue or p.Epilogue(ones, 0 * ones)),
    )
    floats = isinstance(weights, p.FloatWeights)
    source = p.Value("x", x.shape[1:], None if floats else scale, real=floats)
    values = {"x": source, "y": step.output}
    return p.Program("face", x.shape[1:], (p.Pack("x", (), source), step), values, "y", size)


@pytest.mark.parametrize("zero", [0, 1, 128, 255])
@pytest.mark.parametrize("kind", ["lookup", "dense", "depthwise"])
def test_an_input_of_zeros_and_its_padding_contribute_nothing(kind, zero):
    rng = np.random.default_rng(0)
    window = p.Window((3, 3), (1, 1), (2, 2, 2, 2))
    x = np.zeros((1, 5, 3, 2), np.float32)
    weights = p.DenseWeights(rng.integers(-127, 128, (5, 5, 3, 3)).astype(np.int8))
    if kind == "lookup":
        weights = lookup(rng, 5, 5, (3, 3), multipliers=32767)
    elif kind == "depthwise":
        weights = p.DenseWeights(weights.values[:, :1])
    groups = 5 if kind == "depthwise" else 1
    scale = ActivationScale(1.0, zero)
    assert not oracle.run(layer(weights, window, x, 5, scale, groups), x).any()


def test_padding_is_the_zero_point_not_the_byte_zero():
    """A kernel of ones over one pixel of 1: every output sees that pixel alone."""
    weights = p.DenseWeights(np.ones((1, 1, 3, 3), np.int8))
    window = p.Window((3, 3), (1, 1), (1, 1, 1, 1))
    x = np.zeros((1, 1, 3, 3), np.float32)
    x[0, 0, 1, 1] = 1
    assert (oracle.run(layer(weights, window, x, 1), x) == 1).all()


def dense_convolution(centred, weight, window, groups=1):
    """Plainly, in float64: exact for what is drawn here."""
    (n, _, height, width), (outputs, channels, _, _) = centred.shape, weight.shape
    top, left, bottom, right = window.pad
    padded = np.zeros((n, centred.shape[1], height + top + bottom, width + left + right))
    padded[:, :, top : top + height, left : left + width] = centred
    rows, columns = out_size((0, height, width), window)
    out = np.zeros((n, outputs, rows, columns))
    for o in range(outputs):
        group = o // (outputs // groups)
        seen = padded[:, group * channels : (group + 1) * channels]
        for y in range(rows):
            for x in range(columns):
                (down, across), (kh, kw) = window.stride, window.kernel
                part = seen[:, :, y * down : y * down + kh, x * across : x * across + kw]
                out[:, o, y, x] = (part * weight[o].astype(np.float64)).sum(axis=(1, 2, 3))
    return out


@st.composite
def layers(draw, most=9):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    pad = tuple(draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4))
    window = p.Window(kernel, (draw(st.integers(1, 3)), draw(st.integers(1, 3))), pad)
    height, width = (draw(st.integers(kernel[i], kernel[i] + 3)) for i in range(2))
    zero = draw(st.sampled_from([0, 7, 128, 255]))
    channels = draw(st.integers(1, most))
    q = rng.integers(0, 256, (draw(st.integers(1, 2)), channels, height, width))
    return rng, window, q - zero, zero


@settings(max_examples=40, deadline=None)
@given(layers(), st.integers(1, 5), st.booleans())
def test_dense_and_depthwise_layers_are_exact(case, outputs, depthwise):
    rng, window, centred, zero = case
    channels = centred.shape[1]
    shape = (channels, 1, *window.kernel) if depthwise else (outputs, channels, *window.kernel)
    weight = rng.integers(-127, 128, shape).astype(np.int8)
    groups = channels if depthwise else 1
    x = centred.astype(np.float32)
    program = layer(p.DenseWeights(weight), window, x, shape[0], ActivationScale(1.0, zero), groups)
    # sums of at most 9 * 16 products of 255 * 127 are exact in float32 too
    assert np.array_equal(
        oracle.run(program, x), dense_convolution(centred, weight, window, groups)
    )


@settings(max_examples=40, deadline=None)
@given(layers(), st.integers(1, 5), st.sampled_from([16, 32, 64, 256]), st.sampled_from([2, 4, 8]))
def test_look_up_is_within_what_table_rounding_allows(case, outputs, count, length):
    """Against the dense convolution of the decoded weights.

    An entry is t * m / (r * 2^15), rounded twice: half a step of u, which is m / 2^16 of a
    step of v, and half a step of v. Sizes are such that nothing saturates.
    """
    rng, window, centred, zero = case
    channels = centred.shape[1]
    m = int(rng.integers(1, 120))
    # |t| <= 255 * 127 * r, so |v| <= 255 * 127 * 119 / 2^15 + 1 < 127
    weights = lookup(rng, channels, outputs, window.kernel, count, length, multipliers=m)
    x = centred.astype(np.float32)
    program = layer(weights, window, x, outputs, ActivationScale(1.0, zero))
    spaces = len(weights.codewords)
    bits = count.bit_length() - 1
    indices = oracle.unpack_bits(weights.indices, bits, spaces * np.prod(window.kernel) * outputs)
    indices = indices.reshape(spaces, *window.kernel, outputs)
    decoded = np.concatenate(
        [weights.codewords[s][indices[s]].transpose(2, 3, 0, 1) for s in range(spaces)], axis=1
    )[:, :channels]
    exact = dense_convolution(centred, decoded, window) * m / (length * 2**15)
    bound = spaces * np.prod(window.kernel) * (0.5 + m / 2**16)
    assert np.abs(oracle.run(program, x) - exact).max() <= bound


def test_float_layers_with_groups_are_dense_convolutions():
    rng = np.random.default_rng(2)
    window = p.Window((2, 3), (2, 1), (1, 0, 0, 2))
    x = rng.integers(-9, 10, (2, 6, 5, 4)).astype(np.float32)
    weight = rng.integers(-9, 10, (4, 3, 2, 3)).astype(np.float32)
    program = layer(p.FloatWeights(weight), window, x, 4, groups=2)
    assert np.array_equal(oracle.run(program, x), dense_convolution(x, weight, window, 2))


def finished(total, **epilogue):
    """One channel through an epilogue; arguments are numbers."""

    def activation(name):
        slope, low, high = epilogue.get(name, (None, -np.inf, np.inf))
        return p.Activation(None if slope is None else np.array([slope], np.float32), low, high)

    end = p.Epilogue(
        np.array([epilogue.get("gain", 1)], np.float32),
        np.array([epilogue.get("shift", 0)], np.float32),
        activation("first"),
        None,
        activation("second"),
    )
    residual = np.array([[epilogue.get("residual", 0)]], np.float32)
    return float(oracle.finish(np.array([[total]], np.int32), end, residual)[0, 0])


def test_an_epilogue_by_hand():
    assert finished(10, gain=0.5, shift=-1) == 4
    assert finished(-10, gain=0.5, shift=1, first=(0.25, -np.inf, np.inf)) == -1
    assert finished(10, gain=-1, first=(0.5, -4, np.inf), residual=1) == -3
    assert finished(10, first=(None, 0, 6), residual=-8, second=(2, -3, 3)) == -3
    assert finished(10, first=(None, 0, 6), residual=-7, second=(2, -3, 3)) == -2
    assert finished(0, first=(5, 0.5, 6)) == 0.5


def test_a_sum_beyond_24_bits_is_rounded_once():
    assert finished(2**24 + 1, gain=1) == 2**24
    assert finished(2**24 + 3, gain=1) == 2**24 + 4
    # 2^24 * gain and the shift are rounded one after the other: no fused multiply-add
    gain = np.float32(1) + np.float32(2) ** -23
    assert finished(3, gain=gain, shift=-3) == np.float32(3 * float(gain)) - 3


def plain(step, x, **values):
    size = values.get("size", x.shape[1:])
    source = p.Value("x", x.shape[1:])
    output = p.Value("y", size)
    made = step("s", ("x",), output, **values.get("more", {}))
    steps = (p.Pack("x", (), source), made)
    program = p.Program("face", x.shape[1:], steps, {"x": source, "y": output}, "y", size)
    return oracle.run(program, x)


def test_pooling_looks_at_what_is_inside():
    x = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
    window = p.Window((2, 2), (2, 2), (1, 1, 0, 0))
    more = {"window": window, "largest": True}
    assert plain(p.Pool, -x, size=(1, 2, 2), more=more).ravel().tolist() == [-1, -2, -4, -5]
    more = {"window": window, "largest": False}
    assert plain(p.Pool, x, size=(1, 2, 2), more=more).ravel().tolist() == [1, 2.5, 5.5, 7]


def test_the_largest_of_nan_and_of_two_zeros():
    """v > result ? v : result, as the kernels have it: NaN never wins, the first zero stays."""
    more = {"window": p.Window((1, 2), (1, 2), (0, 0, 0, 0)), "largest": True}
    x = np.array([np.nan, 1, 1, np.nan, -0.0, 0.0, 0.0, -0.0], np.float32).reshape(1, 1, 1, 8)
    got = plain(p.Pool, x, size=(1, 1, 4), more=more).ravel()
    assert got.tolist() == [1, 1, 0, 0]
    assert np.signbit(got).tolist() == [False, False, True, False]


def test_normalisation():
    x = np.array([3, 4, 0, 0], np.float32).reshape(1, 2, 1, 2, order="F")
    got = plain(p.Normalise, x, more={"eps": 1e-12})
    assert got[0, :, 0, 0] == pytest.approx([0.6, 0.8])
    assert got[0, :, 0, 1].tolist() == [0, 0]
    assert plain(p.Normalise, x, more={"eps": 10.0})[0, :, 0, 0].tolist() == pytest.approx(
        [0.3, 0.4]
    )


def test_reshape_keeps_the_row_major_order():
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    assert plain(p.Reshape, x, size=(12, 1, 1)).ravel().tolist() == list(range(12))
    assert plain(p.Reshape, x, size=(2, 1, 6))[0, 1, 0].tolist() == [6, 7, 8, 9, 10, 11]
