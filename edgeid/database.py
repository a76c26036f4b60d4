"""A store's SQLite file: made for its owner alone, opened with safe settings, and SQLite's
failures told as EdgeID errors."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from edgeid.runtime.errors import (
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreLockedError,
)

_SETTINGS = (
    # A rollback journal, not a write-ahead log: after a commit no older page lies beside the
    # file, and after a crash the next reader restores the state before the transaction.
    "PRAGMA journal_mode = DELETE",
    "PRAGMA synchronous = EXTRA",
    "PRAGMA secure_delete = ON",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA temp_store = MEMORY",
)


def connect(path: str, busy_seconds: float) -> sqlite3.Connection:
    """A connection on which every transaction is begun by hand, from any thread.

    Raises:
        StoreLockedError, StoreFullError, StoreCorruptError, StoreError: as ``sqlite_errors``.
    """
    if path != ":memory:":
        _create_file(path)
    with sqlite_errors(path):
        db = sqlite3.connect(
            path, timeout=busy_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            for setting in _SETTINGS:
                db.execute(setting)
        except BaseException:
            db.close()
            raise
    return db


def _create_file(path: str) -> None:
    """Make the file with mode 0600, before SQLite would make it with the process's own mask."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return
    except FileExistsError:
        pass
    except ValueError as error:
        raise StoreError(f"the store {path!r} is no usable path: {error}") from error
    except OSError as error:
        raise StoreFullError(f"cannot create the store {path}: {error.strerror}") from error
    if not os.path.isfile(path):
        raise StoreError(f"the store {path} is not a file: give another path")
    # SQLite takes a file shorter than its smallest page for an empty one, and overwrites it.
    if 0 < os.path.getsize(path) < 512:
        raise StoreCorruptError(f"{path} is cut off or no EdgeID store: give another path")
    with suppress(OSError):
        os.chmod(path, 0o600)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Everything inside happens, or nothing does; within a transaction, a part of it."""
    nested = db.in_transaction
    db.execute("SAVEPOINT part" if nested else "BEGIN IMMEDIATE")
    try:
        yield
        # Committing can fail too (disk full): then it is undone below.
        db.execute("RELEASE part" if nested else "COMMIT")
    except BaseException:
        # After some failures SQLite has rolled back by itself.
        if db.in_transaction:
            db.execute("ROLLBACK TO part" if nested else "ROLLBACK")
            if nested:
                db.execute("RELEASE part")
        raise


@contextmanager
def sqlite_errors(path: str) -> Iterator[None]:
    """Turn SQLite's errors into the StoreError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise _store_error(path, error) from error
    except UnicodeDecodeError as error:
        # SQLite quotes damaged text in its own message, which then cannot be decoded.
        raise StoreCorruptError(f"{path} is damaged: restore a backup") from error


_FULL = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space",
    sqlite3.SQLITE_READONLY: "it is read-only: check the file's mode and the mount",
    sqlite3.SQLITE_IOERR: "the disk refused to read or write: check its space and health",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: check the folder and its mode",
    sqlite3.SQLITE_PERM: "access is denied: check the file's mode",
}


def _store_error(path: str, error: sqlite3.Error) -> StoreError:
    # The low byte is the primary code, the rest says more about it.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreLockedError(f"{path} is held by another process: try again when it is done")
    if code in _FULL:
        return StoreFullError(f"{path} could not be used, and is as it was: {_FULL[code]}")
    if isinstance(error, sqlite3.ProgrammingError):
        return StoreError(f"the store {path} is closed: open it again")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return StoreCorruptError(
            f"{path} is damaged or no EdgeID store ({error}): restore a backup, or give "
            "another path"
        )
    return StoreError(f"{path}: {error}")
