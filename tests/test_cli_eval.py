from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

from edgeid import demo, evaluation, plots
from edgeid.cli import main
from edgeid.runtime.model import Model


@dataclass(frozen=True)
class Report:
    """Stands for the report of an evaluation, and of the demo."""

    ok: bool = True

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok}

    def lines(self) -> list[str]:
        return ["EER 1.0 %"]


@pytest.fixture
def model(fake_model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Model, "load", lambda *_, **__: fake_model)
    return fake_model


@pytest.mark.parametrize(
    ("kind", "function", "paths"),
    [
        ("faces", "evaluate_faces", ["faces/lfw_pairs.csv", "faces/lfw_aligned.zip"]),
        (
            "voices",
            "evaluate_voices",
            ["speech/enroll.csv", "speech/trials.csv", "speech/dev.zip"],
        ),
        ("people", "evaluate_people", ["people.csv", "faces/portraits.zip", "speech/dev.zip"]),
    ],
)
def test_evaluation_is_forwarded(
    kind: str, function: str, paths: list[str], model: Any,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    evaluate = create_autospec(getattr(evaluation, function), return_value=Report())
    monkeypatch.setattr(evaluation, function, evaluate)
    monkeypatch.setenv("EDGEID_DATA", "/data")
    assert main(["eval", kind]) == 0
    assert capsys.readouterr().out == "EER 1.0 %\n"
    given = evaluate.call_args.args
    assert given[0] is model
    assert list(given[1 : 1 + len(paths)]) == [Path("/data") / path for path in paths]
    assert list(given[1 + len(paths) :]) == ([True] if kind == "faces" else [])


def test_images_given_are_photos_unless_said_to_be_aligned(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = create_autospec(evaluation.evaluate_faces, return_value=Report())
    monkeypatch.setattr(evaluation, "evaluate_faces", evaluate)
    for flag, aligned in (([], False), (["--aligned"], True)):
        assert main(["eval", "faces", "--pairs", "p", "--images", "i", *flag]) == 0
        evaluate.assert_called_with(model, Path("p"), Path("i"), aligned, fold=None)


@pytest.mark.usefixtures("model")
def test_plot_is_drawn_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "evaluate_people", lambda *_, **__: Report())
    plot = create_autospec(plots.plot_det)
    monkeypatch.setattr(plots, "plot_det", plot)
    assert main(["eval", "people"]) == 0
    plot.assert_not_called()
    assert main(["eval", "people", "--plot", "det.png"]) == 0
    plot.assert_called_once_with(Report(), Path("det.png"))


@pytest.mark.usefixtures("model")
def test_missing_data_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEID_DATA", str(tmp_path))
    for kind in ("faces", "voices", "people"):
        assert main(["eval", kind, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "data"


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 1)])
def test_demo_is_forwarded(
    ok: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = create_autospec(demo.run_demo, return_value=Report(ok))
    monkeypatch.setattr(demo, "run_demo", run)
    assert main(["demo", "--people", "p.csv", "--engine", "reference", "--json"]) == status
    assert json.loads(capsys.readouterr().out) == {"ok": ok}
    run.assert_called_once_with(Path("p.csv"), "default", "reference")


@pytest.mark.usefixtures("model")
def test_options_of_the_protocols_are_forwarded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind, function in (("faces", "evaluate_faces"), ("people", "evaluate_people")):
        evaluate = create_autospec(getattr(evaluation, function), return_value=Report())
        monkeypatch.setattr(evaluation, function, evaluate)
        option = ["--fold", "5"] if kind == "faces" else ["--crossed"]
        assert main(["eval", kind, *option]) == 0
        given = {"fold": 5} if kind == "faces" else {"crossed": True}
        assert evaluate.call_args.kwargs == given
