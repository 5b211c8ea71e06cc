"""`Environment`: a batch of any Gymnasium environment, for a hand-written loop."""

from __future__ import annotations

import numpy as np

from metarl.core.normalization import RunningMoments
from metarl.core.task import Task
from metarl.env_runner.named_worlds import UNLIMITED, find_spec, make_named_worlds
from metarl.env_runner.rows import check_whole
from metarl.env_runner.task_env import Array, successor


class Environment:
    """A batch of `batch_size` copies of a Gymnasium environment that reset themselves.

        with Environment("CartPole-v1", batch_size=8, seed=0) as env:
            observation = env.reset()                                    # [8, 4]
            observation, reward, done, info = env.step(action)           # action [8]

    Every array has the row axis first, also where `batch_size` is 1; an action for a batch of one may come without it.
    Observations are flat float32, as `GymWorkers` makes them. `observation_space` and `action_space` are one row's.

    Args:
        env_name: a name that Gymnasium knows.
        batch_size: rows.
        normalize: observations are standardised by the `RunningMoments` of all that were returned so far, in `moments`,
            and clipped to ±10.
        seed: row i starts from an independent stream of this seed; None takes a fresh one.

    Raises:
        UsageError: a name that Gymnasium does not know, a batch size that is no whole number of at least 1, a seed that
            is no integer from 0 on, or spaces that are not arrays.
    """

    def __init__(self, env_name: str, batch_size: int = 1, normalize: bool = False, seed: int | None = None) -> None:
        check_whole("batch_size", batch_size, least=1)
        self.env_name = env_name
        self.batch_size = batch_size
        self._worlds = make_named_worlds(
            env_name,
            [Task(0, {})] * batch_size,
            max_episode_steps=find_spec(env_name).max_episode_steps or UNLIMITED,
            seed=int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed,
        )
        self.observation_space = self._worlds.single_observation_space
        self.action_space = self._worlds.single_action_space
        self.moments = RunningMoments(self.observation_space.shape or ()) if normalize else None

    def reset(self) -> Array:
        """Begin an episode in every row; returns observations [B, obs]."""
        observation, _ = self._worlds.reset()
        return self._seen(observation)

    def step(self, action: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
        """One step of every row with actions [B, act].

        Returns:
            observation: [B, obs]; where an episode ended, the first of the next.
            reward: [B].
            done: [B] bool, terminated or truncated.
            info: `terminated` [B], `truncated` [B], `final_observation` [B, obs]: the state that the action led to; it
                differs from `observation` only where an episode ended.

        Raises:
            ActionError: an action that is not finite, or not one of the action space where that has whole numbers only.
            WorldError: the environment raised, or what it returned is not finite.
            UsageError: actions of another shape, or no `reset` came before.
        """
        action = np.asarray(action)
        if self.batch_size == 1 and action.shape == self.action_space.shape:
            action = action[None]
        observation, reward, terminated, truncated, infos = self._worlds.step(action)
        final_observation = successor(observation, infos)
        observation = self._seen(observation)
        info = {
            "terminated": terminated,
            "truncated": truncated,
            "final_observation": self._normalized(final_observation),
        }
        return observation, reward, terminated | truncated, info

    def close(self) -> None:
        """Release the worlds."""
        self._worlds.close()

    def __enter__(self) -> Environment:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _seen(self, observation: Array) -> Array:
        if self.moments is not None:
            self.moments.update(observation)
        return self._normalized(observation)

    def _normalized(self, observation: Array) -> Array:
        return observation if self.moments is None else self.moments.normalize(observation)
