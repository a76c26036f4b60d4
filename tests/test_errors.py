from __future__ import annotations

import inspect
import re

import pytest

from edgeid.runtime import errors
from edgeid.runtime.errors import EdgeIDError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, EdgeIDError)
]


def drawn_tree() -> dict[str, str]:
    """Class -> parent, read from the drawing in the module's docstring."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([|` -]*)(\w+Error)\b", line)
        if not found:
            continue
        depth = len(found[1]) // 4
        del path[depth:]
        parents[found[2]] = path[-1] if path else "Exception"
        path.append(found[2])
    return parents


def test_the_drawn_tree_is_the_real_one() -> None:
    real = {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES}
    assert drawn_tree() == real
    assert len(real) > 25


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_has_a_code_of_its_own_and_a_docstring(cls: type[EdgeIDError]) -> None:
    assert "code" in vars(cls)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cls.code)
    assert [other for other in CLASSES if other.code == cls.code] == [cls]
    assert (cls.__doc__ or "").endswith(".")
    assert cls("what was wrong").args == ("what was wrong",)
