from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeid import schema
from edgeid.runtime.errors import (
    WrongKeyError,
)
from edgeid.store import TemplateStore
from edgeid.templates import Templates

KEY = bytes(range(32))
MODEL = "a" * 64


def people(faces: int = 2, voices: int = 1, seed: int = 0) -> Templates:
    rng = np.random.default_rng(seed)
    return Templates(
        face=rng.standard_normal((faces, 8)).astype(np.float32),
        voice=rng.standard_normal((voices, 4)).astype(np.float32),
    )


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The file as somebody without the key can change it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


def _records(path: Path, columns: str, table: str) -> list[tuple[Any, ...]]:
    with raw(path) as db:
        return db.execute(f"SELECT {columns} FROM {table}").fetchall()


def _two_people(store: TemplateStore) -> None:
    store.enroll("ann", people(faces=1, voices=1, seed=1), MODEL)
    store.enroll("bob", people(faces=1, voices=1, seed=2), MODEL)
    store.close()


def _add_notes(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE notes (text TEXT) STRICT")


def _fail_halfway(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE broken (x TEXT) STRICT")
    raise RuntimeError("halfway")


def test_migration_runs_once_and_is_recorded(
    store: TemplateStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _two_people(store)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, _add_notes))
    for _ in range(2):
        with TemplateStore(path, KEY) as opened:
            assert len(opened.everyone(MODEL)) == 2
    assert _records(path, "number", "migrations") == [(1,), (2,)]
    assert _records(path, "*", "notes") == []


def test_failed_migration_leaves_the_old_tables(
    store: TemplateStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _two_people(store)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, _fail_halfway))
        with pytest.raises(RuntimeError, match="halfway"):
            TemplateStore(path, KEY)
    with TemplateStore(path, KEY) as opened:
        assert len(opened.everyone(MODEL)) == 2


def test_wrong_key_does_not_migrate(
    store: TemplateStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _two_people(store)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, _add_notes))
    with pytest.raises(WrongKeyError):
        TemplateStore(path, bytes(32))
    assert _records(path, "number", "migrations") == [(1,)]


def test_store_in_memory() -> None:
    with TemplateStore(":memory:", KEY) as store:
        store.enroll("ann", people(), MODEL)
        assert len(store.everyone(MODEL)) == 1
    assert not os.path.exists(":memory:")
