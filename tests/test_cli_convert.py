"""``edgeid convert``: options arrive, sizes are read, and what is wrong is told before the work."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest

from edgeid.cli import main
from edgeid.cli_convert import parse_size
from edgeid.runtime.errors import DataError

pytest.importorskip("torch", reason="converting needs the extra convert")

from edgeid.converters import convert as convert_module
from edgeid.converters import network_files
from edgeid.converters.network_files import Networks

from .networks import residual_graph

SMALL = residual_graph(1, (4, 4, 4, 4), (1, 1, 1, 1), size=112)


@dataclass(frozen=True)
class Report:
    """Stands for the report of a conversion."""

    def to_dict(self) -> dict[str, Any]:
        return {"bytes": 5}

    def lines(self) -> list[str]:
        return ["wrote 5 bytes"]


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The conversion, which is not run, over two small networks."""
    load = create_autospec(network_files.load_networks, return_value=Networks(SMALL, SMALL))
    monkeypatch.setattr(network_files, "load_networks", load)
    made = create_autospec(convert_module.convert, return_value=Report())
    monkeypatch.setattr(convert_module, "convert", made)
    made.load = load
    return made


def line(folder: Path, *more: str) -> list[str]:
    out = str(folder / "m.edgeid")
    return ["convert", "--face", "f.onnx", "--voice", "v.pt", "--out", out, *more]


def error_of(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    capsys.readouterr()
    assert main([*command, "--json"]) == 2
    found: str = json.loads(capsys.readouterr().out)["error"]["message"]
    return found


def test_a_plain_conversion_without_calibration_reads_no_data(
    convert: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("EDGEID_DATA", str(tmp_path / "none"))
    card = tmp_path / "card.json"
    card.write_text('{"terms": "research"}')
    options = ("--weights", "int8", "--landmark-bits", "5", "--no-calibration", "--card", str(card))
    assert main(line(tmp_path, *options)) == 0
    assert capsys.readouterr().out == "wrote 5 bytes\n"
    convert.load.assert_called_once_with(Path("f.onnx"), Path("v.pt"), None, None)
    networks, out, chosen, people, judge, work = convert.call_args.args
    assert (out, people, judge, work) == (tmp_path / "m.edgeid", None, None, None)
    assert networks.face is SMALL
    assert (chosen.weights, chosen.calibrated, chosen.version) == ("int8", False, 1)
    assert chosen.card == {"terms": "research"}
    assert chosen.landmark_bits == 5
    assert [[step.name for step in recipe] for recipe in chosen.ladder.recipes] == [["encode"]]


def test_recipe_and_limits_arrive(convert: Any, tmp_path: Path) -> None:
    options = ("--recipe", "logminmax", "--budget", "1.5MB", "--no-calibration")
    faces = tmp_path / "faces"
    faces.mkdir()
    for number in range(20):
        write_crop(faces / f"{number:02}.png")
    assert main(line(tmp_path, *options, "--faces", str(faces), "--seed", "7")) == 0
    chosen, people = convert.call_args.args[2:4]
    assert chosen.limits.budget == 1_500_000
    assert chosen.seed == 7
    assert {recipe[0].name for recipe in chosen.ladder.recipes} == {"logminmax"}
    assert people.speech is None
    assert len(people.faces[0].crops) == 18


def write_crop(path: Path) -> None:
    import cv2

    cv2.imwrite(str(path), np.full((112, 112), 90, np.uint8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--recipe", "magic"), "no recipe 'magic'"),
        (("--recipe", "none.json"), "cannot be read"),
        (("--budget", "much"), "'much' is no size"),
        (("--budget", "10kB"), "alone take 24,576"),
        (("--max-drop", "-1"), "0 to 100"),
        (("--card", "none.json"), "cannot be read"),
        (("--faces", "none"), "no such zip archive or folder"),
    ],
)
def test_what_is_wrong_is_told_before_the_work(
    convert: Any,
    options: tuple[str, ...],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in error_of(capsys, line(tmp_path, *options))
    convert.assert_not_called()


def test_an_interrupted_run_is_not_taken_up_unasked(
    convert: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "m.edgeid.work"
    work.mkdir()
    (work / "01-encode-abc.edgeid").write_bytes(b"")
    command = line(tmp_path, "--no-calibration")
    assert "--resume" in error_of(capsys, command)
    assert main([*command, "--resume"]) == 0
    convert.assert_called_once()


def test_a_card_that_is_none_is_told(
    convert: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "card.json"
    for content, words in ((b"\xff", "not JSON"), (b"[]", "not a JSON object")):
        card.write_bytes(content)
        command = line(tmp_path, "--no-calibration", "--card", str(card))
        assert words in error_of(capsys, command)
    convert.assert_not_called()


def test_sizes() -> None:
    sizes = {"1MB": 1_000_000, "1.5 MB": 1_500_000, "800kB": 800_000, "800k": 800_000, "77": 77}
    assert {text: parse_size(text) for text in sizes} == sizes
    for wrong in ("", "MB", "-1MB", "1GB", "0", "1e6"):
        with pytest.raises(DataError, match="is no size"):
            parse_size(wrong)
