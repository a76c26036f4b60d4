from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.stats import norm

from edgeid.measurement import measure
from edgeid.plots import plot_det
from edgeid.report import Report, probit
from edgeid.roc import Trials
from edgeid.runtime.errors import DataError, MissingExtraError


def _report(*shifts: float) -> Report:
    rng = np.random.default_rng(0)
    names = np.repeat([f"p{i}" for i in range(10)], 40)
    genuine = np.arange(400) % 4 == 0
    probe = np.where(genuine, names, np.roll(names, 40))
    parts = [
        measure(
            f"set {i}",
            Trials(rng.standard_normal(400) + shift * genuine, genuine, names, probe),
            "face",
            None,
        )
        for i, shift in enumerate(shifts)
    ]
    return Report("voices", tuple(parts), 400, 0, 0, ())


def test_probit_agrees_with_scipy() -> None:
    rates = np.array([1e-5, 0.01, 0.5, 0.999])
    np.testing.assert_allclose(probit(rates), norm.ppf(rates), rtol=1e-9)
    np.testing.assert_allclose(probit(np.array([0.0, 1.0])), norm.ppf([1e-6, 1 - 1e-6]))


def test_png_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = plot_det(_report(1.0, 2.0, 3.0), tmp_path / "det.png")
    pixels = cv2.imread(str(path))
    assert pixels is not None
    assert min(pixels.shape[:2]) > 600
    # Blue, vermilion and green curves of the first three parts (BGR).
    for colour in ((178, 114, 0), (0, 94, 213), (115, 158, 0)):
        assert (pixels == colour).all(axis=2).sum() > 200


def test_svg_names_the_curves_and_is_reproducible(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = _report(1.0, 2.5)
    path = plot_det(report, tmp_path / "det.svg")
    text = path.read_text()
    assert text.startswith("<?xml")
    assert f">set 1: EER {100 * report.parts[1].eer.value:.2f} %<" in text
    assert plot_det(report, tmp_path / "again.svg").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("shift", [100.0, -100.0, 0.0])
def test_extreme_curves(shift: float, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert plot_det(_report(shift), tmp_path / "det.png").stat().st_size > 1000


def test_plot_refuses(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(DataError, match=r"\.png, \.svg"):
        plot_det(_report(1.0), tmp_path / "det.gif")
    with pytest.raises(DataError, match="cannot be written"):
        plot_det(_report(1.0), tmp_path / "none" / "det.png")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgeid\[convert\]'"):
        plot_det(_report(1.0), tmp_path / "det.png")


def test_importing_the_module_loads_no_matplotlib() -> None:
    code = "import sys, edgeid.plots, edgeid.evaluation; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
