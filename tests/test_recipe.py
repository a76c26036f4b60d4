"""Recipes: order, checks, reports, resumption, interruption, and their JSON form."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from edgeid.converters.recipe import (
    Context,
    Pass,
    PassResult,
    recipe_from_json,
    run_recipe,
    stored_bytes,
)
from edgeid.runtime.encoding import encode_float16, encode_float32
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.format import read_model
from edgeid.runtime.graph import Entry, Gemm, Graph

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def calls() -> list[str]:
    CALLS.clear()
    return CALLS


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies the weight of ``fc``."""

    factor: float = 2.0

    name: ClassVar[str] = "scale"

    def call(self, graph: Graph, _context: Context) -> PassResult:
        CALLS.append(f"scale {self.factor}")
        weight = encode_float32(graph.tensors["w"].decode() * np.float32(self.factor))
        after = replace(graph, tensors=graph.tensors | {"w": weight})
        return PassResult(after, (f"times {self.factor}",), {"factor": np.float32(self.factor)})


@dataclass(frozen=True)
class Half(Pass):
    """Stores the weight as float16, and keeps something in its folder."""

    name: ClassVar[str] = "half"

    def requires(self, graph: Graph, _context: Context) -> None:
        if abs(graph.tensors["w"].decode()).max() > 10:
            raise GraphError("weights above 10")

    def call(self, graph: Graph, context: Context) -> PassResult:
        CALLS.append("half")
        (context.work / "own.txt").write_text("x")
        weight = encode_float16(graph.tensors["w"].decode())
        return PassResult(replace(graph, tensors={"w": weight}))

    def ensures(self, _before: Graph, after: Graph, _context: Context) -> None:
        if after.tensors["w"].nbytes != 8:
            raise GraphError("not halved")


@dataclass(frozen=True)
class Broken(Pass):
    """Fails in one of the ways in which a pass can fail."""

    how: str

    name: ClassVar[str] = "broken"

    def call(self, graph: Graph, _context: Context) -> PassResult:
        if self.how == "data":
            raise DataError("no faces")
        if self.how == "bug":
            raise ZeroDivisionError("oops")
        if self.how == "ctrl-c":
            raise KeyboardInterrupt
        if self.how == "nan":
            weight = encode_float32(np.array([[3e38, 3e38], [-3e38, 3e38]]))
            return PassResult(replace(graph, tensors={"w": weight}))
        if self.how == "idle":
            return PassResult(replace(graph, tensors=graph.tensors | {"v": graph.tensors["w"]}))
        return PassResult(replace(graph, entries=(replace(graph.entries[0], name="voice"),)))


def graph(weight=((1, 2), (3, 4))) -> Graph:
    layer = Gemm("fc", ("x",), "y", "w", None)
    tensor = encode_float32(np.array(weight, np.float32))
    return Graph((Entry("face", "x", (2,), "y"),), (layer,), {"w": tensor})


X = np.array([[1, 0], [0, 1], [1, 1]], np.float32)


@pytest.fixture
def context(tmp_path) -> Context:
    return Context({"face": X}, tmp_path / "work", progress=False)


def test_passes_run_in_order_and_report(context, calls):
    before = graph()
    after, reports = run_recipe([Scale(2.0), Half(), Scale(0.5)], before, context)
    assert calls == ["scale 2.0", "half", "scale 0.5"]
    assert after.tensors["w"].decode().tolist() == [[1, 2], [3, 4]]
    assert before.tensors["w"].decode().tolist() == [[1, 2], [3, 4]]
    assert [report.name for report in reports] == ["scale", "half", "scale"]
    assert [(r.bytes_before, r.bytes_after) for r in reports] == [(16, 16), (16, 8), (8, 16)]
    assert reports[0].figures == {"factor": 2.0}
    assert reports[0].similarity == {"face": 1.0}
    assert reports[0].options == {"pass": "scale", "factor": 2.0}
    text = reports[1].text()
    assert text[0].startswith("half: 16 -> 8 bytes (2.00x), ")
    assert text[-1] == "  cosine to the original: face 1.0000"


def test_similarity_by_hand(context):
    # the embeddings are the columns of the weight and their sum; the second is turned round
    @dataclass(frozen=True)
    class Turn(Pass):
        name: ClassVar[str] = "turn"

        def call(self, graph: Graph, _context: Context) -> PassResult:
            weight = encode_float32(np.array([[1, 0], [0, -1]], np.float32))
            return PassResult(replace(graph, tensors={"w": weight}))

    _, (report,) = run_recipe([Turn()], graph(((1, 0), (0, 1))), context)
    assert report.similarity["face"] == pytest.approx((1 - 1 + 0) / 3, abs=1e-6)


def test_no_samples_no_similarity(context):
    _, (report,) = run_recipe([Scale()], graph(), replace(context, samples={}))
    assert report.similarity == {}
    assert len(report.text()) == 2


def test_an_empty_recipe_changes_nothing(context):
    before = graph()
    assert run_recipe([], before, context) == (before, ())


def test_a_second_run_resumes(context, calls):
    first, reports = run_recipe([Scale(2.0), Half()], graph(), context)
    calls.clear()
    again, resumed = run_recipe([Scale(2.0), Half()], graph(), context)
    assert calls == []
    assert again.tensors["w"].decode().tobytes() == first.tensors["w"].decode().tobytes()
    assert resumed == tuple(replace(report, resumed=True) for report in reports)
    assert resumed[0].text()[0].endswith("resumed")
    longer, _ = run_recipe([Scale(2.0), Half(), Scale(3.0)], graph(), context)
    assert calls == ["scale 3.0"]
    assert longer.tensors["w"].decode().tolist() == [[6, 12], [18, 24]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"threads": 2, "progress": True}, []),
        ({"seed": 2}, ["scale 2.0", "half"]),
        ({"samples": {"face": X + 1}}, ["scale 2.0", "half"]),
        ({"samples": {}}, ["scale 2.0", "half"]),
    ],
)
def test_what_a_result_depends_on(context, calls, change, expected):
    run_recipe([Scale(2.0), Half()], graph(), context)
    calls.clear()
    run_recipe([Scale(2.0), Half()], graph(), replace(context, **change))
    assert calls == expected


def test_other_options_or_another_network_are_run_anew(context, calls):
    run_recipe([Scale(2.0), Half()], graph(), context)
    calls.clear()
    run_recipe([Scale(1.5), Half()], graph(), context)
    assert calls == ["scale 1.5", "half"]
    run_recipe([Scale(2.0), Half()], graph(((1, 2), (3, 4.5))), context)
    assert calls[2:] == ["scale 2.0", "half"]
    calls.clear()
    run_recipe([Scale(2.0), Half()], graph(), context)  # the first is still there
    assert calls == []


def test_a_damaged_file_is_made_again(context, calls):
    run_recipe([Scale(2.0), Half()], graph(), context)
    path = next(context.work.glob("02-half-*.edgeid"))
    whole = path.read_bytes()
    for data in (b"", whole[:-64], whole[:200] + b"x" + whole[201:]):
        path.write_bytes(data)
        calls.clear()
        run_recipe([Scale(2.0), Half()], graph(), context)
        assert calls == ["half"]


def test_finished_passes_are_model_files(context):
    run_recipe([Scale(2.0), Half()], graph(), context)
    file = read_model(next(context.work.glob("02-half-*.edgeid")))
    assert file.recipe == [{"pass": "scale", "factor": 2.0}, {"pass": "half"}]
    assert recipe_from_json(file.recipe, [Half, Scale]) == (Scale(2.0), Half())


def test_a_folder_of_its_own(context):
    run_recipe([Scale(2.0), Half()], graph(), context)
    folders = [path for path in context.work.iterdir() if path.is_dir()]
    assert [folder.name[:8] for folder in folders] == ["02-half-"]  # an empty one is removed
    assert [path.name for path in folders[0].iterdir()] == ["own.txt"]


# -- failures


@pytest.mark.parametrize(
    ("step", "error", "says"),
    [
        (Broken("data"), DataError, "no faces"),
        (Broken("entry"), GraphError, "entries"),
        (Broken("idle"), GraphError, "tensor 'v' is read by no layer"),
        (Broken("nan"), GraphError, "NaN or infinity"),
    ],
)
def test_a_failure_names_the_pass_and_those_before(context, step, error, says):
    with pytest.raises(error, match=rf"pass 3 of 4, 'broken' \(before it: scale, half\): .*{says}"):
        run_recipe([Scale(), Half(), step, Scale()], graph(), context)
    assert not list(context.work.glob("03-*"))


def test_what_a_pass_needs_is_checked_before_it_runs(context, calls):
    with pytest.raises(GraphError, match=r"'half' \(before it: scale\): weights above 10"):
        run_recipe([Scale(9.0), Half()], graph(), context)
    assert calls == ["scale 9.0"]


def test_what_a_pass_promises_is_checked(context, monkeypatch):
    monkeypatch.setattr(Half, "call", lambda _self, graph, _context: PassResult(graph))
    with pytest.raises(GraphError, match=r"'half'.*not halved"):
        run_recipe([Half()], graph(), context)


def test_other_errors_keep_their_type_and_gain_a_note(context):
    with pytest.raises(ZeroDivisionError) as caught:
        run_recipe([Scale(), Broken("bug")], graph(), context)
    assert "pass 2 of 2, 'broken'" in caught.value.__notes__[0]


def test_an_interruption_keeps_what_is_done(context, calls):
    with pytest.raises(KeyboardInterrupt):
        run_recipe([Scale(2.0), Half(), Broken("ctrl-c")], graph(), context)
    assert sorted(path.name[:8] for path in context.work.glob("*.edgeid")) == [
        "01-scale",
        "02-half-",
    ]
    calls.clear()
    run_recipe([Scale(2.0), Half(), Scale(3.0)], graph(), context)
    assert calls == ["scale 3.0"]


def test_an_interruption_while_writing_leaves_no_half_file(context, calls, monkeypatch):
    def interrupted(*_args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_recipe([Scale()], graph(), context)
    assert list(context.work.iterdir()) == []
    run_recipe([Scale()], graph(), context)
    assert calls == ["scale 2.0", "scale 2.0"]


def test_a_work_folder_that_cannot_be(context, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="work folder"):
        run_recipe([Scale()], graph(), replace(context, work=tmp_path / "file" / "work"))


def test_figures_that_json_cannot_keep_do_not_cost_the_work(context, monkeypatch):
    odd = {"nan": float("nan"), "inf": np.float32(np.inf), "n": np.int64(3), "what": (1, 2)}
    monkeypatch.setattr(Scale, "call", lambda _self, graph, _context: PassResult(graph, (), odd))
    _, (report,) = run_recipe([Scale()], graph(), context)
    assert report.figures == {"nan": "nan", "inf": "inf", "n": 3, "what": "(1, 2)"}


# -- samples


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ({"voice": X}, "'voice'"),
        ({"face": X[:, :1]}, r"\(3, 1\).*\(N, 2\)"),
        ({"face": X[:0]}, "N >= 1"),
        ({"face": X.astype(np.float64)}, "float64"),
        ({"face": np.full((1, 2), np.nan, np.float32)}, "NaN"),
    ],
)
def test_samples_that_do_not_fit(context, calls, samples, says):
    with pytest.raises(DataError, match=says):
        run_recipe([Scale()], graph(), replace(context, samples=samples))
    assert calls == []


def test_samples_that_are_missing(context):
    assert context.inputs("face") is X
    with pytest.raises(DataError, match=r"'voice'; there are \['face'\]"):
        context.inputs("voice")


@pytest.mark.parametrize("change", [{"threads": 0}, {"seed": -1}])
def test_settings_that_cannot_be(context, change):
    with pytest.raises(DataError):
        run_recipe([], graph(), replace(context, **change))


def test_track_passes_everything_on(context, capsys):
    assert list(context.track("abc", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_shared_parts_count_once():
    one = graph()
    layers = (Gemm("a", ("x",), "h", "w", None), Gemm("b", ("h",), "y", "v", None))
    copy = encode_float32(one.tensors["w"].decode().copy())
    two = replace(one, layers=layers, tensors=one.tensors | {"v": copy})
    assert (stored_bytes(one), stored_bytes(two)) == (16, 16)
    other = replace(two, tensors=one.tensors | {"v": encode_float16(copy.decode())})
    assert stored_bytes(other) == 24
