"""`GymWorkers`: any Gymnasium environment as rows with tasks, in this process or in worker processes."""

from __future__ import annotations

import mmap
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from gymnasium.vector.utils import batch_space

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.gym_rows import (
    ApplyTask,
    MakeEnv,
    RowArrays,
    check_action_space,
    close_envs,
    closed_on_failure,
    flat_box,
    make_envs,
)
from metarl.env_runner.gym_worker import (
    SHUTDOWN_SECONDS,
    LocalRows,
    RowsRecipe,
    Worker,
    make_rows,
    shared_memory,
)
from metarl.env_runner.rows import WorldError, check_actions, check_row_tasks, check_seed, read_reset_mask
from metarl.env_runner.task_env import Array, Infos, TaskVectorEnv


class GymWorkers(TaskVectorEnv):
    """Rows that are Gymnasium environments of their own. Same-step autoreset, as `TaskVectorEnv` says.

    Observations are flat float32: a Box is raveled, a Discrete observation is one-hot, Dict and Tuple observations are
    concatenated, so that every agent sees a Box. Actions are the environment's own. Of an environment's infos only
    `success` (or `is_success`) is passed on, from the first step at which some row reports it.

    The same seed gives the same trajectories, whatever `num_workers` is.

    Args:
        make_env: makes one environment; called once a row, and once more in this process where there are workers. With
            workers it is pickled by cloudpickle, so lambdas and closures work.
        tasks: one task a row.
        apply: `apply(env, task)` puts a task into an environment; called before each of its resets.
        max_episode_steps: episodes are truncated after so many steps; the environment's own truncation counts too.
        seed: row i starts from an independent stream of this seed.
        num_workers: processes that share the rows evenly; 0 steps them in this process.

    Raises:
        WorldError: an environment raised, or returned an observation or a reward that is not finite, or a worker died.
            The worlds are then closed.
        ActionError: an action that is not finite, or not one of the action space where that has whole numbers only.
        UsageError: spaces that are not arrays, rows that differ in their spaces, a wrong number of tasks or actions.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        tasks: Sequence[Task],
        *,
        apply: ApplyTask,
        max_episode_steps: int,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        self._slices: list[LocalRows | Worker] = []
        self._finalizer = weakref.finalize(self, _shut_down, self._slices)
        if num_workers < 0:
            raise UsageError(f"num_workers is 0 (all rows in this process) or more, got {num_workers}")
        if not tasks or max_episode_steps < 1:
            raise UsageError(f"worlds need a task and a step: got {len(tasks)} tasks, {max_episode_steps} steps")
        self.tasks = check_row_tasks(tasks, len(tasks))
        self.num_envs = len(self.tasks)
        self.max_episode_steps = max_episode_steps
        seed = check_seed(seed)
        envs = make_envs(make_env, self.tasks[: 1 if num_workers else None], 0)
        with closed_on_failure(envs, self.tasks, 0):
            self.single_observation_space = flat_box(envs[0].observation_space)
            self.single_action_space = check_action_space(envs[0].action_space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._started = np.zeros(self.num_envs, dtype=bool)
        self._running = list(self.tasks)
        self._reports_success = False
        recipe = RowsRecipe(
            make_env=make_env,
            apply=apply,
            max_episode_steps=max_episode_steps,
            seed=seed,
            num_rows=self.num_envs,
            num_features=self.single_observation_space.shape[0],
            observation_space=envs[0].observation_space,
            action_space=self.single_action_space,
        )
        if num_workers:
            close_envs(envs, self.tasks, 0)
            self._start_workers(recipe, min(num_workers, self.num_envs))
        else:
            self._arrays = RowArrays.over(mmap.mmap(-1, RowArrays.size(*recipe.layout)), *recipe.layout)
            self._slices.append(LocalRows(make_rows(recipe, envs, self._arrays, self.tasks, 0)))

    def _start_workers(self, recipe: RowsRecipe, num_workers: int) -> None:
        bounds = np.linspace(0, self.num_envs, num_workers + 1).round().astype(int).tolist()
        with shared_memory(RowArrays.size(*recipe.layout)) as memory:
            self._arrays = RowArrays.over(mmap.mmap(memory.fileno(), 0), *recipe.layout)
            for index in range(num_workers):
                self._slices.append(Worker(index, bounds[index], bounds[index + 1], memory))
        self._run("start", *[(recipe, self.tasks[each.first : each.last], each.first) for each in self._slices])

    def picture(self, row: int) -> Any:
        """What a row's environment shows of itself, as `GymRows.picture`; None where the rows are in other
        processes."""
        held = self._slices[0]
        return held.rows.picture(row) if isinstance(held, LocalRows) else None

    @property
    def worker_pids(self) -> list[int]:
        """The ids of the worker processes, in the order of their rows."""
        return [each.pid for each in self._slices if isinstance(each, Worker)]

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        self.tasks = check_row_tasks(tasks, self.num_envs)
        self._run("set_tasks", *[(self.tasks[each.first : each.last],) for each in self._slices])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Infos]:
        self._arrays.reset_mask[:] = read_reset_mask(options, self._started)
        if seed is not None:
            self._run("seed", *[(check_seed(seed),)] * len(self._slices))
        self._run("reset")
        self._began(self._arrays.reset_mask)
        self._started[:] = True
        return self._arrays.observation.copy(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Infos]:
        arrays = self._arrays
        arrays.action[:] = check_actions(actions, self.single_action_space, self._running, self._started)
        self._run("step")
        infos: Infos = {}
        ended = arrays.terminated | arrays.truncated
        if ended.any():
            infos["final_obs"], infos["_final_obs"] = arrays.final_observation.copy(), ended
            self._began(ended)
        self._reports_success = self._reports_success or bool(arrays.reports_success.any())
        if self._reports_success:
            infos["success"] = arrays.success.copy()
        return (
            arrays.observation.copy(),
            arrays.reward.copy(),
            arrays.terminated.copy(),
            arrays.truncated.copy(),
            infos,
        )

    def _began(self, rows: Array) -> None:
        """Note that these rows [B] are in the tasks that they were given last."""
        for row in np.flatnonzero(rows).tolist():
            self._running[row] = self.tasks[row]

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments; no process is left behind.

        Raises:
            WorldError: an environment in this process does not close.
        """
        self.closed = True  # also where that fails
        self._finalizer()

    def _run(self, method: str, *args: tuple[Any, ...]) -> None:
        """Run a method of `GymRows` on every slice, with its own arguments; after a failure the worlds are closed."""
        if self.closed:
            raise UsageError("these worlds are closed: make new ones with make_env")
        try:
            for each, arguments in zip(self._slices, args or [()] * len(self._slices), strict=True):
                each.submit(method, *arguments)
            for each in self._slices:
                each.wait()
        except BaseException:
            with suppress(WorldError):  # the failure before it is the one to mend
                self.close()
            raise


def _shut_down(slices: Sequence[LocalRows | Worker]) -> None:
    for each in slices:
        each.hang_up()
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    for each in slices:
        each.join(max(0.0, deadline - time.monotonic()))
