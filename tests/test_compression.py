"""Which recipe of a ladder is taken: by usual, by size, by accuracy, by both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from edgeid.converters.compression import Limits, compress
from edgeid.converters.named_recipes import (
    NAMES,
    Ladder,
    named_ladder,
    read_recipe,
)
from edgeid.converters.quantisation.logminmax import LogMinMax
from edgeid.converters.recipe import Context, recipe_to_json
from edgeid.converters.report.steps import Rate
from edgeid.runtime.errors import DataError
from edgeid.runtime.format import ModelFile, dump_model

from .networks import inputs, residual_graph

LADDER = Ladder(tuple((LogMinMax(bits=bits),) for bits in (8, 5, 2)), usual=1)


@pytest.fixture
def graph():
    return residual_graph(1, (8, 12, 16, 16))


@pytest.fixture
def context(tmp_path):
    return Context({"face": inputs(8)}, tmp_path, progress=False)


def bits_of(recipe):
    return recipe[0].bits


def judge_by_bits(original):
    """Errors of 1 % for the original, 2 % with 8 bits, 3 % with 5 and 9 % with 2."""
    errors = {0: 0.01, 8: 0.02, 5: 0.03, 2: 0.09}

    def judge(graph):
        sizes = {size(original): 0} | {size(made(original, b)): b for b in (8, 5, 2)}
        value = errors[sizes[size(graph)]]
        return {"face": Rate("EER", value, value, value, 100)}

    return judge


def size(graph):
    return len(dump_model(ModelFile(graph)))


def made(graph, bits):
    context = Context({}, Path(), progress=False)
    return LogMinMax(bits=bits).call(graph, context).graph


def test_the_usual_recipe_is_taken_where_nothing_is_asked_for(graph, context):
    found = compress(graph, LADDER, context, Limits())
    assert bits_of(found.recipe) == 5
    assert found.size == size(made(graph, 5))
    assert [step.name for step in found.steps] == ["original", "1 logminmax"]
    assert found.drops == {}


def test_the_mildest_recipe_within_the_budget_is_taken(graph, context):
    sizes = {bits: size(made(graph, bits)) for bits in (8, 5, 2)}
    assert sizes[8] > sizes[5] > sizes[2]
    for budget, bits in ((sizes[8], 8), (sizes[8] - 1, 5), (sizes[2], 2)):
        found = compress(graph, LADDER, context, Limits(budget=budget))
        assert bits_of(found.recipe) == bits
        assert found.size <= budget
    assert f"{sizes[8]:,} bytes, above the budget" in found.tried[0]
    with pytest.raises(DataError, match=f"smallest: {sizes[2]:,} bytes"):
        compress(graph, LADDER, context, Limits(budget=sizes[2] - 1))


def test_the_strongest_recipe_within_the_drop_is_taken(graph, context):
    judge = judge_by_bits(graph)
    for drop, bits in ((8.5, 2), (2.5, 5), (1.5, 8)):
        found = compress(graph, LADDER, context, Limits(max_drop=drop), judge)
        assert bits_of(found.recipe) == bits
        assert found.drops["face"] <= drop
    assert found.tried[0].startswith("logminmax(bits=2): face loses 8.00 points")
    with pytest.raises(DataError, match="no recipe keeps to the limits"):
        compress(graph, LADDER, context, Limits(max_drop=0.5), judge)


def test_both_limits_have_to_be_kept(graph, context):
    judge = judge_by_bits(graph)
    limits = Limits(budget=size(made(graph, 5)), max_drop=2.5)
    assert bits_of(compress(graph, LADDER, context, limits, judge).recipe) == 5
    with pytest.raises(DataError, match="above the budget"):
        compress(graph, LADDER, context, Limits(limits.budget, 1.5), judge)


def test_an_accuracy_counts_the_other_way_round(graph, context):
    def judge(judged):
        value = 0.99 if size(judged) == size(graph) else 0.96
        return {"face": Rate("accuracy", value, value, value, 100, lower_is_better=False)}

    found = compress(graph, LADDER, context, Limits(max_drop=5), judge)
    assert found.drops["face"] == pytest.approx(3)


def test_limits_out_of_range_and_nobody_to_measure_by_are_told(graph, context):
    for wrong in ({"budget": 0}, {"max_drop": -1}, {"max_drop": float("nan")}):
        with pytest.raises(DataError):
            Limits(**wrong)
    with pytest.raises(DataError, match="folder of their own"):
        compress(graph, LADDER, context, Limits(max_drop=1))


def test_every_name_has_recipes_that_a_file_can_hold(tmp_path):
    for name in NAMES:
        ladder = named_ladder(name, "int8")
        assert 0 <= ladder.usual < len(ladder.recipes)
        for recipe in ladder.recipes:
            path = tmp_path / "recipe.json"
            path.write_text(json.dumps(recipe_to_json(recipe)))
            assert read_recipe(path) == recipe
    with pytest.raises(DataError, match="no recipe 'zip'; there are plain, codebook"):
        named_ladder("zip")
    (recipe,) = named_ladder("zipper-codebook", budget=5).recipes
    assert [step.to_dict().get("budget") for step in recipe][:2] == [None, 5]


def test_recipe_files_that_are_none_are_told(tmp_path):
    path = tmp_path / "recipe.json"
    with pytest.raises(DataError, match="cannot be read"):
        read_recipe(path)
    for text, words in (("{", "not JSON"), ('[{"pass": "magic"}]', "step 1: pass 'magic'")):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_recipe(path)
