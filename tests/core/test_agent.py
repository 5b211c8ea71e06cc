"""The part of the contract that `Agent` itself keeps: the row axis is optional; shapes, masks and order are checked."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest
from gymnasium import spaces

from metarl.core.agent import Agent
from metarl.core.errors import UsageError

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
NUMBER = spaces.Discrete(4)


class Recorder(Agent):
    """Acts by adding up the observation; keeps what it was given."""

    def begin_trial(self, num_rows, renew=None):
        self.seen, self.renewed = [], renew

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
    agent.act([1.0, 2.0, 3.0])
    agent.observe([1.0, 2.0, 3.0], np.array([6.0]), -0.5, True, False, [4.0, 5.0, 6.0])
    *arrays, active = agent.seen[1]
    assert [array.shape for array in arrays] == [(1, 3), (1, 1), (1,), (1,), (1,), (1, 3)]
    assert [array.tolist() for array in arrays[2:5]] == [[-0.5], [True], [False]]
    assert active.tolist() == [True]


@pytest.mark.parametrize("active", [None, [True, False], np.array([0, 1])])
def test_observe_passes_rows_on_with_the_active_ones_marked(active):
    agent = make()
    flags = np.array([False, True])
    agent.act(np.zeros((2, 3)))
    agent.observe(np.zeros((2, 3)), np.zeros((2, 1)), np.ones(2), flags, ~flags, np.zeros((2, 3)), active)
    marked = agent.seen[1][-1]
    assert marked.dtype == bool
    assert marked.tolist() == ([True, True] if active is None else np.asarray(active).astype(bool).tolist())


def transition(**changed):
    """Arguments of `observe` for two rows."""
    rows = {
        "observation": np.zeros((2, 3)),
        "action": np.zeros((2, 1)),
        "reward": np.ones(2),
        "terminated": np.array([0.0, 1.0]),
        "truncated": [False, False],
        "next_observation": np.zeros((2, 3)),
    }
    return rows | changed


def test_flags_reach_the_agent_as_bool():
    agent = make()
    agent.act(np.zeros((2, 3)))
    agent.observe(**transition())
    terminated, truncated = agent.seen[1][3:5]
    assert (terminated.dtype, truncated.dtype) == (bool, bool)
    assert terminated.tolist() == [False, True]


@pytest.mark.parametrize("observation", [np.zeros((2, 4)), np.zeros(4), np.zeros((2, 2, 3)), 0.0])
def test_observations_of_another_space_are_refused(observation):
    shape = list(np.shape(observation))
    with pytest.raises(UsageError, match=re.escape(f"an observation is [3], or rows of that, got {shape}")):
        make().act(observation)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"action": np.zeros(2)}, "action is [2, 1] here, got [2]"),
        ({"reward": np.ones((2, 1))}, "reward is [2] here, got [2, 1]"),
        ({"terminated": True}, "terminated is [2] here, got []"),
        ({"truncated": [False]}, "truncated is [2] here, got [1]"),
        ({"next_observation": np.zeros((1, 3))}, "next_observation is [2, 3] here, got [1, 3]"),
        ({"active": [True] * 3}, "active is [2] here, got [3]"),
        ({"observation": np.zeros((3, 3))}, "act was given 2 rows, and observe 3"),
    ],
)
def test_a_transition_of_another_shape_is_refused_and_names_the_argument(changed, message):
    agent = make()
    agent.act(np.zeros((2, 3)))
    with pytest.raises(UsageError, match=re.escape(message)):
        agent.observe(**transition(**changed))
    assert len(agent.seen) == 1
    agent.observe(**transition())


def test_observe_follows_act():
    agent, refused = make(), pytest.raises(UsageError, match=r"observe follows act: call act\(observation\)")
    with refused:
        agent.observe(**transition())
    agent.act(np.zeros((2, 3)))
    agent.act(np.zeros((2, 3)))
    agent.observe(**transition())
    with refused:
        agent.observe(**transition())
    agent.act(np.zeros((2, 3)))
    agent.begin_trial(2)
    with refused:
        agent.observe(**transition())


@pytest.mark.parametrize("renew", [np.array([0, 0, 0, 1]), [False, False, False, True]])
def test_a_trial_is_renewed_by_flags_never_by_indices(renew):
    agent = make()
    agent.begin_trial(4, renew=renew)
    assert agent.renewed.dtype == bool
    assert agent.renewed.tolist() == [False, False, False, True]
    with pytest.raises(UsageError, match=r"begin_trial\(3\): renew has one flag a row, \[3\], got \[4\]"):
        agent.begin_trial(3, renew)


def test_defaults_of_the_contract():
    agent = make()
    assert (agent.explore, agent.training) == (True, True)
    assert (agent.continuation, agent.trial_rounds, agent.round_steps) == (0.0, 1, None)
    assert (agent.observation_space, agent.action_space.shape) == (BOX, (1,))
