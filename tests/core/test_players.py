"""PettingZoo's parallel environments: every player is an agent of the same name, also when players leave early."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from metarl.core.coordinator import AgentCoordinator
from metarl.core.errors import UsageError
from metarl.meta_rl.rl2_agent import RL2Agent

pettingzoo = pytest.importorskip("pettingzoo")
spread = pytest.importorskip("mpe2.simple_spread_v3")

STEPS = 6


def make_spread():
    return spread.parallel_env(N=2, max_cycles=STEPS, continuous_actions=True)


def agents_of(env):
    agents = {}
    for index, player in enumerate(env.possible_agents):
        agents[player] = RL2Agent(env.observation_space(player), env.action_space(player), seed=index)
        agents[player].training = False
    return agents


def coordinate(agents):
    coordinator = AgentCoordinator()
    for agent_id, agent in agents.items():
        coordinator.register_agent(agent, agent_id)
    return coordinator


def test_players_of_mpe_meet_in_one_game_alike_in_both_modes():
    returns = []
    for mode in ("parallel", "sequential"):
        env = make_spread()
        results = coordinate(agents_of(env)).run_episodes(env, 2, 100, mode, seed=5)
        assert all(result.lengths == [[STEPS, STEPS]] for result in results.values())
        returns.append({player: result.returns for player, result in results.items()})
    assert returns[0] == returns[1]


def test_returns_are_those_of_the_game_played_by_hand():
    env = make_spread()
    results = coordinate(agents_of(env)).run_episodes(env, 1, 100, seed=5)
    agents, env = agents_of(env), make_spread()
    observations, _ = env.reset(seed=5)
    totals = dict.fromkeys(agents, 0.0)
    for agent in agents.values():
        agent.begin_trial(1)
    while env.agents:
        actions = {player: agents[player].act(observations[player]) for player in env.agents}
        after, rewards, terminated, truncated, _ = env.step(actions)
        for player, action in actions.items():
            totals[player] += rewards[player]
            flags = (terminated[player], truncated[player])
            agents[player].observe(observations[player], action, rewards[player], *flags, after[player])
        observations = after
    assert {player: result.returns[0][0] for player, result in results.items()} == pytest.approx(totals, rel=1e-6)


class Leaving(pettingzoo.ParallelEnv):
    """Player i leaves after i + 1 steps; each step pays everyone the number of players that are there."""

    metadata = {"name": "leaving"}  # noqa: RUF012 (the base class has it so)
    possible_agents = ("0", "1", "2")

    def observation_space(self, agent):
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.agents, self.step_count = list(self.possible_agents), 0
        return {player: np.zeros(1, np.float32) for player in self.agents}, {}

    def step(self, actions):
        assert set(actions) == set(self.agents)
        self.step_count += 1
        playing = self.agents
        terminated = {player: int(player) < self.step_count for player in playing}
        self.agents = [player for player in playing if not terminated[player]]
        seen = {player: np.full(1, 0.1 * self.step_count, np.float32) for player in playing}
        return seen, dict.fromkeys(playing, len(playing)), terminated, dict.fromkeys(playing, False), {}


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_a_player_that_leaves_is_asked_no_more_until_the_next_episode(mode):
    env = Leaving()
    results = coordinate(agents_of(env)).run_episodes(env, 2, 100, mode)
    assert {player: result.lengths for player, result in results.items()} == {
        "0": [[1, 1]],
        "1": [[2, 2]],
        "2": [[3, 3]],
    }
    assert {player: result.returns for player, result in results.items()} == {
        "0": [[3.0, 3.0]],
        "1": [[5.0, 5.0]],
        "2": [[6.0, 6.0]],
    }


def test_agents_are_called_as_the_players():
    env = Leaving()
    agents = agents_of(env)
    agents["x"] = agents.pop("2")
    with pytest.raises(UsageError, match="the players are 0, 1, 2, the agents 0, 1, x"):
        coordinate(agents).run_episodes(env, 1, 1)
