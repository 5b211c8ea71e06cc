"""The part of the contract that `Agent` itself keeps: the row axis is optional."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from gymnasium import spaces

from metarl.core.agent import Agent

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
NUMBER = spaces.Discrete(4)


class Recorder(Agent):
    """Acts by adding up the observation; keeps what it was given."""

    def begin_trial(self, num_rows, renew=None):
        self.seen = []

    def _act(self, observation):
        self.seen.append(observation)
        return observation.reshape(len(observation), -1).sum(1, keepdims=True)

    def _observe(self, *arrays):
        self.seen.append(arrays)

    def adapt(self):
        return {}

    def update(self):
        return {}

    def take_experience(self):
        return {}

    def give_experience(self, experience: Mapping):
        pass

    def seed(self, seed):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state: Mapping):
        pass


def make(observation_space=BOX):
    agent = Recorder(observation_space, spaces.Box(-9.0, 9.0, (1,), np.float32))
    agent.begin_trial(1)
    return agent


def test_act_takes_rows_or_a_single_observation():
    agent = make()
    rows = agent.act(np.arange(6.0).reshape(2, 3))
    single = agent.act([3.0, 4.0, 5.0])
    assert rows.tolist() == [[3.0], [12.0]]
    assert single.tolist() == [12.0]
    assert agent.seen[1].shape == (1, 3)


def test_an_agent_that_holds_nothing_has_nothing_to_show():
    assert make().trial_state().shape == (0,)


def test_an_observation_without_axes_is_a_row_too():
    agent = make(NUMBER)
    assert agent.act(np.int64(3)).tolist() == [3]
    assert agent.act(np.array([1, 2])).tolist() == [[1], [2]]


def test_observe_adds_the_row_axis_to_every_argument():
    agent = make()
    agent.observe([1.0, 2.0, 3.0], np.array([6.0]), -0.5, True, False, [4.0, 5.0, 6.0])
    *arrays, active = agent.seen[0]
    assert [array.shape for array in arrays] == [(1, 3), (1, 1), (1,), (1,), (1,), (1, 3)]
    assert [array.tolist() for array in arrays[2:5]] == [[-0.5], [True], [False]]
    assert active.tolist() == [True]


@pytest.mark.parametrize("active", [None, [True, False], np.array([0, 1])])
def test_observe_passes_rows_on_with_the_active_ones_marked(active):
    agent = make()
    flags = np.array([False, True])
    agent.observe(np.zeros((2, 3)), np.zeros((2, 1)), np.ones(2), flags, ~flags, np.zeros((2, 3)), active)
    marked = agent.seen[0][-1]
    assert marked.dtype == bool
    assert marked.tolist() == ([True, True] if active is None else np.asarray(active).astype(bool).tolist())


def test_defaults_of_the_contract():
    agent = make()
    assert (agent.explore, agent.training) == (True, True)
    assert (agent.continuation, agent.trial_rounds, agent.round_steps) == (0.0, 1, None)
    assert (agent.observation_space, agent.action_space.shape) == (BOX, (1,))
