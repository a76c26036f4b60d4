"""Options of a pass as JSON and back, by the annotations of their dataclass.

A recipe comes out of a model file, so what it says is checked as strictly as a layer is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edgeid.runtime.errors import DataError
from edgeid.runtime.layer_json import MAX_NAME

_PLAIN = (bool, int, float, str, NoneType)


def options_to_dict(options: Any) -> dict[str, Any]:
    """The fields of a dataclass, ready for JSON: tuples become lists, dataclasses objects."""
    return {field.name: _to_json(getattr(options, field.name)) for field in fields(options)}


def options_from_dict(kind: type[Any], value: Mapping[str, Any], where: str) -> Any:
    """The dataclass that ``options_to_dict`` wrote. A field left out takes its default.

    Raises:
        DataError: a field is unknown, lacks a value, or has one of another type; naming it.
    """
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    unknown = sorted(f"{key!r:.80}" for key in value.keys() - known)
    if unknown:
        raise DataError(f"{where}: no option {', '.join(unknown[:4])}; there are {sorted(known)}")
    found = {
        name: _from_json(item, hints[name], f"{where}, {name}") for name, item in value.items()
    }
    try:
        return kind(**found)
    except TypeError as error:  # a field without a default is missing
        raise DataError(f"{where}: {error}") from error


def _to_json(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return options_to_dict(value)
    if isinstance(value, tuple | list):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if type(value) not in _PLAIN:
        raise DataError(f"an option of type {type(value).__name__} cannot be kept in a recipe")
    return value


def _from_json(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise DataError(f"{where}: {value!r:.80} is none of {', '.join(map(repr, arguments))}")
        return value
    if origin in (Union, UnionType):
        return _union(value, arguments, where)
    if origin is tuple:
        return _tuple(value, arguments, where)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object, found {type(value).__name__}")
        return {key: _from_json(item, arguments[1], where) for key, item in value.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object, found {type(value).__name__}")
        return options_from_dict(hint, value, where)
    return _scalar(value, hint, where)


def _union(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    problems = []
    for choice in choices:
        try:
            return _from_json(value, choice, where)
        except DataError as error:
            problems.append(str(error))
    raise DataError("; or ".join(problems))


def _tuple(value: Any, items: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list, found {type(value).__name__}")
    hints = items[:1] * len(value) if len(items) == 2 and items[1] is Ellipsis else items
    if len(hints) != len(value):
        raise DataError(f"{where}: {len(value)} values, needs {len(hints)}")
    return tuple(_from_json(item, hint, where) for item, hint in zip(value, hints, strict=True))


def _scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if kind not in _PLAIN or type(value) is not kind:
        name = getattr(kind, "__name__", str(kind))
        raise DataError(f"{where}: {value!r:.80} is not of type {name}")
    if kind is float and not math.isfinite(value):
        raise DataError(f"{where}: {value} is not finite")
    if kind is str and len(value) > MAX_NAME:
        raise DataError(f"{where}: text of {len(value)} letters, more than {MAX_NAME}")
    return value
