from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType

import edgeid
from edgeid.version import __version__


def test_all_is_sorted_and_complete() -> None:
    public = {
        name
        for name, value in vars(edgeid).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(edgeid.__all__) == public | {"__version__"}
    assert edgeid.__all__ == sorted(edgeid.__all__)
    assert edgeid.__version__ == __version__


def test_package_only_re_exports() -> None:
    source = Path(inspect.getfile(edgeid)).read_text()
    assert len(source.splitlines()) <= 30
    for node in ast.parse(source).body[1:]:
        is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        assert isinstance(node, ast.ImportFrom) or is_all, ast.unparse(node)


def test_every_public_name_has_a_docstring() -> None:
    for name in edgeid.__all__:
        value = getattr(edgeid, name)
        if not inspect.isclass(value):
            continue
        assert value.__doc__, name
        for attribute, member in vars(value).items():
            if inspect.isfunction(member) and not attribute.startswith("_"):
                assert member.__doc__, f"{name}.{attribute}"


def test_signatures_users_rely_on() -> None:
    def parameters(function: object) -> list[str]:
        return list(inspect.signature(function).parameters)  # type: ignore[arg-type]

    assert parameters(edgeid.EdgeID) == [
        "model",
        "store",
        "fmr",
        "engine",
        "policy",
        "key",
        "detector",
    ]
    assert parameters(edgeid.EdgeID.enroll) == ["self", "user", "images", "audio", "replace"]
    assert parameters(edgeid.EdgeID.verify) == ["self", "image", "audio", "user"]
    assert parameters(edgeid.EdgeID.identify) == ["self", "image", "audio"]
