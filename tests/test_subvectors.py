"""Cutting weights: by hand, against runtime.codebook, and back again."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.codebook.subvectors import cut, decode, index_grid, join  # noqa: E402
from edgeid.runtime.codebook import make_codebook, quantise_codewords  # noqa: E402


def test_a_matrix_by_hand():
    """Two outputs, three inputs, r = 2: the second sub-space is padded."""
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert cut(weight, 2).tolist() == [[[1, 2], [4, 5]], [[3, 0], [6, 0]]]


@pytest.mark.parametrize("shape", [(5, 8, 3, 2), (4, 7, 1, 1), (3, 10), (6, 3, 2, 2)])
@pytest.mark.parametrize("r", [2, 4, 8])
def test_the_order_is_row_column_output_and_join_undoes_it(shape, r):
    weight = torch.randn(shape)
    kernel = weight.reshape(*shape[:2], *(shape[2:] or (1, 1)))
    outputs, channels, height, width = kernel.shape
    vectors = cut(weight, r)
    assert vectors.shape == (-(-channels // r), height * width * outputs, r)
    for o, c, y, x in np.ndindex(*kernel.shape):
        row = (y * width + x) * outputs + o
        assert vectors[c // r, row, c % r] == kernel[o, c, y, x]
    assert torch.equal(join(vectors, shape), weight)


@pytest.mark.parametrize("shape", [(5, 9, 3, 3), (16, 8)])
def test_decode_agrees_with_the_stored_form(shape):
    codewords = torch.randn(4, 16, 4)  # one or two more sub-spaces than the weight has
    spaces = -(-shape[1] // 4)
    count = int(np.prod(shape)) // shape[1]
    indices = torch.randint(16, (spaces, count))
    values, scale = quantise_codewords(codewords.numpy())
    grid = index_grid(indices, shape).numpy()
    stored = make_codebook(values, grid, shape, scale).decode()
    rounded = torch.from_numpy(values * scale[:, None, None])
    np.testing.assert_allclose(decode(rounded, indices, shape).numpy(), stored, rtol=1e-6)


def test_gradients_reach_the_codewords():
    codewords = torch.randn(1, 16, 2, requires_grad=True)
    indices = torch.tensor([[3, 3, 5]])
    decode(codewords, indices, (3, 2)).sum().backward()
    assert codewords.grad[0, :, 0].tolist() == [0, 0, 0, 2, 0, 1, *[0] * 10]
