"""Imports run one way: edgeid -> converters -> runtime."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "edgeid": sorted((ROOT / "edgeid").glob("*.py")),
    "edgeid.converters": sorted((ROOT / "converters").rglob("*.py")),
    "edgeid.runtime": sorted((ROOT / "runtime").glob("*.py")),
}
ALL = [(layer, path) for layer, paths in LAYERS.items() for path in paths]
IDS = [".".join(path.relative_to(ROOT).with_suffix("").parts) for _, path in ALL]

HEAVY = ("torch", "onnx", "onnxscript", "onnxruntime", "cv2", "soundfile", "matplotlib", "scipy")


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names of the modules that the nodes below ``tree`` import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parent = parts[: len(parts) - node.level + 1]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            # "from edgeid import store" imports a module as well
            yield from (f"{base}.{alias.name}" for alias in node.names)


def at_import_time(path: Path) -> ast.Module:
    """The imports of a file, without those in functions and under ``if TYPE_CHECKING``."""

    return ast.Module([*_run_on_import(ast.parse(path.read_text()))], [])


def _run_on_import(tree: ast.AST) -> Iterator[ast.stmt]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _run_on_import(node)


def layer_of(name: str) -> str | None:
    """The layer a dotted name belongs to; None for other packages."""
    if name.split(".")[0] != "edgeid":
        return None
    found = ".".join(name.split(".")[:2])
    return found if found in LAYERS else "edgeid"


@pytest.mark.parametrize(("layer", "path"), ALL, ids=IDS)
def test_imports_run_one_way(layer: str, path: Path) -> None:
    allowed = {
        "edgeid": set(LAYERS),
        "edgeid.converters": {"edgeid.converters", "edgeid.runtime"},
        "edgeid.runtime": {"edgeid.runtime"},
    }[layer]
    # Anywhere in the file, also within functions.
    for name in imports(ast.parse(path.read_text()), layer):
        assert name.split(".")[0] not in ("runtime", "converters"), f"{path.name}: {name}"
        target = layer_of(name)
        assert target is None or target in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", LAYERS["edgeid"], ids=lambda path: path.stem)
def test_edgeid_needs_converters_only_inside_functions(path: Path) -> None:
    for name in imports(at_import_time(path), "edgeid"):
        assert layer_of(name) != "edgeid.converters", f"{path.name} imports {name}"


# Converters may import what the extra "convert" installs.
LIGHT = [(layer, path) for layer, path in ALL if layer != "edgeid.converters"]


@pytest.mark.parametrize(("layer", "path"), LIGHT, ids=[f"{layer}.{p.stem}" for layer, p in LIGHT])
def test_numpy_alone_is_imported_from_outside(layer: str, path: Path) -> None:
    for name in imports(at_import_time(path), layer):
        package = name.split(".")[0]
        known = package in ("numpy", "edgeid", "__future__") or package in sys.stdlib_module_names
        assert known, f"{path.name} imports {package} at import time"


def test_reading_of_imports_is_right(tmp_path: Path) -> None:
    source = (
        "import a.b\nfrom . import c\nfrom .d import e\nfrom ..f import g\nfrom .. import h\n"
        "if TYPE_CHECKING:\n    import i\n"
        "def f():\n    import j\n"
    )
    path = tmp_path / "x.py"
    path.write_text(source)
    always = {"a.b", "edgeid.runtime.c", "edgeid.runtime.d.e", "edgeid.f.g", "edgeid.h"}
    assert set(imports(ast.parse(source), "edgeid.runtime")) == always | {"i", "j"}
    assert set(imports(at_import_time(path), "edgeid.runtime")) == always


@pytest.mark.parametrize("module", ["edgeid", "edgeid.cli", "edgeid.store", "edgeid.runtime.score"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_help_needs_no_heavy_package() -> None:
    code = (
        f"import sys\nfor m in {HEAVY!r}: sys.modules[m] = None\n"
        "from edgeid.cli import main\nmain(['verify', '--help'])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
