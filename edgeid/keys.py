"""The master key: where it lies, how it is made and read, and the sub-keys taken from it.

One secret of 32 bytes protects a template store. It is read from the file ``key`` in
EdgeID's folder, made there on first use, or handed in by a caller that keeps it in
hardware or a key ring. Nothing is encrypted with the master key itself: every purpose has
a sub-key of its own (HKDF with SHA-256, RFC 5869).

Whoever can read the key file and the store can read the templates: keep the two apart in
backups.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import NoReturn

from edgeid.runtime.errors import StoreError, StoreFullError, WrongKeyError

KEY_BYTES = 32
KEY_FILE = "key"
STORE_FILE = "templates.db"


class MasterKey:
    """32 secret bytes that never show in ``repr``, a message or a pickle.

    Raises:
        WrongKeyError: the secret is not exactly 32 bytes.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if not isinstance(secret, bytes | bytearray):
            raise WrongKeyError(
                f"a master key is {KEY_BYTES} bytes, not {type(secret).__name__}: "
                "make one with os.urandom(32)"
            )
        if len(secret) != KEY_BYTES:
            raise WrongKeyError(
                f"a master key is {KEY_BYTES} bytes, this one has {len(secret)}: "
                "make one with os.urandom(32)"
            )
        self._secret = bytes(secret)

    def derive(self, purpose: str, salt: bytes) -> bytes:
        """The 32-byte sub-key for one purpose; other purposes or salts give unrelated keys."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        hkdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=purpose.encode())
        return hkdf.derive(self._secret)

    def __repr__(self) -> str:
        return "MasterKey(<secret>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a MasterKey cannot be pickled or copied")


def default_home() -> Path:
    """EdgeID's folder: ``EDGEID_HOME``, else ``edgeid`` in the user's data directory.

    The data directory is ``XDG_DATA_HOME`` or ``~/.local/share`` (XDG Base Directory
    Specification), ``~/Library/Application Support`` on macOS, ``%LOCALAPPDATA%`` on Windows.
    """
    chosen = os.environ.get("EDGEID_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":  # pragma: no cover
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "edgeid"
    if sys.platform == "darwin":  # pragma: no cover
        return Path("~/Library/Application Support/edgeid").expanduser()
    data = os.environ.get("XDG_DATA_HOME", "")
    # The specification says that a relative path there is to be ignored.
    root = Path(data) if os.path.isabs(data) else Path("~/.local/share").expanduser()
    return root / "edgeid"


def make_home(home: Path) -> None:
    """Create EdgeID's folder, for its owner alone, where it is missing.

    Raises:
        StoreFullError: it cannot be created.
        StoreError: something that is not a folder is in the way.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(f"EdgeID's folder {home} is not a folder: set EDGEID_HOME") from error
    except OSError as error:
        raise StoreFullError(f"cannot create the folder {home}: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"EdgeID's folder {str(home)!r} is no usable path: {error}") from error


def load_key(home: Path, *, create: bool = True) -> MasterKey:
    """The master key in ``home``, made on first use.

    Args:
        home: EdgeID's folder.
        create: make the key when there is none. Pass False where a store exists already: a
            new key could never open it.

    Raises:
        WrongKeyError: the file is missing (and ``create`` is False), a link, readable by
            others, not of 32 bytes, or cannot be read.
        StoreFullError: a new key cannot be written.
    """
    path = home / KEY_FILE
    if not os.path.lexists(path):
        if not create:
            raise WrongKeyError(
                f"{path} is missing, and the store cannot be read without it: "
                "restore it from a backup, or delete the store and enroll again"
            )
        make_home(home)
        _write_new_key(path)
    return MasterKey(_read_key(path))


def _write_new_key(path: Path) -> None:
    """Write a fresh key beside ``path``, then link it into place.

    The link appears at once with all 32 bytes, and fails if another process was first; then
    that process's key stands. Neither is true of creating ``path`` itself and filling it.
    """
    beside = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(beside, flags, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(os.urandom(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            os.link(beside, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(beside)
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreFullError(f"cannot write a new key to {path}: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` survive a power cut, where the system can."""
    if os.name != "posix":  # pragma: no cover
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_key(path: Path) -> bytes:
    # O_NONBLOCK: a named pipe in the key's place must not hang the program.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_BINARY", 0)
    if path.is_symlink():
        raise WrongKeyError(f"{path} is a link: put the key file itself there")
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise WrongKeyError(f"cannot read the key {path}: {error.strerror}") from error
    try:
        # The open file is checked, not the path: the path could be exchanged in between.
        _check_key_file(path, os.fstat(descriptor))
        return os.read(descriptor, KEY_BYTES + 1)
    finally:
        os.close(descriptor)


def _check_key_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise WrongKeyError(f"{path} is not a plain file: remove it, or set EDGEID_HOME")
    if status.st_size != KEY_BYTES:
        raise WrongKeyError(
            f"{path} has {status.st_size} bytes, a key has {KEY_BYTES}: restore it from a backup"
        )
    if os.name != "posix":  # pragma: no cover
        return
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise WrongKeyError(
            f"{path} can be read or written by others (mode {mode:04o}): chmod 600 {path}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise WrongKeyError(f"{path} belongs to another user (uid {status.st_uid})")
