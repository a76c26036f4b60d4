"""The tables of a template store, their migrations, and the check of file and key at opening."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing

from edgeid.database import transaction
from edgeid.keys import MasterKey
from edgeid.records import RecordCipher
from edgeid.runtime.errors import StoreCorruptError, StoreError

APPLICATION_ID = 0x45644944  # "EdID": marks the file as EdgeID's (SQLite's application_id)

Migration = Callable[[sqlite3.Connection], None]


def _first_tables(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT")
    db.execute(
        "CREATE TABLE users (id BLOB PRIMARY KEY, lookup BLOB NOT NULL UNIQUE,"
        " sealed BLOB NOT NULL) STRICT"
    )
    db.execute(
        "CREATE TABLE templates (id BLOB PRIMARY KEY,"
        " user BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,"
        " modality TEXT NOT NULL, model TEXT NOT NULL, sealed BLOB NOT NULL) STRICT"
    )
    db.execute("CREATE INDEX templates_of_user ON templates (user)")


# In order, never edited once released; each runs in one transaction with its record.
MIGRATIONS: tuple[Migration, ...] = (_first_tables,)


_STORE_ID_BYTES = 16


def prepare(db: sqlite3.Connection, master: MasterKey) -> RecordCipher:
    """Check the file and the key, bring the tables up to date, and hand out the cipher.

    Raises:
        StoreCorruptError, StoreError: as ``identify_file``.
        WrongKeyError: the key does not open the store; then nothing was changed.
    """
    known = identify_file(db)
    if not known:
        _migrate(db)
    cipher = _unlock(db, master)
    if known:
        _migrate(db)
    return cipher


def _migrate(db: sqlite3.Connection) -> None:
    for number in pending(db):
        with transaction(db):
            # Another process may have been first.
            if number in pending(db):
                apply(db, number)


def _unlock(db: sqlite3.Connection, master: MasterKey) -> RecordCipher:
    meta = _meta(db)
    if not meta:
        with transaction(db):
            meta = _meta(db) or _new_meta(db, master)
    if set(meta) != {"store-id", "key-check"}:
        raise StoreCorruptError("the store lacks its key check: restore a backup")
    cipher = RecordCipher(master, meta["store-id"])
    cipher.verify_key(meta["key-check"])
    return cipher


def _meta(db: sqlite3.Connection) -> dict[str, bytes]:
    return dict(db.execute("SELECT name, value FROM meta"))


def _new_meta(db: sqlite3.Connection, master: MasterKey) -> dict[str, bytes]:
    if db.execute("SELECT 1 FROM users").fetchone():
        return {}
    store_id = os.urandom(_STORE_ID_BYTES)
    meta = {"store-id": store_id, "key-check": RecordCipher(master, store_id).key_check()}
    db.executemany("INSERT INTO meta (name, value) VALUES (?, ?)", meta.items())
    return meta


def identify_file(db: sqlite3.Connection) -> bool:
    """True for an EdgeID store, False for an empty new file.

    Raises:
        StoreCorruptError: a damaged file, or one of another program.
        StoreError: a store written by a newer EdgeID.
    """
    # In one transaction: another process may be making the tables right now, and a mark from
    # before with tables from after would look like a stranger's file.
    db.execute("BEGIN")
    try:
        return _identify(db)
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _identify(db: sqlite3.Connection) -> bool:
    (mark,) = db.execute("PRAGMA application_id").fetchone()
    found = _tables(db)
    if mark == 0 and not found:
        return False
    if mark != APPLICATION_ID or ("table", "migrations") not in {row[:2] for row in found}:
        raise StoreCorruptError("the file is not an EdgeID store: give another path")
    done = len(MIGRATIONS) - len(pending(db))
    # Exactly our tables: a stranger's triggers and views would run with our statements.
    if found != _expected_tables(done):
        raise StoreCorruptError("the store's tables are not EdgeID's: restore a backup")
    (fault,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if fault != "ok":
        raise StoreCorruptError(f"the store is damaged ({fault}): restore a backup")
    return True


def _tables(db: sqlite3.Connection) -> set[tuple[str, ...]]:
    return set(db.execute("SELECT type, name, sql FROM sqlite_schema"))


def _expected_tables(migrations: int) -> set[tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for number in range(1, migrations + 1):
            apply(db, number)
        return _tables(db)


def pending(db: sqlite3.Connection) -> list[int]:
    """Numbers (from 1) of the migrations that the file has not seen yet.

    Raises:
        StoreError: the file has seen migrations that this EdgeID does not know.
    """
    table = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'migrations'").fetchone()
    done = {n for (n,) in db.execute("SELECT number FROM migrations")} if table else set()
    known = range(1, len(MIGRATIONS) + 1)
    if unknown := done - set(known):
        raise StoreError(
            f"the store was written by a newer EdgeID (migration {max(unknown)}, "
            f"this one knows {len(MIGRATIONS)}): update EdgeID"
        )
    return [number for number in known if number not in done]


def apply(db: sqlite3.Connection, number: int) -> None:
    """Run migration ``number`` (from 1) and record it; the caller holds the transaction."""
    if number == 1:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("CREATE TABLE migrations (number INTEGER PRIMARY KEY) STRICT")
    MIGRATIONS[number - 1](db)
    db.execute("INSERT INTO migrations (number) VALUES (?)", (number,))
