"""The codebook pass behind another one: networks that share whole weights already."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from edgeid.converters.codebook.calibration import CodebookCalibration  # noqa: E402
from edgeid.converters.codebook.pairing import pair_layers  # noqa: E402
from edgeid.converters.codebook.shared_codebooks import SharedCodebooks  # noqa: E402
from edgeid.converters.recipe import Context, run_recipe  # noqa: E402
from edgeid.converters.zipper.zipper import Zipper  # noqa: E402
from edgeid.runtime.codebook import Codebook  # noqa: E402
from edgeid.runtime.engine import make_engine  # noqa: E402
from edgeid.runtime.format import ModelFile, dump_model  # noqa: E402
from edgeid.runtime.graph import merge_graphs  # noqa: E402

from .networks import inputs, residual_graph  # noqa: E402

UNITS = (1, 1, 1, 0)  # 10 convolutions and a fully connected layer
SHORT = CodebookCalibration(steps=4, batch=8)


@pytest.fixture(scope="module")
def graph():
    nets = {
        name: residual_graph(seed, (8, 8, 16, 16), UNITS, size=16, dim=8, average=name == "voice")
        for seed, name in enumerate(("face", "voice"), 1)
    }
    return merge_graphs(**nets)


@pytest.fixture
def context(tmp_path):
    samples = {"face": inputs(48, 16, seed=1), "voice": inputs(48, 16, seed=2)}
    return Context(samples, tmp_path / "work", progress=False)


@pytest.mark.parametrize("blocks", [4, None])
def test_zipper_then_codebook(blocks, graph, context):
    zipper = Zipper(blocks=blocks, fraction=1.0, batch=16, settle=2)
    alone, _ = run_recipe([zipper], graph, context)
    made, (_, report) = run_recipe(
        [zipper, SharedCodebooks(k=64, r=2, calibration=SHORT)], graph, context
    )
    merged = [n for n, t in made.tensors.items() if n.startswith("shared/")]
    assert len(merged) == (4 if blocks else 11)
    coded = {n for n, t in made.tensors.items() if isinstance(t, Codebook)}
    assert coded >= set(merged) - {"shared/01.weight"}  # one channel: it is kept out
    readers = [layer for layer in made.layers if "shared/02.weight" in layer.tensor_names()]
    assert len(readers) == 2
    pairs = pair_layers(made, ("face", "voice")).pairs
    assert sum(pair.tensors == ("shared/02.weight",) for pair in pairs) == 1
    assert report.bytes_after < report.bytes_before / 2
    for entry, x in context.samples.items():
        results = [make_engine(made, e).run(entry, x) for e in ("reference", "onnxruntime")]
        np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-3)
        before = make_engine(alone, "reference").run(entry, x)
        cosine = (results[0] * before).sum(1) / np.linalg.norm(results[0], axis=1)
        assert (cosine / np.linalg.norm(before, axis=1)).mean() > 0.8


def test_zipper_then_codebook_within_a_budget(graph, context):
    zipper = Zipper(blocks=4, fraction=1.0, batch=16, settle=2)
    step = SharedCodebooks(budget=39_000, compare=True, calibration=CodebookCalibration(steps=0))
    made, (_, report) = run_recipe([zipper, step], graph, context)
    assert len(dump_model(ModelFile(made))) <= 39_000
    assert report.figures["sharing/shared_bytes"] <= report.figures["sharing/separate_bytes"]
