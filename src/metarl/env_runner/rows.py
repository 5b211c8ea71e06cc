"""What every kind of world with rows needs: seeds by row, checks of what it is given, and errors that name a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metarl.core.errors import Failure, UsageError
from metarl.core.task import Task
from metarl.core.threads import cores

RESET_MASK = "reset_mask"


class WorldError(Failure):
    """A world failed: it raised, or returned something that is not a number. The message names its row and its task."""


class ActionError(Failure):
    """A policy gave an action that no world can take. The message names its row and its task."""


def row_seed(seed: int, row: int) -> int:
    """The seed of one row: independent between rows and between seeds, whatever the number of rows and workers."""
    return int(np.random.SeedSequence(seed, spawn_key=(row,)).generate_state(1, np.uint32)[0])


def check_seed(seed: int) -> int:
    """`seed`, unless it is no integer or a negative one, which no random stream takes."""
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise UsageError(f"a seed is an integer from 0 on, got {seed!r}")
    return int(seed)


def check_whole(name: str, value: Any, least: int) -> int:
    """`value`, unless it is no integer or one below `least`."""
    if not isinstance(value, int | np.integer) or value < least:
        raise UsageError(f"{name} is a whole number of at least {least}, got {value!r}")
    return int(value)


def check_threads(num_threads: int) -> int:
    """How many threads `num_threads` asks for; 0: every core that is open to this process (`core/threads.py`)."""
    return check_whole("num_threads", num_threads, least=0) or cores()


def check_row_tasks(tasks: Sequence[Task], num_rows: int) -> tuple[Task, ...]:
    """`tasks` as a tuple, unless there is not exactly one `Task` a row."""
    if len(tasks) != num_rows:
        raise UsageError(f"worlds with {num_rows} rows need {num_rows} tasks, got {len(tasks)}")
    for task in tasks:
        if not isinstance(task, Task):
            raise UsageError(f'a row takes a task, such as metarl.Task(0, {{"goal": 1.5}}), got {task!r}')
    return tuple(tasks)


def read_reset_mask(options: Mapping[str, Any] | None, started: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rows [B] to reset: `options["reset_mask"]`, or all.

    Args:
        options: what `reset` was given; `reset_mask` is the only key that rows take.
        started: [B] rows that have been reset before; the others have no observation to go on from.
    """
    if not options:
        return np.ones_like(started)
    if set(options) != {RESET_MASK}:
        raise UsageError(f"reset takes the option '{RESET_MASK}' only, got {sorted(options)}")
    mask = np.asarray(options[RESET_MASK])
    if mask.shape != started.shape or mask.dtype != np.bool_:
        raise UsageError(f"{RESET_MASK} is a bool array of shape {started.shape}, got {mask.dtype} {mask.shape}")
    idle = np.flatnonzero(~mask & ~started)
    if idle.size:
        raise UsageError(f"rows {idle.tolist()} have never been reset: mark them in {RESET_MASK}")
    return mask


def check_actions(
    actions: Any, space: spaces.Space[Any], tasks: Sequence[Task], started: NDArray[np.bool_]
) -> NDArray[Any]:
    """`actions` as an array [B, ...], in the type of `space` where that is one of whole numbers.

    Args:
        space: the action space of one row.
        tasks: one a row, for the message.
        started: [B] rows that have been reset before.

    Raises:
        UsageError: another shape, no numbers, or a row that is still to be reset.
        ActionError: an action that is not finite, or not one of the space where that has whole numbers only.
    """
    if not started.all():
        raise UsageError("these worlds have not been reset: call reset() before step()")
    array: NDArray[Any] = np.asarray(actions)
    if array.shape != (len(tasks), *(space.shape or ())):
        raise UsageError(f"actions have shape {(len(tasks), *(space.shape or ()))}, one a row, got {array.shape}")
    if array.dtype.kind not in "fiub":
        raise UsageError(f"actions are numbers, got an array of {array.dtype}")
    fits, allowed = np.isfinite(array), "finite"
    whole = space.dtype is not None and space.dtype.kind in "iu"
    if whole:
        low, high = (np.asarray(bound) for bound in _bounds(space))
        fits = fits & (array == np.floor(array)) & (array >= low) & (array <= high)
        allowed = f"a whole number from {low.tolist()} to {high.tolist()}"
    if not fits.all():
        row = int(np.flatnonzero(~fits.reshape(len(tasks), -1).all(axis=1))[0])
        raise ActionError(
            f"row {row}, {tasks[row]}: the action {array[row].tolist()} is not {allowed}; mend the policy"
        )
    return array.astype(space.dtype) if whole else array


def _bounds(space: Any) -> tuple[Any, Any]:
    """The least and the greatest action of a space of whole numbers, by element."""
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return (0, 1) if isinstance(space, spaces.MultiBinary) else (space.low, space.high)


def check_finite(what: str, values: NDArray[Any], tasks: Sequence[Task], first_row: int = 0) -> None:
    """Raise `WorldError` where `values` [R, ...] are not all finite; it names the first such row and its task."""
    finite = np.isfinite(values)
    if finite.all():
        return
    index = int(np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))[0])
    raise WorldError(
        f"row {first_row + index}, {tasks[index]}: the {what} is not finite in float32: {values[index].tolist()}; "
        "check the action, or have the world terminate before it diverges"
    )
