"""All methods behind each other: student, merged blocks, codebooks, encoded rest, uint8 scales."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from edgeid.converters.codebook.calibration import CodebookCalibration
from edgeid.converters.codebook.shared_codebooks import SharedCodebooks
from edgeid.converters.distillation.transfer_pass import Transfer
from edgeid.converters.named_recipes import PASSES
from edgeid.converters.quantisation.activations import ActivationScales
from edgeid.converters.quantisation.encode import Encode
from edgeid.converters.recipe import (
    Context,
    finished_steps,
    recipe_from_json,
    recipe_to_json,
    run_recipe,
)
from edgeid.converters.zipper.zipper import Zipper
from edgeid.runtime.codebook import Codebook
from edgeid.runtime.engine import make_engine
from edgeid.runtime.format import ModelFile, dump_model, read_model, write_model
from edgeid.runtime.graph import merge_graphs

from .networks import inputs, residual_graph

RECIPE = (
    Transfer(channels=(8, 16), units=(1, 0), steps=4, batch=8, siamese_steps=2, views=2, rate=0.05),
    Zipper(blocks=2, fraction=1.0, batch=16, settle=2),
    SharedCodebooks(k=16, r=2, calibration=CodebookCalibration(steps=2, batch=8)),
    Encode("int8"),
    ActivationScales(),
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    graph = merge_graphs(
        **{
            name: residual_graph(seed, (8, 8, 24, 32), (1, 1, 1, 0), size=16, dim=8)
            for seed, name in enumerate(("face", "voice"), 1)
        }
    )
    samples = {"face": inputs(48, 16, seed=1), "voice": inputs(48, 16, seed=2)}
    labels = {name: np.arange(48) // 4 for name in samples}
    work = tmp_path_factory.mktemp("chain")
    context = Context(samples, work, progress=False, labels=labels)
    return graph, context, *run_recipe(RECIPE, graph, context)


def test_every_pass_makes_the_model_smaller_and_leaves_its_mark(chain):
    graph, _, made, reports = chain
    assert [report.name for report in reports] == [
        *("transfer", "zipper", "codebook", "encode", "activation_scales"),
    ]
    assert all(a.bytes_after <= a.bytes_before for a in reports)
    assert len(dump_model(ModelFile(made))) < len(dump_model(ModelFile(graph))) / 3
    assert {entry.name for entry in made.entries} == {"face", "voice"}
    assert any(name.startswith("shared/") for name in made.tensors)
    assert any(isinstance(tensor, Codebook) for tensor in made.tensors.values())
    assert made.scales


def test_the_file_answers_the_same_in_both_engines(chain, tmp_path):
    _, context, made, _ = chain
    write_model(ModelFile(made), tmp_path / "m.edgeid")
    read = read_model(tmp_path / "m.edgeid").graph
    assert read.scales == made.scales
    for entry, x in context.samples.items():
        left = make_engine(made, "reference").run(entry, x)
        right = make_engine(read, "onnxruntime").run(entry, x)
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-3)


def test_the_recipe_survives_json_and_a_second_run_takes_everything_up(chain):
    graph, context, made, reports = chain
    recipe = recipe_from_json(recipe_to_json(RECIPE), PASSES)
    assert recipe == RECIPE
    again, resumed = run_recipe(recipe, graph, context)
    assert dump_model(ModelFile(again)) == dump_model(ModelFile(made))
    assert all(report.resumed for report in resumed)
    steps = finished_steps(recipe, graph, context)
    assert [report.bytes_after for report, _ in steps] == [r.bytes_after for r in reports]
    assert dump_model(ModelFile(steps[-1][1])) == dump_model(ModelFile(made))
