"""Parts of a measurement that are done, kept until its results are written: one that was stopped goes on after them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.experiments.files import write_json
from metarl.experiments.protocol import SCORES, Evaluation, Protocol, ShotScores


class KeptParts:
    """A folder with a file for every part, named by what its numbers follow from.

    Args:
        folder: made with the first part, and removed with the last.
        checkpoint: the sum of the measured one.
        source: JSON-able; what else the agent and its worlds are made of. With another one nothing is found here.
        beside: gives the sums of other checkpoints that can be measured by then: a run may train on while one of its
            checkpoints is measured.
    """

    def __init__(
        self, folder: Path, checkpoint: str, source: Mapping[str, Any], beside: Callable[[], Collection[str]] = tuple
    ) -> None:
        self.folder, self.checkpoint, self.source, self.beside = folder, checkpoint, dict(source), beside
        self.found = False
        """Whether a part was found, and so not measured."""
        self._used: set[Path] = set()

    def find(self, protocol: Protocol, tasks: Sequence[Task]) -> Evaluation | None:
        """The part that measured these tasks; None where it is still to be done."""
        path = self._path(protocol, tasks)
        try:
            stored = json.loads(path.read_text())
            shots = tuple(ShotScores(**{**shot, **_matrices(shot)}) for shot in stored["shots"])
            part = Evaluation(protocol, tuple(tasks), shots, stored["env_steps"], stored["unstable_rows"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is damaged: remove it, and that part is measured again") from error
        self._used.add(path)
        self.found = True
        return part

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
        """Remove the parts that were found or kept, and those of checkpoints that are gone; others stay."""
        there = tuple(map(_prefix, (self.checkpoint, *self.beside())))
        others = {path for path in self.folder.glob("*.json") if not path.name.startswith(there)}
        for path in self._used | others:
            path.unlink(missing_ok=True)
        self._used.clear()
        with contextlib.suppress(OSError):  # it holds others, or was never made
            self.folder.rmdir()

    def _path(self, protocol: Protocol, tasks: Sequence[Task]) -> Path:
        named = [[task.id, task.params] for task in tasks]
        asked = json.dumps([self.source, asdict(protocol), named], sort_keys=True, default=repr)
        return self.folder / f"{_prefix(self.checkpoint)}{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"


def _prefix(checkpoint: str) -> str:
    return f"{checkpoint[:16]}-"


def _numbers(scores: Any) -> Any:
    return None if scores is None else scores.tolist()


def _matrices(shot: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if shot[name] is None else np.array(shot[name], dtype=np.float64) for name in SCORES}
