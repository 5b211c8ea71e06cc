"""What every kind of world with rows needs: seeds by row, the reset mask, and the error that names a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import Failure, UsageError
from metarl.core.task import Task

RESET_MASK = "reset_mask"


class WorldError(Failure):
    """A world failed: it raised, or returned something that is not a number. The message names its row and its task."""


def row_seed(seed: int, row: int) -> int:
    """The seed of one row: independent between rows and between seeds, whatever the number of rows and workers."""
    return int(np.random.SeedSequence(seed, spawn_key=(row,)).generate_state(1, np.uint32)[0])


def check_seed(seed: int) -> int:
    """`seed`, unless it is negative, which no random stream takes."""
    if seed < 0:
        raise UsageError(f"a seed is an integer from 0 on, got {seed}")
    return int(seed)


def check_row_tasks(tasks: Sequence[Task], num_rows: int) -> tuple[Task, ...]:
    """`tasks` as a tuple, unless there is not exactly one a row."""
    if len(tasks) != num_rows:
        raise UsageError(f"worlds with {num_rows} rows need {num_rows} tasks, got {len(tasks)}")
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


def check_actions(actions: Any, shape: tuple[int, ...], started: NDArray[np.bool_]) -> NDArray[Any]:
    """`actions` as an array, unless their shape is not the action space's or a row is still to be reset."""
    if not started.all():
        raise UsageError("these worlds have not been reset: call reset() before step()")
    array: NDArray[Any] = np.asarray(actions)
    if array.shape != shape:
        raise UsageError(f"actions have shape {shape}, one a row, got {array.shape}")
    return array


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
