"""Files that are whole or absent: what a run leaves on disk survives a crash, a kill and a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metarl.core.errors import UsageError

LOCK_FILE = ".lock"


def atomic_write(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader finds the old file or the new one, never a part.

    The bytes go to a hidden file in the same folder, reach the disk (fsync), and then take the name (os.replace). The
    hidden name is fixed, so that what a killed process left behind is overwritten by the next write and never piles up.

    Raises:
        UsageError: path and cause, where the disk is full or the folder cannot be written; the old file is intact.
    """
    path = Path(path)
    try:
        if not path.name or path.is_dir():
            raise UsageError(f"cannot write {path}: it is a folder; give the name of a file")
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):  # the first cause is the one to report
                partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}; free space there, or choose another folder"
        ) from error


def check_folder(path: Path) -> None:
    """Refuse, before work begins, a file whose folder is not there."""
    if not os.path.isdir(path.absolute().parent):  # no error either where it may not be looked at
        raise UsageError(f"cannot write {path}: {path.parent} is no folder; make it first")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Refuse a second process that would write what this one writes.

    Raises:
        UsageError: another process works on `folder`, or it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    with lock as file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"another process works on {folder}: wait for it, or choose another folder") from None
            except OSError:
                pass  # a file system without locks: nobody can be kept out
        yield


def write_json(path: str | Path, data: Mapping[str, Any], unlimited: Collection[str] = ()) -> None:
    """Write `data` as indented JSON, atomically. Refuses NaN and infinity, which JSON does not know.

    Args:
        unlimited: fields in which a number may be infinite: it is written as 1e999, which is read as infinity.
    """
    try:
        json.dumps({name: value for name, value in data.items() if name not in unlimited}, allow_nan=False)
        text = re.sub(r"\bInfinity(,?)$", r"1e999\1", json.dumps(data, indent=2), flags=re.MULTILINE)
    except ValueError as error:
        raise UsageError(f"cannot write {path}: a value in it is NaN or infinite, which JSON does not know") from error
    atomic_write(path, (text + "\n").encode())


def _sync_folder(folder: Path) -> None:
    """Bring the rename itself to the disk. Only POSIX can open a folder for that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
