"""`run_trial` with a scripted agent: who sees what, and when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from metarl.core.agent import Agent, Array, Metrics
from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.core.threads import torch_threads
from metarl.env_runner.environment import Environment
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.trial import run_trial


class Ladder(gymnasium.Env[Any, Any]):
    """Observes (task value, step); an episode has `length` steps; step t pays t; the last succeeds if value > 15."""

    observation_space = spaces.Box(-np.inf, np.inf, shape=(2,), dtype=np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.value, self.length = 0.0, 1

    def look(self) -> np.ndarray:
        return np.array([self.value, self.at], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = 0
        return self.look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at += 1
        ended = self.at == self.length
        return self.look(), float(self.at), ended, False, {"success": ended and self.value > 15}


class Recorder(Agent):
    """Writes down every call; never learns."""

    def __init__(self) -> None:
        super().__init__(Ladder.observation_space, Ladder.action_space)
        self.calls: list[str] = []
        self.renewed: list[Any] = []
        self.transitions: list[dict[str, Array]] = []

    def begin_trial(self, num_rows: int, renew: Array | None = None) -> None:
        self.calls.append("begin_trial")
        self.renewed.append(renew if renew is None else renew.tolist())

    def _act(self, observation: Array) -> Array:
        return np.zeros(len(observation), dtype=np.int64)

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
        self.calls.append("observe")
        self.transitions.append(
            {
                "observation": observation,
                "next": next_observation,
                "terminated": terminated,
                "truncated": truncated,
                "active": active,
            }
        )

    def adapt(self) -> Metrics:
        self.calls.append("adapt")
        return {"adapted": float(self.calls.count("adapt"))}

    def update(self) -> Metrics:
        raise AssertionError("a trial never updates")

    def take_experience(self) -> dict[str, Tensor]:
        return {}

    def give_experience(self, experience: Mapping[str, Tensor]) -> None: ...

    def seed(self, seed: int) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


def apply(env: gymnasium.Env[Any, Any], task: Task) -> None:
    ladder: Any = env.unwrapped
    ladder.value, ladder.length = task["value"], task["length"]


TASKS = [Task(0, {"value": 10.0, "length": 2}), Task(1, {"value": 20.0, "length": 3})]


def ladders() -> GymWorkers:
    return GymWorkers(Ladder, TASKS, apply=apply, max_episode_steps=10)


def column(agent: Recorder, name: str) -> list[Any]:
    return [transition[name].tolist() for transition in agent.transitions]


def test_a_round_of_episodes_waits_for_the_last_row_and_ignores_those_that_are_done() -> None:
    agent = Recorder()
    trial = run_trial(agent, ladders(), TASKS, episodes=2)
    # Row 0 ends at steps 2 and 4, row 1 at steps 3 and 6: 1 + 2 and 1 + 2 + 3 a return.
    assert trial.returns == [[[3.0, 3.0], [6.0, 6.0]]]
    assert trial.lengths == [[[2, 2], [3, 3]]]
    assert column(agent, "active") == [[True, True]] * 4 + [[False, True]] * 2
    assert trial.env_steps == 4 + 6
    assert trial.success == [[[False, False], [True, True]]]
    assert trial.final_success == trial.success
    assert trial.adapt_metrics == []
    assert trial.mean_return(0) == 4.5
    assert agent.calls == ["begin_trial", *["observe"] * 6]


def test_an_episode_has_not_succeeded_because_the_one_before_it_did() -> None:
    class Once(Ladder):
        """Its first episode succeeds, later ones do not."""

        episodes = 0

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
            self.episodes += 1
            return super().reset(seed=seed, options=options)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, reward, terminated, truncated, _ = super().step(action)
            return observation, reward, terminated, truncated, {"success": self.episodes == 1}

    env = GymWorkers(Once, TASKS, apply=apply, max_episode_steps=10)
    trial = run_trial(Recorder(), env, TASKS, shots=1, episodes=2)
    assert trial.success == trial.final_success == [[[True, False]] * 2, [[False, False]] * 2]


def test_an_agent_acts_on_one_thread_and_adapts_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, threads = Recorder(), {}
    for name in ("_act", "_observe", "adapt"):
        method = getattr(agent, name)

        def counted(*given: Any, name: str = name, method: Any = method) -> Any:
            threads[name] = torch.get_num_threads()
            return method(*given)

        monkeypatch.setattr(agent, name, counted)
    with torch_threads(3):
        run_trial(agent, ladders(), TASKS, shots=1, steps=2)
        assert torch.get_num_threads() == 3
    assert threads == {"_act": 1, "_observe": 1, "adapt": 3}


def test_the_agent_sees_the_final_observation_never_the_one_after() -> None:
    agent = Recorder()
    run_trial(agent, ladders(), TASKS, episodes=2)
    steps = [[row[1] for row in observation] for observation in column(agent, "observation")]
    successors = [[row[1] for row in observation] for observation in column(agent, "next")]
    assert steps == [[0, 0], [1, 1], [0, 2], [1, 0], [0, 1], [1, 2]]
    assert successors == [[1, 1], [2, 2], [1, 3], [2, 1], [1, 2], [2, 3]]


def test_every_round_begins_anew_and_adapts_but_the_last() -> None:
    agent = Recorder()
    trial = run_trial(agent, ladders(), TASKS, shots=2, steps=3)
    assert agent.calls == ["begin_trial", *["observe"] * 3, "adapt", *["observe"] * 3, "adapt", *["observe"] * 3]
    assert trial.returns == [[[3.0], [6.0]]] * 3
    assert trial.adapt_metrics == [{"adapted": 1.0}, {"adapted": 2.0}]
    assert trial.env_steps == 18
    first_of_rounds = column(agent, "observation")[::3]
    assert first_of_rounds == [[[10, 0], [20, 0]]] * 3
    assert column(agent, "active") == [[True, True]] * 9
    assert agent.renewed == [[True, True]]


def test_a_round_of_steps_that_ends_in_a_reset_truncates_running_episodes_to_the_agent() -> None:
    agent = Recorder()
    trial = run_trial(agent, ladders(), TASKS, shots=1, steps=2)
    assert column(agent, "terminated") == [[False, False], [True, False]] * 2
    assert column(agent, "truncated") == [[False, False], [False, True], [False, False], [False, False]]
    assert column(agent, "next")[1] == [[10.0, 2.0], [20.0, 2.0]]
    assert trial.returns == [[[3.0], []]] * 2


def test_rows_that_continue_keep_their_world_and_their_running_episode() -> None:
    agent, env = Recorder(), ladders()
    first = run_trial(agent, env, TASKS, steps=1)
    assert first.returns == [[[], []]]
    assert np.isnan(first.mean_return(0))
    assert first.running.reward.tolist() == [1.0, 1.0]
    others = [Task(2, {"value": 30.0, "length": 2}), TASKS[1]]
    second = run_trial(agent, env, others, steps=2, renew=np.array([True, False]), previous=first)
    assert agent.renewed == [[True, True], [True, False]]
    assert column(agent, "observation")[1] == [[30, 0], [20, 1]], "row 0 began again, row 1 went on"
    assert second.returns == [[[3.0], [6.0]]], "row 1 earned its 6 over both trials"
    assert second.lengths == [[[2], [3]]]
    assert first.running.reward.tolist() == [1.0, 1.0], "the earlier trial stays as it was"


def test_an_episode_that_goes_on_keeps_the_success_that_it_has_had() -> None:
    class Early(Ladder):
        """The first step of an episode succeeds, no later one does."""

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, reward, terminated, truncated, _ = super().step(action)
            return observation, reward, terminated, truncated, {"success": self.at == 1}

    agent, env = Recorder(), GymWorkers(Early, TASKS, apply=apply, max_episode_steps=10)
    first = run_trial(agent, env, TASKS, steps=1)
    second = run_trial(agent, env, TASKS, steps=2, renew=np.array([True, False]), previous=first)
    assert second.success == [[[True], [True]]], "row 1 succeeded in the first of the two trials"
    assert second.final_success == [[[False], [False]]]
    assert first.running.succeeded.tolist() == [True, True], "the earlier trial stays as it was"
    assert first.running.length.tolist() == [1, 1]


def test_a_seed_is_for_the_first_reset_only() -> None:
    class Noisy(Ladder):
        def look(self) -> np.ndarray:
            return np.array([self.noise, self.at], dtype=np.float32)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
            gymnasium.Env.reset(self, seed=seed)
            self.at, self.noise = 0, self.np_random.random()
            return self.look(), {}

    def noises(seed: int | None) -> list[float]:
        agent = Recorder()
        run_trial(agent, env, TASKS, shots=1, steps=2, seed=seed)
        return [observation[0][0] for observation in column(agent, "observation")[::2]]

    env = GymWorkers(Noisy, TASKS, apply=apply, max_episode_steps=10)
    once = noises(5)
    assert once[0] != once[1]
    assert noises(5) == once
    assert noises(None)[0] not in once


def test_wrong_use() -> None:
    env = ladders()
    for lasts in ({}, {"episodes": 1, "steps": 1}):
        with pytest.raises(UsageError, match="either episodes or steps"):
            run_trial(Recorder(), env, TASKS, **lasts)
    with pytest.raises(UsageError, match="query_episodes goes with episodes"):
        run_trial(Recorder(), env, TASKS, steps=3, query_episodes=1)
    with pytest.raises(UsageError, match="got 1 tasks for 2 rows"):
        run_trial(Recorder(), env, TASKS[:1], episodes=1)
    for options, message in (
        ({"steps": 0}, "steps is a whole number of at least 1, got 0"),
        ({"episodes": 0}, "episodes is a whole number of at least 1, got 0"),
        ({"episodes": 1, "query_episodes": 0}, "query_episodes is a whole number of at least 1, got 0"),
        ({"episodes": 1, "shots": -1}, "shots is a whole number of at least 0, got -1"),
        ({"steps": 1, "renew": np.ones(3, dtype=bool)}, r"renew is a bool array of shape \(2,\), got bool \(3,\)"),
    ):
        with pytest.raises(UsageError, match=message):
            run_trial(Recorder(), env, TASKS, **options)


def test_worlds_without_tasks_are_refused() -> None:
    for worlds in (gymnasium.make_vec("CartPole-v1", num_envs=2), Environment("CartPole-v1", batch_size=2), Recorder()):
        with pytest.raises(UsageError, match="run_trial takes worlds with tasks, such as TaskDistribution"):
            run_trial(Recorder(), worlds, TASKS, steps=1)  # type: ignore[arg-type]


def test_rows_of_one_trial_have_one_task() -> None:
    agent = Recorder()
    agent.trial_rows = 2
    with pytest.raises(UsageError, match=r"rows 2 by 2 share a task .* got Task\(0: .* row 0 and Task\(1: .* row 1"):
        run_trial(agent, ladders(), TASKS, steps=1)
    assert agent.calls == []
    run_trial(agent, ladders(), TASKS[:1] * 2, steps=1)


def test_a_row_that_continues_a_trial_keeps_its_task() -> None:
    agent, env = Recorder(), ladders()
    first = run_trial(agent, env, TASKS, steps=1)
    with pytest.raises(
        UsageError, match=r"row 1 continues the trial of Task\(1: .*\), and so cannot have Task\(0: .*renew"
    ):
        run_trial(agent, env, TASKS[:1] * 2, steps=1, renew=np.array([True, False]), previous=first)
    assert env.tasks == tuple(TASKS)
    run_trial(agent, env, [Task(1, TASKS[1].params)] * 2, steps=1, renew=np.array([True, False]), previous=first)


def test_worlds_that_are_given_up_count_where_the_agent_sees_them() -> None:
    class Unstable(GymWorkers):
        """Both rows blow up with every episode of theirs."""

        def step(self, actions: Any) -> Any:
            *step, infos = super().step(actions)
            return *step, {**infos, "unstable": step[2]}

    env = Unstable(Ladder, TASKS, apply=apply, max_episode_steps=10)
    # Row 0 ends at steps 2, 4 and 6, row 1 at 3 and 6; row 0 waits from step 4 on.
    assert run_trial(Recorder(), env, TASKS, episodes=2).unstable_rows == 4
