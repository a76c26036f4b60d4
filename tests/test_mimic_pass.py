"""Mimic as a pass: what takes an entry's place, what is regressed, and that training follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import merge_graphs

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from edgeid.converters.distillation.lessons import (  # noqa: E402
    hidden_units,
    take_lessons,
    unit_embedding,
)
from edgeid.converters.distillation.mimic_pass import Mimic  # noqa: E402
from edgeid.converters.distillation.neuron_selection import select_units  # noqa: E402
from edgeid.converters.distillation.student_entry import (  # noqa: E402
    count_weights,
    make_student,
    replace_entry,
)
from edgeid.converters.graphs.torch_graph import to_torch  # noqa: E402
from edgeid.converters.quantisation.logminmax import LogMinMax  # noqa: E402
from edgeid.converters.recipe import Context, recipe_from_json, run_recipe  # noqa: E402
from edgeid.converters.training.checkpoint import Checkpoint  # noqa: E402

from .networks import inputs, residual_graph  # noqa: E402

SMALL = {"channels": (6, 12), "units": (1, 1)}
QUICK = Mimic(channels=(4,), units=(0,), steps=2, batch=8, views=2)


@pytest.fixture
def graph():
    return residual_graph(1, **SMALL)


@pytest.fixture
def context(tmp_path) -> Context:
    return Context({"face": inputs(24)}, work=tmp_path, progress=False)


def test_blends_and_answers_by_hand(graph, context):
    lessons = take_lessons(graph, "face", context, 3, unit_embedding)
    assert lessons.answers.shape == (3, 24, 5)
    x = context.inputs("face")
    view, index = np.array([0, 2]), np.array([4, 7])
    share, other = lessons.shares[2, 7], lessons.partners[2, 7]
    assert 0.3 <= share <= 0.7
    assert other != 7
    expected = np.stack([x[4], share * x[7] + (1 - share) * x[other]])
    np.testing.assert_allclose(lessons.inputs(view, index), expected, rtol=1e-6)
    outputs = make_engine(graph, "reference").run("face", expected)
    outputs /= np.linalg.norm(outputs, axis=1, keepdims=True)
    np.testing.assert_allclose(lessons.answers[view, index], outputs, atol=1e-5)


def test_hidden_units_are_the_means_of_the_last_maps(graph):
    module = to_torch(graph).eval()
    x = torch.from_numpy(inputs(3))
    with torch.no_grad():
        found, values = hidden_units(module, x), module.activations(x)
    sums = [layer.output for layer in graph.layers if layer.op == "Add"]  # one ends each stage
    assert found.shape == (3, 5 + 12 + 6)
    np.testing.assert_allclose(found[:, 5:17], values[sums[1]].mean(dim=(2, 3)), atol=1e-6)
    np.testing.assert_allclose(found[:, 17:], values[sums[0]].mean(dim=(2, 3)), atol=1e-6)


def test_the_network_is_replaced_by_a_smaller_one_and_no_other(context):
    pair = merge_graphs(face=residual_graph(1, **SMALL), voice=residual_graph(2, **SMALL))
    after, (report, _) = run_recipe((QUICK, LogMinMax(bits=6)), pair, context)
    assert [entry.name for entry in after.entries] == ["face", "voice"]
    assert after.entry("face").shape == (1, 32, 32)
    assert after.infer_shapes("face")[after.entry("face").output] == (5,)
    # 3x3 convolution and bias, a weight a position, norm of the pool, 4 -> 5
    assert count_weights(after, "face") == 4 * 9 + 4 + 4 * 256 + 4 + 4 * 5 + 5
    assert report.figures["weights/face"] == count_weights(after, "face")
    assert report.figures["hidden units/face"] == 18
    assert "1,093 weights" in report.lines[0]
    for engine in ("reference", "onnxruntime"):
        assert np.isfinite(make_engine(after, engine).run("face", inputs(2))).all()
    assert after.layers_of("voice") == pair.layers_of("voice")
    assert not list(context.work.glob("*/mimic-*.pt"))


def test_training_brings_it_near_the_original(graph, context):
    options = replace(QUICK, steps=150, channels=(6, 8), units=(0, 0), batch=24)
    _, (report,) = run_recipe((options,), graph, context)
    assert report.similarity["face"] > 0.8


def test_labels_choose_among_the_hidden_units_and_never_drop_the_embedding(graph, context):
    people = np.repeat(np.arange(6), 4)
    x = inputs(6)[people] + 0.3 * inputs(24, seed=5)
    labelled = replace(context, samples={"face": x}, labels={"face": people})
    lessons = take_lessons(graph, "face", labelled, 1, hidden_units)
    everything = QUICK.kept_units(graph, "face", context, lessons)
    assert everything.tolist() == list(range(23))
    options = replace(QUICK, selection=replace(QUICK.selection, count=3))
    selected = select_units(lessons.answers[0], people, options.selection).indices
    kept = options.kept_units(graph, "face", labelled, lessons)
    assert kept.tolist() == sorted({*range(5), *selected.tolist()})


def test_what_entries_share_stays_and_a_student_may_follow_on_a_student(graph):
    entry = graph.entry("face")
    shared = replace(graph, entries=(entry, replace(entry, name="voice")))
    shared.validate()
    once = replace_entry(shared, "face", make_student(shared, "face", (4,), (0,)))
    twice = replace_entry(once, "face", make_student(once, "face", (3,), (0,)))
    assert twice.layers_of("voice") == graph.layers
    sizes = [count_weights(one, "face") for one in (graph, once, twice)]
    assert sizes == sorted(sizes, reverse=True)


def test_an_interrupted_training_goes_on(graph, context, monkeypatch):
    options = replace(QUICK, steps=101)  # a checkpoint every hundred steps
    saved, resumed, first = Checkpoint.save, Checkpoint.resume, []

    def stop(self, step):
        saved(self, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run_recipe((options,), graph, context)
    monkeypatch.setattr(Checkpoint, "save", saved)
    monkeypatch.setattr(Checkpoint, "resume", lambda self: first.append(resumed(self)) or first[0])
    run_recipe((options,), graph, context)
    assert first == [100]


def test_what_cannot_be_done_is_told_before_training(graph, context):
    with pytest.raises(GraphError, match="give fewer channels than"):
        run_recipe((replace(QUICK, channels=(64,)),), graph, context)
    with pytest.raises(DataError, match="channels and units of each stage"):
        run_recipe((replace(QUICK, channels=(4, 4)),), graph, context)
    with pytest.raises(DataError, match="no sample inputs for entry 'voice'"):
        run_recipe((replace(QUICK, entries=("voice",)),), graph, context)
    with pytest.raises(DataError, match="needs two samples, one view"):
        run_recipe((replace(QUICK, views=0),), graph, context)


def test_the_effect_is_checked(graph, context):
    with pytest.raises(GraphError, match="was not replaced by a smaller one"):
        QUICK.ensures(graph, graph, context)


def test_options_survive():
    recipe = (replace(QUICK, selection=replace(QUICK.selection, solver="mean_field")),)
    assert recipe_from_json([recipe[0].to_dict()], (Mimic,)) == recipe
