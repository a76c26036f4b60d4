"""The codebook pass under a budget of bytes, and interrupted: K and r, resumption."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.codebook import calibration as codebook_calibration  # noqa: E402
from edgeid.converters.codebook import coding as codebook_coding  # noqa: E402
from edgeid.converters.codebook import sensitivity as codebook_sensitivity  # noqa: E402
from edgeid.converters.codebook.calibration import CodebookCalibration  # noqa: E402
from edgeid.converters.codebook.pairing import pair_layers  # noqa: E402
from edgeid.converters.codebook.shared_codebooks import SharedCodebooks  # noqa: E402
from edgeid.converters.recipe import (  # noqa: E402
    Context,
    recipe_from_json,
    recipe_to_json,
    run_recipe,
)
from edgeid.runtime.codebook import Codebook  # noqa: E402
from edgeid.runtime.errors import DataError  # noqa: E402
from edgeid.runtime.format import ModelFile, dump_model  # noqa: E402
from edgeid.runtime.graph import merge_graphs  # noqa: E402

from .networks import inputs, residual_graph  # noqa: E402

NO_TRAINING = CodebookCalibration(steps=0)


@pytest.fixture(scope="module")
def graph():
    nets = {
        name: residual_graph(seed, (8, 8, 16, 16), (0, 1, 0, 0), size=16, dim=8)
        for seed, name in enumerate(("face", "voice"))
    }
    return merge_graphs(**nets)


@pytest.fixture
def context(tmp_path):
    samples = {"face": inputs(48, 16, seed=1), "voice": inputs(48, 16, seed=2)}
    return Context(samples, tmp_path / "work", progress=False)


def test_a_budget_is_met_and_used(graph, context):
    sizes, cosines = [], []
    for budget in (24_500, 27_000):
        step = SharedCodebooks(budget=budget, compare=True, calibration=NO_TRAINING)
        made, (report,) = run_recipe([step], graph, context)
        sizes.append(len(dump_model(ModelFile(made))))
        assert sizes[-1] <= budget
        cosines.append(report.figures["cosine_clustered/face"])
        assert report.figures["sharing/shared_bytes"] < report.figures["sharing/separate_bytes"]
        assert report.figures["sharing/shared_error"] > report.figures["sharing/separate_error"]
        assert report.figures["sensitivity/face/layer02.weight + voice/layer02.weight"] > 0
    assert sizes[0] < sizes[1]
    assert cosines[0] < cosines[1]


def test_a_budget_that_cannot_be_met(graph, context):
    with pytest.raises(DataError, match=r"budget of 10000 bytes cannot be met.*file of \d+ bytes"):
        run_recipe([SharedCodebooks(budget=10_000)], graph, context)


@pytest.mark.parametrize("apart", [False, True])
def test_sub_vectors_are_not_shorter_than_asked_for(graph, context, apart):
    lengths = {}
    for shortest in (2, 4, 8):
        step = SharedCodebooks(
            budget=60_000, shortest=shortest, apart=apart, calibration=NO_TRAINING
        )
        made, _ = run_recipe([step], graph, context)
        coded = [t for t in made.tensors.values() if isinstance(t, Codebook)]
        lengths[shortest] = {tensor.length for tensor in coded}
    assert min(lengths[2]) == 2  # the budget is ample
    assert min(lengths[4]) == 4
    assert lengths[8] == {8}


def test_entries_may_have_their_own_shortest_sub_vectors(graph, context):
    shortest = {"face": 2, "voice": 8}
    step = SharedCodebooks(budget=60_000, shortest=shortest, apart=True, calibration=NO_TRAINING)
    assert recipe_from_json(recipe_to_json([step]), [SharedCodebooks]) == (step,)
    made, _ = run_recipe([step], graph, context)
    lengths = {
        entry: {
            made.tensors[name].length
            for layer in made.layers_of(entry)
            for name in layer.tensor_names()
            if isinstance(made.tensors[name], Codebook)
        }
        for entry in ("face", "voice")
    }
    assert min(lengths["face"]) == 2  # the budget is ample
    assert lengths["voice"] == {8}
    with pytest.raises(DataError, match=r"shortest: \['ear'\] are none of"):
        run_recipe([SharedCodebooks(budget=60_000, shortest={"ear": 4})], graph, context)


def test_a_weight_may_have_its_own_shortest_sub_vectors(graph, context):
    def lengths(shortest):
        step = SharedCodebooks(
            budget=60_000, shortest=shortest, apart=True, calibration=NO_TRAINING
        )
        made, _ = run_recipe([step], graph, context)
        return {n: t.length for n, t in made.tensors.items() if isinstance(t, Codebook)}

    free = lengths({"face": 2})
    weight = next(name for name, length in free.items() if length == 2)
    assert lengths({"face": 2, weight: 8})[weight] == 8


@pytest.mark.parametrize("apart", [False, True])
def test_codebooks_have_no_more_codewords_than_asked_for(graph, context, apart):
    most = {}
    for largest in (256, 64):
        step = SharedCodebooks(budget=60_000, largest=largest, apart=apart, calibration=NO_TRAINING)
        made, _ = run_recipe([step], graph, context)
        coded = [t for t in made.tensors.values() if isinstance(t, Codebook)]
        most[largest] = max(tensor.codewords.shape[1] for tensor in coded)
    assert most == {256: 256, 64: 64}  # the budget is ample


def test_weights_that_need_not_share(context):
    """The second network hardly matters: it takes small codebooks of its own."""
    nets = [residual_graph(n, (8, 8, 16, 16), (0, 1, 0, 0), size=16, dim=8) for n in range(2)]
    graph = merge_graphs(face=nets[0], voice=nets[1])
    coarse = replace(context, samples=context.samples | {"voice": 1e-3 * context.samples["voice"]})
    found = []
    for apart in (False, True):
        step = SharedCodebooks(budget=27_000, apart=apart, calibration=NO_TRAINING)
        made, (report,) = run_recipe([step], graph, coarse)
        assert len(dump_model(ModelFile(made))) <= 27_000
        found.append(report.figures)
    assert found[1]["shared_pairs"] < found[0]["shared_pairs"]
    own = next(name for name in found[1] if name.startswith("K/") and " + " not in name)
    assert own.removeprefix("K/") in graph.tensors
    for wrong in ({"budget": None}, {"compare": True}):
        with pytest.raises(DataError, match="apart needs a budget"):
            run_recipe([replace(step, **wrong)], graph, coarse)


def test_an_interrupted_sensitivity_goes_on_where_it_was(graph, context, monkeypatch):
    step = SharedCodebooks(budget=27_000, calibration=NO_TRAINING)
    whole = dump_model(ModelFile(step.call(graph, replace(context, work=context.work / "a")).graph))
    kept = codebook_sensitivity.coding_choices
    seen = []

    def interrupted(weights, *rest):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(next(iter(weights)))
        return kept(weights, *rest)

    monkeypatch.setattr(codebook_sensitivity, "coding_choices", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step.call(graph, context)
    later = []
    monkeypatch.setattr(
        codebook_sensitivity,
        "coding_choices",
        lambda weights, *rest: (later.append(next(iter(weights))), kept(weights, *rest))[1],
    )
    made = step.call(graph, context)
    assert len(later) == len(pair_layers(graph, ("face", "voice")).pairs) - 3
    assert not set(later) & set(seen)
    assert dump_model(ModelFile(made.graph)) == whole
    assert not (context.work / codebook_sensitivity.KEPT).exists()


def test_the_smallest_size_in_the_error_is_one_that_is_met(graph, context):
    with pytest.raises(DataError, match="file of") as caught:
        run_recipe([SharedCodebooks(budget=10_000, calibration=NO_TRAINING)], graph, context)
    least = int(re.search(r"file of (\d+) bytes", str(caught.value)).group(1))
    made, _ = run_recipe([SharedCodebooks(budget=least, calibration=NO_TRAINING)], graph, context)
    assert len(dump_model(ModelFile(made))) <= least
    with pytest.raises(DataError, match="cannot be met"):
        run_recipe([SharedCodebooks(budget=least - 1)], graph, context)


@pytest.mark.parametrize(
    ("where", "what", "calls"),
    [
        (codebook_sensitivity, "cluster", 2),
        (codebook_coding, "refine", 2),
        (codebook_calibration._Training, "step", 3),
    ],
)
def test_a_recipe_interrupted_anywhere_ends_as_an_unbroken_one(
    where, what, calls, graph, context, monkeypatch
):
    training = CodebookCalibration(steps=4, batch=8, save_every=2)
    recipe = [SharedCodebooks(budget=26_000, rounds=1, samples=16, calibration=training)]
    whole, _ = run_recipe(recipe, graph, replace(context, work=context.work / "whole"))
    kept, count = getattr(where, what), []

    def interrupted(*args, **options):
        count.append(1)
        if len(count) == calls:
            raise KeyboardInterrupt
        return kept(*args, **options)

    monkeypatch.setattr(where, what, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, graph, context)
    assert not list(context.work.glob("*.edgeid"))
    made, _ = run_recipe(recipe, graph, context)
    assert dump_model(ModelFile(made)) == dump_model(ModelFile(whole))
