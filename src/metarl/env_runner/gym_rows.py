"""`GymRows`: a slice of rows, each a Gymnasium environment of its own, stepped over arrays that may be shared."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.gym_values import raised, read_observation, read_reset, read_step
from metarl.env_runner.rows import WorldError, check_finite, row_seed

Env: TypeAlias = gymnasium.Env[Any, Any]
MakeEnv: TypeAlias = Callable[[], Env]
ApplyTask: TypeAlias = Callable[[Env, Task], None]

ALIGNMENT = 64
"""Bytes; a cache line, so that no two arrays share one."""


@dataclass(frozen=True)
class RowArrays:
    """One batch of rows as arrays, all with B rows first. Observations are flat float32."""

    observation: NDArray[np.float32]
    final_observation: NDArray[np.float32]
    action: NDArray[Any]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_]
    reports_success: NDArray[np.bool_]
    reset_mask: NDArray[np.bool_]

    @classmethod
    def over(cls, memory: mmap.mmap, num_rows: int, num_features: int, action_space: spaces.Space[Any]) -> RowArrays:
        """Arrays that lie in `memory`, which has at least `RowArrays.size` bytes."""
        arrays, offset = {}, 0
        for name, (shape, dtype) in cls._layout(num_rows, num_features, action_space).items():
            arrays[name] = np.frombuffer(memory, dtype, count=int(np.prod(shape)), offset=offset).reshape(shape)
            offset += _padded(arrays[name].nbytes)
        return cls(**arrays)

    @classmethod
    def size(cls, num_rows: int, num_features: int, action_space: spaces.Space[Any]) -> int:
        """Bytes that the arrays take."""
        layout = cls._layout(num_rows, num_features, action_space).values()
        return sum(_padded(int(np.prod(shape)) * dtype.itemsize) for shape, dtype in layout)

    @staticmethod
    def _layout(
        num_rows: int, num_features: int, action_space: spaces.Space[Any]
    ) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        observations = (num_rows, num_features), np.dtype(np.float32)
        flags = (num_rows,), np.dtype(np.bool_)
        return {
            "observation": observations,
            "final_observation": observations,
            "action": ((num_rows, *(action_space.shape or ())), np.dtype(action_space.dtype)),
            "reward": ((num_rows,), np.dtype(np.float32)),
            "terminated": flags,
            "truncated": flags,
            "success": flags,
            "reports_success": flags,
            "reset_mask": flags,
        }

    def rows(self, first: int, last: int) -> RowArrays:
        """Views of the rows [first, last)."""
        return RowArrays(**{field.name: getattr(self, field.name)[first:last] for field in fields(self)})


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def flat_box(space: spaces.Space[Any]) -> spaces.Box:
    """The float32 space of one flat observation: a Box raveled, Discrete one-hot, Dict and Tuple concatenated."""
    flat = spaces.flatten_space(space) if space.is_np_flattenable else space
    if not isinstance(flat, spaces.Box):
        raise UsageError(f"observations have to fit a flat array, which {space} does not: wrap the environment")
    with np.errstate(over="ignore"):
        return spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)


def check_action_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """`space`, unless its actions are not arrays of one shape."""
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise UsageError(
            f"actions have to be Box, Discrete, MultiDiscrete or MultiBinary, not {space}: wrap the environment"
        )
    return space


def make_envs(make_env: MakeEnv, tasks: Sequence[Task], first: int) -> list[Env]:
    """One environment a task, for the rows from `first` on; where that fails, those that were made are closed.

    Raises:
        WorldError: `make_env` raised.
        UsageError: it gave what is no environment or lacks a space, or one environment twice.
    """
    envs: list[Env] = []
    with closed_on_failure(envs, tasks, first):
        for task in tasks:
            try:
                envs.append(make_env())
            except UsageError:
                raise
            except Exception as error:
                row = first + len(envs)
                raise WorldError(f"row {row}, {task}: make_env raised {raised(error)}") from error
            _check_env(envs[-1])
        if len({id(env.unwrapped) for env in envs}) < len(envs):
            raise UsageError(
                "make_env gave the same environment twice: every row needs its own, so make it in make_env"
            )
    if "mujoco" in sys.modules:
        from metarl.env_runner.mujoco_engine import configure_log  # here: other environments need no MuJoCo

        configure_log(logto_file=False)  # it would append its warnings to a MUJOCO_LOG.TXT in the working folder
    return envs


def _check_env(env: Any) -> None:
    if not isinstance(env, gymnasium.Env):
        raise UsageError(f"make_env returns a gymnasium.Env, got {env!r}")
    for name in ("observation_space", "action_space"):
        if not isinstance(space := getattr(env, name, None), spaces.Space):
            raise UsageError(f"{env} needs an {name}, one of gymnasium.spaces, from its __init__ on; got {space!r}")


def close_envs(envs: Sequence[Env], tasks: Sequence[Task], first: int) -> None:
    """Close environments, those of the rows from `first` on.

    Raises:
        WorldError: one does not close; the others are closed all the same.
    """

    def close(env: Env, row: int, task: Task) -> None:
        try:
            env.close()
        except Exception as error:
            raise WorldError(f"row {row}, {task}: close raised {raised(error)}") from error

    with ExitStack() as to_close:
        for index, env in enumerate(envs):
            to_close.callback(close, env, first + index, tasks[index])


@contextmanager
def closed_on_failure(envs: Sequence[Env], tasks: Sequence[Task], first: int) -> Iterator[None]:
    """Close environments, as `close_envs`, where the block fails: that failure is the one to mend."""
    try:
        yield
    except BaseException:
        with suppress(WorldError):
            close_envs(envs, tasks, first)
        raise


class GymRows:
    """Rows `first`, `first + 1`, ... of a batch: steps their environments, truncates, and resets where they end.

    Args:
        envs: one environment a row, all with the spaces of the first row of the batch.
        arrays: this slice's rows; `step` reads the actions from them, and everything else is written to them.
        tasks: one task a row.
        apply: puts a task into an environment, before each of its resets.
        max_episode_steps: episodes are truncated after so many steps.
        seed: of the whole batch; row i starts from `row_seed(seed, i)`.
        first: index in the batch of the first row here.
    """

    def __init__(
        self,
        envs: Sequence[Env],
        arrays: RowArrays,
        tasks: Sequence[Task],
        *,
        apply: ApplyTask,
        max_episode_steps: int,
        seed: int,
        first: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
    ) -> None:
        self.envs = list(envs)
        self.first = first
        self.max_episode_steps = max_episode_steps
        self._arrays = arrays
        self._apply = apply
        self._space = observation_space
        self._elapsed = np.zeros(len(self.envs), dtype=np.int64)
        with closed_on_failure(self.envs, tasks, first):
            for index, env in enumerate(self.envs):
                if (env.observation_space, env.action_space) != (observation_space, action_space):
                    raise UsageError(
                        f"rows of a batch share their spaces, but those of row {first + index} are "
                        f"{env.observation_space} and {env.action_space}, not {observation_space} and {action_space}"
                    )
        self.set_tasks(tasks)
        self._running = list(self._tasks)
        self.seed(seed)

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        """Give every row its task, from its next reset on."""
        self._tasks = list(tasks)

    def seed(self, seed: int) -> None:
        """Restart every row's random stream at its next reset."""
        self._seeds: list[int | None] = [row_seed(seed, self.first + index) for index in range(len(self.envs))]

    def reset(self) -> None:
        """Reset the rows marked in `reset_mask`."""
        self._reset_rows(np.flatnonzero(self._arrays.reset_mask))

    def step(self) -> None:
        """One step of every row; where an episode ends, its last observation is kept and the next episode begins."""
        arrays = self._arrays
        with np.errstate(over="ignore"):
            for index, env in enumerate(self.envs):
                action = arrays.action[index].copy()  # the environment may keep it
                try:
                    returned = env.step(action)
                except Exception as error:
                    self._fail(index, f"step raised {raised(error)}", error)
                try:
                    observation, reward, terminated, truncated, success = read_step(returned)
                    self._write(index, observation)
                except UsageError as error:
                    self._fail(index, str(error), error)
                arrays.reports_success[index], arrays.success[index] = success is not None, bool(success)
                arrays.reward[index] = reward
                arrays.terminated[index], arrays.truncated[index] = terminated, truncated
        self._elapsed += 1
        arrays.truncated[:] |= self._elapsed >= self.max_episode_steps
        check_finite("reward", arrays.reward, self._running, self.first)
        check_finite("observation", arrays.observation, self._running, self.first)
        ended = np.flatnonzero(arrays.terminated | arrays.truncated)
        if ended.size:
            arrays.final_observation[ended] = arrays.observation[ended]
            self._reset_rows(ended)

    def picture(self, index: int) -> Any:
        """What this row's environment shows of itself [height, width, 3], where its render_mode is rgb_array; else
        None."""
        env = self.envs[index]
        return env.render() if env.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close every environment, as `close_envs`."""
        close_envs(self.envs, self._running, self.first)

    def _reset_rows(self, rows: NDArray[np.intp]) -> None:
        for index in rows.tolist():
            self._running[index] = self._tasks[index]
            try:
                self._apply(self.envs[index], self._tasks[index])
                returned = self.envs[index].reset(seed=self._seeds[index])
            except Exception as error:
                self._fail(index, f"apply or reset raised {raised(error)}", error)
            try:
                with np.errstate(over="ignore"):
                    self._write(index, read_reset(returned))
            except UsageError as error:
                self._fail(index, str(error), error)
            self._seeds[index] = None
        self._elapsed[rows] = 0
        check_finite("first observation", self._arrays.observation, self._running, self.first)

    def _write(self, index: int, observation: Any) -> None:
        target = self._arrays.observation[index]
        target[:] = read_observation(self._space, observation, target.size)

    def _fail(self, index: int, what: str, error: Exception) -> NoReturn:
        raise WorldError(f"row {self.first + index}, {self._running[index]}: {what}") from error
