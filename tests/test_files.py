"""A file is the old one or the new one, never a part."""

import hashlib
import os
from pathlib import Path

import pytest

from data.files import atomic_write, sha256_file


def test_bytes_and_text_arrive_and_replace_what_was_there(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    atomic_write(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_crash_at_any_call_leaves_the_old_content_or_the_new(tmp_path, monkeypatch, call, at):
    path, calls, real = tmp_path / "file", [], getattr(os, call)
    atomic_write(path, "old " * 1000)

    def crash(*args, **kwargs):
        calls.append(args)
        if len(calls) == at + 1:
            raise OSError("crash")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, crash)
    try:
        atomic_write(path, "new " * 1000)
    except OSError:
        expected = {"old " * 1000} if call == "replace" or at == 0 else {"new " * 1000}
    else:
        expected = {"new " * 1000}
    assert path.read_text() in expected


def test_the_bytes_are_on_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(Path(f"/proc/self/fd/{fd}").readlink().name), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    atomic_write(tmp_path / "f", b"x")
    assert order == [".tmp-f", "replace", tmp_path.name]


def test_the_digest_is_sha256(tmp_path):
    path = tmp_path / "file"
    for content in (b"", b"abc", bytes(range(256)) * 5000):
        path.write_bytes(content)
        assert sha256_file(path) == hashlib.sha256(content).hexdigest()
