"""A population by hand, the same in threads as in turn, and what happens to the others when one fails."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections import Counter

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scipy.stats import ttest_1samp

from metarl.core.agent import Agent
from metarl.core.coordinator import AgentCoordinator, AgentFailed, results_table
from metarl.core.errors import UsageError
from metarl.core.population import AgentResult, mean_interval
from metarl.core.task import Task
from metarl.env_runner.environment import Environment
from metarl.env_runner.gym_workers import GymWorkers
from metarl.meta_rl.rl2_agent import RL2Agent
from metarl.tasks.registry import make_tasks

OBSERVATION, ACTION = spaces.Box(-9.0, 9.0, (2,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)


class Constant(Agent):
    """Always acts alike; notes what it was told, and by which thread."""

    def __init__(self, value=0.0, observation_space=OBSERVATION, action_space=ACTION):
        super().__init__(observation_space, action_space)
        self.training = False
        self.value, self.rows, self.log, self.threads = value, [], [], set()

    def begin_trial(self, num_rows, renew=None):
        self.rows.append(num_rows)

    def _act(self, observation):
        self.threads.add(threading.get_ident())
        return np.full((len(observation), *self.action_space.shape), self.value, self.action_space.dtype)

    def _observe(self, *arrays):
        self.log.append(arrays)

    def adapt(self):
        self.threads.add(threading.get_ident())
        return {"value": self.value}

    def update(self):
        return {"updated": self.value}

    def take_experience(self):
        return {}

    def give_experience(self, experience):
        pass

    def seed(self, seed):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Failing(Constant):
    """Raises at its `at`-th observation, or in `adapt`."""

    def __init__(self, at=None):
        super().__init__()
        self.at = at

    def _observe(self, *arrays):
        super()._observe(*arrays)
        if len(self.log) == self.at:
            raise ValueError("boom")

    def adapt(self):
        raise ArithmeticError("no gradient")


class Counting(gymnasium.Env):
    """Observes how many steps of the episode, `length` long, are over."""

    observation_space, action_space = OBSERVATION, ACTION
    length = 1

    def apply(self, task):
        self.unwrapped.length = task["length"]

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(2, self.count, np.float32), 0.0, self.count == self.length, False, {}


def coordinate(**agents):
    coordinator = AgentCoordinator()
    for agent_id, agent in agents.items():
        coordinator.register_agent(agent, agent_id)
    return coordinator


def point_tasks(count):
    return [Task(index, {"goal": (0.1 * index, 0.0)}) for index in range(count)]


def point_worlds(tasks, steps=3):
    return make_tasks("point-goal", horizon=steps).make_env(tasks)


# --- step by step -----------------------------------------------------------------------------------------------------


def test_actions_come_in_the_form_of_the_observations():
    coordinator = coordinate(a=Constant(0.25), b=Constant(0.5))
    batch = coordinator.run_step_all(np.zeros((4, 2), np.float32))
    assert batch.tolist() == [[0.25, 0.25]] * 2 + [[0.5, 0.5]] * 2
    listed = coordinator.run_step_all([np.zeros(2), np.zeros((3, 2))])
    assert [action.shape for action in listed] == [(2,), (3, 2)]
    mapped = coordinator.run_step_all({"b": np.zeros((1, 2))})
    assert {key: value.tolist() for key, value in mapped.items()} == {"b": [[0.5, 0.5]]}


def test_a_trial_begins_when_the_rows_change_or_are_told_to():
    agent = Constant()
    coordinator = coordinate(a=agent)
    for rows in (2, 2, 3):
        coordinator.run_step_all(np.zeros((rows, 2)))
    coordinator.begin_trial_all()
    coordinator.run_step_all(np.zeros((3, 2)))
    assert agent.rows == [2, 3, 3]


def test_every_agent_observes_its_own_rows():
    agents = {"a": Constant(), "b": Constant()}
    coordinator = coordinate(**agents)
    observations = np.arange(8.0).reshape(4, 2)
    actions = coordinator.run_step_all(observations)
    flags = np.array([True, False, False, True])
    coordinator.observe_all(observations, actions, np.arange(4.0), flags, ~flags, observations + 1)
    (seen,) = agents["b"].log
    before, _, reward, terminated, truncated, after, active = (array.tolist() for array in seen)
    assert (before, after) == ([[4.0, 5.0], [6.0, 7.0]], [[5.0, 6.0], [7.0, 8.0]])
    assert (reward, terminated, truncated, active) == ([2.0, 3.0], [False, True], [True, False], [True, True])


def test_the_snippet_splits_an_environment_between_two_agents():
    with Environment("CartPole-v1", batch_size=2, seed=0) as env:
        make = {"observation_space": env.observation_space, "action_space": env.action_space}
        coordinator = coordinate(a=Constant(0, **make), b=Constant(1, **make))
        assert coordinator.run_step_all(env.reset()).tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_adapt_and_update_all(mode):
    agents = {"a": Constant(1.0), "b": Constant(2.0)}
    coordinator = coordinate(**agents)
    assert coordinator.adapt_all(mode) == {"a": {"value": 1.0}, "b": {"value": 2.0}}
    assert coordinator.update_all(mode) == {"a": {"updated": 1.0}, "b": {"updated": 2.0}}


def test_what_an_agent_is_not_given_is_named_before_anyone_observes():
    agents = {"a": Constant(), "b": Constant()}
    coordinator, zeros, flags = coordinate(**agents), np.zeros((2, 2)), np.zeros(2, dtype=bool)
    coordinator.run_step_all(zeros)
    with pytest.raises(UsageError, match="rewards: there are none for agent 'b', which has observations"):
        coordinator.observe_all(zeros, zeros, {"a": np.zeros(1)}, flags, flags, zeros)
    assert agents["a"].log == []
    with pytest.raises(UsageError, match=r"agent 'b': observe: reward is \[1\] here, got \[1, 1\]"):
        coordinator.observe_all(zeros, zeros, {"a": np.zeros(1), "b": np.zeros((1, 1))}, flags, flags, zeros)


def test_one_agent_has_one_name_and_can_be_taken_out():
    agent = Constant()
    coordinator = coordinate(a=agent)
    with pytest.raises(UsageError, match=r"'b' is registered already as 'a'.* of it, and seed\(\) that, or both draw"):
        coordinator.register_agent(agent, "b")
    coordinator.run_step_all(np.zeros((2, 2)))
    assert coordinator.unregister_agent("a") is agent
    coordinator.register_agent(agent, "b")
    coordinator.run_step_all(np.zeros((2, 2)))
    assert agent.rows == [2, 2]
    with pytest.raises(UsageError, match="unknown agent 'a': choose from b"):
        coordinator.unregister_agent("a")


def test_adapt_all_names_the_agent_that_fails_after_the_others_are_done():
    last = Constant(1.0)
    with pytest.raises(AgentFailed, match="agent 'bad': ArithmeticError: no gradient") as caught:
        coordinate(bad=Failing(), last=last).adapt_all()
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert last.threads


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.register_agent(Constant(), "a"), "'a' is registered already"),
        (lambda c: c.register_agent("agent", "c"), "must be a metarl.core.agent.Agent, got str"),
        (lambda c: c.run_step_all([np.zeros(2)]), "a list of 1 for 2 agents"),
        (lambda c: c.run_step_all(np.zeros((3, 2))), r"a batch \[3, 2\] cannot be split between 2 agents"),
        (lambda c: c.run_step_all({"x": np.zeros(2)}), "unknown agent 'x': choose from a, b"),
        (
            lambda c: c.run_step_all(np.zeros((2, 5))),
            r"agent 'a': an observation is \[2\], or rows of that, got \[1, 5\]",
        ),
        (lambda c: c.adapt_all("fast"), "unknown mode 'fast': choose from parallel, sequential"),
        (lambda c: c.distribute(point_tasks(3), "shuffle"), "unknown mode 'shuffle': choose from deal, everyone"),
        (lambda c: c.distribute(point_tasks(1), "deal"), "1 tasks cannot be dealt out to 2 agents"),
        (lambda c: c.run_episodes(point_worlds(point_tasks(3)), 1, 5), "3 rows cannot be split between 2 agents"),
        (lambda c: c.run_episodes(point_worlds(point_tasks(2)), 0, 5), "at least 1, got 0 and 5"),
        (
            lambda c: c.run_episodes(point_worlds, 1, 5, tasks={"a": ()}),
            "tasks are given by agent, .*: got a, the agents are a, b",
        ),
        (lambda c: c.run_episodes(point_worlds, 1, 5, tasks=point_tasks(2)), "tasks are given by agent, .*: got a "),
        (
            lambda c: c.run_episodes(point_worlds(point_tasks(1)), 1, 5, tasks=c.distribute(point_tasks(1))),
            "with tasks, env is a function that makes worlds for them, got PointWorlds",
        ),
        (lambda c: c.run_episodes(gymnasium.make("CartPole-v1"), 1, 5), "agents share a metarl.Environment"),
        (lambda c: c.run_episodes(Environment("CartPole-v1", 2), 1, 5), "agent 'a' maps .* but its worlds map"),
    ],
)
def test_wrong_use_is_refused_with_what_is_allowed(call, message):
    with pytest.raises(UsageError, match=message):
        call(coordinate(a=Constant(), b=Constant()))


def test_an_environment_takes_no_seed_later():
    with Environment("CartPole-v1", batch_size=1, seed=0) as env:
        coordinator = coordinate(a=Constant(0, env.observation_space, env.action_space))
        with pytest.raises(UsageError, match="their seed when they are made"):
            coordinator.run_episodes(env, 1, 5, seed=1)


def test_nothing_runs_without_agents():
    with pytest.raises(UsageError, match="call register_agent"):
        AgentCoordinator().run_step_all(np.zeros((2, 2)))


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_tasks_go_to_everyone_or_are_dealt_out():
    coordinator, tasks = coordinate(a=Constant(), b=Constant()), point_tasks(5)
    assert coordinator.distribute(tasks) == {"a": tuple(tasks), "b": tuple(tasks)}
    assert coordinator.distribute(tasks, "deal") == {"a": tuple(tasks[::2]), "b": tuple(tasks[1::2])}


# --- whole episodes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_returns_by_hand_in_worlds_of_their_own(mode):
    coordinator = coordinate(still=Constant(0.0), moving=Constant(1.0))
    tasks = coordinator.distribute([Task(7, {"goal": (0.5, 0.0)}), Task(8, {"goal": (1.0, 0.0)})])
    results = coordinator.run_episodes(point_worlds, 2, 10, mode, tasks=tasks)
    # The reward is minus the distance to the goal, for three steps.
    np.testing.assert_allclose(results["still"].returns, [[-1.5] * 2, [-3.0] * 2], rtol=1e-6)
    positions = [0.1, 0.2, 0.3]
    expected = [[-sum(math.hypot(goal - p, p) for p in positions)] * 2 for goal in (0.5, 1.0)]
    np.testing.assert_allclose(results["moving"].returns, expected, rtol=1e-6)
    assert results["still"].lengths == [[3, 3], [3, 3]]
    assert results["moving"].adapt_metrics == [{"value": 1.0}]
    assert results["moving"].tasks == tasks["moving"]


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_an_agent_gets_as_many_rows_of_a_task_as_its_trials_have(mode):
    agents = {"single": Constant(0.0), "triple": Constant(1.0)}
    agents["triple"].trial_rows = 3
    coordinator = coordinate(**agents)
    chosen = [Task(7, {"goal": (0.5, 0.0)}), Task(8, {"goal": (1.0, 0.0)})]
    tasks = coordinator.distribute(chosen)
    seen = []
    results = coordinator.run_episodes(
        point_worlds, 2, 10, mode, tasks=tasks, on_episode=lambda *episode: seen.append(episode)
    )
    assert (agents["single"].rows, agents["triple"].rows) == ([2], [6])
    assert results["triple"].tasks == tuple(task for task in chosen for _ in range(3))
    assert [len(result.returns) for result in results.values()] == [2, 6]
    assert sorted((agent_id, len(result.returns[0])) for agent_id, result in seen) == [
        (agent_id, episodes) for agent_id in ("single", "triple") for episodes in (1, 2)
    ]
    # Rows of one trial are not independent: the interval is that of the two tasks.
    returns = np.array(results["triple"].returns)
    assert (returns[:3] == returns[0]).all()
    expected = ttest_1samp(returns[[0, 3]].mean(1), 0).confidence_interval(0.95)
    np.testing.assert_allclose(results["triple"].mean_interval()[1:], [expected.low, expected.high])


def test_a_batch_is_shared_in_order_and_an_episode_is_cut_at_max_steps():
    agents = {"a": Constant(0.0), "b": Constant(0.0)}
    env = point_worlds([Task(index, {"goal": (goal, 0.0)}) for index, goal in enumerate((1.0, 2.0))], steps=50)
    results = coordinate(**agents).run_episodes(env, 2, 4, adapt=False)
    assert {agent_id: result.returns for agent_id, result in results.items()} == {
        "a": [[-4.0, -4.0]],
        "b": [[-8.0, -8.0]],
    }
    assert [step[4].item() for step in agents["a"].log] == [False, False, False, True] * 2  # truncated
    assert not any(step[3].item() for step in agents["a"].log)
    assert results["a"].adapt_metrics == []


def test_rows_that_wait_are_ignored_unless_the_agent_trains():
    with Environment("CartPole-v1", batch_size=4, seed=0) as env:
        make = {"observation_space": env.observation_space, "action_space": env.action_space}
        agents = {"evaluated": Constant(0, **make), "training": Constant(0, **make)}
        agents["training"].training = True
        results = coordinate(**agents).run_episodes(env, 1, 500)
    for agent_id, agent in agents.items():
        active = np.array([step[-1] for step in agent.log])
        lengths = [row[0] for row in results[agent_id].lengths]
        assert [row[0] for row in results[agent_id].returns] == lengths  # CartPole pays 1 a step
        assert min(lengths) > 5
        if agent.training:
            assert active.all()
        else:
            assert active.sum(0).tolist() == lengths
            assert lengths[0] != lengths[1]


def test_rows_in_mid_episode_are_cut_in_an_agent_that_trains_when_all_are_reset():
    agent = Constant()
    agent.training = True
    tasks = [Task(length, {"length": length}) for length in (2, 5)]
    env = GymWorkers(Counting, tasks, apply=Counting.apply, max_episode_steps=10)
    coordinate(a=agent).run_episodes(env, 2, 10, adapt=False)
    # Row 0 is in its third episode when row 1 has finished its first, and all are reset.
    *_, truncated, successor, _ = zip(*agent.log, strict=True)
    terminated = [step[3].tolist() for step in agent.log]
    assert terminated == [[False, False], [True, False], [False, False], [True, False], [False, True]] * 2
    assert [step.tolist() for step in truncated] == ([[False, False]] * 4 + [[True, False]]) * 2
    assert [step[0, 0] for step in successor] == [1, 2, 1, 2, 1] * 2


def make_learners():
    distribution = make_tasks("point-goal", horizon=8)
    env = distribution.make_env(distribution.test[:1])
    made = (env.single_observation_space, env.single_action_space)
    agents = {name: RL2Agent(*made, seed=seed) for name, seed in (("first", 1), ("second", 2), ("third", 3))}
    for agent in agents.values():
        agent.training = False
    return distribution, coordinate(**agents)


@pytest.mark.parametrize("own_worlds", [True, False])
def test_parallel_equals_sequential_to_the_last_bit(own_worlds):
    outcomes = []
    for mode in ("parallel", "sequential", "parallel"):
        distribution, coordinator = make_learners()
        if own_worlds:
            tasks = coordinator.distribute(distribution.test[:2])
            results = coordinator.run_episodes(distribution.make_env, 2, 8, mode, tasks=tasks)
        else:
            results = coordinator.run_episodes(distribution.make_env(distribution.test[:6]), 2, 8, mode, seed=3)
        outcomes.append({agent_id: result.returns for agent_id, result in results.items()})
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0]["first"] != outcomes[0]["second"]


def test_parallel_gives_every_agent_a_thread_and_sequential_one_to_all():
    for mode, count in (("parallel", 2), ("sequential", 1)):
        barrier = threading.Barrier(count)

        class Waiting(Constant):
            def begin_trial(self, num_rows, renew=None, barrier=barrier):
                barrier.wait(timeout=20)  # nobody passes before all are there

        agents = {"a": Waiting(), "b": Waiting()}
        coordinator = coordinate(**agents)
        coordinator.run_episodes(point_worlds, 1, 3, mode, tasks=coordinator.distribute(point_tasks(1)))
        assert len(agents["a"].threads | agents["b"].threads) == count


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_an_agent_that_raises_is_named_with_its_task_and_the_others_are_kept(mode):
    coordinator = coordinate(bad=Failing(at=5), good=Constant())
    tasks = coordinator.distribute([Task(7, {"goal": (0.5, 0.0)})])
    message = r"agent 'bad' failed in episode 1, step 1 in Task\(7: goal=\(0\.5, 0\.0\)\): ValueError: boom"
    with pytest.warns(RuntimeWarning, match=message):
        results = coordinator.run_episodes(point_worlds, 2, 3, mode, tasks=tasks, adapt=False)
    assert isinstance(results["bad"].error, ValueError)
    assert [len(row) for row in results["bad"].returns] == [1]
    assert results["good"].failure is None
    assert [len(row) for row in results["good"].returns] == [2]


def test_a_failure_is_one_line_however_many_rows_share_its_tasks():
    class Wordy(Constant):
        trial_rows = 2

        def adapt(self):
            raise RuntimeError("first\n  second")

    coordinator = coordinate(bad=Wordy())
    with pytest.warns(RuntimeWarning, match="agent 'bad' failed in episode 0"):
        results = coordinator.run_episodes(point_worlds, 2, 3, tasks=coordinator.distribute(point_tasks(5)))
    named = "Task(0: goal=(0.0, 0.0)), Task(1: goal=(0.1, 0.0)), Task(2: goal=(0.2, 0.0)) and 2 more"
    assert results["bad"].failure == f"in episode 0, step 3 in {named}: RuntimeError: first second"


def test_an_agent_that_raises_in_shared_worlds_stands_still_from_then_on():
    coordinator = coordinate(bad=Failing(at=5), good=Constant())
    env = point_worlds([Task(0, {"goal": (1.0, 0.0)})] * 2)
    with pytest.warns(RuntimeWarning, match="agent 'bad' failed in episode 1, step 1: ValueError: boom"):
        results = coordinator.run_episodes(env, 3, 3, adapt=False)
    assert results["bad"].returns == [[-3.0]]
    assert results["good"].returns == [[-3.0] * 3]


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_what_a_world_or_a_callback_raises_is_not_the_agent_s(mode):
    closed = []

    def breaking_worlds(tasks):
        env = point_worlds(tasks)
        if tasks[0].id == 1:
            env.step = lambda action: 1 / 0
        env.close = lambda: closed.append(tasks[0].id)
        return env

    def refuse(agent_id, result):
        raise KeyError(agent_id)

    coordinator = coordinate(a=Constant(), b=Constant())
    tasks = coordinator.distribute(point_tasks(2), "deal")
    with pytest.raises(ZeroDivisionError):
        coordinator.run_episodes(breaking_worlds, 2, 3, mode, tasks=tasks)
    assert sorted(closed) == [0, 1]
    with pytest.raises(KeyError):
        coordinator.run_episodes(point_worlds, 2, 3, mode, tasks=tasks, on_episode=refuse)


def test_a_trial_begins_after_a_run_that_did_not_end():
    agent = Constant()
    coordinator = coordinate(a=agent)
    coordinator.run_step_all(np.zeros((2, 2)))
    env = point_worlds(point_tasks(4))
    env.step = lambda action: 1 / 0
    with pytest.raises(ZeroDivisionError):
        coordinator.run_episodes(env, 1, 3)
    coordinator.run_step_all(np.zeros((2, 2)))
    assert agent.rows == [2, 4, 2]


@pytest.fixture
def interruptible():
    """Ctrl-C raises here too; a shell has what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="a thread cannot be sent a signal")
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_ctrl_c_stops_every_trial_before_its_worlds_are_closed(mode):
    steps, closed, too_late, sent = Counter(), [], [], []

    def watched_worlds(tasks):
        env = point_worlds(tasks, steps=10**6)
        step, name = env.step, tasks[0].id

        def watched(action):
            steps[name] += 1
            if name == 0 and steps[name] >= 10 and not sent and (1 in steps or mode == "sequential"):
                sent.append(name)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.001)
            too_late.extend(closed)
            return step(action)

        env.step, env.close = watched, lambda: closed.append(name)
        return env

    agents = {"a": Constant(), "b": Constant()}
    coordinator = coordinate(**agents)
    tasks = coordinator.distribute(point_tasks(2), "deal")
    with pytest.raises(KeyboardInterrupt):
        coordinator.run_episodes(watched_worlds, 1, 2000, mode, tasks=tasks)
    assert sorted(closed) == [0, 1]
    assert not too_late
    assert max(steps.values()) < 2000
    assert (1 in steps) == (mode == "parallel")


def test_worlds_are_closed_also_when_a_run_is_refused():
    closed = []

    def make_env(tasks):
        env = point_worlds(tasks)
        env.close = lambda: closed.append(len(tasks))
        return env

    coordinator = coordinate(a=Constant(), b=Constant(action_space=spaces.Discrete(3)))
    with pytest.raises(UsageError, match="agent 'b' maps"):
        coordinator.run_episodes(make_env, 1, 3, tasks=coordinator.distribute(point_tasks(2)))
    assert closed == [2, 2]


def test_gymnasium_vector_environments_must_reset_in_the_same_step():
    make = [lambda: gymnasium.make("CartPole-v1", max_episode_steps=6)] * 2

    def agent(env):
        return Constant(0, env.single_observation_space, env.single_action_space)

    same = SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)
    follower = agent(same)
    results = coordinate(a=follower).run_episodes(same, 1, 10, seed=0)
    assert results["a"].lengths == [[6], [6]]
    last = follower.log[5]
    assert last[4].all()
    assert (np.abs(last[5] - last[0]).max(axis=1) < 0.5).all()  # the final state, not the first of the next episode
    assert (last[5][:, 1] < -0.5).all()  # after six pushes to the left
    with pytest.raises(UsageError, match="make it with AutoresetMode"):
        coordinate(a=agent(same)).run_episodes(SyncVectorEnv(make), 1, 10)


def test_agents_are_told_what_they_acted_on_also_where_worlds_reuse_their_arrays():
    class Copying(Constant):
        def _observe(self, *arrays):
            super()._observe(*map(np.copy, arrays))

    make = [lambda: gymnasium.make("CartPole-v1", max_episode_steps=4)] * 2
    env = SyncVectorEnv(make, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    agent = Copying(0, env.single_observation_space, env.single_action_space)
    coordinate(a=agent).run_episodes(env, 1, 10, seed=0)
    before, after = ([step[place] for step in agent.log] for place in (0, 5))
    assert len(before) == 4
    assert (before[0] != after[0]).any()
    np.testing.assert_array_equal(before[1:], after[:-1])


# --- the table --------------------------------------------------------------------------------------------------------


def test_interval_is_student_s():
    values = [1.0, 2.0, 4.0, 8.0]
    mean, low, high = mean_interval(values)
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((3.75, expected.low, expected.high))
    assert math.isnan(mean_interval([])[0])
    assert mean_interval([2.0])[0] == 2.0
    assert math.isnan(mean_interval([2.0])[1])


def test_an_episode_may_be_counted_from_the_end():
    result = AgentResult((), 1, [[1.0, 2.0], [3.0, 6.0], []], [[1, 1], [1, 1], []], [], None, None)
    assert [result.mean_interval(episode)[0] for episode in (0, 1, -1)] == [2.0, 4.0, 4.0]
    assert result.mean_interval(-1) == mean_interval([2.0, 6.0])
    assert math.isnan(result.mean_interval(2)[0])
    assert math.isnan(result.mean_interval(-3)[0])


def test_a_return_that_is_not_a_number_is_no_missing_episode():
    result = AgentResult((), 1, [[math.nan], [1.0], [3.0]], [[1], [1], [1]], [], None, None)
    assert math.isnan(result.mean_interval()[0])
    assert math.isnan(result.mean_interval(0)[0])


def test_table_shows_every_agent_and_failures():
    coordinator = coordinate(bad=Failing(at=5), good=Constant())
    tasks = coordinator.distribute([Task(index, {"goal": (goal, 0.0)}) for index, goal in enumerate((1.0, 2.0))])
    with pytest.warns(RuntimeWarning, match="boom"):
        results = coordinator.run_episodes(point_worlds, 2, 3, tasks=tasks, adapt=False)
    half = 12.706204736 * math.sqrt(4.5) / math.sqrt(2)  # of -3 and -6
    cell = f"-4.5 [{-4.5 - half:.1f}, {-4.5 + half:.1f}]"
    assert results_table(results).splitlines()[2:] == [
        f"| bad | 2 | 1 | {cell} | {cell} | {cell} |",
        f"| bad | failed {results['bad'].failure} | | | | |",
        f"| good | 2 | 2 | {cell} | {cell} | {cell} |",
    ]


def test_table_shows_an_agent_that_failed_with_rows_that_make_no_whole_trial():
    class Blocks(Constant):
        trial_rows = 20

        def begin_trial(self, num_rows, renew=None):
            raise UsageError("rows come in blocks of 20")

    with pytest.warns(RuntimeWarning, match="agent 'bad' failed in begin_trial: UsageError: rows come in blocks"):
        results = coordinate(bad=Blocks()).run_episodes(point_worlds(point_tasks(10)), 2, 3)
    assert results_table(results).splitlines()[2] == "| bad | 10 | 0 | nan | nan | nan |"
