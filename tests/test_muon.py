"""Muon: steps of matrices against their polar factors, of everything else against Adam."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.training.muon import Muon, orthogonal  # noqa: E402


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (32, 32), (1, 9)])
def test_orthogonal_is_near_the_polar_factor(shape):
    torch.manual_seed(1)
    matrix = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = orthogonal(matrix).double()
    assert torch.linalg.svdvals(found).max() < 1.3
    cosine = (found * (u @ v)).sum() / (found.norm() * (u @ v).norm())
    assert cosine > 0.95


def test_a_step_does_not_depend_on_the_size_of_the_gradient():
    moved = []
    for size in (1e-4, 1.0, 1e4):
        weight = torch.nn.Parameter(torch.ones(4, 3, 3, 3))
        torch.manual_seed(2)
        weight.grad = size * torch.randn(4, 3, 3, 3)
        Muon([weight], [], rate=0.1, decay=0.0).step()
        moved.append(weight.detach() - 1)
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=4e-3)
    torch.testing.assert_close(moved[2], moved[1], rtol=0, atol=4e-3)
    values = torch.linalg.svdvals(moved[1].flatten(1))
    assert values.min() > 0.05  # times the rate
    assert values.max() < 0.13


def test_a_tall_matrix_steps_further():
    # a step of singular values 1 moves outputs by sqrt(rows / columns) of what inputs are
    weight = torch.nn.Parameter(torch.zeros(64, 4))
    torch.manual_seed(3)
    weight.grad = torch.randn(64, 4)
    Muon([weight], [], rate=1.0, decay=0.0).step()
    assert 0.6 * 4 < float(torch.linalg.svdvals(weight.detach()).mean()) < 1.3 * 4


def test_decay_shrinks_matrices_only():
    weight, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    weight.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    Muon([weight], [bias], rate=0.5, decay=0.1).step()
    np.testing.assert_allclose(weight.detach(), 0.95)
    np.testing.assert_allclose(bias.detach(), 1.0)


def test_other_parameters_are_trained_as_adam_does():
    torch.manual_seed(4)
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    muon = Muon([], [ours], other_rate=0.01)
    adam = torch.optim.Adam([theirs], 0.01, betas=(0.9, 0.95))
    for _ in range(4):
        ours.grad = torch.randn(5)
        theirs.grad = ours.grad.clone()
        muon.step()
        adam.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_has_no_gradient_stays():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    Muon([weight], []).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


def test_it_learns():
    torch.manual_seed(5)
    wanted, weight = torch.randn(6, 8), torch.nn.Parameter(torch.zeros(6, 8))
    x = torch.randn(64, 8)
    muon = Muon([weight], [], rate=0.1)
    losses = []
    for _ in range(80):
        loss = (x @ (weight - wanted).T).square().mean()
        muon.zero_grad()
        loss.backward()
        muon.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
