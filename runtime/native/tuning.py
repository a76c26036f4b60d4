"""Which instruction set computes a layer fastest on this machine: measured, and remembered.

All levels give the same bits, so that the choice is one of time alone. The best level mostly
wins everywhere; where it does not, for a small layer or on an unusual machine, another is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeid.runtime.errors import EngineError, ModelError
from edgeid.runtime.graph import Graph, graph_to_dict
from edgeid.runtime.replacement import replace_file

Choices = dict[str, dict[str, str]]
"""By entry and layer, the level that computes it, where that is not the best one."""

GAIN = 0.95  # another level has to take less than this share of the time
MAX_BYTES = 1 << 22


def cache_path() -> Path:
    """Where choices are remembered: EDGEID_TUNING, else ``edgeid/tuning.json`` in the user's
    cache directory (XDG_CACHE_HOME, else ``~/.cache``)."""
    chosen = os.environ.get("EDGEID_TUNING")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(cache) if os.path.isabs(cache) else Path("~/.cache").expanduser()
    return root / "edgeid" / "tuning.json"


def key(graph: Graph, levels: tuple[str, ...], threads: int) -> str:
    """What a choice holds for: the shape of the graph, the machine, and the threads."""
    shapes = {name: (t.encoding, t.shape) for name, t in sorted(graph.tensors.items())}
    known = [graph_to_dict(graph), shapes, levels, platform.machine(), platform.processor()]
    return hashlib.sha256(json.dumps([*known, threads], sort_keys=True).encode()).hexdigest()


def fastest(times: Mapping[str, Mapping[str, float]], usual: str) -> dict[str, str]:
    """By layer the level that takes least, where it clearly beats the usual one.

    Args:
        times: level -> layer -> seconds.
    """
    chosen = {}
    for layer, seconds in times[usual].items():
        level = min(times, key=lambda name: times[name][layer])
        if times[level][layer] < GAIN * seconds:
            chosen[layer] = level
    return chosen


def recall(graph: Graph, levels: tuple[str, ...], threads: int) -> Choices:
    """What was remembered for the graph on this machine; nothing where it was never tuned.

    Raises:
        EngineError: the file cannot be read, or is not what ``remember`` wrote.
    """
    path = cache_path()
    if not path.is_file():
        return {}
    found: Choices = _read(path).get(key(graph, levels, threads), {})
    names = {layer.name for layer in graph.layers}
    for entry, layers in found.items():
        known = isinstance(layers, dict) and set(layers) <= names
        if not known or not set(layers.values()) <= set(levels):
            raise EngineError(
                f"{path}: the choices for entry {entry!r:.80} make no sense: {_ADVICE}"
            )
    return found


def remember(graph: Graph, levels: tuple[str, ...], threads: int, choices: Choices) -> Path:
    """Add choices to the file, and say where that is.

    Raises:
        EngineError: it cannot be read or written.
    """
    path = cache_path()
    all_choices = (_read(path) if path.is_file() else {}) | {key(graph, levels, threads): choices}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(all_choices, indent=1, sort_keys=True).encode())
    except (OSError, ModelError) as error:
        raise EngineError(f"cannot write {path}: {error}: set EDGEID_TUNING") from error
    return path


_ADVICE = "remove the file, or tune again (edgeid bench --tune)"


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise EngineError(f"{path} has more than {MAX_BYTES} bytes: {_ADVICE}")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise EngineError(f"cannot read {path}: {error.strerror}: {_ADVICE}") from error
    except ValueError as error:
        raise EngineError(f"{path} is not JSON: {_ADVICE}") from error
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise EngineError(f"{path} holds no choices: {_ADVICE}")
    return found
