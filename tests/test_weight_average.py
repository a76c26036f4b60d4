"""Averages of weights: functions kept by folding, weights by hand."""

import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.networks.cnn20 import CNN20, settle_statistics  # noqa: E402
from edgeid.converters.networks.cnn20_graph import settle_norms  # noqa: E402
from edgeid.converters.networks.weight_average import average_networks, fold_norms  # noqa: E402


def network(seed):
    """With norms that scale, shift and have seen something."""
    torch.manual_seed(seed)
    made = CNN20(0.125, 8, average_time=True)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    settle_statistics(made, [1 + torch.randn(8, 1, 112, 96)])
    return made.eval()


@torch.no_grad()
def test_folded_norms_keep_the_function():
    made, x = network(1), torch.randn(3, 1, 112, 96)
    folded = fold_norms(made)
    torch.testing.assert_close(folded(x), made(x), rtol=1e-3, atol=1e-4)
    norms = [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.running_mean == 0).all() for norm in norms)
    assert (next(iter(made.modules())).trunk[0][1].running_mean != 0).any()  # a copy was folded


@torch.no_grad()
def test_the_ends_are_the_two_networks():
    start, trained, x = network(1), network(2), torch.randn(3, 1, 112, 96)
    for keep, same in ((1.0, start), (0.0, trained)):
        mean = average_networks(start, trained, keep)
        torch.testing.assert_close(mean(x), same(x), rtol=1e-3, atol=1e-4)
        settle_norms(mean, [torch.randn(8, 1, 112, 96)])  # and can be trained further
        torch.testing.assert_close(mean(x), same(x), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_weights_between_by_hand():
    start, trained = network(1), network(2)
    mean = average_networks(start, trained, 0.25)

    def first_filters(made):
        convolution, norm, _ = made.trunk[0]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = norm.bias - norm.running_mean * scale
        return convolution.weight * scale.view(-1, 1, 1, 1), bias

    for of_start, of_trained, found in zip(
        *map(first_filters, (start, trained, mean)), strict=True
    ):
        torch.testing.assert_close(found, 0.25 * of_start + 0.75 * of_trained)
