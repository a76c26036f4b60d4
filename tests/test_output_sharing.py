"""One layer for two by what it puts out: the closed form, orders, signs, grouped convolutions."""

from __future__ import annotations

import numpy as np
import pytest

from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.errors import DataError
from edgeid.runtime.graph import Conv, Entry, Gemm, Graph, merge_graphs

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from edgeid.converters.graphs.normalisation import fold_norms  # noqa: E402
from edgeid.converters.graphs.torch_graph import to_torch  # noqa: E402
from edgeid.converters.graphs.weight_calibration import regression_task  # noqa: E402
from edgeid.converters.zipper.output_sharing import (  # noqa: E402
    POSITIONS,
    input_covariance,
    match_outputs,
    share_outputs,
)
from edgeid.converters.zipper.shared_layers import weighted_layers  # noqa: E402
from edgeid.converters.zipper.zipper import Zipper, align_block, merge_sequence  # noqa: E402

from .networks import inputs, residual_graph  # noqa: E402
from .test_filter_alignment import shuffled  # noqa: E402
from .test_zipper import ENTRIES, run  # noqa: E402


def covariance(rng, size, loud, groups=1):
    """(groups, size, size) of inputs that vary 100 times as much in the directions ``loud``."""
    scale = np.ones(size)
    scale[loud] = 10.0
    rows = rng.standard_normal((groups, 500, size)) * scale
    rows -= rows.mean(axis=1, keepdims=True)
    return torch.from_numpy((rows.transpose(0, 2, 1) @ rows / 500).astype(np.float32))


def of_unit_spread(weight, cov):
    return weight / np.sqrt(np.einsum("id,de,ie->i", weight, cov, weight))[:, None]


def test_the_shared_weight_is_the_least_squares_solution():
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((5, 8)).astype(np.float32) for _ in range(2))
    covs = covariance(rng, 8, [0, 1, 2]), covariance(rng, 8, [2, 3, 4])
    shared = share_outputs(torch.from_numpy(first), torch.from_numpy(second), covs, movable=False)
    assert shared.order.tolist() == [0, 1, 2, 3, 4]
    a, b = (np.linalg.cholesky(c[0].double().numpy()).T for c in covs)  # a'a is the covariance
    aims = of_unit_spread(first, covs[0][0].numpy()), of_unit_spread(second, covs[1][0].numpy())
    system = np.concatenate([a, b])
    for i, sign in enumerate(shared.signs):
        found = {}
        for each in (sign, -sign):
            wanted = np.concatenate([a @ aims[0][i], b @ (each * aims[1][i])])
            best, error, *_ = np.linalg.lstsq(system, wanted)
            found[each] = best, error[0]
        assert found[sign][1] < found[-sign][1]
        assert shared.weight[i] == pytest.approx(found[sign][0], abs=0.02)
        assert shared.errors[i] == pytest.approx(found[sign][1], abs=0.02)
    assert shared.before == pytest.approx(shared.errors.sum(), rel=1e-5)


def test_inputs_that_vary_apart_are_shared_without_loss():
    rng = np.random.default_rng(1)
    first, second = torch.randn(3, 6), torch.randn(3, 6)
    covs = [torch.zeros(1, 6, 6) for _ in range(2)]
    covs[0][0, :3, :3] = covariance(rng, 3, [])[0]
    covs[1][0, 3:, 3:] = covariance(rng, 3, [])[0]
    shared = share_outputs(first, second, (covs[0], covs[1]), movable=True)
    assert shared.errors.max() < 0.01
    # the mean of the weights would keep half of either
    for weight, cov, columns in zip((first, second), covs, (slice(3), slice(3, 6)), strict=True):
        aim = of_unit_spread(weight.numpy(), cov[0].numpy())[:, columns]
        got = shared.weight[:, columns]
        chosen = shared.order if columns.stop == 3 else np.arange(3)
        cosine = np.abs((aim[chosen] * got).sum(1)) / (
            np.linalg.norm(aim[chosen], axis=1) * np.linalg.norm(got, axis=1)
        )
        assert cosine.min() > 0.999


def test_filters_find_their_partners_and_signs():
    rng = np.random.default_rng(2)
    second = rng.standard_normal((6, 9)).astype(np.float32)
    order = rng.permutation(6)
    cov = covariance(rng, 9, [0, 1])
    first = -2 * second[order]
    made = share_outputs(torch.from_numpy(first), torch.from_numpy(second), (cov, cov), True)
    assert order[made.order].tolist() == list(range(6))
    assert made.signs.tolist() == [-1] * 6
    assert made.errors.max() < 0.03
    assert made.before > 1
    kept = share_outputs(torch.from_numpy(first), torch.from_numpy(second), (cov, cov), False)
    assert kept.order.tolist() == list(range(6))
    assert kept.errors.sum() == pytest.approx(kept.before, rel=1e-5)


def test_a_filter_that_never_varies_is_left_to_the_other():
    cov = torch.eye(4)[None]
    first = torch.zeros(2, 4)
    second = torch.eye(4)[:2]
    shared = share_outputs(first, second, (cov, cov), movable=True)
    assert np.isfinite(shared.weight).all()
    direction = shared.weight / np.linalg.norm(shared.weight, axis=1, keepdims=True)
    assert np.abs(direction) == pytest.approx(second.numpy(), abs=1e-5)
    with pytest.raises(DataError, match="nothing but constants"):
        share_outputs(second, second, (0 * cov, 0 * cov), movable=True)


def test_groups_are_shared_by_themselves():
    rng = np.random.default_rng(3)
    first, second = (
        torch.from_numpy(rng.standard_normal((4, 1, 3, 3)).astype(np.float32)) for _ in range(2)
    )
    covs = covariance(rng, 9, [0], groups=2), covariance(rng, 9, [5], groups=2)
    whole = share_outputs(first, second, covs, movable=False)
    assert whole.weight.shape == (4, 1, 3, 3)
    for group in range(2):
        part = slice(2 * group, 2 * group + 2)
        one = share_outputs(
            first[part],
            second[part],
            (covs[0][group : group + 1], covs[1][group : group + 1]),
            movable=False,
        )
        # the ridge is of the mean variance of all groups
        assert whole.weight[part] == pytest.approx(one.weight, abs=0.02)
        assert whole.signs[part].tolist() == one.signs.tolist()


@pytest.mark.parametrize("groups", [1, 2])
def test_the_covariance_is_of_the_patches(groups):
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((4, 2 // groups, 3, 3))
    layer = Conv("c", ("x",), "y", "w", None, (2, 2), (1, 1, 1, 1), groups)
    graph = Graph((Entry("e", "x", (2, 6, 5), "y"),), (layer,), {"w": encode_float32(weight)})
    x = rng.standard_normal((7, 2, 6, 5)).astype(np.float32)
    assert POSITIONS >= 9  # all positions are taken
    found, count = input_covariance(
        to_torch(graph), layer, "e", [torch.from_numpy(x[:4]), torch.from_numpy(x[4:])]
    )
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = np.array(
        [
            padded[n, :, i : i + 3, j : j + 3].ravel()
            for n in range(7)
            for i in range(0, 6, 2)
            for j in range(0, 5, 2)
        ]
    )
    expected = np.cov(rows.T, bias=True)
    size = 18 // groups
    assert count == 7 * 9
    assert found.shape == (groups, size, size)
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        assert found[group].numpy() == pytest.approx(expected[part, part], abs=1e-4)
    with pytest.raises(DataError, match="no covariance"):
        input_covariance(to_torch(graph), layer, "e", [])


def test_the_covariance_of_features():
    layer = Gemm("fc", ("x",), "y", "w")
    graph = Graph((Entry("e", "x", (3,), "y"),), (layer,), {"w": encode_float32(np.ones((2, 3)))})
    x = np.random.default_rng(5).standard_normal((50, 3)).astype(np.float32)
    found, count = input_covariance(to_torch(graph), layer, "e", [torch.from_numpy(x)])
    assert count == 50
    assert found[0].numpy() == pytest.approx(np.cov(x.T, bias=True), abs=1e-5)


def test_matching_leaves_the_function():
    one, other = (residual_graph(seed, channels=(4, 5, 6, 7)) for seed in (1, 2))
    graph = merge_graphs(face=one, voice=other)
    numbers = range(1, 22)
    split, _ = align_block(graph, numbers, Zipper(distance=None))
    drawn = {entry: [torch.from_numpy(inputs(16, seed=3))] for entry in ENTRIES}
    matched, shared, alignments = match_outputs(split, numbers, ENTRIES, drawn)
    assert [*shared] == list(numbers)
    x = inputs(4)
    for entry in ENTRIES:
        assert np.abs(run(fold_norms(matched), entry, x) - run(graph, entry, x)).max() < 1e-4
    free = {each.layer: each for each in alignments if each.free}
    assert len(weighted_layers(graph, "face")) == len(alignments) == 21
    assert free.keys() >= {"face/layer01", "face/layer02", "face/layer04"}
    assert all(each.after <= each.before + 1e-4 for each in free.values())
    assert all(each.after == pytest.approx(each.before, abs=1e-3) for each in alignments[-1:])


def test_a_whole_zipper_on_a_shuffled_copy_loses_little(tmp_path):
    one = residual_graph(1, channels=(4, 5, 6, 7))
    graph = merge_graphs(face=shuffled(one, 3), voice=one)
    x = inputs(64)
    tasks = [regression_task(graph, entry, x, 64) for entry in ENTRIES]
    found = {}
    for merging in ("outputs", "mean"):
        options = Zipper(epochs=0, settle=1, merging=merging, distance=None)
        *_, last = merge_sequence(graph, tasks, options, tmp_path / merging)
        cosines = [
            (run(graph, e, x) * run(last.graph, e, x)).sum(1)
            / np.linalg.norm(run(graph, e, x), axis=1)
            / np.linalg.norm(run(last.graph, e, x), axis=1)
            for e in ENTRIES
        ]
        found[merging] = float(np.mean(cosines))
    assert found["outputs"] > 0.98
    assert found["mean"] < found["outputs"] - 0.05
