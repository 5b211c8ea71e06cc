from __future__ import annotations

import numpy as np
import pytest

from metarl.env_runner.recording import Recorder
from metarl.env_runner.shown_task import ShownTask
from metarl.env_runner.trial import run_trial
from metarl.experiments.protocol import Protocol, evaluate
from metarl.experiments.reference import RandomAgent
from metarl.tasks import make_tasks

PROTOCOL = Protocol("few-shot", few_shot=(1, 2), repeats=2, seed=5)


def random_agent(distribution):
    env = distribution.make_env(distribution.test[:1])
    return RandomAgent(env.single_observation_space, env.single_action_space, seed=1)


@pytest.mark.parametrize("family", ["halfcheetah-vel", "ant-dir", "point-goal", "cartpole-dynamics"])
def test_recorded_returns_are_the_evaluators_and_recording_changes_none(family: str) -> None:
    distribution = make_tasks(family)
    tasks = distribution.test[:3]
    agent = random_agent(distribution)
    bare = evaluate(agent, distribution, tasks, PROTOCOL)
    recorder = Recorder((0, 2))
    agent.seed(1)
    watched = evaluate(agent, distribution, tasks, PROTOCOL, recorder=recorder)
    for shot in (0, 1, 2):
        np.testing.assert_array_equal(bare.shots[shot].returns, watched.shots[shot].returns)
    assert set(recorder.episodes) == {(task.id, shot) for task in tasks for shot in (0, 2)}
    for column, task in enumerate(tasks):
        for shot in (0, 2):
            episode = recorder.episodes[task.id, shot]
            assert episode.returns[-1] == watched.shots[shot].returns[0, column]
            assert len(episode.states) == len(episode.rewards) <= distribution.max_episode_steps
            assert episode.terminated == (len(episode.rewards) < distribution.max_episode_steps)
    first = recorder.episodes[tasks[0].id, 0].states
    again = recorder.episodes[tasks[0].id, 2].states
    common = min(len(first), len(again))
    assert (first[:common] != again[:common]).any()


def test_states_are_those_before_each_step() -> None:
    distribution = make_tasks("halfcheetah-dir")
    tasks = [distribution.test[0], distribution.test[1], distribution.test[0]]
    recorder = Recorder((1,))
    agent = random_agent(distribution)
    worlds = recorder.wrap(distribution.make_env(tasks), {tasks[1]: 1})
    run_trial(agent, worlds, tasks, shots=1, episodes=1, seed=3)
    (episode,) = recorder.episodes.values()
    agent.seed(1)
    agent.begin_trial(3)
    env = distribution.make_env(tasks)
    observation, _ = env.reset(seed=3)
    for _ in range(200):
        env.step(agent.act(observation))
    env.reset()
    for step in range(200):
        np.testing.assert_array_equal(episode.states[step], env.qpos[1])
        reward = env.step(agent.act(observation))[1]
        assert episode.rewards[step] == reward[1]


def test_the_first_episode_of_a_round_is_kept_and_observations_stand_for_worlds_without_qpos() -> None:
    distribution = make_tasks("point-goal", horizon=4)
    task = distribution.test[0]
    recorder = Recorder((0,))
    agent = random_agent(distribution)
    trial = run_trial(agent, recorder.wrap(distribution.make_env([task]), {task: 0}), [task], episodes=3, seed=0)
    episode = recorder.episodes[task.id, 0]
    assert episode.returns[-1] == trial.returns[0][0][0]
    assert episode.states.shape == (4, 2)
    np.testing.assert_array_equal(episode.states[0], [0.0, 0.0])


def test_what_is_kept_of_a_task_is_its_own_also_where_rows_share_a_trial() -> None:
    distribution = make_tasks("point-goal", horizon=4)
    tasks, recorder, agent = distribution.test[:3], Recorder((0,)), random_agent(distribution)
    agent.trial_rows = 2
    evaluate(agent, distribution, tasks, Protocol("zero-shot", repeats=2, seed=5), recorder=recorder)
    assert set(recorder.episodes) == {(task.id, 0) for task in tasks}
    for task in tasks:
        episode = recorder.episodes[task.id, 0]
        away = np.linalg.norm(episode.states[1:] - task["goal"], axis=1)  # where every step but the last led
        np.testing.assert_allclose(episode.rewards[:-1], -away, rtol=1e-5)


def test_worlds_that_show_their_task_are_seen_through() -> None:
    distribution = make_tasks("halfcheetah-vel").showing_tasks()
    task = distribution.test[0]
    env = distribution.make_env([task])
    recorder = Recorder((0,))
    worlds = recorder.wrap(env, {task: 0})
    assert isinstance(env, ShownTask)
    assert recorder.world is env.env
    agent = RandomAgent(worlds.single_observation_space, worlds.single_action_space)
    run_trial(agent, worlds, [task], episodes=1, seed=0)
    assert recorder.episodes[task.id, 0].states.shape == (200, 9)


def test_the_worlds_close_with_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    distribution = make_tasks("point-goal")
    task = distribution.test[0]
    env = distribution.make_env([task])
    closed = []
    monkeypatch.setattr(env, "close", lambda: closed.append(True))
    Recorder((0,)).wrap(env, {task: 0}).close()
    assert closed == [True]
