from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeid.runtime.errors import (
    StoreCorruptError,
    UnknownUserError,
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


TAMPERING = {
    "templates given to another person": "UPDATE templates SET user = (SELECT id FROM users"
    " WHERE id <> templates.user)",
    "ciphertexts exchanged": "UPDATE templates SET sealed = (SELECT sealed FROM templates AS o"
    " WHERE o.user <> templates.user AND o.modality = templates.modality)",
    "modality exchanged": "UPDATE templates SET modality ="
    " CASE modality WHEN 'face' THEN 'voice' ELSE 'face' END",
    "foreign modality": "UPDATE templates SET modality = 'gait'",
    "record renamed": "UPDATE templates SET id = randomblob(16)",
    "a template taken away": "DELETE FROM templates WHERE modality = 'voice'",
    "all templates taken away": "DELETE FROM templates",
    "a template copied": "INSERT INTO templates SELECT randomblob(16), user, modality, model,"
    " sealed FROM templates WHERE modality = 'face'",
    "a byte changed": "UPDATE templates SET sealed = CAST(zeroblob(1) ||"
    " substr(sealed, 2) AS BLOB)",
    "ciphertext emptied": "UPDATE templates SET sealed = zeroblob(0)",
    "ciphertext cut": "UPDATE templates SET sealed = substr(sealed, 1, 20)",
    "profiles exchanged": "UPDATE users SET sealed = (SELECT sealed FROM users AS o"
    " WHERE o.id <> users.id)",
    "profile damaged": "UPDATE users SET sealed = zeroblob(300)",
}


@pytest.mark.parametrize("statement", TAMPERING.values(), ids=TAMPERING.keys())
def test_tampering_is_noticed(store: TemplateStore, path: Path, statement: str) -> None:
    _two_people(store)
    with raw(path) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute(statement)
    with TemplateStore(path, KEY) as opened:
        with pytest.raises(StoreCorruptError):
            opened.templates("ann", MODEL)
        with pytest.raises(StoreCorruptError):
            opened.everyone(MODEL)


def test_exchanged_names_are_noticed(store: TemplateStore, path: Path) -> None:
    _two_people(store)
    (a, x), (b, y) = _records(path, "id, lookup", "users")
    with raw(path) as db:
        db.execute("UPDATE users SET lookup = x'00' WHERE id = ?", (a,))
        db.execute("UPDATE users SET lookup = ? WHERE id = ?", (x, b))
        db.execute("UPDATE users SET lookup = ? WHERE id = ?", (y, a))
    with TemplateStore(path, KEY) as opened, pytest.raises(StoreCorruptError, match="tampered"):
        opened.templates("ann", MODEL)


def test_templates_of_an_earlier_enrolment_cannot_be_put_back(
    store: TemplateStore, path: Path
) -> None:
    store.enroll("ann", people(faces=1, voices=0, seed=1), MODEL)
    (old,) = _records(path, "id, sealed", "templates")
    store.enroll("ann", people(faces=1, voices=0, seed=2), MODEL, replace=True)
    store.close()
    with raw(path) as db:
        db.execute("UPDATE templates SET id = ?, sealed = ?", old)
    with TemplateStore(path, KEY) as opened, pytest.raises(StoreCorruptError):
        opened.templates("ann", MODEL)


def test_templates_of_nobody_are_noticed(store: TemplateStore, path: Path) -> None:
    _two_people(store)
    with raw(path) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("DELETE FROM users WHERE id = (SELECT min(id) FROM users)")
    with TemplateStore(path, KEY) as opened, pytest.raises(StoreCorruptError, match="of nobody"):
        opened.everyone(MODEL)


def test_rows_of_another_store_do_not_open_under_the_same_key(
    store: TemplateStore, path: Path, tmp_path: Path
) -> None:
    _two_people(store)
    other = tmp_path / "other.db"
    with TemplateStore(other, KEY) as second:
        second.enroll("ann", people(faces=1, voices=1, seed=3), MODEL)
    with raw(path) as db:
        db.execute("ATTACH ? AS other", (str(other),))
        db.execute("DELETE FROM templates")
        db.execute("DELETE FROM users")
        db.execute("INSERT INTO users SELECT * FROM other.users")
        db.execute("INSERT INTO templates SELECT * FROM other.templates")
    with TemplateStore(path, KEY) as opened:
        with pytest.raises(UnknownUserError):
            opened.templates("ann", MODEL)
        with pytest.raises(StoreCorruptError):
            opened.everyone(MODEL)


@pytest.mark.parametrize("statement", ["DELETE FROM meta", "DELETE FROM meta WHERE name LIKE 's%'"])
def test_lost_key_check(store: TemplateStore, path: Path, statement: str) -> None:
    _two_people(store)
    with raw(path) as db:
        db.execute(statement)
    with pytest.raises(StoreCorruptError, match="key check"):
        TemplateStore(path, KEY)
