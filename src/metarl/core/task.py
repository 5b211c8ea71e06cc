"""`Task`: one MDP of a family, a frozen value that a row carries for a whole trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

TaskValue: TypeAlias = float | int | str | bool | tuple[float, ...]


def _freeze(value: object) -> TaskValue:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(float(element) for element in np.ravel(value))
    if isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a task parameter is a number, a string or a vector of numbers, got {type(value).__name__}")


@dataclass(frozen=True, init=False)
class Task(Mapping[str, TaskValue]):
    """A task: a stable integer id and named parameters, hashable and picklable.

    `task["goal"]` reads a parameter: a number, a string, or a tuple of floats.
    """

    id: int
    items_: tuple[tuple[str, TaskValue], ...]

    def __init__(self, id: int, params: Mapping[str, object]) -> None:
        object.__setattr__(self, "id", int(id))
        object.__setattr__(self, "items_", tuple((name, _freeze(value)) for name, value in params.items()))

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
