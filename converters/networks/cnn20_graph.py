"""The CNN-20 inside a model file, as a network that can be trained further."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeid.converters.networks.cnn20 import CNN20, STAGES, ConvUnit
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import Affine, AveragePool, Conv, Gemm, Graph, PRelu

NORM_EPS = 1e-5  # of torch's batch norms


def cnn20_of_graph(graph: Graph, entry: str) -> CNN20:
    """The network of an entry, with its weights decoded and its batch norms apart again.

    The batch norms that were folded into the weights come back with the filters brought to
    unit length. Their statistics are made up (mean 0, variance 1) and fit no data: before the
    network is trained, ``settle_norms`` has to set them.

    Raises:
        GraphError: the entry is no CNN-20.
    """
    layers = graph.layers_of(entry)
    convolutions = [layer for layer in layers if isinstance(layer, Conv | Gemm)]
    slopes = [layer.slope for layer in layers if isinstance(layer, PRelu)]
    shifts = {layer.inputs[0]: layer for layer in layers if isinstance(layer, Affine)}
    averaged = any(isinstance(layer, AveragePool) for layer in layers)

    def decoded(name: str) -> Tensor:
        return torch.from_numpy(graph.tensors[name].decode().copy())

    def parameters(layer: Conv | Gemm) -> tuple[Tensor, Tensor]:
        """Weight and bias, the scale of the outputs multiplied in."""
        weight = decoded(layer.weight)
        bias = decoded(layer.bias) if layer.bias else torch.zeros(len(weight))
        if layer.output in shifts:
            affine = shifts[layer.output]
            scale = decoded(affine.weight)
            weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
            bias = bias * scale + decoded(affine.bias)
        return weight, bias

    if not convolutions or not slopes:
        raise GraphError(f"the {entry} network is no CNN-20: it has no convolutions with PReLUs")
    found = [parameters(layer) for layer in convolutions]
    (first, _), (last, _) = found[0], found[-1]
    network = CNN20(len(first) / STAGES[0][0], len(last), average_time=averaged)
    units = [module for module in network.modules() if isinstance(module, ConvUnit)]
    fits = (
        len(units) == len(slopes) == len(found) - 1
        and all(u[0].weight.shape == w.shape for u, (w, _) in zip(units, found, strict=False))
        and network.embed.weight.numel() == last.numel()
    )
    if not fits:
        raise GraphError(f"the {entry} network is no CNN-20: its layers have other shapes")
    for unit, (weight, bias), slope in zip(units, found, slopes, strict=False):
        length = weight.flatten(1).norm(dim=1).clamp_min(1e-12)
        state = unit.state_dict()  # the module's own memory
        state["0.weight"].copy_(weight / length.view(-1, 1, 1, 1))
        state["1.weight"].copy_(length)
        state["1.bias"].copy_(bias)
        state["1.running_var"].fill_(1 - NORM_EPS)
        state["2.weight"].copy_(decoded(slope).flatten())
    state = network.state_dict()
    state["embed.weight"].copy_(last.flatten(1))
    state["embed.bias"].copy_(found[-1][1])
    state["norm.running_var"].fill_(1 - NORM_EPS)
    return network.eval()


@torch.no_grad()
def settle_norms(network: nn.Module, batches: list[Tensor]) -> None:
    """Give batch norms of maps the statistics of ``batches``; outputs stay the same.

    What each norm did before is kept by its scale and shift, so that training, which
    normalises by the batch, goes on from the function that the network computes. Norms
    without scale and shift are left alone.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    seen: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}  # first two moments

    def collect(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].double().transpose(0, 1).flatten(1)  # (channels, values)
        seen[norm].append(torch.stack([rows.mean(1), rows.square().mean(1)]))

    hooks = [norm.register_forward_pre_hook(collect) for norm in norms]
    network.eval()
    for batch in batches:
        network(batch)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        mean, square = torch.stack(seen[norm]).mean(0)  # batches are of one size
        variance = (square - mean.square()).clamp_min(0)
        state = norm.state_dict()  # the module's own memory
        scale = state["weight"] / (state["running_var"] + norm.eps).sqrt()
        state["bias"].add_(scale * (mean - state["running_mean"]))
        state["weight"].copy_(scale * (variance + norm.eps).sqrt())
        state["running_mean"].copy_(mean)
        state["running_var"].copy_(variance)
