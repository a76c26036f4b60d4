"""The JSON form of one layer, read strictly: every field present, known and of its type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from edgeid.runtime.errors import GraphError, UnsupportedOperatorError
from edgeid.runtime.layers import OPERATORS, Layer

MAX_NAME = 200  # characters
MAX_LIST = 64  # inputs of a layer, axes of a shape
MAX_INT = 1 << 31


def check_name(value: object, where: str) -> str:
    """``value`` if it is a name: 1..200 printable characters; raises GraphError otherwise."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise GraphError(f"{where}: {value!r:.80} is not a name (1..{MAX_NAME} printable letters)")
    return value


def check_int(value: object, where: str) -> int:
    """``value`` if it is a whole number below 2^31 in size; raises GraphError otherwise."""
    if type(value) is not int or abs(value) >= MAX_INT:
        raise GraphError(f"{where}: {value!r:.80} is not a whole number below 2^31")
    return value


def check_keys(value: object, keys: set[str], where: str) -> dict[str, Any]:
    """``value`` if it is an object with exactly ``keys``; raises GraphError otherwise."""
    if not isinstance(value, dict):
        raise GraphError(f"{where}: expected an object, found {type(value).__name__}")
    if value.keys() != keys:
        missing = sorted(keys - value.keys())
        unknown = sorted(f"{key!r:.80}" for key in value.keys() - keys)[:8]
        raise GraphError(f"{where}: fields missing: {missing}, fields unknown: {unknown}")
    return value


def check_list(value: object, most: int, where: str) -> list[Any]:
    """``value`` if it is a list of at most ``most`` items; raises GraphError otherwise."""
    if not isinstance(value, list):
        raise GraphError(f"{where}: expected a list, found {type(value).__name__}")
    if len(value) > most:
        raise GraphError(f"{where}: {len(value)} items, more than the limit {most}")
    return value


def _optional_name(value: object, where: str) -> str | None:
    return None if value is None else check_name(value, where)


def _float(value: object, where: str) -> float:
    if type(value) not in (int, float):
        raise GraphError(f"{where}: {value!r:.80} is not a number")
    return float(value)  # type: ignore[arg-type]  # narrowed by the line above


def _names(value: object, where: str) -> tuple[str, ...]:
    return tuple(check_name(item, where) for item in check_list(value, MAX_LIST, where))


def check_ints(value: object, where: str) -> tuple[int, ...]:
    """A list of whole numbers as a tuple; raises GraphError otherwise."""
    return tuple(check_int(item, where) for item in check_list(value, MAX_LIST, where))


def _exactly(count: int) -> Callable[[object, str], tuple[int, ...]]:
    def read(value: object, where: str) -> tuple[int, ...]:
        numbers = check_ints(value, where)
        if len(numbers) != count:
            raise GraphError(f"{where}: {len(numbers)} numbers, needs {count}")
        return numbers

    return read


# By the annotation of the dataclass field, so that a new operator needs no code here.
_READERS: dict[str, Callable[[object, str], Any]] = {
    "str": check_name,
    "str | None": _optional_name,
    "int": check_int,
    "float": _float,
    "tuple[str, ...]": _names,
    "tuple[int, ...]": check_ints,
    "tuple[int, int]": _exactly(2),
    "tuple[int, int, int, int]": _exactly(4),
}


def layer_to_dict(layer: Layer) -> dict[str, Any]:
    """JSON form of a layer: its operator and every field."""
    found: dict[str, Any] = {"op": layer.op}
    for field in fields(layer):
        value = getattr(layer, field.name)
        if field.type == "float":
            value = float(value)
        found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def layer_from_dict(value: object, where: str) -> Layer:
    """The layer that ``layer_to_dict`` wrote.

    Raises:
        UnsupportedOperatorError: the operator is none of ``layers.OPERATORS``.
        GraphError: a field is missing, unknown or of the wrong type.
    """
    if not isinstance(value, dict):
        raise GraphError(f"{where}: expected an object, found {type(value).__name__}")
    if "name" in value:
        where = f"layer {check_name(value['name'], where)!r}"
    op = value.get("op")
    if not isinstance(op, str) or op not in OPERATORS:
        raise UnsupportedOperatorError(
            f"{where}: operator {op!r:.80} is not supported; supported: {', '.join(OPERATORS)}"
        )
    kind = OPERATORS[op]
    known = check_keys(value, {"op", *(field.name for field in fields(kind))}, where)
    return kind(
        **{
            field.name: _READERS[str(field.type)](known[field.name], f"{where}, {field.name}")
            for field in fields(kind)
        }
    )
