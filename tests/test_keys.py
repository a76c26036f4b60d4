from __future__ import annotations

import copy
import os
import pickle
import stat
import threading
from pathlib import Path

import pytest

from edgeid.keys import KEY_BYTES, MasterKey, default_home, load_key, make_home
from edgeid.runtime.errors import StoreError, StoreFullError, WrongKeyError

SECRET = bytes(range(32))


def test_key_is_made_once_and_read_again(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    first = load_key(home)
    assert (home / "key").stat().st_size == KEY_BYTES
    assert stat.S_IMODE((home / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert load_key(home).derive("x", b"") == first.derive("x", b"")
    assert os.listdir(home) == ["key"]  # nothing is left beside it


def test_keys_differ_between_homes(tmp_path: Path) -> None:
    keys = {load_key(tmp_path / name).derive("x", b"") for name in "abc"}
    assert len(keys) == 3


def test_missing_key_is_not_replaced_when_a_store_exists(tmp_path: Path) -> None:
    with pytest.raises(WrongKeyError, match=r"missing.*backup"):
        load_key(tmp_path, create=False)
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644, 0o777])
def test_key_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    load_key(tmp_path)
    os.chmod(tmp_path / "key", mode)
    with pytest.raises(WrongKeyError, match="chmod 600"):
        load_key(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, b"x" * 100_000])
def test_key_of_wrong_length_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(WrongKeyError, match=f"has {len(content)} bytes"):
        load_key(tmp_path)


def test_link_is_refused_even_to_a_good_key(tmp_path: Path) -> None:
    load_key(tmp_path / "real")
    (tmp_path / "key").symlink_to(tmp_path / "real" / "key")
    with pytest.raises(WrongKeyError, match="link"):
        load_key(tmp_path)


def test_dangling_link_is_refused_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WrongKeyError, match="link"):
        load_key(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_folder_and_pipe_in_the_keys_place_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "key").mkdir(parents=True)
    with pytest.raises(WrongKeyError):
        load_key(tmp_path / "a")
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "key", 0o600)
    with pytest.raises(WrongKeyError, match="not a plain file"):
        load_key(tmp_path / "b")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_key_of_another_user_is_refused(tmp_path: Path) -> None:
    load_key(tmp_path)
    os.chown(tmp_path / "key", 12345, -1)
    with pytest.raises(WrongKeyError, match="another user"):
        load_key(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_key_is_refused(tmp_path: Path) -> None:
    load_key(tmp_path)
    os.chmod(tmp_path / "key", 0)
    with pytest.raises(WrongKeyError, match="cannot read"):
        load_key(tmp_path)


def test_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="not a folder"):
        make_home(tmp_path / "file")
    with pytest.raises(StoreError):
        load_key(tmp_path / "file" / "below")
    with pytest.raises(StoreError, match="no usable path"):
        make_home(tmp_path / "a\0b")


def test_full_disk_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFullError, match="No space left"):
        load_key(tmp_path)
    assert os.listdir(tmp_path) == []


def test_first_use_by_many_threads_gives_one_key(tmp_path: Path) -> None:
    found: list[bytes] = []
    start = threading.Barrier(8)

    def use() -> None:
        start.wait()
        found.append(load_key(tmp_path).derive("x", b""))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert os.listdir(tmp_path) == ["key"]


def test_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEID_HOME", str(tmp_path))
    assert default_home() == tmp_path
    monkeypatch.delenv("EDGEID_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_home() == tmp_path / "data" / "edgeid"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_home() == tmp_path / ".local" / "share" / "edgeid"


@pytest.mark.parametrize("secret", [b"", b"x" * 31, b"x" * 33, "x" * 32, None, 32])
def test_only_32_bytes_are_a_key(secret: object) -> None:
    with pytest.raises(WrongKeyError, match="32 bytes") as caught:
        MasterKey(secret)  # type: ignore[arg-type]
    assert "xxx" not in str(caught.value)


def test_secret_shows_nowhere() -> None:
    key = MasterKey(SECRET)
    shown = f"{key!r} {key!s} {key} {vars(type(key)).keys()}"
    assert SECRET.hex() not in shown
    assert repr(SECRET) not in shown
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pickled or copied"):
            leak(key)


def test_sub_keys_are_hkdf_sha256_of_rfc_5869() -> None:
    # An independent computation: extract, then one block of expand.
    import hmac

    pseudo = hmac.digest(b"salt", SECRET, "sha256")
    expected = hmac.digest(pseudo, b"purpose\x01", "sha256")
    assert MasterKey(SECRET).derive("purpose", b"salt") == expected


def test_sub_keys_differ_by_purpose_and_salt() -> None:
    key = MasterKey(SECRET)
    derived = {key.derive(p, s) for p in ("a", "b") for s in (b"", b"1", b"2")}
    assert len(derived) == 6
    assert all(len(sub) == 32 for sub in derived)
