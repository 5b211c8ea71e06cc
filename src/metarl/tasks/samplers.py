"""Samplers of task parameters, and tasks drawn from them or taken from a list."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.rows import check_seed, check_whole

Params: TypeAlias = Mapping[str, Any]


@runtime_checkable
class Sampler(Protocol):
    """A distribution of one task parameter."""

    def sample(self, generator: np.random.Generator) -> Any:
        """One draw, from `generator` alone: a number, a string or an array of numbers."""
        ...


TaskSource: TypeAlias = Mapping[str, Sampler] | Sequence[Params]


@dataclass(frozen=True)
class Uniform:
    """U[low, high), a scalar or an array of `shape`, which a task holds as one flat vector.

    Raises:
        UsageError: bounds that are no finite numbers, low above high, or a shape that is none.
    """

    low: float
    high: float
    shape: int | tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_bounds("Uniform", self.low, self.high)
        _check_shape("Uniform", self.shape)

    def sample(self, generator: np.random.Generator) -> Any:
        return generator.uniform(self.low, self.high, size=self.shape)


@dataclass(frozen=True)
class LogUniform:
    """base^U[low, high), a scalar or an array of `shape`, which a task holds as one flat vector.

    A factor that is as often below as above 1 where low = -high.

    Raises:
        UsageError: a base that is not above 0, bounds that are no finite numbers, low above high, or a shape that is
            none.
    """

    base: float
    low: float
    high: float
    shape: int | tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_bounds("LogUniform", self.low, self.high)
        _check_shape("LogUniform", self.shape)
        if not _is_finite(self.base) or self.base <= 0:
            raise UsageError(f"LogUniform(base, low, high) has a base above 0, got {self.base!r}")

    def sample(self, generator: np.random.Generator) -> Any:
        return self.base ** generator.uniform(self.low, self.high, size=self.shape)


@dataclass(frozen=True)
class Choice:
    """One of the given values, each as likely as the others.

    Raises:
        UsageError: no list, or an empty one.
    """

    values: Sequence[Any] | NDArray[Any]

    def __post_init__(self) -> None:
        if not isinstance(self.values, Sequence | np.ndarray) or not len(self.values):
            raise UsageError(f"Choice takes a list of values, at least one; got {self.values!r}")

    def sample(self, generator: np.random.Generator) -> Any:
        return self.values[int(generator.integers(len(self.values)))]


def _check_bounds(name: str, low: float, high: float) -> None:
    if not (_is_finite(low) and _is_finite(high)) or low > high:
        raise UsageError(f"{name} has finite bounds, low not above high; got low={low!r} and high={high!r}")


def _check_shape(name: str, shape: int | tuple[int, ...]) -> None:
    for size in shape if isinstance(shape, tuple | list) else (shape,):
        check_whole(f"shape of {name}, a whole number or a tuple of such: each", size, least=0)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def draw(side: str, source: TaskSource, count: int, first_id: int, generator: np.random.Generator) -> tuple[Task, ...]:
    """The tasks of one side, `side` being train or test: `count` drawn ones, or those that `source` lists.

    Raises:
        UsageError: what is neither samplers by name nor a list of parameters, or a parameter that no task can hold or
            that is not finite, which no result could name: JSON knows no such number.
    """
    if isinstance(source, Mapping):
        for name, sampler in source.items():
            # A space of Gymnasium has a `sample` too, but what that takes is a mask.
            if not isinstance(sampler, Sampler) or isinstance(sampler, type | spaces.Space):
                raise UsageError(
                    f"{side}: '{name}' is drawn from a sampler, such as metarl.Uniform(3, 12), got {sampler!r}; known "
                    f'values are listed, as {side}=[{{"{name}": 3.7}}, {{"{name}": 9.8}}]'
                )
        check_whole(f"num_{side}", count, least=1)
        params: Sequence[Params] = [
            {name: sampler.sample(generator) for name, sampler in source.items()} for _ in range(count)
        ]
    elif isinstance(source, str) or not isinstance(source, Sequence):
        raise UsageError(f"{side} is a dictionary of samplers or a list of parameters, got {source!r}")
    else:
        params = source
    for each in params:
        if not isinstance(each, Mapping):
            raise UsageError(f'{side} lists the parameters of each task by name, as {{"gravity": 3.7}}, got {each!r}')
    tasks = tuple(each if isinstance(each, Task) else Task(first_id + index, each) for index, each in enumerate(params))
    for task in tasks:
        for name, value in task.items_:
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
                raise UsageError(f"{side}: '{name}' is to be finite in every task, got {task!r}")
    return tasks


def split_tasks(params: Sequence[Params], seed: int, test_fraction: float = 0.2) -> tuple[list[Task], list[Task]]:
    """Train and test tasks of a fixed list, in its order: a task's id is its position in the list, whatever the split.

    Args:
        params: of all tasks.
        seed: draws which of them are held out.
        test_fraction: how many, rounded, but at least one; at least one stays for training.

    Raises:
        UsageError: fewer than two tasks, a fraction outside (0, 1), or a seed that is no integer from 0 on.
    """
    if len(params) < 2 or not _is_finite(test_fraction) or not 0.0 < test_fraction < 1.0:
        raise UsageError(
            f"a split needs at least 2 tasks and a test_fraction within (0, 1), got {len(params)} and {test_fraction}"
        )
    num_test = min(max(round(test_fraction * len(params)), 1), len(params) - 1)
    held_out = set(np.random.default_rng(check_seed(seed)).permutation(len(params))[:num_test].tolist())
    tasks = [Task(id, each) for id, each in enumerate(params)]
    return [task for task in tasks if task.id not in held_out], [task for task in tasks if task.id in held_out]
