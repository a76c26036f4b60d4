"""The C kernels: at every level of this machine the bits of the oracle, for layers of all sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.native import oracle
from edgeid.runtime.native import program as p
from edgeid.runtime.native.engine import levels

from .native_programs import Network, drawn_input, fixed, lookup, run_compiled, same_bits

LEVELS = levels()
if not LEVELS:
    pytest.skip("the C extension was not built", allow_module_level=True)

from edgeid.runtime import _native  # noqa: E402

POOLS = {threads: _native.Pool(threads) for threads in (1, 2, 3)}
ONCE = p.Window((1, 1), (1, 1), (0, 0, 0, 0))


def every_level_agrees(program, x, threads=1):
    expected = oracle.run(program, x)
    for isa in LEVELS:
        try:
            same_bits(run_compiled(_native, program, x, isa, POOLS[threads]), expected)
        except AssertionError as error:
            raise AssertionError(f"{isa}: {error}") from None


def drawn_codewords(rng, kind, shape):
    if kind == "random":
        return None
    if kind == "ends":
        return np.where(rng.integers(0, 2, shape), 127, -127)
    return np.full(shape, 127 if kind == "high" else -127)


@st.composite
def activations(draw, rng, channels):
    slope = rng.uniform(-0.5, 2, channels).astype(np.float32) if draw(st.booleans()) else None
    low = draw(st.sampled_from([-np.inf, -np.inf, 0.0, -3.5]))
    high = draw(st.sampled_from([np.inf, np.inf, 6.0]))
    return p.Activation(slope, low, high)


SCALES = st.builds(
    ActivationScale, st.sampled_from([1.0, 0.013, 2.0**-20]), st.sampled_from([0, 1, 117, 255])
)


@st.composite
def networks(draw, kinds=("lookup", "lookup", "lookup", "dense", "depthwise")):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(kinds))
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    pad = tuple(draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    if draw(st.integers(0, 3)) == 0:  # as most layers are
        kernel, pad, stride = (3, 3), (1, 1, 1, 1), (stride[0],) * 2
    window = p.Window(kernel, stride, pad)
    smallest = [max(1, kernel[i] - pad[i] - pad[i + 2]) for i in range(2)]
    height, width = (n + draw(st.integers(0, 9)) for n in smallest)
    if draw(st.integers(0, 5)) == 0:
        width += draw(st.integers(10, 90))
    cin, cout = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    if draw(st.integers(0, 7)) == 0:  # fully connected
        window, height, width, cin = ONCE, 1, 1, draw(st.integers(1, 200))
    cout = cin if kind == "depthwise" else cout
    size, scale = (cin, height, width), draw(SCALES)
    ends = draw(st.sampled_from(["random", "random", "high", "low", "ends"]))
    if kind == "lookup":
        count, length = draw(st.sampled_from([16, 32, 64, 256])), draw(st.sampled_from([2, 4, 8]))
        shape = (-(-cin // length), count, length)
        steps = draw(st.sampled_from([None, None, 1, 32767]))
        codewords = drawn_codewords(rng, ends, shape)
        weights = lookup(rng, cin, cout, window.kernel, count, length, codewords, steps)
    else:
        shape = (cout, 1 if kind == "depthwise" else cin, *window.kernel)
        values = drawn_codewords(rng, ends, shape)
        values = rng.integers(-127, 128, shape) if values is None else values
        weights = p.DenseWeights(values.astype(np.int8))
    residual = None
    other = draw(st.integers(0, 5))
    if other == 0:
        residual = p.DenseWeights(
            rng.integers(-127, 128, (cout, cin, *window.kernel)).astype(np.int8)
        )
    elif other == 1 and cin <= 8:
        residual = p.FloatWeights(
            rng.standard_normal((cout, cin, *window.kernel)).astype(np.float32)
        )
    epilogue = p.Epilogue(
        (rng.standard_normal(cout) * 0.01).astype(np.float32),
        rng.standard_normal(cout).astype(np.float32),
        draw(activations(rng, cout)),
        None,
        draw(activations(rng, cout)),
    )
    groups = cin if kind == "depthwise" else 1
    network = Network(size, scale, window, weights, epilogue, draw(SCALES), groups, residual)
    batch = draw(st.sampled_from([0, 1, 1, 1, 2, 3, 5, 9]))
    while batch > 1 and batch * np.prod(size) > 20_000:
        batch -= 1
    form = draw(st.sampled_from(["all", "all", "low", "high", "ends", "halves", "beyond"]))
    return network.program(), drawn_input(rng, form, (batch, *size), scale)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.sampled_from([1, 1, 2, 3]))
def test_random_layers(case, threads):
    program, x = case
    every_level_agrees(program, x, threads)


@pytest.mark.parametrize("length", [2, 4, 8])
@pytest.mark.parametrize("count", [16, 32, 64, 256])
@pytest.mark.parametrize(("sign", "entry"), [(1, 127), (-1, -128)])
def test_sums_of_many_saturated_entries(count, length, sign, entry):
    """9 * 64 entries of one sign leave 16 bits; every output is their number times the entry."""
    rng = np.random.default_rng(0)
    cin = 64 * length
    codewords = np.full((64, count, length), sign * 127)
    weights = lookup(rng, cin, 5, (3, 3), count, length, codewords, 32767)
    program, x = fixed(cin, 5, (3, 4), p.Window((3, 3), (1, 1), (0, 0, 0, 0)), weights)
    assert (oracle.run(program, x)[0, :5] == 9 * 64 * entry).all()
    every_level_agrees(program, x)


@pytest.mark.parametrize("zero", [0, 255])
def test_long_dense_sums(zero):
    """255 * 127 a product, 9 * 500 of them, beyond what 16-bit halves could hold."""
    sign = 1 if zero == 0 else -1
    weights = p.DenseWeights(np.full((3, 500, 3, 3), 127, np.int8))
    window = p.Window((3, 3), (1, 1), (1, 1, 1, 1))
    form = "high" if zero == 0 else "low"
    program, x = fixed(500, 3, (5, 5), window, weights, zero, form)
    assert oracle.run(program, x)[0, 0, 2, 2] == sign * 255 * 127 * 4500
    every_level_agrees(program, x)


@pytest.mark.parametrize("count", [16, 32, 64, 256])
@pytest.mark.parametrize("cin", [8, 16, 24, 40])
def test_sums_of_large_kernels_with_saturated_entries(count, cin):
    """63 positions of up to four sub-spaces at a time, the most that 16 bits hold."""
    rng = np.random.default_rng(0)
    codewords = np.full((cin // 8, count, 8), -127)
    weights = lookup(rng, cin, 5, (7, 9), count, 8, codewords, 32767)
    program, x = fixed(cin, 5, (8, 10), p.Window((7, 9), (1, 1), (0, 0, 0, 0)), weights)
    assert (oracle.run(program, x)[0, :5] == 63 * cin // 8 * -128).all()
    every_level_agrees(program, x)


@pytest.mark.parametrize("kernel", [(7, 9), (1, 32), (16, 1)])
def test_large_kernels(kernel):
    rng = np.random.default_rng(1)
    window = p.Window(kernel, (1, 1), (kernel[0] // 2, kernel[1] // 2, kernel[0] // 2, 0))
    size = (4, 40)
    for weights, groups in (
        (lookup(rng, 8, 9, kernel), 1),
        (p.DenseWeights(rng.integers(-127, 128, (9, 8, *kernel)).astype(np.int8)), 1),
        (p.DenseWeights(rng.integers(-127, 128, (8, 1, *kernel)).astype(np.int8)), 8),
    ):
        cout = 8 if groups == 8 else 9
        program, x = fixed(8, cout, size, window, weights, 7, "all", groups)
        every_level_agrees(program, x)


@pytest.mark.parametrize("stride", [(4, 7), (7, 4), (9, 9)])
def test_strides_beyond_the_kernel(stride):
    rng = np.random.default_rng(2)
    window = p.Window((3, 2), stride, (1, 1, 0, 0))
    for weights in (
        lookup(rng, 12, 20, (3, 2)),
        p.DenseWeights(rng.integers(-127, 128, (20, 12, 3, 2)).astype(np.int8)),
    ):
        program, x = fixed(12, 20, (20, 23), window, weights, 9, "all", 1, 2)
        every_level_agrees(program, x)


@pytest.mark.parametrize("outputs", [1, 7, 64, 65, 130, 600])
@pytest.mark.parametrize("count", [16, 256])
def test_fully_connected_layers(outputs, count):
    rng = np.random.default_rng(outputs)
    weights = lookup(rng, 333, outputs, (1, 1), count, 4)
    every_level_agrees(*fixed(333, outputs, (1, 1), ONCE, weights, 100, "all", 1, 3))


def test_a_larger_kernel_is_refused():
    window = p.Window((8, 8), (1, 1), (0, 0, 0, 0))
    weights = lookup(np.random.default_rng(0), 8, 5, (8, 8))
    program, x = fixed(8, 5, (8, 8), window, weights)
    with pytest.raises(ValueError, match="codebook and convolution do not fit"):
        run_compiled(_native, program, x, LEVELS[0], POOLS[1])
