"""`Task`: one MDP of a family, a frozen value that a row carries for a whole trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from metarl.core.errors import UsageError

TaskValue: TypeAlias = float | int | str | bool | tuple[float, ...]


def _freeze(value: object) -> TaskValue | None:
    """The value as a task holds it; None where it can be none."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        try:
            return tuple(float(element) for element in np.ravel(value))
        except (TypeError, ValueError):
            return None
    return value if isinstance(value, bool | int | float | str) else None


@dataclass(frozen=True, init=False)
class Task(Mapping[str, TaskValue]):
    """A task: a stable integer id and named parameters, hashable and picklable.

    `task["goal"]` reads a parameter: a number, a string, or a tuple of floats, as which an array of any shape is held.

    Raises:
        UsageError: parameters that come without names, or one that is none of these.
    """

    id: int
    items_: tuple[tuple[str, TaskValue], ...]

    def __init__(self, id: int, params: Mapping[str, object]) -> None:
        if not isinstance(params, Mapping):
            raise UsageError(f'task {id}: parameters are given by name, as {{"gravity": 3.7}}, got {params!r}')
        object.__setattr__(self, "id", int(id))
        object.__setattr__(self, "items_", tuple((name, _freeze(value)) for name, value in params.items()))
        for name, value in self.items_:
            if value is None:
                raise UsageError(
                    f"task {id}: '{name}' is a number, a string or a vector of numbers, got {params[name]!r}"
                )

    @property
    def params(self) -> dict[str, TaskValue]:
        """A copy of the parameters, by name."""
        return dict(self.items_)

    def __getitem__(self, name: str) -> TaskValue:
        return self.params[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.items_)

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value}" for name, value in self.items_)
        return f"Task({self.id}: {inside})"
