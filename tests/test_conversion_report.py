"""The report's page and JSON: well formed, escaped, nothing from outside, whole or not at all."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from edgeid.converters.quantisation.palette import Palette
from edgeid.converters.recipe import Context, finished_steps, run_recipe
from edgeid.converters.recipe_progress import PassReport
from edgeid.converters.report import page
from edgeid.converters.report.markup import (
    in_bytes,
    in_millions,
    in_percent,
    in_times,
)
from edgeid.converters.report.page import plain_json, write_report
from edgeid.converters.report.steps import Measured, Rate, Step, measure_steps
from edgeid.runtime.errors import DataError, ModelError
from edgeid.runtime.graph import Graph, merge_graphs

from .networks import inputs, residual_graph

VOID = {"meta", "br"}
HOSTILE = '</td><script>alert("$x$")</script>&amp;'


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps what is of interest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._keep(attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._keep(attributes)

    def _keep(self, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def judge(graph: Graph) -> dict[str, Rate]:
    drop = 0.01 * any(tensor.encoding == "indexed" for tensor in graph.tensors.values())
    return {"face": Rate("EER", 0.05 + drop, 0.04 + drop, 0.07 + drop, 1234)}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Two networks and a palette, then fewer bits for what is left; labels for faces alone."""
    nets = [residual_graph(seed, (3, 4), (1, 0), size=16) for seed in (1, 2)]
    graph = merge_graphs(face=nets[0], voice=nets[1])
    samples = {"face": inputs(9, 16), "voice": inputs(7, 16)}
    context = Context(samples, tmp_path_factory.mktemp("work"), progress=False)
    recipe = (Palette(bits=3), Palette(bits=2, scope="all"))
    run_recipe(recipe, graph, context)
    steps = [Step("original", graph)]
    for report, after in finished_steps(recipe, graph, context):
        steps.append(Step(f"{len(steps)} {report.name}", after, report))
    return measure_steps(steps, samples, judge, progress=False)


def test_page_is_well_formed_and_needs_nothing_from_outside(
    measured: Measured, tmp_path: Path
) -> None:
    html, _ = write_report(tmp_path / "new" / "out", measured, title="m.edgeid", lines=["One."])
    text = html.read_text()
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {*found.tags}
    assert all(link.startswith("#") for link in found.links)
    assert {link[1:] for link in found.links} <= {*found.ids}
    assert len(set(found.ids)) == len(found.ids)
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)
    assert "@import" not in text
    assert "://" not in text
    # trade-off for two entries (voice by likeness), similarity, layers, use of values
    assert found.tags.count("figure") == 4 + 2 * 3 + 2 + 2
    for what in ("m.edgeid", "One.", "2 palette", "4.00 to 7.00 %", "1,234", "EER"):
        assert what in found.text
    # all colours of the plots are the page's own, so that dark pages have light ink
    assert not re.search(r"#0102\d\d", text)
    assert not re.search(r"(fill|stroke): #[0-9a-f]{6}", text)
    assert "prefers-color-scheme: dark" in text


def test_json_holds_the_figures_of_every_step(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "render_page", lambda *_: "")
    _, path = write_report(tmp_path, measured, title="m", lines=[])
    value = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(text))
    assert [step["name"] for step in value["steps"]] == ["original", "1 palette", "2 palette"]
    first, last = value["steps"][0], value["steps"][2]
    assert first["pass"] is None
    assert last["pass"]["options"] == measured.steps[2].report.options  # type: ignore[union-attr]
    assert first["size"]["file"] > last["size"]["file"]
    face = last["entries"]["face"]
    assert face["rate"] == {
        "name": "EER",
        "value": pytest.approx(0.06),
        "low": pytest.approx(0.05),
        "high": pytest.approx(0.08),
        "trials": 1234,
        "lower_is_better": True,
    }
    assert last["entries"]["voice"]["rate"] is None
    # 3x3 over 1 and 3 channels to 3 maps of 8x8, then 4x4; layers 1, 2, 3, 4 and the last
    macs = [8 * 8 * 3 * 9, 8 * 8 * 3 * 27, 8 * 8 * 3 * 27, 4 * 4 * 4 * 27, 5 * 4 * 16]
    assert [layer["multiply_adds"] for layer in face["layers"]] == macs
    assert face["multiply_adds"] == sum(macs)
    assert face["latency"]["minimum"] <= face["latency"]["median"]
    assert face["similarity"]["mean_cosine"] < first["entries"]["face"]["similarity"]["mean_cosine"]
    assert len(value["sensitivity"]["face"]) == 5
    assert value["codebooks"][0]["kind"] == "dictionary"
    assert value["samples"] == {"face": 9, "voice": 7}


def test_names_are_text(measured: Measured, tmp_path: Path) -> None:
    report = measured.steps[1].report
    assert report is not None
    figures: dict[str, float | int | str] = {f"K/{HOSTILE}": HOSTILE, "K/other": 3}
    bad = replace(
        report, name=HOSTILE, lines=(HOSTILE,), figures=figures, options={"pass": HOSTILE}
    )
    odd = "\x00\n\u202e\ud800\U0001f600"
    last = measured.steps[2]
    costs = {
        entry: tuple(replace(layer, name=HOSTILE, encoding=HOSTILE) for layer in layers)
        for entry, layers in last.costs.items()
    }
    layers = tuple(replace(layer, name=HOSTILE) for layer in measured.sensitivity["face"])
    gone = replace(layers[0], loss=None, error=None, note=HOSTILE)
    hostile = replace(
        measured,
        steps=(
            replace(measured.steps[0], name=odd),
            replace(measured.steps[1], name=HOSTILE, report=bad),
            replace(last, costs=costs, rates={"face": replace(last.rates["face"], name=HOSTILE)}),
        ),
        sensitivity={"face": (gone, *layers[1:])},
        codebooks=(replace(measured.codebooks[0], tensors=(HOSTILE,) * 6),),
        engine=HOSTILE,
        machine=HOSTILE,
    )
    html, path = write_report(tmp_path, hostile, title=HOSTILE, lines=[HOSTILE, odd])
    found = Page(html.read_text())
    assert "script" not in found.tags
    assert found.text.count(HOSTILE) > 10
    assert not {"\x00", "\u202e"} & set(found.text)
    assert json.loads(path.read_text())["title"] == HOSTILE


def test_figures_of_layers_become_a_table(measured: Measured, tmp_path: Path) -> None:
    report = measured.steps[1].report
    assert report is not None
    figures: dict[str, float | int | str] = {"index_bytes": 7, "cosine/face": 0.98765}
    figures |= {"K/a + b": 64, "K/c": 16, "K/d/e": 32}
    figures |= {"sensitivity/a + b": 0.5, "sensitivity/d/e": 0.1234567}
    step = replace(measured.steps[1], report=replace(report, figures=figures))
    one = replace(measured, steps=(measured.steps[0], step), codebooks=(), sensitivity={})
    found = Page(write_report(tmp_path, one, title="m")[0].read_text())
    text = found.text.partition("figures of single layers")[2].partition("options")[0]
    assert " ".join(text.split()) == ("layer K sensitivity a + b 64 0.5 c 16 \u2013 d/e 32 0.1235")


def test_least_that_a_report_is_made_of(tmp_path: Path) -> None:
    graph = residual_graph(1, (3, 4), (0, 0), size=16)
    report = PassReport("nothing", {"pass": "nothing"}, (), {}, 1, 0, {}, 0.1)
    steps = [Step("original", graph), Step("1 nothing", graph, report)]
    bare = measure_steps(steps, {}, None, progress=False)
    html, _ = write_report(tmp_path, bare, title="bare")
    found = Page(html.read_text())
    assert "figure" not in found.tags
    assert "codebook" not in found.text
    assert "Trade-off" not in found.text
    one = measure_steps(steps[:1], {"face": inputs(1, 16)}, None, progress=False)
    found = Page(write_report(tmp_path, one, title="one")[0].read_text())
    assert "mean cosine" in found.text


def test_numbers_for_people() -> None:
    joined = "\u00a0"
    sizes = [in_bytes(n).replace(joined, " ") for n in (0, 999, 1234567, 999_999, 2.5e9)]
    assert sizes == ["0 B", "999 B", "1.23 MB", "1 MB", "2.5 GB"]
    assert [in_millions(n).replace(joined, " ") for n in (480, 436e6)] == ["480", "436 M"]
    assert in_percent(0.03125) == f"3.12{joined}%"
    assert (in_times(10, 3), in_times(99.9, 1), in_times(1, 0)) == ("3.33x", "99.9x", "\u2013")


def test_numbers_that_are_none_become_null() -> None:
    given = {"a": (np.float32(0.5), float("nan"), -np.inf), 3: np.arange(2), "c": {np.int64(1)}}
    assert plain_json(given) == {"a": [0.5, None, None], "3": [0, 1], "c": [1]}
    assert plain_json([True, None, Path("x")]) == [True, None, "x"]


def test_failed_write_leaves_the_old_report(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "render_page", lambda *_: "old")
    write_report(tmp_path, measured, title="old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path, _data: bytes) -> None:
        raise ModelError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr(page, "replace_file", full)
    with pytest.raises(ModelError, match="the disk is full"):
        write_report(tmp_path, measured, title="new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot make the folder"):
        write_report(tmp_path / "file", measured, title="new")
