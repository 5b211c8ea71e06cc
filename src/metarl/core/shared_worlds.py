"""Worlds that several agents share, in one form: what each agent sees, whether it has rows of a batch or is a player.

A batch is a `gymnasium.vector.VectorEnv` with same-step autoreset, or an object with the interface of
`metarl.Environment`; its rows are split between the agents in their order. A game is a PettingZoo parallel environment;
every player is an agent with one row.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from metarl.core.agent import Agent, Array
from metarl.core.autoreset import successor
from metarl.core.errors import UsageError


@dataclass(frozen=True)
class Outcome:
    """What one step brought one agent."""

    reward: Array
    """[R]."""
    terminated: Array
    """[R] bool."""
    truncated: Array
    """[R] bool."""
    successor: Array
    """[R, obs] the state that the action led to."""
    observation: Array | None
    """[R, obs] what to act on next; None: the player is out of the game."""


@runtime_checkable
class BatchEnvironment(Protocol):
    """The interface of `metarl.Environment`."""

    batch_size: int
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]

    def reset(self) -> Array:
        """First observations [B, obs]."""
        ...

    def step(self, action: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
        """(observation, reward, done, info); info has `terminated`, `truncated` and `final_observation`."""
        ...

    def close(self) -> None:
        """Release the worlds."""
        ...


class SharedWorlds(ABC):
    """Worlds stepped by the actions of all agents at once. An agent without an action does nothing in particular."""

    rows: dict[str, int]

    @abstractmethod
    def spaces_of(self, agent_id: str) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Observation and action space of one row of an agent."""

    @abstractmethod
    def reset(self, seed: int | None) -> dict[str, Array]:
        """First observations [R, obs] by agent."""

    @abstractmethod
    def step(self, actions: Mapping[str, Array]) -> dict[str, Outcome]:
        """One step with actions [R, act] by agent; the outcome of everyone who was still there."""

    def check(self, agents: Mapping[str, Agent]) -> None:
        """Refuse agents whose spaces are not those of their rows."""
        for agent_id, agent in agents.items():
            observation_space, action_space = self.spaces_of(agent_id)
            if agent.observation_space.shape != observation_space.shape or agent.action_space != action_space:
                raise UsageError(
                    f"agent '{agent_id}' maps {agent.observation_space} to {agent.action_space}, but its worlds map "
                    f"{action_space} to {observation_space}: register an agent made for these worlds"
                )


def share(env: Any, agent_ids: Sequence[str]) -> SharedWorlds:
    """`env` as seen by agents of these names.

    Raises:
        UsageError: rows or players that do not match the agents, or an environment of another kind.
    """
    pettingzoo = sys.modules.get("pettingzoo")  # who made one of its environments has imported it
    if pettingzoo is not None and isinstance(env, pettingzoo.ParallelEnv):
        return Players(env, agent_ids)
    if isinstance(env, VectorEnv | BatchEnvironment):
        return RowsOfBatch(env, agent_ids)
    raise UsageError(
        f"agents share a metarl.Environment, a VectorEnv of gymnasium or a ParallelEnv of PettingZoo, got {type(env)}"
    )


class RowsOfBatch(SharedWorlds):
    """Consecutive rows of one batch, as many for every agent."""

    def __init__(self, env: VectorEnv[Any, Any, Any] | BatchEnvironment, agent_ids: Sequence[str]) -> None:
        if isinstance(env, VectorEnv):
            num_rows = env.num_envs
            self._spaces = env.single_observation_space, env.single_action_space
            if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
                raise UsageError("a VectorEnv must reset in the same step: make it with AutoresetMode.SAME_STEP")
        else:
            num_rows = env.batch_size
            self._spaces = env.observation_space, env.action_space
        self.env = env
        share, rest = divmod(num_rows, len(agent_ids))
        if rest or not share:
            raise UsageError(
                f"{num_rows} rows cannot be split between {len(agent_ids)} agents: give a multiple of them"
            )
        self.rows = dict.fromkeys(agent_ids, share)

    def spaces_of(self, agent_id: str) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        return self._spaces

    def reset(self, seed: int | None) -> dict[str, Array]:
        if isinstance(self.env, VectorEnv):
            return self._split(self.env.reset(seed=seed)[0])
        if seed is not None:
            raise UsageError("these worlds take their seed when they are made: run_episodes gets none")
        return self._split(self.env.reset())

    def step(self, actions: Mapping[str, Array]) -> dict[str, Outcome]:
        parts = [
            actions[agent_id] if agent_id in actions else np.stack([idle(self._spaces[1])] * rows)
            for agent_id, rows in self.rows.items()
        ]
        action = np.concatenate(parts)
        if isinstance(self.env, VectorEnv):
            observation, reward, terminated, truncated, infos = self.env.step(action)
            following = successor(observation, infos)
        else:
            observation, reward, _, info = self.env.step(action)
            terminated, truncated, following = info["terminated"], info["truncated"], info["final_observation"]
        split = [self._split(array) for array in (reward, terminated, truncated, following, observation)]
        return {agent_id: Outcome(*(part[agent_id] for part in split)) for agent_id in self.rows}

    def _split(self, array: Array) -> dict[str, Array]:
        return dict(zip(self.rows, np.split(array, len(self.rows)), strict=True))


class Players(SharedWorlds):
    """The players of a PettingZoo parallel environment, each an agent of the same name."""

    def __init__(self, env: Any, agent_ids: Sequence[str]) -> None:
        if set(agent_ids) != set(env.possible_agents):
            raise UsageError(
                f"every player is an agent of the same name: the players are {', '.join(env.possible_agents)}, the "
                f"agents {', '.join(agent_ids)}"
            )
        self.env = env
        self.rows = dict.fromkeys(agent_ids, 1)

    def spaces_of(self, agent_id: str) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        return self.env.observation_space(agent_id), self.env.action_space(agent_id)

    def reset(self, seed: int | None) -> dict[str, Array]:
        observations, _ = self.env.reset(seed=seed)
        return {agent_id: np.asarray(observation)[None] for agent_id, observation in observations.items()}

    def step(self, actions: Mapping[str, Array]) -> dict[str, Outcome]:
        playing = list(self.env.agents)
        given = {
            agent_id: actions[agent_id][0] if agent_id in actions else idle(self.env.action_space(agent_id))
            for agent_id in playing
        }
        observations, rewards, terminated, truncated, _ = self.env.step(given)
        outcomes = {}
        for agent_id in playing:
            after = np.asarray(observations[agent_id])[None]
            outcomes[agent_id] = Outcome(
                reward=np.array([rewards[agent_id]], dtype=np.float32),
                terminated=np.array([terminated[agent_id]], dtype=bool),
                truncated=np.array([truncated[agent_id]], dtype=bool),
                successor=after,
                observation=after if agent_id in self.env.agents else None,
            )
        return outcomes


def idle(space: gymnasium.Space[Any]) -> Array:
    """The action of one row whose agent gives none: 0 as far as the bounds allow, or the first of a list."""
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start)
    raise UsageError(f"action space {space} is not supported: use a Box or a Discrete space, or wrap the environment")
