"""The mean of two networks' weights, one of which was trained further from the other.

What is trained further on other samples forgets some of what it could; between the two the errors
of both lie below the line (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from edgeid.converters.networks.cnn20 import CNN20, ConvUnit


@torch.no_grad()
def average_networks(start: CNN20, trained: CNN20, keep: float) -> CNN20:
    """A CNN-20 with ``keep`` of the weights of ``start``, 0..1, and the rest of ``trained``.

    The weights are those with the batch norms folded in, whose statistics differ: the norms of
    the result fit no data, see ``settle_norms``.
    """
    first, second = (fold_norms(network).state_dict() for network in (start, trained))
    mean = deepcopy(trained)
    mean.load_state_dict(
        {
            name: torch.lerp(second[name], value, keep) if value.is_floating_point() else value
            for name, value in first.items()
        }
    )
    return mean.eval()


@torch.no_grad()
def fold_norms(network: CNN20) -> CNN20:
    """The same function with batch norms that only add a bias."""
    folded = deepcopy(network).eval()
    for unit in folded.modules():
        if isinstance(unit, ConvUnit):
            _fold(unit[0], unit[1])
    _fold(folded.embed, folded.norm)
    return folded


def _fold(before: nn.Module, norm: nn.Module) -> None:
    """Scale the outputs of ``before`` as ``norm`` does; shifts go where there is a bias."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    weights, state = before.state_dict(), norm.state_dict()  # the modules' own memory
    scale = state.get("weight", torch.ones_like(state["running_var"]))
    scale = scale / (state["running_var"] + norm.eps).sqrt()
    shift = state.get("bias", 0.0) - state["running_mean"] * scale
    weights["weight"].mul_(scale.view(-1, *[1] * (weights["weight"].ndim - 1)))
    if "bias" in weights:
        weights["bias"].mul_(scale).add_(shift)
    else:
        state["bias"].copy_(shift)
        state["weight"].fill_(1)
    state["running_mean"].fill_(0)
    state["running_var"].fill_(1 - norm.eps)
