"""The contract that every agent honours, whatever it learns with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeAlias

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from metarl.core.errors import UsageError

if TYPE_CHECKING:
    from metarl.core.controller import Controller

Metrics: TypeAlias = dict[str, float]
Array: TypeAlias = NDArray[Any]


class Agent(ABC):
    """An agent that acts on rows of worlds, each row in one task for a whole trial.

    The life of a trial:

        agent.begin_trial(num_rows)              # forget the last task, keep what was meta-learned
        action = agent.act(observation)          # [B, obs] -> [B, act]
        agent.observe(observation, action, reward, terminated, truncated, next_observation)
        agent.adapt()                            # inner loop: change to these tasks
        agent.update()                           # outer loop: change what all tasks share (training only)

    `act` computes the next memory state and keeps it pending, `observe` commits it: calling `act` twice in a row
    changes nothing. Every argument may also come without the row axis; it is then a batch of one row.

    Shapes, flags and the order of calls are checked here, so a subclass is given arrays with the row axis, and masks
    that are bool.
    """

    explore: bool = True
    """Whether `act` samples from the policy (True) or takes its mode (False)."""

    training: bool = True
    """Whether experience is kept for `update` and running statistics may move. An evaluator sets it to False."""

    continuation: float = 0.0
    """Probability with which a row keeps its task and memory past an `update`: trials longer than one update's data."""

    trial_rows: int = 1
    """Rows that go through a trial together: so many neighbours share a task, and what `adapt` finds out about it."""

    explores_to_adapt: bool = False
    """Whether `adapt` needs sampled actions: an evaluator then lets the agent explore."""

    trial_rounds: int = 1
    """Rounds of one training trial: shots + 1."""

    round_steps: int | None = None
    """Steps of one round in training; None: the task's episode length."""

    expected: Array | None = None
    """[B, obs] the observation that it had expected in place of the last `next_observation`; None: it expects none."""

    _pending_rows: int | None = None
    """Rows of the `act` that no `observe` has followed yet."""

    def __init__(self, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "begin_trial" in vars(cls):
            cls.begin_trial = _checked(cls.begin_trial)  # type: ignore[method-assign]

    @abstractmethod
    def begin_trial(self, num_rows: int, renew: Array | None = None) -> None:
        """Forget the last task in the rows marked in `renew` [B] (None: in all), keep what was meta-learned.

        Raises:
            UsageError: `renew` does not have one flag a row.
        """

    def act(self, observation: Array) -> Array:
        """Actions [B, act] of the environment's action space for observations [B, obs]; changes no parameter.

        Raises:
            UsageError: observations that are not of the agent's space, or not as many as the trial has rows.
        """
        observation = np.asarray(observation)
        rows = rows_of(observation, self.observation_space)
        single = self._is_single(observation)
        action = self._act(observation[None] if single else observation)
        self._pending_rows = rows
        return action[0] if single else action

    def observe(
        self,
        observation: Array,
        action: ArrayLike,
        reward: ArrayLike | SupportsFloat,
        terminated: ArrayLike,
        truncated: ArrayLike,
        next_observation: Array,
        active: ArrayLike | None = None,
    ) -> None:
        """Take in one transition a row and commit the memory state that `act` left pending.

        Args:
            observation: [B, obs] what `act` was given.
            action: [B, act] what `act` returned.
            reward, terminated, truncated: [B].
            next_observation: [B, obs] the true successor: the final observation where an episode ended, never the
                first of the next.
            active: [B] rows that take part; the others are ignored and keep memory and experience. None: all.

        Raises:
            UsageError: another shape, or no `act` came before.
        """
        before, acted, rewards, after = map(np.asarray, (observation, action, reward, next_observation))
        rows = rows_of(before, self.observation_space)
        terminal, cut = np.asarray(terminated, dtype=bool), np.asarray(truncated, dtype=bool)
        mask = np.ones(rows, dtype=bool) if active is None else np.asarray(active, dtype=bool)
        if self._is_single(before):
            before, acted, rewards, terminal, cut, after = (
                array[None] for array in (before, acted, rewards, terminal, cut, after)
            )
            mask = np.atleast_1d(mask)
        if self._pending_rows is None:
            raise UsageError("observe follows act: call act(observation) before every observe")
        if self._pending_rows != rows:
            raise UsageError(f"act was given {self._pending_rows} rows, and observe {rows}: give both the same")
        each, action_shape = (rows,), self.action_space.shape
        for name, array, shape in (
            ("action", acted, acted.shape if action_shape is None else (rows, *action_shape)),
            ("reward", rewards, each),
            ("terminated", terminal, each),
            ("truncated", cut, each),
            ("next_observation", after, before.shape),
            ("active", mask, each),
        ):
            if array.shape != shape:
                raise UsageError(
                    f"observe: {name} is {list(shape)} here, got {list(array.shape)}; every argument has the row axis, "
                    "or none has"
                )
        self._observe(before, acted, rewards, terminal, cut, after, mask)
        self._pending_rows = None

    def _is_single(self, observation: Array) -> bool:
        return observation.ndim == len(self.observation_space.shape or ())

    @abstractmethod
    def _act(self, observation: Array) -> Array:
        """As `act`, of [B, obs]: sampled where `explore`, else the mode. What is remembered changes in `_observe`."""

    @abstractmethod
    def _observe(
        self,
        observation: Array,
        action: Array,
        reward: Array,
        terminated: Array,
        truncated: Array,
        next_observation: Array,
        active: Array,
    ) -> None:
        """As `observe`, every argument with the row axis and flags bool. The caller may reuse its arrays: keep copies.

        Experience for `update` is kept where `training`.
        """

    @abstractmethod
    def adapt(self) -> Metrics:
        """Inner loop: change to this trial's tasks from what was observed in it. Never touches meta-parameters.

        Returns: numbers by name; of these an evaluation counts "gradient_steps", those of each task.
        """

    @abstractmethod
    def update(self) -> Metrics:
        """Outer loop: the only call that changes meta-parameters. Consumes the experience held.

        Returns: numbers by name; their means over an epoch are columns of metrics.csv. An update may lack some.
        """

    def trial_state(self, row: int = 0) -> Array:
        """What it has made of a row's trial so far, as numbers around 0, for pictures of it; empty: it holds nothing.

        It is all 0 as a trial begins.
        """
        return np.zeros(0, dtype=np.float32)

    def controller(self) -> Controller:
        """A copy of what acts, with nothing of a trial: to be adapted where it is deployed (`AdaptationAgent`).

        Raises:
            UsageError: this agent has none.
        """
        raise UsageError(f"{type(self).__name__} has nothing that can be adapted after deployment")

    @abstractmethod
    def take_experience(self) -> dict[str, Tensor]:
        """Take the experience held out of the agent, as plain tensors that can travel to another process."""

    @abstractmethod
    def give_experience(self, experience: Mapping[str, Tensor]) -> None:
        """Hold experience that another copy of this agent collected, in place of the own."""

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Restart the agent's own random streams from `seed`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """All that acting and further learning need, flat: parameters, optimiser, statistics, counters, random
        streams."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""


def rows_of(observation: Array, space: gymnasium.Space[Any]) -> int:
    """Rows of observations [B, obs]; 1 where they come without the row axis.

    Raises:
        UsageError: they are not of the space.
    """
    shape = space.shape or ()
    if observation.shape == shape:
        return 1
    if observation.shape[1:] != shape:
        raise UsageError(f"an observation is {list(shape)}, or rows of that, got {list(observation.shape)}")
    return len(observation)


def vector_size(space: gymnasium.Space[Any]) -> int:
    """Numbers of one observation; refuses observations that are no vectors."""
    shape = space.shape or ()
    if len(shape) != 1:
        raise UsageError(f"observations need one axis, got {space}; flatten them with a wrapper")
    return shape[0]


def check_rows(num_rows: int, running: int) -> None:
    """Refuse rows that are not those of the running trial."""
    if num_rows != running:
        raise UsageError(f"a trial of {running} rows is running, got {num_rows} rows: call begin_trial({num_rows})")


def block_size(num_rows: int, trial_rows: int) -> int:
    """Rows that share a trial: `trial_rows`, or the only one; refuses rows that are no whole blocks."""
    rows = 1 if num_rows == 1 else trial_rows
    if num_rows % rows:
        raise UsageError(f"rows come in blocks of trial_rows = {rows}, got {num_rows} rows")
    return rows


def renewed_blocks(renew: Array, rows: int) -> Array:
    """The blocks [B / rows] that a mask of rows [B] renews; refuses a mask that renews part of a block."""
    blocks = np.reshape(renew, (-1, rows))
    renewed: Array = blocks[:, 0].copy()
    if not np.array_equal(blocks, np.repeat(renewed[:, None], rows, axis=1)):
        raise UsageError(f"rows {rows} by {rows} share a task: renew all of a block or none")
    return renewed


def _checked(begin_trial: Any) -> Any:
    """`begin_trial` of a subclass, whose mask is flags: numbers 0 and 1 would be taken for the indices of rows."""

    @wraps(begin_trial)
    def checked(agent: Agent, num_rows: int, renew: Array | None = None) -> None:
        if renew is not None:
            renew = np.asarray(renew, dtype=bool)
            if renew.shape != (num_rows,):
                raise UsageError(
                    f"begin_trial({num_rows}): renew has one flag a row, [{num_rows}], got {list(renew.shape)}"
                )
        agent._pending_rows = None
        begin_trial(agent, num_rows, renew)

    return checked
