from __future__ import annotations

import random
import stat
from pathlib import Path

import numpy as np

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


def test_file_mode_and_settings(store: TemplateStore, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    setting = {
        name: store._db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "secure_delete", "foreign_keys", "trusted_schema")
    }
    assert setting == {
        "journal_mode": "delete",
        "secure_delete": 1,
        "foreign_keys": 1,
        "trusted_schema": 0,
    }


def test_mode_is_tightened_on_opening(store: TemplateStore, path: Path) -> None:
    store.close()
    path.chmod(0o644)
    TemplateStore(path, KEY).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_file_shows_neither_names_nor_templates(store: TemplateStore, path: Path) -> None:
    templates = people()
    store.enroll("annabel", templates, MODEL)
    content = path.read_bytes()
    assert b"annabel" not in content
    assert templates.face.tobytes() not in content
    assert templates.face[0].tobytes()[:8] not in content
    assert KEY not in content


def test_equal_data_looks_different_each_time(store: TemplateStore) -> None:
    store.enroll("ann", people(), MODEL)
    store.enroll("bob", people(), MODEL)
    sealed = [row[0] for row in store._db.execute("SELECT sealed FROM templates")]
    assert len({record[:12] for record in sealed}) == len(set(sealed)) == 6


def test_length_of_a_record_does_not_tell_the_name(store: TemplateStore) -> None:
    store.enroll("a", people(), MODEL)
    store.enroll("a much longer name than that", people(), MODEL)
    sizes = {len(row[0]) for row in store._db.execute("SELECT sealed FROM users")}
    assert sizes == {12 + 256 + 16}


def test_remove_leaves_no_trace(store: TemplateStore, path: Path) -> None:
    rng = random.Random(1)
    names = [f"person {number}" for number in range(120)]
    for number, name in enumerate(names):
        store.enroll(name, people(faces=1 + number % 4, seed=number), MODEL)
    rows = store._db.execute(
        "SELECT users.id, lookup, users.sealed, templates.id, templates.sealed"
        " FROM users JOIN templates ON templates.user = users.id"
    ).fetchall()
    traces = {bytes(value)[:16] for row in rows for value in row}
    assert all(trace in path.read_bytes() for trace in traces)
    rng.shuffle(names)
    for name in names:
        store.remove(name)
    content = path.read_bytes()
    assert not [trace for trace in traces if trace in content]
    assert not (path.parent / f"{path.name}-journal").exists()
    assert len(store) == 0


def test_remove_of_one_of_many_leaves_no_trace(store: TemplateStore, path: Path) -> None:
    for number in range(40):
        store.enroll(f"person {number}", people(seed=number), MODEL)
    for number in (7, 0, 39, 20):
        name = f"person {number}"
        user_id = store._known(name)[0]
        traces = [user_id, store._cipher.lookup(name)]
        query = "SELECT id, sealed FROM templates WHERE user = ?"
        for row in store._db.execute(query, (user_id,)).fetchall():
            traces += [row[0], row[1][:16], row[1][-16:]]
        assert all(trace in path.read_bytes() for trace in traces)
        store.remove(name)
        content = path.read_bytes()
        assert not [trace for trace in traces if trace in content]
    assert len(store.everyone(MODEL)) == 36


def test_replace_leaves_no_trace_of_the_old(store: TemplateStore, path: Path) -> None:
    store.enroll("ann", people(seed=1), MODEL)
    old = [row[0][:16] for row in store._db.execute("SELECT sealed FROM templates")]
    store.enroll("ann", people(seed=2), MODEL, replace=True)
    assert not [trace for trace in old if trace in path.read_bytes()]
