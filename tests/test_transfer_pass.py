"""Transfer as a pass: labels, both trainings, and a recipe that goes on with the student."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Conv, merge_graphs

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from edgeid.converters.distillation.student_entry import count_weights  # noqa: E402
from edgeid.converters.distillation.transfer_pass import Transfer, mean_embeddings  # noqa: E402
from edgeid.converters.graphs.embedding_similarity import embed_samples  # noqa: E402
from edgeid.converters.quantisation.palette import Palette  # noqa: E402
from edgeid.converters.recipe import Context, recipe_from_json, run_recipe  # noqa: E402
from edgeid.converters.scores.verification import pair_error  # noqa: E402
from edgeid.converters.zipper.zipper import Zipper  # noqa: E402

from .networks import inputs, residual_graph  # noqa: E402

SMALL = {"channels": (6, 12), "units": (1, 1)}
QUICK = Transfer(
    channels=(4,), units=(0,), start_steps=2, steps=2, batch=8, views=2, siamese_steps=2
)


@pytest.fixture
def graph():
    return residual_graph(1, **SMALL)


@pytest.fixture
def context(tmp_path) -> Context:
    """Eight people, four samples each."""
    people = np.repeat(np.arange(8), 4)
    x = inputs(8)[people] + 0.3 * inputs(32, seed=5)
    return Context({"face": x}, tmp_path, progress=False, labels={"face": people})


def test_mean_embeddings_by_hand():
    rows = np.float32([[1, 0], [3, 0], [0, 2]])
    assert mean_embeddings(rows, np.array([0, 0, 1])).tolist() == [[2, 0], [0, 2]]


def test_a_recipe_goes_on_with_a_smaller_network(graph, context):
    after, (report, _) = run_recipe((QUICK, Palette(bits=4)), graph, context)
    assert after.infer_shapes("face")[after.entry("face").output] == (5,)
    # the projection of the second training is folded into the last layer
    assert count_weights(after, "face") == 4 * 9 + 4 + 4 * 256 + 4 + 4 * 5 + 5
    assert "1,093 weights" in report.lines[0]
    for engine in ("reference", "onnxruntime"):
        assert np.isfinite(make_engine(after, engine).run("face", inputs(2))).all()
    assert not list(context.work.glob("*/*.pt"))


def test_the_student_knows_people_apart(graph, context):
    options = replace(
        QUICK, channels=(6, 8), units=(0, 0), start_steps=100, steps=50, siamese_steps=20, batch=16
    )
    after, (report,) = run_recipe((options,), graph, context)
    rows = embed_samples(after, context.samples)["face"]
    assert pair_error(rows, context.identities("face")) < 0.2
    assert report.similarity["face"] > 0.8  # it stays in the teacher's space


def test_students_of_two_entries_may_be_merged(context):
    pair = merge_graphs(face=residual_graph(1, **SMALL), voice=residual_graph(2, **SMALL))
    samples = {"voice": context.samples["face"], **context.samples}
    labels = {"voice": context.labels["face"], **context.labels}
    transfer = replace(QUICK, channels=(4, 4), units=(0, 0), start_steps=0, siamese_steps=0)
    recipe = (transfer, Zipper(blocks=2, settle=1, batch=8, fraction=1.0))
    after, _ = run_recipe(recipe, pair, replace(context, samples=samples, labels=labels))
    first, second = (
        [layer.weight for layer in after.layers_of(entry) if isinstance(layer, Conv)][:2]
        for entry in ("face", "voice")
    )
    assert first == second


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "entry 'face' needs labels"),
        ({"face": np.zeros(32, np.int64)}, "pairs need two identities"),
        ({"face": np.arange(32)}, "pairs need two identities"),
    ],
)
def test_labels_are_needed(labels, message, graph, context):
    with pytest.raises(DataError, match=message):
        run_recipe((QUICK,), graph, replace(context, labels=labels))


def test_what_cannot_be_done_is_told_before_training(graph, context):
    with pytest.raises(GraphError, match="give fewer channels than"):
        run_recipe((replace(QUICK, channels=(64,)),), graph, context)
    with pytest.raises(DataError, match="scale"):
        run_recipe((replace(QUICK, scale=0.0),), graph, context)


def test_options_survive():
    recipe = (replace(QUICK, stages=(1e-9, 1e-6), entries=("face",)),)
    assert recipe_from_json([recipe[0].to_dict()], (Transfer,)) == recipe
