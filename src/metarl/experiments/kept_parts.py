"""Parts of a measurement that are done, kept until its results are written: one that was stopped goes on after them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.experiments.files import write_json
from metarl.experiments.protocol import Evaluation, Protocol, ShotScores

SCORES = ("returns", "success", "final_success")


class KeptParts:
    """A folder with a file for every part, named by what its numbers follow from.

    Args:
        folder: made with the first part, and removed with the last.
        source: JSON-able; what the measured agent and its worlds are made of. Another source finds nothing here.
    """

    def __init__(self, folder: Path, source: Mapping[str, Any]) -> None:
        self.folder, self.source = folder, dict(source)
        self._used: set[Path] = set()

    def find(self, protocol: Protocol, tasks: Sequence[Task]) -> Evaluation | None:
        """The part that measured these tasks; None where it is still to be done."""
        path = self._path(protocol, tasks)
        if not path.exists():
            return None
        self._used.add(path)
        try:
            stored = json.loads(path.read_text())
            shots = tuple(ShotScores(**{**shot, **_matrices(shot)}) for shot in stored["shots"])
            return Evaluation(protocol, tuple(tasks), shots, stored["env_steps"], stored["unstable_rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is damaged: remove it, and that part is measured again") from error

    def keep(self, part: Evaluation) -> None:
        """Write a part.

        Raises:
            UsageError: path and cause, where the disk is full or the folder cannot be written.
        """
        path = self._path(part.protocol, part.tasks)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make {self.folder}: {error.strerror}; free space there") from error
        shots = [{**vars(shot), **{name: _numbers(getattr(shot, name)) for name in SCORES}} for shot in part.shots]
        write_json(path, {"shots": shots, "env_steps": part.env_steps, "unstable_rows": part.unstable_rows})
        self._used.add(path)

    def forget(self) -> None:
        """Remove the parts that were found or kept; those of other measurements stay."""
        for path in self._used:
            path.unlink(missing_ok=True)
        self._used.clear()
        with contextlib.suppress(OSError):  # it holds others, or was never made
            self.folder.rmdir()

    def _path(self, protocol: Protocol, tasks: Sequence[Task]) -> Path:
        asked = {"source": self.source, "protocol": asdict(protocol), "tasks": [task.id for task in tasks]}
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{name}.json"


def _numbers(scores: Any) -> Any:
    return None if scores is None else scores.tolist()


def _matrices(shot: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if shot[name] is None else np.array(shot[name], dtype=np.float64) for name in SCORES}
