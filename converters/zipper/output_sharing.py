"""One layer for two, by what it puts out rather than by its weights.

Paper 004 gives two aligned filters their mean. The filters of a face and of a voice network
have little in common however they are aligned, and the mean keeps about half of either. But
each filter only has to answer to what its own network gives it to read, and that varies much
in few directions and little in most. The weight w shared by the filters a and b is the one
whose outputs differ least from theirs,

    (w - a)' A (w - a) + (w - b)' B (w - b)  ->  min,      w = (A + B)^-1 (A a + B b)

with A and B the covariances of the patches that a and b read (for linear layers the closed form
of Jin et al., "Dataless knowledge fusion by merging weights of language models", ICLR 2023).
Both get a ridge, the larger the fewer patches there are for each weight of a filter: in
directions that the samples do not tell, w is the paper's mean. Outputs are taken as the norm
behind each layer makes them, of mean 0 and spread 1, and a norm may turn a sign. The order of
the first layer's filters is the one that leaves the least error, by the Hungarian algorithm as
for the distances of weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgeid.converters.graphs.normalisation import NormModule
from edgeid.converters.graphs.permutation import permute
from edgeid.converters.graphs.torch_graph import GraphModule, to_torch
from edgeid.converters.zipper.filter_alignment import (
    Alignment,
    Weighted,
    match_filters,
    movable_group,
)
from edgeid.converters.zipper.shared_layers import (
    block_pairs,
    norm_after,
    share_weight,
    shared_name,
)
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.errors import DataError
from edgeid.runtime.graph import Conv, Graph

POSITIONS = 64  # of a map that are looked at, drawn anew for each batch
ROWS = 32  # patches looked at for each weight of a filter; neighbours in a map are much alike


@dataclass(frozen=True, eq=False)
class SharedOutputs:
    """What two layers with n filters share.

    Attributes:
        weight: float32, as the layers have it.
        order: (n,) filter i is shared with the first layer's filter ``order[i]``.
        signs: (n,) 1 or -1, which the second layer's outputs are to be multiplied by.
        errors: (n,) the sum of what the first and the second miss of their outputs' variance,
            either multiplied by its importance.
        before: the sum of these errors in the order that the filters had.
    """

    weight: FloatArray
    order: NDArray[np.intp]
    signs: FloatArray
    errors: FloatArray
    before: float


def input_covariance(
    module: GraphModule,
    layer: Weighted,
    entry: str,
    batches: Iterable[Tensor],
    *,
    fast: bool = False,
) -> tuple[Tensor, int]:
    """(groups, d, d) covariance of the patches (of features, for a Gemm) that a layer reads,
    and the number of patches that it was taken from.

    Args:
        batches: inputs of the entry, (N, *shape) each; as many are taken as ``ROWS`` asks for,
            or all of them.
        fast: compute the patches in bfloat16.
    """
    generator = torch.Generator().manual_seed(0)
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    weight = module.weight(layer.weight)
    with torch.no_grad():
        for x in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                values = module.activations(x, entry)[layer.inputs[0]].float()
            rows = _patches(layer, weight, values, generator)
            count += rows.shape[1]
            total = total + rows.sum(1)
            if products.ndim == 0:
                products = rows.transpose(1, 2) @ rows
            else:
                products.baddbmm_(rows.transpose(1, 2), rows)
            if count >= ROWS * rows.shape[2]:
                break
    if count < 2:
        raise DataError(f"{layer.name}: {count} patches have no covariance")
    mean = total / count
    return products.div_(count).sub_(mean[:, :, None] * mean[:, None, :]), count


def _patches(layer: Weighted, weight: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
    """(groups, rows, d)."""
    if not isinstance(layer, Conv):
        return x[None]
    top, left, bottom, right = layer.pad
    padded = F.pad(x, (left, right, top, bottom))
    patches = F.unfold(padded, weight.shape[2:], stride=layer.stride)  # (N, channels * k, P)
    chosen = torch.randperm(patches.shape[2], generator=generator)[:POSITIONS]
    rows = patches[:, :, chosen].transpose(1, 2).flatten(0, 1)
    grouped: Tensor = rows.reshape(len(rows), layer.groups, -1).transpose(0, 1)
    return grouped


def share_outputs(
    first: Tensor,
    second: Tensor,
    covariances: tuple[Tensor, Tensor],
    movable: bool,
    ridge: float = 1e-3,
    importance: tuple[float, float] = (1.0, 1.0),
) -> SharedOutputs:
    """The weight that answers most like both layers.

    Args:
        first, second: weights (n, ...) of one shape.
        covariances: (groups, d, d) of what each reads, with n * d = groups * size.
        movable: whether the first layer's filters may take another order.
        ridge: added to either's variance in all directions, a share of its mean.
        importance: how much the error of either's outputs counts.

    Raises:
        DataError: neither layer's input varies.
    """
    groups, size = covariances[0].shape[:2]
    rows = [w.detach().reshape(groups, -1, size) for w in (first, second)]
    rows = [_of_unit_spread(w, c) for w, c in zip(rows, covariances, strict=True)]
    variance = float(sum(c.diagonal(dim1=1, dim2=2).mean() for c in covariances)) / 2
    if not variance > 0:
        raise DataError("two layers read nothing but constants: there is nothing to merge them by")
    # at most four matrices of this size at once: those of a fully connected layer are large
    joint = importance[0] * covariances[0] + importance[1] * covariances[1]
    joint.diagonal(dim1=1, dim2=2).add_(sum(importance) * ridge * variance)
    factor = torch.linalg.cholesky(joint)
    del joint
    aims = [
        share * (c @ w.transpose(1, 2) + ridge * variance * w.transpose(1, 2))
        for share, w, c in zip(importance, rows, covariances, strict=True)
    ]
    # u = L^-1 C w: a shared filter misses at least a'Aa + b'Bb - |u1 +- u2|^2
    u1, u2 = (
        torch.linalg.solve_triangular(factor, aim, upper=False).transpose(1, 2) for aim in aims
    )
    products = (u2 @ u1.transpose(1, 2)).double()  # (groups, second's, first's)
    # what each misses alone, w'Cw - |u|^2, and what the two have in common
    alone = [
        (w.transpose(1, 2) * aim).sum(1).double() - u.double().square().sum(2)
        for w, aim, u in zip(rows, aims, (u1, u2), strict=True)
    ]
    missed = alone[1][:, :, None] + alone[0][:, None, :] - 2 * products.abs()
    still = np.arange(missed.shape[1])
    order = match_filters(missed[0].numpy()) if movable and groups == 1 else still
    along = torch.from_numpy(order)
    turned = products[:, still, along] < 0
    signs = torch.where(turned, -1.0, 1.0).float()
    aim = aims[0][:, :, along] + aims[1] * signs[:, None, :]
    weight = torch.cholesky_solve(aim, factor).transpose(1, 2)
    every = np.arange(groups * len(still)).reshape(groups, -1)
    return SharedOutputs(
        weight=np.ascontiguousarray(weight.reshape(first.shape).numpy()),
        order=np.asarray(order if groups == 1 else every.reshape(-1), np.intp),
        signs=signs.reshape(-1).numpy(),
        errors=missed[:, still, along].reshape(-1).float().numpy(),
        before=float(missed[:, still, still].sum()),
    )


def _of_unit_spread(rows: Tensor, covariance: Tensor) -> Tensor:
    """Filters (groups, n, d) whose outputs vary by 1; one that never varies becomes 0."""
    variance = ((rows @ covariance) * rows).sum(2, keepdim=True)
    spread = variance.clamp(min=0).sqrt()
    return torch.where(spread > 1e-12, rows / spread.clamp(min=1e-12), torch.zeros(()))


def match_outputs(
    graph: Graph,
    block: Sequence[int],
    entries: tuple[str, str],
    inputs: Mapping[str, Sequence[Tensor]],
    importance: tuple[float, float] = (1.0, 1.0),
    *,
    fast: bool = False,
) -> tuple[Graph, dict[int, SharedOutputs], tuple[Alignment, ...]]:
    """What the layers of a block share, and the graph with the first entry's filters in the
    order of the second's; all its outputs stay.

    Args:
        block: layers, counted from 1; every one of them has a norm.
        inputs: batches of each entry.
        importance, fast: see ``share_outputs`` and ``input_covariance``.
    """
    found, alignments = {}, []
    for number in block:
        first, second = block_pairs(graph, (number,), entries)[0]
        module = to_torch(graph).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        measured = [
            input_covariance(module, layer, entry, inputs[entry], fast=fast)
            for layer, entry in zip((first, second), entries, strict=True)
        ]
        (covariance, count), (other, others) = measured
        weights = [module.weight(layer.weight) for layer in (first, second)]
        group = movable_group(graph, first)
        shared = share_outputs(
            weights[0],
            weights[1],
            (covariance, other),
            group is not None,
            covariance.shape[1] / (count + others),
            importance,
        )
        if group is not None:
            graph = permute(graph, group, shared.order)
        after = float(shared.errors.sum())
        order = tuple(shared.order.tolist())
        alignments.append(Alignment(first.name, order, shared.before, after, group is not None))
        found[number] = shared
    return graph, found, tuple(alignments)


def with_shared_outputs(
    module: NormModule, shared: Mapping[int, SharedOutputs], entries: tuple[str, str]
) -> NormModule:
    """The module after the layers ``shared`` read one weight; norms take up the signs."""
    graph, old = module.graph, module.graph
    for number, one in shared.items():
        pair = block_pairs(graph, (number,), entries)[0]
        graph = share_weight(graph, pair, shared_name(number), one.weight)
    made = NormModule(graph, entries)
    made.norms.load_state_dict(module.norms.state_dict())
    with torch.no_grad():
        for number, one in shared.items():
            second = block_pairs(old, (number,), entries)[0][1]
            norm = made.norm(norm_after(old, second).name)
            norm.weight.mul_(torch.from_numpy(one.signs))
    return made
