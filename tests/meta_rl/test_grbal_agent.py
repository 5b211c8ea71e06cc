"""GrBALAgent by its contract, in recorded streams that are the same whatever it does; and that it learns, in a world
whose actuator is wired one way or the other."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig
from metarl.env_runner.array_worlds import ArrayWorlds
from metarl.env_runner.trial import run_trial
from metarl.experiments.checkpoint import load_checkpoint
from metarl.experiments.protocol import Protocol, evaluate
from metarl.experiments.trainer import Trainer
from metarl.meta_rl.dynamics import prediction_loss
from metarl.meta_rl.grbal_agent import GrBALAgent, GrBALConfig
from metarl.meta_rl.registry import find_algorithm
from metarl.tasks import list_tasks, make_tasks
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.reward_model import RewardModel
from metarl.tasks.samplers import Choice

OBSERVATIONS = spaces.Box(-5.0, 5.0, (3,), np.float32)
ACTIONS = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 3.0], np.float32))
ROWS, STEPS, PAST = 4, 12, 3
CONFIG = GrBALConfig(
    past=PAST,
    future=2,
    model_updates=3,
    batch_windows=8,
    horizon=4,
    candidates=16,
    learning_rate=1e-2,
    random_updates=1,
)
NETWORK = MemoryConfig(method="mlp", width=8)
REWARD = RewardModel(lambda before, action, after: after[..., 0] - 0.1 * action.square().sum(-1))


methods = pytest.mark.parametrize("method", ["mlp", "ssm", "gru"])


class Stream:
    """Recorded transitions: observation [T, B, 3], reward, terminated, truncated [T, B], next_observation [T, B, 3]."""

    def __init__(self, seed: int, steps: int = STEPS, rows: int = ROWS) -> None:
        generator = np.random.default_rng(seed)
        observation = generator.normal(1.0, 2.0, (steps + 1, rows, 3)).astype(np.float32)
        self.terminated, self.truncated = generator.random((2, steps, rows)) < 0.1
        self.terminated[3, 0] = self.truncated[5, 1] = True
        final = generator.normal(1.0, 2.0, (steps, rows, 3)).astype(np.float32)
        ended = (self.terminated | self.truncated)[..., None]
        self.observation, self.following = observation[:-1], np.where(ended, final, observation[1:])
        self.reward = generator.normal(0.0, 3.0, (steps, rows)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.reward)

    def at(self, time: int, rows: slice | int = slice(None)):
        """The arguments of `observe` after the action."""
        parts = (self.reward, self.terminated, self.truncated, self.following)
        return tuple(part[time, rows] for part in parts)


def make_agent(config=CONFIG, seed=0, method="mlp", **options):
    network = replace(NETWORK, method=method)
    return GrBALAgent(OBSERVATIONS, ACTIONS, config, network, reward_model=REWARD, seed=seed, **options)


def live(agent, stream, acts_per_step=1, first=0, active=None):
    actions = []
    for time in range(first, len(stream)):
        for _ in range(acts_per_step):
            action = agent.act(stream.observation[time])
        agent.observe(stream.observation[time], action, *stream.at(time), active)
        actions.append(action)
    return np.stack(actions)


def trial(agent, stream, **options):
    agent.begin_trial(stream.reward.shape[1])
    return live(agent, stream, **options)


def test_what_adapting_changed_can_be_looked_at():
    agent = make_agent()
    agent.begin_trial(ROWS)
    assert not agent.trial_state().any()
    live(agent, Stream(0, steps=6))
    assert agent.trial_state(1).any()
    assert not np.array_equal(agent.trial_state(0), agent.trial_state(1))


def learn(agent, seeds):
    metrics = []
    for seed in seeds:
        trial(agent, Stream(seed))
        metrics.append(agent.update())
    return metrics


def trained(config=CONFIG, seed=0, **options):
    agent = make_agent(config, seed, **options)
    learn(agent, [0, 1])
    return agent


def snapshot(agent):
    return {name: tensor.clone() for name, tensor in agent.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# --- acting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [0, 2])
def test_acting_again_changes_nothing(updates):
    once, often = make_agent(), make_agent()
    for agent in (once, often):
        learn(agent, range(updates))
        agent.begin_trial(ROWS)
    np.testing.assert_array_equal(live(often, Stream(5), acts_per_step=3), live(once, Stream(5)))
    assert_same(often.take_experience(), once.take_experience())
    assert_same(often.state_dict(), once.state_dict())


@pytest.mark.parametrize("updates", [0, 2])
def test_actions_belong_to_the_action_space(updates):
    agent = make_agent()
    learn(agent, range(updates))
    actions = trial(agent, Stream(5))
    assert all(ACTIONS.contains(action) for row in actions for action in row)
    assert len(np.unique(actions)) > ROWS * STEPS


def test_no_action_leaves_bounds_of_doubles_by_a_last_digit():
    """0.1 as a float32 is more than 0.1."""
    space = spaces.Box(-0.1, 0.1, (2,), np.float64)
    agent = GrBALAgent(OBSERVATIONS, space, replace(CONFIG, exploration=100.0), NETWORK, reward_model=REWARD)
    learn(agent, [0])
    actions = trial(agent, Stream(5))
    assert np.abs(actions).max() == 0.1
    assert all(space.contains(action) for row in actions for action in row)


def test_before_its_first_update_it_acts_at_random_over_all_actions():
    actions = trial(make_agent(), Stream(0, steps=500)).reshape(-1, 2)
    np.testing.assert_allclose(actions.mean(0), [-0.5, 1.5], atol=0.1)
    np.testing.assert_allclose(actions.min(0), ACTIONS.low, atol=0.02)
    np.testing.assert_allclose(actions.max(0), ACTIONS.high, atol=0.02)


def test_in_training_it_acts_at_random_for_longer():
    first = make_agent(replace(CONFIG, random_updates=2))
    learn(first, [0])
    wide = trial(first, Stream(1, steps=500)).reshape(-1, 2)
    np.testing.assert_allclose(wide.std(0), np.array([1.5, 1.5]) / 3**0.5, rtol=0.1)
    first.training = False
    assert np.abs(trial(first, Stream(1)).reshape(-1, 2).std(0) / wide.std(0) - 1).max() > 0.2


def test_exploring_strays_from_the_plan():
    agents = trained(), trained()
    for agent, explore in zip(agents, (True, False), strict=True):
        agent.explore = explore
        agent.begin_trial(ROWS)
    observation = Stream(5).observation[0]
    strayed, planned = (agent.act(observation) for agent in agents)
    assert torch.equal(agents[0].planner.planned, agents[1].planner.planned)
    own = agents[0].planner._own_noise.numpy()
    expected = np.clip(planned + 0.3 * 1.5 * own, ACTIONS.low, ACTIONS.high)
    np.testing.assert_allclose(strayed, expected, atol=1e-5)


def test_a_single_observation_is_a_batch_of_one_row():
    single, batch = trained(), trained()
    stream = Stream(5)
    for agent in (single, batch):
        agent.begin_trial(1)
    for time in range(STEPS):
        observation = stream.observation[time, 1]
        action, expected = single.act(observation), batch.act(observation[None])
        np.testing.assert_array_equal(action, expected[0])
        reward, terminated, truncated, following = stream.at(time, 1)
        single.observe(observation, action, float(reward), bool(terminated), bool(truncated), following)
        batch.observe(observation[None], expected, *stream.at(time, slice(1, 2)))
    assert_same(single.take_experience(), batch.take_experience())


def test_the_change_of_an_observation_without_a_sign_has_one():
    dtypes = []

    def reward(before, action, after):
        dtypes.append(before.dtype)
        return after[..., 0]

    agent = GrBALAgent(spaces.Box(0, 255, (3,), np.uint8), ACTIONS, CONFIG, NETWORK, reward_model=RewardModel(reward))
    before, after = np.array([[5, 5, 5]], np.uint8), np.array([[3, 9, 5]], np.uint8)
    agent.begin_trial(1)
    agent.observe(before, agent.act(before), [0.0], [False], [False], after)
    assert agent.take_experience()["change"][0].tolist() == [[-2.0, 4.0, 0.0]]
    agent.planner.act(before, None, explore=False)
    assert set(dtypes) == {torch.float32}


def test_acting_and_observing_change_nothing_but_the_random_stream():
    agent = trained()
    before = snapshot(agent)
    trial(agent, Stream(5))
    after = snapshot(agent)
    assert not torch.equal(before.pop("counters.generator"), after.pop("counters.generator"))
    assert_same(after, before)
    assert agent.adapt() == {}


def test_the_global_random_stream_is_left_alone_and_the_seed_draws_the_model():
    before = torch.get_rng_state()
    states = [snapshot(trained(seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(states[0], states[1])
    name = "maml.learned.model.networks.0.encoder.0.weight"
    assert not torch.equal(states[0][name], states[2][name])


# --- adapting ---------------------------------------------------------------------------------------------------------


def test_a_row_acts_by_what_maml_adapts_to_its_last_transitions():
    agent, stream = trained(replace(CONFIG, inner_steps=2)), Stream(5)
    trial(agent, stream)
    weights = agent.row_weights()
    assert set(weights) == {"gain"}
    taken = agent.take_experience()
    for row in range(ROWS):
        x, change = taken["x"][-PAST:, row], taken["change"][-PAST:, row]
        expected = agent.maml.adapt_task(x[:, None], agent.model.target(change)[:, None], loss_fn=prediction_loss)
        for name, value in expected.items():
            if name == "gain":
                torch.testing.assert_close(weights[name][row], value)
                assert not torch.equal(value, agent.maml.parameters()[name])
            else:
                assert torch.equal(value, agent.maml.parameters()[name])


@pytest.mark.parametrize(("method", "adapt"), [("mlp", "gain"), ("ssm", "gain"), ("mlp", "all"), ("gru", "all")])
def test_it_expects_what_each_row_predicts_by_its_own_weights_and_memory(method, adapt):
    agent, stream = trained(replace(CONFIG, adapt=adapt, ensemble=2), method=method), Stream(5)
    agent.training = False
    trial(agent, stream)
    weights, window, observation = agent.row_weights(), agent.planner.window, stream.observation[0]
    seen = [window.x[row, PAST - int(window.seen[row].clamp(max=PAST)) :].clone() for row in range(ROWS)]
    if method == "mlp":
        seen = [x[:0] for x in seen]
    action = agent.act(observation)
    agent.observe(observation, action, *stream.at(0))
    for row in range(ROWS):
        x = torch.cat([seen[row], torch.from_numpy(np.concatenate([observation[row], action[row]]))[None]])
        own = {name: value[row] for name, value in weights.items()}
        predicted, _ = agent.maml.functional_forward(x[:, None], {**agent.maml.parameters(), **own})
        following = observation[row] + agent.model.change(predicted[-1, 0]).mean(0).detach().numpy()
        np.testing.assert_allclose(agent.expected[row], following, rtol=1e-4, atol=1e-4)
    first = make_agent()
    trial(first, stream)
    assert first.expected is None  # it acted at random


def test_a_memory_does_not_look_over_the_end_of_an_episode():
    agent, stream = trained(method="ssm"), Stream(5)
    stream.terminated[:], stream.truncated[:] = False, False
    stream.terminated[-2, 0] = stream.truncated[-1, 1] = True
    trial(agent, stream)
    assert agent.planner.window.seen.tolist() == [1, 0, STEPS, STEPS]
    memory = agent.planner._remembered(None)
    assert not memory[1].any()
    newest = agent.planner.window.x[0, -1:, None]
    torch.testing.assert_close(memory[0], agent.model(newest)[1][0])
    ends = agent.take_experience()["ended"]
    assert ends[:, 0].nonzero().tolist() == [[STEPS - 2]]
    trial(agent, stream)
    agent.update()
    assert agent.replay.lengths[-5:].tolist() == [STEPS - 1, 1, STEPS, STEPS, STEPS]


def test_what_a_planner_remembered_stands_still_while_the_trial_goes_on():
    agent = trained()
    trial(agent, Stream(5))
    held = agent.planner.remembered()
    before = {name: tensor.clone() for name, tensor in held.items()}
    live(agent, Stream(6))
    assert_same(held, before)
    assert not torch.equal(agent.planner.remembered()["x"], before["x"])


def test_a_row_with_too_few_transitions_keeps_the_shared_parameters():
    agent, stream = trained(), Stream(5)
    agent.training = False
    agent.begin_trial(ROWS)
    for time in range(PAST):
        assert agent.row_weights() is None
        action = agent.act(stream.observation[time])
        agent.observe(stream.observation[time], action, *stream.at(time), np.array([time > 0, True, True, True]))
    moved = (agent.row_weights()["gain"] != agent.maml.parameters()["gain"]).any(1)
    assert moved.tolist() == [False, True, True, True]


def test_without_online_adaptation_nothing_is_adapted():
    frozen = trained(replace(CONFIG, online_adaptation=False))
    trial(frozen, Stream(5))
    assert frozen.row_weights() is None
    assert not frozen.trial_state().any()


@methods
def test_rows_do_not_influence_each_other(method):
    one, other = trained(method=method), trained(method=method)
    stream, changed = Stream(5), Stream(5)
    for part in (changed.observation, changed.following):
        part[:, 1:] *= -1
    actions, others = trial(one, stream), trial(other, changed)
    np.testing.assert_allclose(actions[:, 0], others[:, 0], atol=1e-5)
    assert np.abs(actions[:, 1:] - others[:, 1:]).max() > 0.01


@pytest.mark.parametrize(("method", "adapt"), [("mlp", "gain"), ("ssm", "gain"), ("gru", "all")])
def test_rows_that_are_rolled_out_apart_plan_as_those_together(monkeypatch, method, adapt):
    together, apart = (trained(replace(CONFIG, adapt=adapt), method=method) for _ in range(2))
    expected = trial(together, Stream(5))
    monkeypatch.setattr("metarl.meta_rl.planner.ROLLOUTS_AT_ONCE", 3 * CONFIG.candidates)  # three rows, then one
    np.testing.assert_allclose(trial(apart, Stream(5)), expected, atol=1e-4)
    assert apart.row_weights() is not None


@methods
def test_a_new_trial_remembers_nothing(method):
    agent, fresh = trained(method=method), trained(method=method)
    trial(agent, Stream(5))
    for each in (agent, fresh):
        each.seed(3)
    np.testing.assert_array_equal(trial(agent, Stream(6)), trial(fresh, Stream(6)))


@methods
def test_a_partly_renewed_trial_forgets_only_the_renewed_rows(method):
    agent, continued, fresh = (trained(method=method) for _ in range(3))
    renew = np.array([False, True, True, False])
    first = Stream(5)
    first.terminated[-1] = first.truncated[-1] = False
    trial(agent, first)
    trial(continued, first)
    fresh.begin_trial(ROWS)
    agent.begin_trial(ROWS, renew)
    for each in (agent, continued, fresh):
        each.seed(3)
    got, whole, new = (live(each, Stream(6)) for each in (agent, continued, fresh))
    np.testing.assert_allclose(got[:, renew], new[:, renew], atol=1e-5)
    np.testing.assert_allclose(got[:, ~renew], whole[:, ~renew], atol=1e-5)
    assert (np.abs(whole - new).max((0, 2)) > 1e-4).all()


@methods
def test_inactive_rows_keep_their_plan_and_their_transitions(method):
    agent, reference = trained(method=method), trained(method=method)
    active = np.array([True, False, True, False])
    for each in (agent, reference):
        each.training = False
        trial(each, Stream(5))
    live(agent, Stream(6), active=active)
    for each in (agent, reference):
        each.seed(3)
    got, expected = live(agent, Stream(7)), live(reference, Stream(7))
    np.testing.assert_allclose(got[:, ~active], expected[:, ~active], atol=1e-5)
    assert (np.abs(got[:, active] - expected[:, active]).max((0, 2)) > 1e-4).all()


@pytest.mark.parametrize("rows", [1, ROWS + 1])
def test_a_trial_goes_on_with_the_rows_it_began_with(rows):
    agent = trained()
    agent.begin_trial(ROWS)
    message = f"a trial of {ROWS} rows is running, got {rows} rows: call begin_trial\\({rows}\\)"
    with pytest.raises(UsageError, match=message):
        agent.act(np.zeros((rows, 3), np.float32))
    with pytest.raises(UsageError, match=message):
        agent.begin_trial(rows, renew=np.arange(rows) > 0) if rows > 1 else agent.begin_trial(1, np.array([False]))


def test_an_episode_that_ends_ends_its_plan():
    agent, stream = trained(), Stream(5)
    stream.terminated[:], stream.truncated[:] = False, False
    stream.terminated[-1, 0] = True
    trial(agent, stream)
    rest = torch.tensor([-0.5, 1.5])
    assert torch.equal(agent.planner.plan[0], rest.expand(CONFIG.horizon, 2))
    assert not torch.equal(agent.planner.plan[1, :-1], rest.expand(CONFIG.horizon - 1, 2))
    assert torch.equal(agent.planner.plan[1, -1], rest)


# --- learning ---------------------------------------------------------------------------------------------------------


def test_an_agent_that_does_not_train_keeps_no_experience():
    agent = trained()
    agent.training = False
    trial(agent, Stream(5))
    with pytest.raises(UsageError, match="holds no experience"):
        agent.take_experience()


def test_training_takes_no_inactive_rows():
    agent, stream = make_agent(), Stream(0)
    agent.begin_trial(ROWS)
    action = agent.act(stream.observation[0])
    with pytest.raises(UsageError, match="training needs every row in every step"):
        agent.observe(stream.observation[0], action, *stream.at(0), np.array([True, True, False, True]))


def test_an_update_consumes_the_experience_and_keeps_it_in_the_replay():
    agent, stream = make_agent(), Stream(0)
    actions = trial(agent, stream)
    metrics = agent.update()
    assert all(np.isfinite(value) for value in metrics.values())
    state = agent.state_dict()
    seen = np.concatenate([stream.observation, actions], -1)
    assert torch.equal(state["replay.x"], torch.from_numpy(seen.transpose(1, 0, 2).reshape(-1, 5)))
    assert state["replay.lengths"].tolist() == [STEPS] * ROWS
    np.testing.assert_allclose(state["inputs.mean"], seen.reshape(-1, 5).mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        state["maml.learned.model.change_mean"],
        (stream.following - stream.observation).reshape(-1, 3).mean(0),
        rtol=1e-5,
    )
    with pytest.raises(UsageError, match="holds no experience"):
        agent.update()


def test_experience_given_to_a_copy_makes_the_same_update():
    learner, collector = trained(), trained()
    for agent in (learner, collector):
        trial(agent, Stream(5))
    copy = make_agent(seed=7)
    copy.load_state_dict(snapshot(collector))
    copy.give_experience({name: tensor.clone() for name, tensor in collector.take_experience().items()})
    assert copy.update() == learner.update()
    assert_same(copy.state_dict(), learner.state_dict())


@methods
@pytest.mark.parametrize("meta", [True, False])
def test_a_restored_agent_goes_on_as_the_old_one(method, meta):
    config = replace(CONFIG, meta=meta, ensemble=2)
    agent, restored = trained(config, method=method), make_agent(config, seed=3, method=method)
    restored.load_state_dict(snapshot(agent))
    assert learn(restored, [2, 3]) == learn(agent, [2, 3])
    assert_same(restored.state_dict(), agent.state_dict())


def test_a_state_that_was_taken_stands_still_while_the_agent_learns():
    agent = trained()
    taken, copy = agent.state_dict(), snapshot(agent)
    learn(agent, [2])
    assert_same(taken, copy)


def test_the_learning_rate_falls_linearly_to_five_percent():
    agent = make_agent(num_updates=4)
    rates = []
    for seed in range(5):
        learn(agent, [seed])
        rates.append(agent.maml.optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, 1e-2 * np.array([1, 0.75, 0.5, 0.25, 0.05]))


def test_an_agent_in_the_middle_of_a_trial_can_be_copied_and_the_copy_is_in_none():
    agent = trained(replace(CONFIG, online_adaptation=False))
    trial(agent, Stream(5))
    agent.load_state_dict(agent.state_dict())
    copied = agent.controller()
    assert (len(copied.plan), len(agent.planner.plan)) == (0, ROWS)


@methods
def test_the_adapted_model_is_scored_on_what_follows_the_transitions_that_it_adapts_to(method):
    config = replace(CONFIG, inner_lr=1e-20)  # steps that change nothing, so that only the score is looked at
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(8, PAST + config.future, size, generator=generator) for size in (5, 3))
    past, future = y.clone(), y.clone()
    past[:, :PAST] += 1
    future[:, PAST:] += 1
    of_all, of_past, of_future = (make_agent(config, method=method)._learn(x, each) for each in (y, past, future))
    assert of_past == of_all != of_future


def test_only_an_agent_that_adapts_by_gradients_reports_what_they_are_worth():
    for changes, adapts in (({"meta": False, "online_adaptation": False}, False), ({"meta": False}, True)):
        agent = make_agent(replace(CONFIG, **changes))
        trial(agent, Stream(0))
        assert ("error_adapted" in agent.update()) == adapts


def test_a_plain_model_learns_no_inner_rates():
    plain, meta = trained(replace(CONFIG, meta=False)), trained()
    assert plain.maml.rates()["gain"].item() == pytest.approx(CONFIG.inner_lr)
    assert meta.maml.rates()["gain"].item() != pytest.approx(CONFIG.inner_lr, rel=1e-3)


def test_adaptation_changes_the_gains_alone_unless_it_is_told_to_change_all():
    for adapt, adapted in (("gain", {"gain"}), ("all", set(trained().maml.parameters()))):
        agent = trained(replace(CONFIG, adapt=adapt))
        agent.training = False
        trial(agent, Stream(5))
        shared = agent.maml.parameters()
        moved = {name for name, rows in agent.row_weights().items() if not torch.equal(rows[0], shared[name])}
        assert moved == adapted


def test_a_round_shorter_than_a_window_is_refused():
    agent = make_agent()
    trial(agent, Stream(0, steps=6))
    agent.update()
    short = make_agent(replace(CONFIG, future=10))
    trial(short, Stream(0))
    with pytest.raises(UsageError, match="a window needs 13 steps in a row, the longest sequence held has 12"):
        short.update()
    stream = Stream(0)
    stream.terminated[:] = stream.truncated[:] = False
    stream.truncated[3::4] = True
    remembering = make_agent(method="ssm")  # which does not look over an episode's end
    trial(remembering, stream)
    with pytest.raises(UsageError, match="a window needs 5 steps in a row, the longest sequence held has 4"):
        remembering.update()


# --- a world to adapt to ----------------------------------------------------------------------------------------------


class Wired(ArrayWorlds):
    """v' = (v + task["wire"] · a) / 2: a wire of −1 makes every action do the opposite. Reward v'; v is observed."""

    def __init__(self, tasks, seed):
        super().__init__(
            tasks,
            observation_space=spaces.Box(-1.0, 1.0, (1,), np.float32),
            action_space=spaces.Box(-1.0, 1.0, (1,), np.float32),
            max_episode_steps=25,
            seed=seed,
        )
        self._speed, self._wire = np.zeros(self.num_envs), np.zeros(self.num_envs)

    def _load(self, row, task):
        self._wire[row] = task["wire"]

    def _begin(self, row, generator):
        self._speed[row] = generator.uniform(-1, 1)

    def _advance(self, actions):
        self._speed = (self._speed + self._wire * np.clip(actions[:, 0], -1, 1)) / 2
        return self._speed, np.zeros(self.num_envs, dtype=bool)

    def _observe(self):
        return self._speed[:, None].astype(np.float32)


WIRED = TaskDistribution(
    train={"wire": Choice((-1.0, 1.0))},
    test=[{"wire": -1.0}, {"wire": 1.0}],
    max_episode_steps=25,
    make_worlds=Wired,
    reward_model=RewardModel(lambda before, action, after: after[..., 0]),
)
QUICK = GrBALConfig(
    inner_lr=0.1, past=4, future=4, horizon=4, candidates=64, model_updates=60, learning_rate=1e-2, random_updates=1
)


def _wired_agent(config, method="mlp"):
    worlds = Wired(WIRED.test, 0)
    return GrBALAgent(
        worlds.single_observation_space,
        worlds.single_action_space,
        config,
        MemoryConfig(method, width=32),
        reward_model=WIRED.reward_model,
    )


def test_it_learns_to_find_out_which_way_its_actuator_is_wired():
    agent, tasks = _wired_agent(QUICK), WIRED.train[:16]
    env = WIRED.make_env(tasks, seed=1)
    for _ in range(4):
        run_trial(agent, env, tasks, steps=25)
        metrics = agent.update()
    assert metrics["error_adapted"] < 0.2 * metrics["error_frozen"]
    protocol = Protocol("zero-shot", repeats=4)
    before = snapshot(agent)
    adapted = evaluate(agent, WIRED, WIRED.test, protocol).shots[0].returns
    assert_same(agent.state_dict(), before)
    assert (agent.explore, agent.training) == (True, True)
    frozen = _wired_agent(replace(QUICK, online_adaptation=False))
    frozen.load_state_dict(before)
    lost = evaluate(frozen, WIRED, WIRED.test, protocol).shots[0].returns
    # Who knows the wire returns 24 ± 1; who does not has four steps to find out, or else as much lost as won.
    assert adapted.min() > 10
    assert lost.mean() < 5


@pytest.mark.parametrize(("method", "ensemble"), [("ssm", 1), ("gru", 1), ("ssm", 2)])
def test_a_memory_finds_it_out_without_gradients(method, ensemble):
    plain = replace(QUICK, meta=False, online_adaptation=False, model_updates=120, ensemble=ensemble)
    agent, tasks = _wired_agent(plain, method), WIRED.train[:16]
    env = WIRED.make_env(tasks, seed=1)
    for _ in range(4):
        run_trial(agent, env, tasks, steps=25)
        metrics = agent.update()
    assert metrics["error_frozen"] < 0.2  # of the variance; who does not know the wire is left with most of it
    returns = evaluate(agent, WIRED, WIRED.test, Protocol("zero-shot", repeats=4)).shots[0].returns
    assert returns.min() > 10


def test_a_run_that_was_stopped_and_resumed_is_the_run_that_was_not(tmp_path):
    def train(folder, epochs):
        small = replace(CONFIG, model_updates=1, candidates=4, horizon=2)
        tasks = WIRED.train[:2]
        Trainer(_wired_agent(small), WIRED, tasks, WIRED.test, folder, epochs=epochs, num_envs=2, seed=0).train()
        return load_checkpoint(folder / "checkpoints" / "last.safetensors")[0]

    whole = train(tmp_path / "whole", 2)
    train(tmp_path / "parts", 1)
    assert_same(train(tmp_path / "parts", 2), whole)


# --- configs ----------------------------------------------------------------------------------------------------------

CHANGED = {
    "past": 4,
    "future": 3,
    "meta": False,
    "online_adaptation": False,
    "adapt": "all",
    "inner_lr": 0.05,
    "inner_steps": 2,
    "ensemble": 2,
    "learning_rate": 2e-2,
    "model_updates": 4,
    "batch_windows": 9,
    "grad_clip_norm": 1e-3,
    "random_updates": 3,
    "exploration": 0.0,
    "replay_size": STEPS * ROWS,
    "horizon": 3,
    "candidates": 17,
    "noise": 0.2,
    "temperature": 2.0,
}


@pytest.mark.parametrize("field", [field.name for field in fields(GrBALConfig)])
def test_every_field_of_the_config_makes_a_difference(field):
    base, changed = trained(), trained(replace(CONFIG, **{field: CHANGED[field]}))
    for agent in (base, changed):
        agent.seed(3)
    assert not np.array_equal(trial(base, Stream(5)), trial(changed, Stream(5)))


@pytest.mark.parametrize("field", sorted(set(CHANGED) - {"meta", "online_adaptation"}))
def test_a_config_out_of_range_is_a_one_line_error(field):
    wrong = -1 if field in ("random_updates", "exploration") else 0
    with pytest.raises(UsageError, match=f"^--{field.replace('_', '-')} is .*, got {wrong}$"):
        GrBALConfig(**{field: wrong})


@pytest.mark.parametrize(
    ("observations", "actions", "memory", "message"),
    [
        (spaces.Box(0, 1, (4, 4)), ACTIONS, NETWORK, "observations need one axis"),
        (OBSERVATIONS, spaces.Discrete(3), NETWORK, "of floats within bounds, got Discrete.*: .*choose rl2 or maml"),
        (OBSERVATIONS, spaces.Box(-np.inf, np.inf, (2,)), NETWORK, "of floats within bounds, got .*: wrap the environ"),
        (OBSERVATIONS, spaces.Box(-1, 1, (2,), np.int64), NETWORK, "of floats within bounds, got .*int64"),
        (OBSERVATIONS, ACTIONS, MemoryConfig(method="transformer"), "--method mlp, ssm, gru or lstm"),
    ],
)
def test_what_it_cannot_plan_with_is_refused(observations, actions, memory, message):
    with pytest.raises(UsageError, match=message):
        GrBALAgent(observations, actions, CONFIG, memory, reward_model=REWARD)


def test_a_family_without_a_known_reward_is_refused_in_one_line():
    with pytest.raises(UsageError, match=r"grbal plans with the reward.*does not offer.*halfcheetah-cripple") as error:
        GrBALAgent(OBSERVATIONS, ACTIONS, CONFIG, NETWORK, reward_model=None)
    assert "\n" not in str(error.value)


def test_the_families_that_it_goes_with_are_named_where_one_is_refused_and_on_its_page():
    slow = ("imujoco-", "metaworld-")  # to make, and none offers it
    families = [name for name in list_tasks() if not name.startswith(slow)]
    offering = {name for name in families if make_tasks(name).reward_model is not None}
    with pytest.raises(UsageError) as error:
        GrBALAgent(OBSERVATIONS, ACTIONS, CONFIG, NETWORK, reward_model=None)
    page = (Path(__file__).parents[2] / "docs/algorithms/grbal.md").read_text()
    for text in (str(error.value), page):
        assert {name for name in families if re.search(rf"\b{name}\b", text)} == offering


def test_the_algorithm_is_known_by_name():
    algorithm = find_algorithm("grbal")
    assert (algorithm.config_class, algorithm.make, algorithm.num_envs) == (GrBALConfig, GrBALAgent, 16)
    assert algorithm.knows == ("reward_model",)
    assert algorithm.memory.method == "mlp"
