"""Refinement of codewords and indices against what a layer puts out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from edgeid.converters.codebook.coded_weights import CodedPair, Coding, cluster  # noqa: E402
from edgeid.converters.codebook.output_error import output_error, patches_of  # noqa: E402
from edgeid.converters.codebook.refinement import conjugate_gradients, refine  # noqa: E402
from edgeid.converters.codebook.subvectors import join  # noqa: E402
from edgeid.runtime.graph import Conv, Gemm  # noqa: E402

CONV = Conv("c", ("x",), "y", "w", None, (2, 1), (1, 1, 0, 1))
GEMM = Gemm("g", ("x",), "y", "w", None)


def correlated(count, channels, size=6, seed=0):
    """Maps whose channels are mixtures of a few: (count, channels, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(count, max(2, channels // 4), size, size, generator=generator)
    mixing = torch.randn(channels, sources.shape[1], generator=generator)
    noise = 0.1 * torch.randn(count, channels, size, size, generator=generator)
    return torch.einsum("cs,nsij->ncij", mixing, sources) + noise


def layer_error(x, weight, other, reach):
    """The oracle: the convolution itself, its mean at each output taken off."""
    top, left, bottom, right = CONV.pad
    padded = functional.pad(x, (left, right, top, bottom))
    off = functional.conv2d(padded, weight - other, None, CONV.stride)
    off = off - off.mean((0, 2, 3), keepdim=True)
    return float((off.square().mean((0, 2, 3)) * reach).sum())


def problem(channels=8, out=6, r=4, count=40, seed=0):
    torch.manual_seed(seed)
    x = correlated(count, channels, seed=seed)
    weight = torch.randn(out, channels, 3, 3)
    top, left, bottom, right = CONV.pad
    y = functional.conv2d(functional.pad(x, (left, right, top, bottom)), weight, None, CONV.stride)
    reach = torch.rand(out) + 0.5
    patches = patches_of(CONV, x, y, weight.shape, reach)
    return x, weight, reach, output_error([patches], weight, r)


def as_weight(blocks, shape):
    """(blocks, r, out) -> (out, in, 3, 3)."""
    taps = shape[2] * shape[3]
    grid = blocks.transpose(1, 2).reshape(-1, taps * shape[0], blocks.shape[1])
    return join(grid, shape)


@pytest.mark.parametrize("count", [40, 1])  # more and fewer patches than weights of a filter
@pytest.mark.parametrize("r", [4, 8])  # 8 needs padding of 12 channels
def test_the_error_is_that_of_the_convolution(count, r):
    x, weight, reach, error = problem(channels=12, r=r, count=count)
    real = error.start.abs().sum(2, keepdim=True) > 0  # no weights in the padding
    found = [error.start + 0.3 * torch.randn_like(error.start) * real for _ in range(2)]
    values = [error.value(w) - error.value(error.start) for w in found]
    for w, value in zip(found, values, strict=True):
        true = layer_error(x, as_weight(w, weight.shape), weight, reach)
        away = float(((w - error.start).square().sum((0, 1)) * reach).sum())
        # per patch (3 x 6 of them a map) 0.2 of the mean squared length of one
        ridge = 0.2 * float(x.square().mean()) * 12 * 9 / (count * 18)
        assert true < value < true + 1.1 * ridge * away
    gradient = (found[0] - found[1]).flatten() @ (
        error.slope(found[0]) + error.slope(found[1])
    ).flatten()
    assert float(gradient) == pytest.approx(values[0] - values[1], rel=1e-3, abs=1e-3)


def test_the_second_derivative_is_the_difference_of_slopes():
    *_, error = problem()
    a, b = (torch.randn_like(error.start) for _ in range(2))
    torch.testing.assert_close(
        error.normal(a - b), error.slope(a) - error.slope(b), rtol=1e-3, atol=1e-3
    )


def test_outputs_are_met_better_where_inputs_are_correlated():
    x, weight, reach, error = problem(channels=16, out=16, r=8)
    cost = torch.ones_like(weight)
    pair = cluster({"w": weight}, {"w": cost}, Coding(16, 8), seed=0)
    made = refine(pair, {"w": error}, 3)
    before, after = (layer_error(x, p.decode("w"), weight, reach) for p in (pair, made))
    assert after < 0.5 * before
    nearness = [float((p.decode("w") - weight).square().sum()) for p in (pair, made)]
    assert nearness[1] > nearness[0]  # it is the outputs that count, not the weights
    assert made.codewords.shape == pair.codewords.shape
    assert int(made.indices["w"].max()) < 16


def test_two_weights_share_what_is_refined():
    problems = {name: problem(channels, seed=i) for i, (name, channels) in
                enumerate({"a": 16, "b": 8}.items())}  # fmt: skip
    weights = {n: p[1] for n, p in problems.items()}
    pair = cluster(
        weights, {n: torch.ones_like(w) for n, w in weights.items()}, Coding(16, 4), seed=0
    )
    made = refine(pair, {n: p[3] for n, p in problems.items()}, 2)
    for name, (x, weight, reach, _) in problems.items():
        before, after = (layer_error(x, p.decode(name), weight, reach) for p in (pair, made))
        assert after < before
    stored = made.stored()
    assert np.array_equal(stored["a"].codewords, stored["b"].codewords)
    for name, tensor in stored.items():
        np.testing.assert_allclose(tensor.decode(), made.decode(name).numpy(), rtol=1e-4, atol=1e-6)


def test_indices_are_the_best_of_all_where_all_can_be_tried():
    """Two sub-vectors a filter, 16 codewords: 256 choices an output."""
    torch.manual_seed(3)
    x = correlated(30, 4, size=1, seed=3).flatten(1)
    weight = torch.randn(5, 4)
    reach = torch.ones(5)
    error = output_error([patches_of(GEMM, x, x @ weight.T, weight.shape, reach)], weight, 2)
    pair = cluster({"w": weight}, {"w": torch.ones_like(weight)}, Coding(16, 2), seed=0)
    made = refine(pair, {"w": error}, 2)
    tables = made.codewords  # (2, 16, 2)
    best = torch.full((5,), torch.inf)
    for i, j in itertools.product(range(16), repeat=2):
        tried = torch.stack([tables[0, i], tables[1, j]])[:, :, None].expand(2, 2, 5)
        fit = error.residual(tried).square().sum(0)
        best = torch.minimum(best, fit + error.ridge * (tried - error.start).square().sum((0, 1)))
    # coordinate descent may stop at a local minimum; here it hardly does
    assert error.value(_blocks_of(made, 5)) <= 1.2 * float(best.sum())
    assert error.value(_blocks_of(made, 5)) >= float(best.sum()) - 1e-5


def _blocks_of(pair: CodedPair, out):
    weight = pair.decode("w")
    return weight.T.reshape(-1, 2, out)


def test_a_weight_that_two_networks_read():
    x, weight, reach, _ = problem(channels=8, seed=1)
    other = correlated(30, 8, seed=9)
    parts = []
    for inputs in (x, other):
        top, left, bottom, right = CONV.pad
        padded = functional.pad(inputs, (left, right, top, bottom))
        y = functional.conv2d(padded, weight, None, CONV.stride)
        parts.append(patches_of(CONV, inputs, y, weight.shape, reach))
    error = output_error(parts, weight, 4)
    changed = error.start + 0.1 * torch.randn_like(error.start)
    value = error.value(changed) - error.value(error.start)
    even = torch.full_like(reach, float(reach.mean()))
    true = sum(layer_error(i, as_weight(changed, weight.shape), weight, even) for i in (x, other))
    assert value == pytest.approx(true, rel=0.05)


def test_conjugate_gradients_solve_a_system():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((12, 12))
    matrix = torch.from_numpy(root @ root.T + np.eye(12)).float()
    wanted = torch.from_numpy(rng.standard_normal((3, 4))).float()
    found = conjugate_gradients(
        lambda x: (matrix @ x.flatten()).reshape(3, 4), wanted, matrix.diagonal().reshape(3, 4), 60
    )
    expected = np.linalg.solve(matrix.numpy().astype(np.float64), wanted.numpy().flatten())
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-3, atol=1e-3)
    none = conjugate_gradients(lambda x: 0 * x, torch.zeros(3), torch.zeros(3), 5)
    assert torch.equal(none, torch.zeros(3))


def test_inputs_that_never_vary():
    """A dead layer: nothing to fit, and nothing breaks."""
    weight = torch.randn(4, 8, 3, 3)
    x, y = torch.zeros(20, 8, 6, 6), torch.zeros(20, 4, 3, 6)
    error = output_error([patches_of(CONV, x, y, weight.shape, torch.ones(4))], weight, 4)
    pair = cluster({"w": weight}, {"w": torch.ones_like(weight)}, Coding(16, 4), seed=0)
    made = refine(pair, {"w": error}, 2)
    assert bool(torch.isfinite(made.decode("w")).all())
