from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeid.keys import load_key
from edgeid.runtime.errors import (
    DuplicateUserError,
    InputError,
    StoreError,
    UnknownUserError,
    WrongKeyError,
)
from edgeid.store import TemplateStore, open_store
from edgeid.templates import Templates, check_name

KEY = bytes(range(32))
MODEL = "a" * 64


def people(faces: int = 2, voices: int = 1, seed: int = 0) -> Templates:
    rng = np.random.default_rng(seed)
    return Templates(
        face=rng.standard_normal((faces, 8)).astype(np.float32),
        voice=rng.standard_normal((voices, 4)).astype(np.float32),
    )


def test_templates_come_back_bit_for_bit(store: TemplateStore, path: Path) -> None:
    given_templates = people(faces=3, voices=2)
    user = store.enroll("ann", given_templates, MODEL)
    assert (user.name, user.faces, user.voices) == ("ann", 3, 2)
    store.close()
    with TemplateStore(path, KEY) as again:
        found = again.templates("ann", MODEL)
        assert again.users() == (user,)
    assert found.face.dtype == found.voice.dtype == np.float32
    np.testing.assert_array_equal(found.face, given_templates.face)
    np.testing.assert_array_equal(found.voice, given_templates.voice)


def test_one_modality_alone(store: TemplateStore) -> None:
    store.enroll("face", people(voices=0), MODEL)
    store.enroll("voice", people(faces=0), MODEL)
    assert len(store.templates("face", MODEL).voice) == 0
    assert len(store.templates("voice", MODEL).face) == 0


def test_everyone_and_users_are_sorted_by_name(store: TemplateStore) -> None:
    for seed, name in enumerate(["zoë", "ann", "Bob"]):
        store.enroll(name, people(seed=seed), MODEL)
    assert [user.name for user in store.users()] == ["Bob", "ann", "zoë"]
    everyone = store.everyone(MODEL)
    assert [name for name, _ in everyone] == ["Bob", "ann", "zoë"]
    np.testing.assert_array_equal(everyone[1][1].face, people(seed=1).face)
    assert len(store) == 3


def test_duplicate_is_refused_and_replace_replaces(store: TemplateStore) -> None:
    store.enroll("ann", people(seed=1), MODEL)
    with pytest.raises(DuplicateUserError, match=r"'ann'.*--replace"):
        store.enroll("ann", people(seed=2), MODEL)
    np.testing.assert_array_equal(store.templates("ann", MODEL).face, people(seed=1).face)
    store.enroll("ann", people(faces=1, seed=2), MODEL, replace=True)
    assert store.templates("ann", MODEL).face.shape == (1, 8)
    assert len(store) == 1


def test_unknown_user(store: TemplateStore) -> None:
    for action in (store.user, store.remove, lambda name: store.templates(name, MODEL)):
        with pytest.raises(UnknownUserError, match="'bob'"):
            action("bob")
    assert "bob" not in store


def test_other_model_asks_to_enroll_again(store: TemplateStore) -> None:
    store.enroll("ann", people(), MODEL)
    for read in (lambda: store.templates("ann", "b" * 64), lambda: store.everyone("b" * 64)):
        with pytest.raises(StoreError, match=r"'ann'.*another model.*enroll again") as caught:
            read()
        assert type(caught.value) is StoreError
    store.enroll("ann", people(), "b" * 64, replace=True)
    assert store.templates("ann", "b" * 64).face.shape == (2, 8)


@pytest.mark.parametrize(
    "name",
    ["", " ", " ann", "ann ", "a\nb", "a\0b", "a" * 129, "\u202eann", "\ud800", "a\u200bb"],
)
def test_unusable_names(store: TemplateStore, name: str) -> None:
    with pytest.raises(InputError, match="user name"):
        store.enroll(name, people(), MODEL)
    with pytest.raises(InputError):
        check_name(5)  # type: ignore[arg-type]
    assert len(store) == 0


@pytest.mark.parametrize(
    "name", ["a", "Ann Müller", "李小龍", "'; DROP TABLE users; --", "x" * 128]
)
def test_usable_names(store: TemplateStore, name: str) -> None:
    store.enroll(name, people(), MODEL)
    assert store.users()[0].name == name


def test_names_that_look_equal_are_equal(store: TemplateStore) -> None:
    store.enroll("zoe\u0308", people(), MODEL)
    assert store.user("zo\u00eb").name == "zo\u00eb"


@given(st.text(max_size=140))
def test_a_name_is_refused_or_becomes_stable(name: str) -> None:
    try:
        checked = check_name(name)
    except InputError:
        return
    assert check_name(checked) == checked
    assert 1 <= len(checked) <= 128


@pytest.mark.parametrize(
    "face",
    [np.zeros(8), np.zeros((1, 0)), np.zeros((1, 2, 3)), np.full((1, 8), np.nan), [[np.inf]]],
)
def test_unusable_templates(face: object) -> None:
    with pytest.raises(InputError, match="face template"):
        Templates(face=face)  # type: ignore[arg-type]


def test_no_template_at_all(store: TemplateStore) -> None:
    with pytest.raises(InputError, match="no template"):
        store.enroll("ann", Templates(), MODEL)


def test_repr_shows_no_embedding() -> None:
    assert repr(people()) == "Templates(face (2, 8), voice (1, 4))"


def test_wrong_key_is_told_at_open_and_changes_nothing(store: TemplateStore, path: Path) -> None:
    store.enroll("ann", people(), MODEL)
    store.close()
    before = path.read_bytes()
    with pytest.raises(WrongKeyError, match="does not open") as caught:
        TemplateStore(path, bytes(32))
    assert bytes(32).hex() not in str(caught.value)
    assert path.read_bytes() == before


def test_wrong_key_is_told_for_an_empty_store(store: TemplateStore, path: Path) -> None:
    store.close()
    with pytest.raises(WrongKeyError):
        TemplateStore(path, bytes(32))


def test_open_store_makes_key_and_file(home: Path) -> None:
    with open_store() as store:
        store.enroll("ann", people(), MODEL)
    assert sorted(os.listdir(home)) == ["key", "templates.db"]
    with open_store() as store:
        assert "ann" in store
    (home / "key").unlink()
    with pytest.raises(WrongKeyError, match="missing"):
        open_store()


def test_open_store_elsewhere_uses_the_key_of_the_home(home: Path, tmp_path: Path) -> None:
    with open_store(tmp_path / "other.db") as store:
        store.enroll("ann", people(), MODEL)
    assert os.listdir(home) == ["key"]
    with TemplateStore(tmp_path / "other.db", load_key(home)) as store:
        assert "ann" in store
