"""The files of a data set, in a zip archive or in a folder, behind one interface."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType

from edgeid.runtime.errors import DataError

MAX_MEMBER_BYTES = 64 * 2**20


class Members:
    """Files by name (relative, with forward slashes) of a zip archive or folder.

    Raises DataError when the path is missing, is neither, holds no file, or when an archive
    is damaged or holds a name that leads out of it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        if self.path.is_dir():
            files = (file for file in self.path.rglob("*") if file.is_file())
            self.names = frozenset(file.relative_to(self.path).as_posix() for file in files)
        elif self.path.is_file():
            self._zip = _open_zip(self.path)
            self.names = frozenset(
                checked_name(info.filename, str(self.path))
                for info in self._zip.infolist()
                if not info.is_dir()
            )
        else:
            raise DataError(f"{self.path}: no such zip archive or folder")
        if not self.names:
            self.close()
            raise DataError(f"{self.path} holds no files")

    def read(self, name: str) -> bytes:
        """Content of one file; DataError if it is missing, damaged or over 64 MiB."""
        if name not in self.names:
            raise DataError(f"{self.path} has no file {name}")
        with _data_errors(f"{self.path}: {name}"):
            if self._zip is None:
                file = self.path / name
                size = file.stat().st_size
            else:
                size = self._zip.getinfo(name).file_size
            if size > MAX_MEMBER_BYTES:
                raise DataError(f"{self.path}: {name} has {size:,} bytes; at most 64 MiB are read")
            return file.read_bytes() if self._zip is None else self._zip.read(name)

    def folders(self) -> dict[str, list[str]]:
        """Sorted file names by the name of the folder they lie in.

        Raises DataError when two folders of one name lie in different places.
        """
        parents: dict[str, PurePosixPath] = {}
        files: dict[str, list[str]] = {}
        for name in sorted(self.names):
            parent = PurePosixPath(name).parent
            if parents.setdefault(parent.name, parent) != parent:
                raise DataError(
                    f"{self.path}: folders {parents[parent.name]} and {parent} have one name"
                )
            files.setdefault(parent.name, []).append(name)
        return files

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()

    def __enter__(self) -> Members:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def checked_name(name: str, where: str) -> str:
    """``name`` if it is a plain relative path with forward slashes, else DataError."""
    parts = name.split("/")
    if "\\" in name or ":" in parts[0] or "\0" in name or any(p in ("", ".", "..") for p in parts):
        raise DataError(f"{where}: {name!r:.120} is not a plain relative path (a/b.jpg)")
    return name


def _open_zip(path: Path) -> zipfile.ZipFile:
    with _data_errors(str(path)):
        return zipfile.ZipFile(path)


@contextmanager
def _data_errors(where: str) -> Iterator[None]:
    try:
        yield
    # RuntimeError: encrypted; NotImplementedError: unknown compression; EOFError: truncated.
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(f"{where} cannot be read: {error}") from error
