from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

import pytest

from metarl.core.errors import UsageError
from metarl.experiments.files import atomic_write, only_one, write_json


def test_writes_and_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    atomic_write(file, b"old")
    atomic_write(file, b"new")
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["model.bin"]


@pytest.mark.parametrize("place", ["/", ".", ""])
def test_a_folder_is_no_file(place: str) -> None:
    with pytest.raises(UsageError, match="it is a folder; give the name of a file"):
        atomic_write(place, b"")


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".model.bin.partial").write_bytes(b"half of a much longer file")
    atomic_write(tmp_path / "model.bin", b"new")
    assert os.listdir(tmp_path) == ["model.bin"]
    assert (tmp_path / "model.bin").read_bytes() == b"new"


def test_bytes_are_on_the_disk_before_they_get_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.bin"
    atomic_write(file, b"old")
    names_at_sync = []
    sync = os.fsync

    def watch(handle: int) -> None:
        names_at_sync.append(file.read_bytes())
        sync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    atomic_write(file, b"new")
    assert names_at_sync == [b"old", b"new"]  # the file's bytes, then the folder's new entry


def test_full_disk_keeps_the_old_file_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.bin"
    atomic_write(file, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError) as error:
        atomic_write(file, b"new")
    assert (
        str(error.value) == f"cannot write {file}: No space left on device; free space there, or choose another folder"
    )
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_a_write_cut_short_by_the_system_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    atomic_write(file, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UsageError, match="File too large"):
            atomic_write(file, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


@pytest.mark.parametrize(("folder", "cause"), [("missing", "No such file or directory"), ("file", "Not a directory")])
def test_unwritable_folder_is_one_line(tmp_path: Path, folder: str, cause: str) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / folder / "results.json"
    with pytest.raises(UsageError, match=f"^cannot write {path}: {cause}; .*$"):
        atomic_write(path, b"data")


def test_a_path_that_cannot_be_looked_at_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cannot write .*: File name too long; free space there, or choose another"):
        atomic_write(tmp_path / ("x" * 300), b"data")


def test_an_interrupt_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "model.bin", b"new")
    assert os.listdir(tmp_path) == []


def test_json_round_trip(tmp_path: Path) -> None:
    data = {"shots": {"0": {"mean": -49.5}}, "success": None, "ids": [1, 2]}
    write_json(tmp_path / "results.json", data)
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text) == data
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_json_does_not_know(tmp_path: Path, value: float) -> None:
    with pytest.raises(UsageError, match=r"results\.json: a value in it is NaN or infinite"):
        write_json(tmp_path / "results.json", {"mean": value})
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_one(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
