from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgeid.runtime.errors import (
    DuplicateUserError,
    StoreError,
    StoreFullError,
    StoreLockedError,
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


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    program = "import os, signal, sys\n"
    program += "from edgeid.store import *\nfrom edgeid.runtime.errors import *\n"
    program += f"KEY = bytes(range(32)); MODEL = {MODEL!r}\nimport numpy as np\n"
    program += textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_atomic_undoes_everything(store: TemplateStore) -> None:
    store.enroll("ann", people(), MODEL)

    def fail() -> None:
        with store.atomic():
            store.remove("ann")
            store.enroll("bob", people(), MODEL)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [user.name for user in store.users()] == ["ann"]


def test_atomic_within_atomic_fails_by_itself(store: TemplateStore) -> None:
    with store.atomic():
        store.enroll("ann", people(), MODEL)
        with pytest.raises(DuplicateUserError):
            store.enroll("ann", people(), MODEL)
        store.enroll("bob", people(), MODEL)
    assert len(store) == 2


def test_closed_store(store: TemplateStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.users()
    with pytest.raises(StoreError, match="closed"):
        store.enroll("ann", people(), MODEL)


def test_another_process_writing_is_waited_for_then_told(store: TemplateStore, path: Path) -> None:
    store.enroll("ann", people(), MODEL)
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        assert len(store) == 1  # readers go on
        with pytest.raises(StoreLockedError, match="another process"):
            store.enroll("bob", people(), MODEL)
        other.execute("ROLLBACK")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreLockedError):
            store.templates("ann", MODEL)
        with pytest.raises(StoreLockedError):
            TemplateStore(path, KEY, busy_seconds=0)
        other.execute("ROLLBACK")
    store.enroll("bob", people(), MODEL)
    assert len(store) == 2


def test_commit_that_is_held_up_by_a_reader_changes_nothing(
    store: TemplateStore, path: Path
) -> None:
    with raw(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM users").fetchall()
        with pytest.raises(StoreLockedError):
            store.enroll("ann", people(), MODEL)
    assert len(store) == 0
    store.enroll("ann", people(), MODEL)


def test_first_opening_by_many_threads(path: Path) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(6)

    def work(number: int) -> None:
        start.wait()
        try:
            with TemplateStore(path, KEY, busy_seconds=20) as own:
                own.enroll(f"person {number}", people(seed=number), MODEL)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with TemplateStore(path, KEY) as opened:
        assert len(opened.everyone(MODEL)) == 6


def test_threads_share_one_store(store: TemplateStore) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(5):
                store.enroll(f"{number}-{step}", people(), MODEL)
                store.everyone(MODEL)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(store) == 20


@pytest.mark.parametrize("written", [False, True], ids=["in memory", "partly on disk"])
def test_kill_in_the_middle_of_an_enrolment(
    store: TemplateStore, path: Path, written: bool
) -> None:
    store.enroll("ann", people(seed=1), MODEL)
    store.close()
    done = child(
        """
        store = TemplateStore(sys.argv[1], KEY)
        if sys.argv[2] == "True":
            store._db.execute("PRAGMA cache_size = 1")  # pages go to disk before the commit
        with store.atomic():
            store.remove("ann")
            for number in range(60):
                face = np.ones((2, 256), np.float32)
                store.enroll(f"person {number}", Templates(face=face), MODEL)
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
        written,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    journal = path.parent / f"{path.name}-journal"
    assert journal.exists() or not written
    with TemplateStore(path, KEY) as opened:
        assert [user.name for user in opened.users()] == ["ann"]
        found = opened.templates("ann", MODEL)
        np.testing.assert_array_equal(found.face, people(seed=1).face)
        opened.enroll("bob", people(), MODEL)
    assert not journal.exists()


def test_full_database_changes_nothing(store: TemplateStore) -> None:
    store.enroll("ann", people(), MODEL)
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    big = Templates(face=np.ones((50, 256), np.float32))
    with pytest.raises(StoreFullError, match="disk is full"):
        store.enroll("bob", big, MODEL)
    with pytest.raises(StoreFullError):
        store.enroll("ann", big, MODEL, replace=True)
    assert [user.name for user in store.users()] == ["ann"]
    np.testing.assert_array_equal(store.templates("ann", MODEL).face, people().face)
    store._db.execute("PRAGMA max_page_count = 100000")
    store.enroll("bob", big, MODEL)


def test_write_that_the_system_refuses_changes_nothing(store: TemplateStore, path: Path) -> None:
    store.enroll("ann", people(), MODEL)
    store.close()
    done = child(
        """
        import resource
        store = TemplateStore(sys.argv[1], KEY)
        size = os.path.getsize(sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            store.enroll("bob", Templates(face=np.ones((50, 256), np.float32)), MODEL)
        except StoreFullError as error:
            print(error.code, [user.name for user in store.users()])
        """,
        path,
    )
    assert done.stdout.split() == ["store-full", "['ann']"], done.stderr
    with TemplateStore(path, KEY) as opened:
        assert [user.name for user in opened.users()] == ["ann"]


def test_read_only_store(store: TemplateStore) -> None:
    store.enroll("ann", people(), MODEL)
    store._db.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreFullError, match="read-only"):
        store.remove("ann")
    assert "ann" in store
