"""What is installed: with a compiler the C extension, without one everything else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parents[1]

# where the package lies, whether it has the extension, and what an engine that needs it says
PROBE = """
import edgeid
from edgeid.runtime.errors import EngineError
from edgeid.runtime.model import Model
print(edgeid.__file__)
try:
    import edgeid.runtime._native
except ImportError:
    print("without")
try:
    Model.load(engine="native")
except EngineError as error:
    print(error)
print(Model.load().engine.name)
"""


@pytest.fixture
def sources(tmp_path):
    """What a build reads, apart from this checkout."""
    folder = tmp_path / "sources"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("edgeid", "converters", "runtime"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    return folder


def test_without_a_compiler_the_package_is_built_and_says_so(sources, tmp_path):
    environment = {**os.environ, "CC": "/bin/false", "CFLAGS": ""}
    built = subprocess.run(
        [sys.executable, "setup.py", "build", "--build-base", str(tmp_path / "build")],
        cwd=sources,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert 'extension "edgeid.runtime._native" failed' in built.stdout + built.stderr

    (package,) = (tmp_path / "build").glob("lib*")
    environment["PYTHONPATH"] = str(package)
    ran = subprocess.run(
        [sys.executable, "-P", "-c", PROBE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    where, extension, complaint, chosen = ran.stdout.splitlines()
    assert Path(where).is_relative_to(package)
    assert extension == "without"
    assert "native engine was not built" in complaint
    assert chosen in ("onnxruntime", "reference")
