"""The README is run: its Python, its command lines, its make targets."""

from __future__ import annotations

import re
import shlex
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from edgeid.cli import build_parser, main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    edgeid (.+?)(?:\s+#.*)?$", README, re.MULTILINE)
SLOW = ("train", "convert", "calibrate", "export", "demo")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with the files that the README names, and a home of its own."""
    samples = Path(str(files("edgeid") / "samples"))
    for path in samples.glob("ada-*.*"):
        shutil.copy(path, tmp_path / path.name.replace("ada", "ann"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEID_HOME", str(tmp_path / "home"))


@pytest.mark.usefixtures("photos")
def test_python_runs(capsys):
    blocks = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - our own README
    assert capsys.readouterr().out.startswith("True ")


@pytest.mark.usefixtures("photos")
def test_commands_run_in_order(capsys):
    run = [line for line in COMMANDS if line.split()[0] not in SLOW]
    assert len(run) >= 6
    for line in run:
        assert main(shlex.split(line)) == 0, line
    assert "ann" in capsys.readouterr().out


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line):
    build_parser().parse_args(shlex.split(line))


def test_every_command_is_mentioned():
    actions = build_parser()._subparsers._group_actions[0]
    for command in actions.choices:
        assert re.search(rf"`?edgeid {command}\b", README), command


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^    make (\w+)|`make (\w+)`", README, re.MULTILINE)):
        name = "".join(target)
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_error_codes_and_files_named_exist():
    for path in re.findall(r"`((?:edgeid|converters|runtime|benchmarks)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path
