"""Writing a file so that a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path

from edgeid.runtime.errors import ModelError


def replace_file(path: Path, data: bytes) -> None:
    """Write beside ``path``, flush to the disk, rename over it.

    Raises:
        ModelError: the disk is full or the place cannot be written; what was at ``path``
            is untouched and nothing is left beside it.
    """
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        _write_synced(beside, data)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ModelError(_explain(path, len(data), error)) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_synced(path: Path, data: bytes) -> None:
    # O_EXCL: a link planted under the temporary name is not followed
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be opened (not on Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse; the data itself is synced
    finally:
        os.close(descriptor)


def _explain(path: Path, size: int, error: OSError) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot write {path}: {error.strerror or error}"
    try:
        free = f"{shutil.disk_usage(path.parent).free} bytes are free"
    except OSError:
        free = "free space unknown"
    return f"cannot write {path}: the disk is full ({size} bytes needed, {free}); free some space"
