"""Worlds that tell the agent its task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.recording import Recorder
from metarl.env_runner.shown_task import ShownTask
from metarl.tasks import make_tasks
from metarl.tasks.single import single_environment


def test_observations_end_with_the_task_of_the_running_episode():
    plain = make_tasks("point-goal")
    shown = plain.showing_tasks()
    first, second = plain.train[:2], plain.train[2:4]
    env, bare = shown.make_env(first, seed=3), plain.make_env(first, seed=3)
    observation, _ = env.reset(seed=5)
    expected, _ = bare.reset(seed=5)
    np.testing.assert_array_equal(observation[:, :-2], expected)
    np.testing.assert_allclose(observation[:, -2:], [task["goal"] for task in first], rtol=1e-6)
    env.set_tasks(second)
    action = np.zeros((2, 2), dtype=np.float32)
    for _ in range(plain.max_episode_steps):
        observation, _, _, truncated, infos = env.step(action)
        current = second if truncated.all() else first
        np.testing.assert_allclose(observation[:, -2:], [task["goal"] for task in current], rtol=1e-6)
    np.testing.assert_allclose(infos["final_obs"][:, -2:], [task["goal"] for task in first], rtol=1e-6)


def test_only_the_rows_of_the_mask_take_their_next_task():
    plain = make_tasks("point-goal")
    env = plain.showing_tasks().make_env(plain.train[:2])
    env.reset(seed=0)
    env.set_tasks(plain.train[2:4])
    observation, _ = env.reset(options={"reset_mask": np.array([False, True])})
    goals = [plain.train[0]["goal"], plain.train[3]["goal"]]
    np.testing.assert_allclose(observation[:, -2:], goals, rtol=1e-6)


def test_tasks_without_numbers_are_refused():
    single = single_environment("CartPole-v1")
    with pytest.raises(UsageError, match="numeric"):
        single.showing_tasks().make_env(single.train)
    env = make_tasks("point-goal").make_env(make_tasks("point-goal").train[:1])
    with pytest.raises(UsageError, match="numeric"):
        ShownTask(env, [Task(0, {"name": "a word"})])


def test_tasks_with_more_numbers_than_others_are_refused():
    plain = make_tasks("point-goal")
    short, long = Task(0, {"goal": (1.0, 0.0)}), Task(1, {"goal": (1.0, 0.0), "wind": 2.0})
    env = plain.make_env([short, short])
    with pytest.raises(
        UsageError, match=r"as many numbers in every task, unlike Task\(0: goal=.*\) and Task\(1: .*wind"
    ):
        ShownTask(env, [short, long])
    shown = ShownTask(env, [short, short])
    with pytest.raises(
        UsageError, match=r"as many numbers in every task, unlike Task\(0: goal=.*\) and Task\(1: .*wind"
    ):
        shown.set_tasks([long, long])
    assert shown.tasks == (short, short)


def test_worlds_have_tasks_before_they_are_given_others():
    plain = make_tasks("point-goal")
    assert plain.showing_tasks().make_env(plain.train[:2]).tasks == plain.train[:2]
    assert Recorder((0,)).wrap(plain.make_env(plain.train[:2]), {plain.train[0]: 0}).tasks == plain.train[:2]


@pytest.mark.parametrize("name", ["pendulum-dynamics", "ant-drift"])
def test_a_known_reward_is_not_given_the_task_that_is_shown(name):
    plain = make_tasks(name)
    shown = plain.showing_tasks()
    env = shown.make_env(plain.train[:3], seed=1)
    before, _ = env.reset()
    action = np.full(env.action_space.shape, 0.5, dtype=np.float32)
    told = [torch.from_numpy(each) for each in (before, action, env.step(action)[0])]
    size = env.env.single_observation_space.shape[0]
    bare = [told[0][:, :size], told[1], told[2][:, :size]]
    assert told[0].shape[1] > size
    assert torch.equal(shown.reward_model.reward(*told), plain.reward_model.reward(*bare))
    if plain.reward_model.ended is not None:
        assert torch.equal(shown.reward_model.ended(told[2]), plain.reward_model.ended(bare[2]))
