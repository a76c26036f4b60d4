"""Charts in the terminal: lengths in proportion, with rich and without."""

from __future__ import annotations

import sys

import pytest

from edgeid.bar_chart import Bar, draw_bars

BARS = [Bar("native", 1.0, "1.00 ms"), Bar("onnxruntime", 4.0, "4.00 ms"), Bar("none", 0, "0")]


@pytest.fixture
def plain(monkeypatch):
    for name in ("rich", "rich.bar", "rich.console", "rich.table", "rich.markup"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("plain")
def test_without_rich():
    assert draw_bars("speed", BARS) == [
        "speed",
        "native      1.00 ms ##########",
        "onnxruntime 4.00 ms ########################################",
        "none              0",
    ]
    assert draw_bars("empty", []) == ["empty"]
    assert draw_bars("zeros", [Bar("a", 0, "0")]) == ["zeros", "a 0"]


@pytest.mark.usefixtures("plain")
def test_long_labels_keep_their_end():
    (_, line) = draw_bars("t", [Bar("a/" * 40 + "conv (lookup)", 1, "x")])
    assert line.startswith("...")
    assert "conv (lookup) x ####" in line
    assert line.index(" x ") == 44


def test_with_rich(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "80")
    title, *lines = draw_bars("speed [of 3]", [*BARS, Bar("layer [/x]", 2, "[2]")])
    assert title == "speed [of 3]"
    blocks = [line.count("█") for line in lines]
    assert blocks[1] > 40
    assert abs(blocks[0] - blocks[1] / 4) <= 1
    assert blocks[2] == 0
    assert "layer [/x]" in lines[3]
    assert max(len(line) for line in lines) <= 80
    assert "\x1b" not in "".join(lines)  # no colours: this is no terminal
