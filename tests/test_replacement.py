"""Replacing a file: the old one or the new one, never a part, nothing left beside."""

from __future__ import annotations

import errno
import os

import pytest

from edgeid.runtime.errors import ModelError
from edgeid.runtime.replacement import replace_file


def test_new_and_replaced(tmp_path):
    path = tmp_path / "model.edgeid"
    for data in (b"one", b"", b"three"):
        replace_file(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["model.edgeid"]


def test_the_file_takes_the_usual_permissions(tmp_path):
    usual = tmp_path / "usual"
    usual.write_bytes(b"")
    replace_file(tmp_path / "model", b"")
    assert (tmp_path / "model").stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, code):
    path = tmp_path / "model.edgeid"
    path.write_bytes(b"old")

    def fail(_descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    says = "disk is full" if code == errno.ENOSPC else "cannot write"
    with pytest.raises(ModelError, match=says):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.edgeid"]


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "model.edgeid", b"new")
    assert os.listdir(tmp_path) == []
