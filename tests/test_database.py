from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgeid.runtime.errors import (
    StoreCorruptError,
    StoreError,
    StoreFullError,
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


def _two_people(store: TemplateStore) -> None:
    store.enroll("ann", people(faces=1, voices=1, seed=1), MODEL)
    store.enroll("bob", people(faces=1, voices=1, seed=2), MODEL)
    store.close()


@pytest.mark.parametrize(
    "content",
    [b"x", b"not a database at all" * 100, b"SQLite format 3\0", b"SQLite format 3\0" * 500],
)
def test_foreign_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreCorruptError, match="EdgeID store"):
        TemplateStore(path, KEY)
    assert path.read_bytes() == content


def test_sqlite_file_of_another_program(path: Path) -> None:
    with raw(path) as db:
        db.execute("CREATE TABLE users (id)")
    before = path.read_bytes()
    with pytest.raises(StoreCorruptError, match="not an EdgeID store"):
        TemplateStore(path, KEY)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON users BEGIN DELETE FROM templates; END",
        "CREATE VIEW v AS SELECT * FROM users",
        "CREATE TABLE extra (x)",
        "DROP TABLE templates",
        "ALTER TABLE users ADD COLUMN extra TEXT",
    ],
)
def test_foreign_parts_are_refused_before_they_run(
    store: TemplateStore, path: Path, statement: str
) -> None:
    _two_people(store)
    with raw(path) as db:
        db.execute(statement)
    with pytest.raises(StoreCorruptError, match="not EdgeID's"):
        TemplateStore(path, KEY)


def test_truncated_file(store: TemplateStore, path: Path) -> None:
    for number in range(30):
        store.enroll(f"person {number}", people(seed=number), MODEL)
    store.close()
    whole = path.read_bytes()
    for length in (1, 100, 511, 512, 4096, 5000, len(whole) // 2, len(whole) - 4096):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreCorruptError):
            TemplateStore(path, KEY)


def test_last_bytes_cut_off(store: TemplateStore, path: Path) -> None:
    # SQLite reads the missing bytes as zeros: if they matter, the record no longer opens.
    for number in range(30):
        store.enroll(f"person {number}", people(seed=number), MODEL)
    store.close()
    whole = path.read_bytes()
    assert whole[-8:] != bytes(8)
    path.write_bytes(whole[:-8])

    def read() -> None:
        with TemplateStore(path, KEY) as opened:
            opened.everyone(MODEL)

    with pytest.raises(StoreCorruptError):
        read()


def test_any_damaged_byte_is_noticed_or_harmless(store: TemplateStore, path: Path) -> None:
    _two_people(store)
    whole = path.read_bytes()
    rng = random.Random(7)
    noticed = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 40))):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            with TemplateStore(path, KEY) as opened:
                found = opened.templates("ann", MODEL)
        except StoreError:
            noticed += 1
        else:
            np.testing.assert_array_equal(found.face, people(faces=1, voices=1, seed=1).face)
    assert noticed > 10


def test_paths_that_cannot_be_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a file"):
        TemplateStore(tmp_path, KEY)
    with pytest.raises(StoreError, match="no usable path"):
        TemplateStore("a\0b", KEY)
    with pytest.raises(StoreFullError, match="No such file"):
        TemplateStore(tmp_path / "missing" / "x.db", KEY)
    with pytest.raises(StoreFullError, match="too long"):
        TemplateStore(tmp_path / ("x" * 300), KEY)


def test_store_of_a_newer_edgeid(store: TemplateStore, path: Path) -> None:
    store.close()
    with raw(path) as db:
        db.execute("INSERT INTO migrations VALUES (99)")
    with pytest.raises(StoreError, match=r"newer EdgeID.*99.*update"):
        TemplateStore(path, KEY)
