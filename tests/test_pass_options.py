"""The JSON form of recipes and of the options of passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from edgeid.converters.recipe import Context, Pass, PassResult, recipe_from_json, recipe_to_json
from edgeid.runtime.errors import DataError, EdgeIDError
from edgeid.runtime.graph import Graph


@dataclass(frozen=True)
class Scale(Pass):
    factor: float = 2.0

    name: ClassVar[str] = "scale"

    def call(self, graph: Graph, _context: Context) -> PassResult:
        return PassResult(graph)


@dataclass(frozen=True)
class Training:
    steps: int = 10
    rate: float = 0.1


@dataclass(frozen=True)
class Many(Pass):
    """One option of each kind."""

    count: int
    kind: Literal["a", "b", 3] = "a"
    limit: float | None = None
    sizes: tuple[int, ...] = (16, 64)
    pair: tuple[str, bool] = ("x", True)
    training: Training = Training()
    layers: dict[str, int] = field(default_factory=dict)

    name: ClassVar[str] = "many"


def test_options_of_every_kind_come_back():
    step = Many(3, "b", 0.5, (1, 2, 3), ("y", False), Training(5, 1.0), {"conv1": 64})
    value = step.to_dict()
    assert value == {
        "pass": "many",
        "count": 3,
        "kind": "b",
        "limit": 0.5,
        "sizes": [1, 2, 3],
        "pair": ["y", False],
        "training": {"steps": 5, "rate": 1.0},
        "layers": {"conv1": 64},
    }
    assert Many.from_dict(value) == step
    assert recipe_from_json(recipe_to_json([step, Scale()]), [Scale, Many]) == (step, Scale())


def test_a_field_left_out_takes_its_default():
    assert Many.from_dict({"pass": "many", "count": 3}) == Many(3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 1.5}, "count: 1.5 is not of type int"),
        ({"count": True}, "count: True"),
        ({"count": None}, "count"),
        ({"kind": "c"}, "kind: 'c' is none of 'a', 'b', 3"),
        ({"kind": 3.0}, "kind"),
        ({"kind": ["a"]}, "kind"),
        ({"limit": "1"}, "limit: '1' is not of type float; or .*None"),
        ({"limit": float("inf")}, "finite"),
        ({"sizes": 3}, "sizes: expected a list"),
        ({"sizes": [1, "2"]}, "sizes: '2'"),
        ({"pair": ["x"]}, "pair: 1 values, needs 2"),
        ({"pair": ["x" * 201, True]}, "201 letters"),
        ({"training": {"steps": 1, "epochs": 2}}, r"training: no option 'epochs'"),
        ({"training": [1]}, "training: expected an object"),
        ({"layers": {"conv1": "64"}}, "layers: '64'"),
        ({"layers": []}, "layers: expected an object"),
        ({"__class__": 1}, "no option '__class__'"),
        ({"name": "x"}, "no option 'name'"),
    ],
)
def test_options_that_cannot_be(change, says):
    with pytest.raises(DataError, match=rf"pass 'many'.*{says}"):
        Many.from_dict(Many(3).to_dict() | change)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "list"),
        (None, "list"),
        (["scale"], "step 1: pass None"),
        ([{"pass": "scale"}, {"pass": "os.system"}], "step 2: pass 'os.system' is none of scale"),
        ([{"pass": ["scale"]}], "step 1"),
        ([{"pass": "many"}], "count"),
        ([{"pass": "scale", "factor": "2"}], "factor"),
    ],
)
def test_recipes_that_cannot_be(value, says):
    with pytest.raises(EdgeIDError, match=says):
        recipe_from_json(value, [Scale, Many] if "count" in says else [Scale])


def test_an_option_that_json_cannot_keep():
    with pytest.raises(DataError, match="bytes"):
        Scale(b"x").to_dict()
