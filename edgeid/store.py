"""The template store: who is enrolled, in one encrypted SQLite file.

Names, dates and templates are encrypted; a name is found through a keyed digest. What the
file shows without the key is how many people and templates there are and which model made
them. Each record is bound to its store, person, modality and model, and a person's own record
counts the templates, so rows can be neither moved, added nor taken away unnoticed. That a
whole person was deleted, or an older copy of the whole file put back, cannot be noticed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any, Self

import numpy as np

from edgeid.database import connect, sqlite_errors, transaction
from edgeid.keys import STORE_FILE, MasterKey, default_home, load_key, make_home
from edgeid.records import TemplateRow
from edgeid.results import User
from edgeid.runtime.errors import (
    DuplicateUserError,
    InputError,
    StoreCorruptError,
    StoreError,
    UnknownUserError,
)
from edgeid.schema import prepare
from edgeid.templates import Templates, Vectors, check_name

_ID_BYTES = 16
_USERS = "SELECT id, sealed FROM users"
_TEMPLATES = "SELECT sealed, id, user, modality, model FROM templates"


class TemplateStore:
    """Enrolled people and their templates in one file.

    Every change is one transaction: after an error, a full disk or a crash the old state stands.
    One object may be shared by the threads of a process, and one file by several processes.

    Args:
        path: the file, created with mode 0600 where missing; ``":memory:"`` for none.
        key: the master key, or its 32 bytes.
        busy_seconds: how long to wait for another process before StoreLockedError.

    Raises:
        WrongKeyError: the key does not open the store.
        StoreLockedError: another process holds it.
        StoreFullError: it cannot be created, read or written.
        StoreCorruptError: the file is damaged, or not an EdgeID store.
        StoreError: it was written by a newer EdgeID, or the path cannot be a file.
    """

    def __init__(
        self, path: str | Path, key: MasterKey | bytes, *, busy_seconds: float = 2.0
    ) -> None:
        master = key if isinstance(key, MasterKey) else MasterKey(key)
        self.path = ":memory:" if path == ":memory:" else os.path.abspath(path)
        self._lock = RLock()
        self._db = connect(self.path, busy_seconds)
        try:
            with sqlite_errors(self.path):
                self._cipher = prepare(self._db, master)
        except BaseException:
            self._db.close()
            raise

    def enroll(self, name: str, templates: Templates, model: str, *, replace: bool = False) -> User:
        """Store a person's templates, all or none of them.

        Args:
            name: the user name.
            templates: at least one face or voice.
            model: fingerprint of the model that made them.
            replace: an earlier enrolment of that name is removed in the same transaction.

        Raises:
            InputError: an unusable name, or no template.
            DuplicateUserError: the name is taken, and ``replace`` is False.
            StoreLockedError, StoreFullError, StoreCorruptError: nothing was changed.
        """
        user = User(
            name=check_name(name),
            faces=len(templates.face),
            voices=len(templates.voice),
            enrolled_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if not len(templates):
            raise InputError(f"no template was given for {name!r}: give a face or a voice")
        with self.atomic():
            if not replace:
                self.require_absent(user.name)
            earlier = self._find(user.name)
            if earlier:
                self._delete(earlier[0])
            self._insert(user, templates, model)
        return user

    def require_absent(self, name: str) -> None:
        """Raise DuplicateUserError if a person of that name is enrolled."""
        if name in self:
            raise DuplicateUserError(
                f"{name!r} is enrolled already: pass replace=True (--replace), or remove first"
            )

    def remove(self, name: str) -> User:
        """Delete a person; their bytes in the file are overwritten.

        What the disk itself may keep of older blocks is encrypted. Raises UnknownUserError.
        """
        with self.atomic():
            user_id, user = self._known(check_name(name))
            self._delete(user_id)
        return user

    def user(self, name: str) -> User:
        """The person of that name. Raises UnknownUserError."""
        with self._snapshot():
            return self._known(check_name(name))[1]

    def users(self) -> tuple[User, ...]:
        """Everybody enrolled, by name."""
        return tuple(user for _, user in self._everybody())

    def templates(self, name: str, model: str) -> Templates:
        """The templates of one person.

        Args:
            name: the user name.
            model: fingerprint of the model that will be compared with.

        Raises:
            UnknownUserError: nobody of that name is enrolled.
            StoreError: the templates were made with another model.
            StoreCorruptError: a record was damaged, moved, added or taken away.
        """
        with self._snapshot():
            user_id, user = self._known(check_name(name))
            rows = self._db.execute(f"{_TEMPLATES} WHERE user = ?", (user_id,)).fetchall()
        return self._opened(user, rows, model)

    def everyone(self, model: str) -> list[tuple[str, Templates]]:
        """All people with their templates, by name. Raises as ``templates`` does."""
        with self._snapshot():
            people = self._everybody()
            rows = self._db.execute(_TEMPLATES).fetchall()
        own: dict[bytes, list[tuple[Any, ...]]] = {user_id: [] for user_id, _ in people}
        for row in rows:
            own.setdefault(row[2], []).append(row)
        if len(own) != len(people):
            raise StoreCorruptError(f"{self.path} holds templates of nobody: restore a backup")
        return [(user.name, self._opened(user, own[user_id], model)) for user_id, user in people]

    def __len__(self) -> int:
        with self._snapshot():
            (count,) = self._db.execute("SELECT count(*) FROM users").fetchone()
        return int(count)

    def __contains__(self, name: str) -> bool:
        with self._snapshot():
            return self._find(check_name(name)) is not None

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """One transaction: everything inside happens, or nothing does.

        Within another ``atomic()`` it is a part of that one which can fail by itself.
        """
        with self._lock, sqlite_errors(self.path), transaction(self._db):
            yield

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TemplateStore({self.path!r})"

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Several reads of one state, without holding up other readers."""
        with self._lock, sqlite_errors(self.path):
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _insert(self, user: User, templates: Templates, model: str) -> None:
        user_id = os.urandom(_ID_BYTES)
        self._db.execute(
            "INSERT INTO users (id, lookup, sealed) VALUES (?, ?, ?)",
            (user_id, self._cipher.lookup(user.name), self._cipher.seal_user(user, user_id)),
        )
        for modality, vector in templates:
            row = TemplateRow(os.urandom(_ID_BYTES), user_id, modality, model)
            self._db.execute(
                "INSERT INTO templates (id, user, modality, model, sealed) VALUES (?, ?, ?, ?, ?)",
                (row.record, user_id, modality, model, self._cipher.seal_template(vector, row)),
            )

    def _delete(self, user_id: bytes) -> None:
        self._db.execute("DELETE FROM users WHERE id = ?", (user_id,))

    def _find(self, name: str) -> tuple[bytes, User] | None:
        row = self._db.execute(
            f"{_USERS} WHERE lookup = ?", (self._cipher.lookup(name),)
        ).fetchone()
        if row is None:
            return None
        user = self._cipher.open_user(row[1], row[0])
        if user.name != name:
            raise StoreCorruptError(f"{self.path} was tampered with: restore a backup")
        return row[0], user

    def _known(self, name: str) -> tuple[bytes, User]:
        found = self._find(name)
        if found is None:
            raise UnknownUserError(f"nobody named {name!r} is enrolled: enroll them first")
        return found

    def _everybody(self) -> list[tuple[bytes, User]]:
        with self._snapshot():
            rows = self._db.execute(_USERS).fetchall()
        people = [(user_id, self._cipher.open_user(sealed, user_id)) for user_id, sealed in rows]
        return sorted(people, key=lambda person: person[1].name)

    def _opened(self, user: User, rows: list[tuple[Any, ...]], model: str) -> Templates:
        if any(made_with != model for *_, made_with in rows):
            raise StoreError(
                f"{user.name!r} was enrolled with another model: enroll again with replace=True "
                "(--replace), or remove them"
            )
        vectors: dict[str, list[Vectors]] = {"face": [], "voice": []}
        for sealed, *columns in rows:
            row = TemplateRow(*columns)
            vector = self._cipher.open_template(sealed, row)
            vectors[row.modality].append(vector)
        if (len(vectors["face"]), len(vectors["voice"])) != (user.faces, user.voices):
            raise StoreCorruptError(
                f"templates of {user.name!r} are missing: restore a backup, or enroll again"
            )
        return Templates(**{key: np.stack(own) for key, own in vectors.items() if own})


def open_store(
    path: str | Path | None = None,
    key: MasterKey | bytes | None = None,
    home: Path | None = None,
) -> TemplateStore:
    """A store and its key from their usual places.

    Args:
        path: the store's file; default ``templates.db`` in ``home``.
        key: the master key; default the one in ``home``, made on first use.
        home: EdgeID's folder; default ``default_home()``.

    Raises:
        WrongKeyError: also where the store exists and its key file does not.
        StoreError: as TemplateStore and ``load_key`` raise.
    """
    home = default_home() if home is None else home
    if path is None:
        make_home(home)
        path = home / STORE_FILE
    if key is None:
        key = load_key(home, create=not os.path.exists(path))
    return TemplateStore(path, key)
