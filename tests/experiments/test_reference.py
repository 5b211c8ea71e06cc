from __future__ import annotations

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.experiments.reference import OracleAgent, RandomAgent

OBSERVATIONS = Box(-1.0, 1.0, (3,), np.float32)


def test_random_actions_are_uniform_over_a_box() -> None:
    space = Box(np.array([-1.0, 2.0], np.float32), np.array([1.0, 6.0], np.float32))
    agent = RandomAgent(OBSERVATIONS, space)
    agent.begin_trial(4000)
    actions = agent.act(np.zeros((4000, 3), np.float32))
    assert actions.shape == (4000, 2)
    assert actions.dtype == np.float32
    # Uniform on [-1, 1] and [2, 6]: means 0 and 4, deviations 2 / sqrt(12) and 4 / sqrt(12).
    np.testing.assert_allclose(actions.mean(axis=0), [0.0, 4.0], atol=0.1)
    np.testing.assert_allclose(actions.std(axis=0), [2 / 12**0.5, 4 / 12**0.5], atol=0.05)


def test_random_actions_are_uniform_over_arms() -> None:
    agent = RandomAgent(OBSERVATIONS, Discrete(3))
    agent.begin_trial(3000)
    counts = np.bincount(agent.act(np.zeros((3000, 3), np.float32)), minlength=3)
    np.testing.assert_allclose(counts, 1000, atol=120)


def test_random_agent_follows_its_seed_and_is_new_in_each_trial() -> None:
    def actions(agent: RandomAgent) -> np.ndarray:
        agent.begin_trial(5)
        return agent.act(np.zeros((5, 3), np.float32))

    agent, twin, other = (RandomAgent(OBSERVATIONS, Box(-1.0, 1.0, (2,)), seed=seed) for seed in (1, 1, 2))
    first, second = actions(agent), actions(agent)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(actions(twin), first)
    assert not np.array_equal(actions(other), first)
    other.load_state_dict(twin.state_dict())
    np.testing.assert_array_equal(actions(other), second)
    agent.seed(1)
    np.testing.assert_array_equal(actions(agent), first)


def test_random_agent_takes_an_observation_without_rows() -> None:
    agent = RandomAgent(OBSERVATIONS, Box(-1.0, 1.0, (2,)))
    assert agent.act(np.zeros(3, np.float32)).shape == (2,)


def test_oracle_agent_acts_for_the_task_of_each_row() -> None:
    def oracle(tasks: list[Task], observation: np.ndarray) -> np.ndarray:
        return np.array([[task["goal"]] for task in tasks]) - observation[:, :1]

    tasks = [Task(0, {"goal": 2.0}), Task(1, {"goal": -3.0})]
    agent = OracleAgent(OBSERVATIONS, Box(-5.0, 5.0, (1,), np.float32), oracle, tasks)
    agent.begin_trial(2)
    actions = agent.act(np.array([[0.5, 0, 0], [1.0, 0, 0]], np.float32))
    assert actions.dtype == np.float32
    assert actions.tolist() == [[1.5], [-4.0]]
    with pytest.raises(UsageError, match="2 rows, got a trial of 3 rows"):
        agent.begin_trial(3)


@pytest.mark.parametrize("kind", ["random", "oracle"])
def test_reference_agents_learn_nothing(kind: str) -> None:
    space = Box(-1.0, 1.0, (1,), np.float32)
    agent = (
        RandomAgent(OBSERVATIONS, space)
        if kind == "random"
        else OracleAgent(OBSERVATIONS, space, lambda tasks, observation: np.zeros((1, 1)), [Task(0, {})])
    )
    agent.begin_trial(1)
    before = agent.state_dict()
    observation = np.zeros((1, 3), np.float32)
    agent.observe(observation, agent.act(observation), np.ones(1), np.zeros(1, bool), np.zeros(1, bool), observation)
    assert agent.adapt() == agent.update() == agent.take_experience() == {}
    agent.give_experience({})
    assert agent.state_dict() == before
