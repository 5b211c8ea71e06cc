"""AdaptationAgent by the contract that all agents keep, in recorded streams that are the same whatever it does; by what
GrBALAgent does with the same model; and by what it learns where the world changes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file

from metarl.adaptation.adaptation_agent import AdaptationAgent
from metarl.adaptation.config import AdaptationConfig
from metarl.adaptation.test_time_adaptation import Adapter
from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig
from metarl.core.optimization import TrainingDiverged
from metarl.core.policy import Actor
from metarl.meta_rl.grbal_agent import GrBALAgent, GrBALConfig
from metarl.meta_rl.maml_agent import MAMLConfig, make_maml_agent
from metarl.meta_rl.rl2_agent import RL2Agent, RL2Config
from metarl.tasks.reward_model import RewardModel

OBSERVATIONS = spaces.Box(-5.0, 5.0, (3,), np.float32)
ACTIONS = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 3.0], np.float32))
REWARD = RewardModel(lambda before, action, after: after[..., 0] - 0.1 * action.square().sum(-1))
ROWS, STEPS = 4, 12
SMALL = MemoryConfig(method="mlp", width=8, state_dim=8, heads=2, context=5)
EAGER = AdaptationConfig(
    learning_rate=0.5, update_every=4, buffer_size=8, batch_size=8, grad_clip_norm=10.0, rollback=False
)
PLAN = GrBALConfig(
    adapt="all",
    inner_lr=0.3,
    inner_steps=1,
    past=3,
    future=2,
    horizon=3,
    candidates=8,
    model_updates=1,
    batch_windows=4,
    random_updates=1,
)


class Stream:
    """Recorded transitions: observation [T, B, 3], reward, terminated, truncated [T, B], next_observation [T, B, 3]."""

    def __init__(self, seed, steps=STEPS, rows=ROWS):
        generator = np.random.default_rng(seed)
        observation = generator.normal(0.0, 1.0, (steps + 1, rows, 3)).astype(np.float32)
        self.terminated, self.truncated = generator.random((2, steps, rows)) < 0.1
        self.terminated[3, 0] = self.truncated[5, 1] = True
        final = generator.normal(0.0, 1.0, (steps, rows, 3)).astype(np.float32)
        ended = (self.terminated | self.truncated)[..., None]
        self.observation, self.following = observation[:-1], np.where(ended, final, observation[1:])
        self.reward = generator.normal(0.0, 3.0, (steps, rows)).astype(np.float32)

    def __len__(self):
        return len(self.reward)

    def at(self, time, rows=slice(None)):
        """The arguments of `observe` after the action."""
        parts = (self.reward, self.terminated, self.truncated, self.following)
        return tuple(part[time, rows] for part in parts)


def stirred(agent):
    """With an output that is large enough for differences to show."""
    model = agent.policy if isinstance(agent, RL2Agent) else agent.actor
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("log_std"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return agent


def planning(method="mlp", ensemble=1):
    config = replace(PLAN, ensemble=ensemble)
    return GrBALAgent(OBSERVATIONS, ACTIONS, config, replace(SMALL, method=method), reward_model=REWARD)


def gradients(method="mlp", kind=ACTIONS):
    return stirred(make_maml_agent(OBSERVATIONS, kind, MAMLConfig(trial_rows=1), replace(SMALL, method=method)))


def remembering(method="ssm", kind=ACTIONS):
    return stirred(RL2Agent(OBSERVATIONS, kind, memory=replace(SMALL, method=method)))


TRAINED = {
    "plans": planning,
    "plans-ssm": lambda: planning("ssm"),
    "plans-gru": lambda: planning("gru", ensemble=2),
    "actor": gradients,
    "actor-gru": lambda: gradients("gru"),
    "ssm": remembering,
    "discrete-lstm": lambda: remembering("lstm", spaces.Discrete(3, start=1)),
}
each = pytest.mark.parametrize("kind", TRAINED)


def make(kind="plans", config=EAGER, **options):
    return AdaptationAgent.from_agent(TRAINED[kind](), config, **options)


def live(agent, stream, acts_per_step=1, active=None):
    """Go through a stream without beginning a trial; returns the actions [T, B, ...]."""
    actions = []
    for time in range(len(stream)):
        for _ in range(acts_per_step):
            action = agent.act(stream.observation[time])
        agent.observe(stream.observation[time], action, *stream.at(time), active)
        actions.append(action)
    return np.stack(actions)


def trial(agent, stream, **options):
    agent.begin_trial(stream.reward.shape[1])
    return live(agent, stream, **options)


def snapshot(agent):
    return {name: tensor.clone() for name, tensor in agent.state_dict().items()}


def shared(agent):
    """What outlives a trial, beside the random streams."""
    return {name: tensor for name, tensor in snapshot(agent).items() if name.startswith(("model.", "moments."))}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# --- acting -----------------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("explore", [True, False])
def test_acting_again_changes_nothing(kind, explore):
    once, often = make(kind), make(kind)
    once.explore = often.explore = explore
    np.testing.assert_array_equal(trial(often, Stream(0), acts_per_step=3), trial(once, Stream(0)))
    assert torch.equal(once.streams.values, often.streams.values)
    assert_same(often.state_dict(), once.state_dict())


@each
def test_actions_belong_to_the_action_space_and_adaptation_changes_them(kind):
    agent, frozen = make(kind), make(kind, replace(EAGER, num_steps=0))
    actions, expected = trial(agent, Stream(0)), trial(frozen, Stream(0))
    assert all(agent.action_space.contains(action) for step in actions for action in step)
    np.testing.assert_array_equal(actions[:4], expected[:4])  # until the first update
    assert not torch.equal(agent.streams.values, frozen.streams.values)
    if kind != "discrete-lstm":
        assert (np.abs(actions[4:] - expected[4:]).max((0, 2)) > 1e-5).all()
    assert frozen.streams.weights is None


@each
def test_a_frozen_agent_acts_as_the_trained_one(kind):
    trained = TRAINED[kind]()
    trained.updates = 5  # a planner that has never learned acts at random
    if not isinstance(trained, GrBALAgent):  # statistics in use
        trained.moments.update(np.random.default_rng(0).normal(2.0, 5.0, (50, *trained.moments.mean.shape)))
    frozen = AdaptationAgent.from_agent(trained, replace(EAGER, num_steps=0))
    for agent in (trained, frozen):
        agent.training = False
        agent.seed(3)
    if isinstance(trained, GrBALAgent):
        trained.config = replace(PLAN, online_adaptation=False)
    np.testing.assert_allclose(trial(frozen, Stream(0)), trial(trained, Stream(0)), atol=1e-5)


@each
@pytest.mark.parametrize("explore", [True, False])
def test_it_explores_where_the_trained_one_does_or_it_must(kind, explore):
    trained = TRAINED[kind]()
    trained.explore = explore
    assert AdaptationAgent.from_agent(trained).explore is (explore or not kind.startswith("plans"))


@each
def test_a_single_observation_is_a_batch_of_one_row(kind):
    single, batch, stream = make(kind), make(kind), Stream(5)
    for agent in (single, batch):
        agent.begin_trial(1)
    for time in range(STEPS):
        observation = stream.observation[time, 1]
        action, expected = single.act(observation), batch.act(observation[None])
        np.testing.assert_array_equal(action, expected[0])
        reward, terminated, truncated, following = stream.at(time, 1)
        single.observe(observation, action, float(reward), bool(terminated), bool(truncated), following)
        batch.observe(observation[None], expected, *stream.at(time, slice(1, 2)))
    assert torch.equal(single.streams.values, batch.streams.values)
    assert single.streams.steps.tolist() == [3]


@each
def test_acting_observing_and_adapting_change_nothing_that_tasks_share(kind):
    trained = TRAINED[kind]()
    source = snapshot(trained)
    agent = AdaptationAgent.from_agent(trained, EAGER)
    before = shared(agent)
    trial(agent, Stream(5))
    agent.adapt()
    assert_same(shared(agent), before)
    assert_same(snapshot(trained), source)


@each
def test_inference_mode_changes_nothing_and_can_be_left(kind):
    inside, outside = (make(kind) for _ in range(2))
    found = []
    for agent in (inside, outside):
        with torch.inference_mode(agent is inside):
            actions = trial(agent, Stream(5, steps=6))
        agent.adapt()
        with torch.inference_mode(agent is inside):
            agent.load_state_dict(agent.state_dict())
        found.append(np.concatenate([actions, live(agent, Stream(6, steps=6))]))
    np.testing.assert_array_equal(*found)


@each
def test_the_global_random_stream_is_left_alone(kind):
    before = torch.get_rng_state()
    trial(make(kind, replace(EAGER, batch_size=1)), Stream(0))
    assert torch.equal(torch.get_rng_state(), before)


# --- adapting ---------------------------------------------------------------------------------------------------------


@each
def test_rows_do_not_influence_each_other(kind):
    one, other, stream, changed = make(kind), make(kind), Stream(5), Stream(5)
    for part in (changed.observation, changed.following, changed.reward):
        part[:, 1:] *= -1
    for agent, lived in ((one, stream), (other, changed)):
        trial(agent, lived)
    torch.testing.assert_close(one.streams.values[0], other.streams.values[0], rtol=1e-3, atol=1e-4)
    assert (one.streams.values != other.streams.values).any(1).tolist() == [False, True, True, True]


@each
def test_a_new_trial_remembers_nothing(kind):
    agent, fresh = make(kind), make(kind)
    trial(agent, Stream(5))
    for used in (agent, fresh):
        used.seed(3)
    np.testing.assert_array_equal(trial(agent, Stream(6)), trial(fresh, Stream(6)))
    assert torch.equal(agent.streams.values, fresh.streams.values)


@each
def test_a_partly_renewed_trial_forgets_only_the_renewed_rows(kind):
    agents = agent, continued, fresh = make(kind), make(kind), make(kind)
    renew = np.array([False, True, True, False])
    first = Stream(5, steps=6)  # rows are renewed with half a segment held
    trial(agent, first)
    trial(continued, first)
    fresh.begin_trial(ROWS)
    agent.begin_trial(ROWS, renew)
    for used in agents:
        used.seed(3)
    got, whole, new = (live(used, Stream(6)) for used in agents)
    np.testing.assert_allclose(got[:, renew], new[:, renew], atol=1e-5)
    np.testing.assert_allclose(got[:, ~renew], whole[:, ~renew], atol=1e-5)
    torch.testing.assert_close(agent.streams.values[renew], fresh.streams.values[renew], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(agent.streams.values[~renew], continued.streams.values[~renew], rtol=1e-3, atol=1e-4)
    assert (continued.streams.values != fresh.streams.values).any(1).all()


@each
def test_inactive_rows_keep_what_they_have(kind):
    agent, reference = make(kind), make(kind)
    active = np.array([True, False, True, False])
    for used in (agent, reference):
        trial(used, Stream(5, steps=6))
    live(agent, Stream(6), active=active)
    assert agent.streams.steps.tolist() == [4, 1, 4, 1]
    for used in (agent, reference):
        used.seed(3)
    got, expected = live(agent, Stream(7)), live(reference, Stream(7))
    np.testing.assert_allclose(got[:, ~active], expected[:, ~active], atol=1e-5)
    torch.testing.assert_close(agent.streams.values[~active], reference.streams.values[~active], rtol=1e-3, atol=1e-4)
    assert (agent.streams.values[active] != reference.streams.values[active]).any(1).all()


@each
def test_adapt_is_an_update_now(kind):
    agent = make(kind, replace(EAGER, update_every=100, num_steps=2))
    with pytest.raises(UsageError, match="no experience to adapt to"):
        agent.adapt()
    trial(agent, Stream(5, steps=6))
    assert agent.streams.weights is None
    metrics = agent.adapt()
    assert (metrics["gradient_steps"], metrics["steps"]) == (2.0, 2.0 * ROWS)
    assert agent.streams.moved.all()
    assert metrics["distance"] > 0


@each
def test_a_hand_undoes_what_was_adapted_and_the_trial_goes_on(kind):
    agent = make(kind)
    trial(agent, Stream(5, steps=6))
    metrics = agent.metrics()
    assert metrics["steps"] == agent.metrics()["steps"] == ROWS  # to look takes no update
    assert metrics["distance"] > 0
    remembered = {name: tensor.clone() for name, tensor in agent._controller.remembered().items()}
    agent.reset()
    assert agent.streams.weights is None
    assert agent.metrics()["distance"] == 0
    assert_same(agent._controller.remembered(), remembered)
    live(agent, Stream(6))
    assert agent.streams.moved.all()


@pytest.mark.parametrize("rows", [1, ROWS + 1])
def test_a_trial_goes_on_with_the_rows_it_began_with(rows):
    agent = make("actor")
    agent.begin_trial(ROWS)
    message = f"a trial of {ROWS} rows is running, got {rows} rows: call begin_trial\\({rows}\\)"
    with pytest.raises(UsageError, match=message):
        agent.act(np.zeros((rows, 3), np.float32))


def test_neighbours_share_a_task_and_weights():
    trained = stirred(make_maml_agent(OBSERVATIONS, ACTIONS, MAMLConfig(trial_rows=2), SMALL))
    agent = AdaptationAgent.from_agent(trained, EAGER)
    assert agent.trial_rows == 2
    trial(agent, Stream(5))
    assert agent.streams.values.shape[0] == 2
    with pytest.raises(UsageError, match="rows come in blocks of trial_rows = 2, got 3"):
        agent.begin_trial(3)
    with pytest.raises(UsageError, match="renew all of a block or none"):
        agent.begin_trial(ROWS, np.array([True, False, False, False]))
    agent.begin_trial(1)
    assert agent.act(np.zeros(3, np.float32)).shape == (2,)


def test_numbers_that_are_not_finite_are_not_learned_from():
    agent, stream = make(), Stream(5)
    stream.following[:, 0] = np.nan
    trial(agent, stream)
    assert agent.streams.moved.tolist() == [False, True, True, True]
    assert torch.isfinite(agent.streams.values).all()


@pytest.mark.parametrize("kind", ["actor-gru", "ssm"])
def test_one_number_that_is_not_finite_is_forgotten(kind):
    agent, stream = make(kind, replace(EAGER, update_every=6, rollback=True, rollback_tolerance=1e9)), Stream(5)
    stream.observation[2, 0] = stream.following[1, 0] = np.nan
    actions = trial(agent, stream)
    assert np.isfinite(actions[3:]).all()
    agent.adapt()  # scores the rest
    adapted, _, samples = agent.streams.losses
    assert samples.tolist() == [STEPS - 2, STEPS, STEPS, STEPS]
    torch.testing.assert_close(adapted / samples, torch.ones(ROWS).double(), rtol=1e-3, atol=1e-3)  # as it had acted


@pytest.mark.parametrize("kind", [kind for kind in TRAINED if kind.startswith("plans")])
def test_a_planner_forgets_a_number_that_is_not_finite(kind):
    agent, stream = make(kind), Stream(5)
    stream.observation[2, 0] = stream.following[1, 0] = np.nan
    actions = trial(agent, stream)
    assert np.isfinite(actions[3:]).all()
    assert torch.isfinite(agent._controller.window.x).all()


@pytest.mark.parametrize(
    ("kind", "rollback"),
    [("actor-gru", True), ("ssm", False), ("plans", True), ("plans-ssm", False), ("plans-gru", True)],
)
def test_weights_that_overflow_do_not_act(kind, rollback):
    agent = make(kind, replace(EAGER, learning_rate=1e38, rollback=rollback))
    actions = trial(agent, Stream(5, steps=40))
    assert np.isfinite(actions).all()
    assert all(bool(guard.rollbacks) is rollback for guard in agent.streams.guards)
    metrics = agent.streams.metrics()
    assert math.isnan(metrics["frozen_loss"]) is not rollback
    assert metrics["loss"] == pytest.approx(metrics["frozen_loss"], nan_ok=True)  # the source acted throughout


def test_what_adapts_is_what_acts():
    head = make("ssm", replace(EAGER, parameters="head"))
    assert head.names == ["actor.2.mean.weight", "actor.2.mean.bias"]
    assert not any(name.startswith("critic.") for name in make("ssm").names)
    trial(head, Stream(5))
    assert (head.streams.values != head.streams.source).any()
    with pytest.raises(UsageError, match=r"'critic.\*' stands for nothing that may adapt"):
        make("ssm", replace(EAGER, parameters="critic.*"))


def test_a_policy_learns_from_sampled_actions_only():
    agent = make("actor")
    assert (agent.explores_to_adapt, make("plans").explores_to_adapt) == (True, False)
    agent.explore = False
    trial(agent, Stream(5))
    assert agent.streams.weights is None


@pytest.mark.parametrize("kind", ["actor-gru", "ssm"])
def test_a_policy_that_stops_exploring_stops_learning(kind):
    """Not from what it sampled before either: nothing would score what that does."""
    agent = make(kind)
    trial(agent, Stream(5))
    adapted, updates = agent.streams.values.clone(), STEPS // EAGER.update_every
    agent.explore = False
    live(agent, Stream(6))
    assert torch.equal(agent.streams.values, adapted)
    assert agent.streams.steps.tolist() == [updates] * ROWS
    agent.explore = True
    live(agent, Stream(7))
    assert agent.streams.steps.tolist() == [2 * updates] * ROWS


@pytest.mark.parametrize(
    ("kind", "instead"),
    [("actor-gru", lambda action: np.array([-0.5, 1.5], np.float32)), ("discrete-lstm", lambda action: 1 + action % 3)],
)
def test_a_policy_learns_nothing_from_an_action_that_was_replaced(kind, instead):
    agent, stream = make(kind), Stream(5)
    agent.begin_trial(ROWS)
    for time in range(STEPS):
        done = agent.act(stream.observation[time])
        done[0] = instead(done[0])
        agent.observe(stream.observation[time], done.tolist(), *stream.at(time))
    assert agent.streams.moved.tolist() == [False, True, True, True]


# --- against the same thing done otherwise ----------------------------------------------------------------------------


def test_it_adapts_as_grbal_does_where_it_is_told_to():
    trained = planning()
    trained.updates = 1
    with torch.no_grad():
        for number, logarithm in enumerate(trained.maml.learned["inner_lr"].parameters()):
            logarithm.fill_(math.log(0.05 * (number + 1)))
    config = AdaptationConfig(
        learning_rate=1.0,
        from_source=True,
        update_every=1,
        buffer_size=PLAN.past,
        batch_size=PLAN.past,
        grad_clip_norm=float("inf"),
        rollback=False,
    )
    agent = AdaptationAgent.from_agent(trained, config)
    for used in (trained, agent):
        trial(used, Stream(5))
    expected = trained.row_weights()
    for name, value in agent.streams.weights.items():
        torch.testing.assert_close(value, expected[name])


def test_a_policy_takes_its_rates_its_discount_and_its_trace_from_meta_learning():
    trained = make_maml_agent(OBSERVATIONS, ACTIONS, MAMLConfig(learn_rates=True, discount=0.9, trace=0.4), SMALL)
    with torch.no_grad():
        for number, rate in enumerate(trained.maml.rates().values()):
            rate.copy_(torch.rand(rate.shape) + number)
    agent = AdaptationAgent.from_agent(trained, EAGER)
    rates = trained.maml.rates()
    assert torch.equal(agent.streams._rates, torch.cat([rates[name].flatten() for name in agent.names]).detach())
    memory = RL2Agent(OBSERVATIONS, ACTIONS, RL2Config(discount=0.9, trace=0.4), SMALL)
    for controller in (trained.controller(), memory.controller()):
        assert (controller.discount, controller.trace) == (0.9, 0.4)


def test_a_batch_is_drawn_from_what_a_stream_holds_without_repeats():
    agent = make(config=replace(EAGER, batch_size=3, update_every=100))
    trial(agent, Stream(5, steps=6))
    agent._close(torch.ones(ROWS, dtype=torch.bool))
    held = agent.streams._recent["x"][:, :6]  # of room for 8
    counts = torch.zeros(ROWS, 6)
    for _ in range(40):
        batch = agent.streams._draw(torch.arange(ROWS))
        assert batch["active"].all()
        drawn = (batch["x"][:, :, None] == held[:, None]).all(-1).sum(1)  # [S, 6], how often each
        assert drawn.sum(1).tolist() == [3] * ROWS
        assert drawn.max() == 1
        counts += drawn
    assert counts.min() > 8  # of 20 on average


def test_it_acts_by_the_average_of_its_weights():
    agent = make("actor", replace(EAGER, ema_decay=0.9))
    trial(agent, Stream(5))
    acting = torch.cat([value.flatten(1) for value in agent.streams.weights.values()], 1)
    assert torch.equal(acting, agent.streams._average)
    assert not torch.equal(acting, agent.streams.values)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adam", "num_steps": 2},
        {"ema_decay": 0.5, "anchor_weight": 1.0, "trust_region": 0.05},
        {"from_source": True, "grad_clip_norm": 0.01},
        {"reset_every": 8, "rollback": True, "rollback_tolerance": 0.0},
        {"update_every": 150, "rollback": True},
        {"parameters": "head"},
    ],
)
def test_a_stream_learns_what_an_adapter_learns_from_it(options):
    """Adapter, a row at a time, and AdaptationAgent, all rows at once, from the same transitions."""
    trained, stream = planning(), Stream(5)
    with torch.no_grad():
        for logarithm in trained.maml.learned["inner_lr"].parameters():
            logarithm.fill_(0.0)
    config = replace(EAGER, **options)
    agent = AdaptationAgent.from_agent(trained, config)
    actions = trial(agent, stream)
    agent.adapt()
    for row in range(ROWS):
        adapter = Adapter(trained.model, config)
        for time in range(STEPS):
            x = np.concatenate([stream.observation[time, row], actions[time, row]])
            change = torch.from_numpy(stream.following[time, row] - stream.observation[time, row])
            y = trained.model.target(change)[None, None, None]
            adapter.observe(torch.from_numpy(x)[None, None].float(), y, trained.model.init_state(1))
        if adapter._unscored:
            adapter._score()
        if not adapter.guard.waiting and adapter._recent:
            adapter._learn(adapter._draw)
        torch.testing.assert_close(agent.streams.values[row], adapter._weights.values, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(agent.streams._average[row], adapter._average.values, rtol=1e-3, atol=1e-4)
        assert agent.streams.guards[row].rollbacks == adapter.guard.rollbacks
        assert agent.streams.guards[row].excess == pytest.approx(adapter.guard.excess, rel=1e-3, abs=1e-4)


# --- the guard --------------------------------------------------------------------------------------------------------


def test_the_guard_ends_what_only_harms():
    """Steps so large that nothing right is learned, by an agent that tolerates little and by one that tolerates all."""
    harmful = replace(EAGER, learning_rate=15.0, rollback=True, rollback_window=8)
    strict, lax = (make("plans", replace(harmful, rollback_tolerance=tau)) for tau in (0.1, 1e9))
    for agent in (strict, lax):
        trial(agent, Stream(5, steps=40))
    assert all(guard.rollbacks for guard in strict.streams.guards)
    assert not any(guard.rollbacks for guard in lax.streams.guards)
    assert (strict.streams.losses[0] < 0.5 * lax.streams.losses[0]).all()
    assert strict.streams.metrics()["frozen_loss"] < strict.streams.metrics()["loss"]


@pytest.mark.parametrize("kind", ["actor-gru", "ssm", "discrete-lstm"])
def test_a_policy_scores_itself_by_what_it_sampled_from(kind):
    """For the weights that acted the ratio is 1, and the mean score with it; for others it is not."""
    agent = make(kind, replace(EAGER, update_every=6, rollback=True, rollback_tolerance=1e9))
    trial(agent, Stream(5))
    adapted, frozen, samples = agent.streams.losses
    torch.testing.assert_close(adapted / samples, torch.ones(ROWS).double(), rtol=1e-3, atol=1e-3)
    assert (frozen / samples - 1).abs().max() > 1e-2


def middling():
    """A policy that begins in the middle of [-1, 1]."""
    space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        actor = Actor(OBSERVATIONS, space, SMALL)
        actor.output.mean.weight.zero_()
    return actor


def rewarded(config, reward_of, steps=160, rows=48):
    """An agent after steps that were rewarded by reward_of(action, step), and the mean rewards by step."""
    agent = AdaptationAgent(Adapter(middling(), config))
    agent.begin_trial(rows)
    observation, never = np.ones((rows, 3), np.float32), np.zeros(rows, dtype=bool)
    rewards = []
    for step in range(steps):
        action = agent.act(observation)
        reward = reward_of(action[:, 0], step)
        agent.observe(observation, action, reward, never, never, observation)
        rewards.append(reward.mean())
    return agent, np.array(rewards)


def chase(config, target_at):
    """Mean reward −(a − target)² by step."""
    return rewarded(config, lambda action, step: -((action - target_at(step)) ** 2))[1]


ONLINE = AdaptationConfig(learning_rate=0.2, update_every=20, buffer_size=1, batch_size=1, grad_clip_norm=10.0)


def test_rounding_is_no_excess_where_the_source_acts():
    agent = make("ssm", replace(EAGER, learning_rate=1e-3, rollback=True, rollback_tolerance=0.0))
    acted = 0
    for seed in range(10):
        stream = Stream(seed, steps=8)
        stream.reward = stream.reward[:4]  # one segment
        trial(agent, stream)
        agent.begin_trial(ROWS, np.arange(ROWS) == 0)
        acted += int(agent.streams.moved.any())
        live(agent, stream)
        adapted, frozen, _ = agent.streams.losses[:, 0]
        assert adapted == frozen
        assert agent.streams.guards[0].rollbacks == 0
    assert acted


def test_a_policy_learns_online_what_pays_now():
    adapted = chase(ONLINE, lambda step: 0.8 if step < 80 else -0.8)
    frozen = chase(replace(ONLINE, num_steps=0), lambda step: 0.8 if step < 80 else -0.8)
    assert abs(adapted[:20].mean() - frozen[:20].mean()) < 0.1
    assert adapted[40:80].mean() > frozen[40:80].mean() + 0.3
    assert adapted[80:100].mean() < frozen[80:100].mean() - 0.3  # what it has learned is wrong now
    assert adapted[140:].mean() > adapted[80:100].mean() + 0.6


def test_the_guard_knows_when_a_policy_would_have_done_better_had_it_stayed():
    """The target has changed whenever something was learned: who stands still does best."""

    def target_at(step):
        return 0.8 if step % 40 < 20 else -0.8

    hasty = replace(ONLINE, learning_rate=0.4)
    frozen, guarded, unguarded = (
        chase(replace(hasty, **options), target_at)[80:].mean()
        for options in ({"num_steps": 0}, {}, {"rollback": False})
    )
    assert unguarded < frozen - 0.1
    assert guarded > (frozen + unguarded) / 2


def test_a_constant_reward_moves_nothing_and_a_tenth_of_it_does():
    free = replace(ONLINE, rollback=False)
    still, _ = rewarded(free, lambda action, step: np.ones_like(action), steps=400, rows=2)
    assert still.streams.metrics()["distance"] < 1e-3
    moved, rewards = rewarded(free, lambda action, step: 1 + 0.1 * action, steps=400, rows=2)
    assert moved.streams.metrics()["distance"] > 0.1
    assert rewards[-100:].mean() > 1.05


def test_the_distance_from_a_source_that_is_all_0_is_no_ratio():
    layer = replace(ONLINE, parameters="output.mean.*", rollback=False)
    agent, _ = rewarded(layer, lambda action, step: action, steps=ONLINE.update_every, rows=2)
    expected = agent.streams.values.norm(dim=1).mean().item()
    assert agent.metrics()["distance"] == pytest.approx(expected)
    assert expected > 0
    agent.reset()
    assert agent.metrics()["distance"] == 0.0
    assert agent.update() == {"distance": 0.0}


# --- learning and keeping ---------------------------------------------------------------------------------------------


@each
def test_an_update_moves_the_source_towards_what_streams_adapted_to(kind):
    agent = make(kind, meta_rate=0.25)
    source = agent.streams.source.clone()
    trial(agent, Stream(5))
    expected = source + 0.25 * (agent.streams.values.mean(0) - source)
    assert agent.update()["distance"] > 0
    torch.testing.assert_close(agent.streams.source, expected)
    with pytest.raises(UsageError, match="holds no experience"):
        agent.update()


def test_without_a_meta_rate_an_update_changes_nothing():
    agent = make()
    before = shared(agent)
    trial(agent, Stream(5))
    agent.update()
    assert_same(shared(agent), before)


@pytest.mark.parametrize("meta_rate", [0.0, 0.25])
def test_an_update_from_weights_that_are_not_finite_changes_nothing(meta_rate):
    agent = make(meta_rate=meta_rate)
    before = shared(agent)
    trial(agent, Stream(5))
    agent.streams.values[1, 0] = math.inf
    with pytest.raises(TrainingDiverged, match="not finite: the weights of stream 1; try a lower"):
        agent.update()
    assert_same(shared(agent), before)


def test_an_agent_that_does_not_train_keeps_no_experience():
    agent = make()
    agent.training = False
    trial(agent, Stream(5))
    with pytest.raises(UsageError, match="holds no experience"):
        agent.take_experience()


def test_experience_given_to_a_copy_makes_the_same_update():
    learner, collector, copy = (make("ssm", meta_rate=0.5) for _ in range(3))
    for agent in (learner, collector):
        trial(agent, Stream(5))
    copy.load_state_dict(snapshot(collector))
    copy.give_experience({name: tensor.clone() for name, tensor in collector.take_experience().items()})
    assert copy.update() == learner.update()
    assert_same(copy.state_dict(), learner.state_dict())


def test_given_experience_takes_the_place_of_the_own_and_ends_with_the_trial():
    giver, taker = make(), make()
    trial(giver, Stream(5))
    experience = giver.take_experience()
    taker.give_experience(experience)
    assert torch.equal(taker.take_experience()["weights"], experience["weights"])
    taker.give_experience(experience)
    trial(taker, Stream(6))
    assert not torch.equal(taker.take_experience()["weights"], experience["weights"])


@each
def test_a_restored_agent_goes_on_as_the_old_one(kind):
    agent, restored = make(kind, meta_rate=0.5), make(kind, meta_rate=0.5, seed=3)
    trial(agent, Stream(4))
    agent.update()
    restored.load_state_dict(snapshot(agent))
    np.testing.assert_array_equal(trial(restored, Stream(5)), trial(agent, Stream(5)))
    assert torch.equal(restored.streams.values, agent.streams.values)


@each
@pytest.mark.parametrize("options", [{}, {"optimizer": "adam", "ema_decay": 0.5, "batch_size": 1}])
def test_an_agent_restored_in_the_middle_of_an_episode_goes_on_as_the_old_one(kind, options, tmp_path):
    config = replace(EAGER, update_every=5, rollback=True, rollback_tolerance=0.01, **options)
    agent, restored = make(kind, config), make(kind, config, seed=3)
    trial(agent, Stream(5, steps=17))  # in a segment, with updates behind it
    trial(restored, Stream(6, steps=6, rows=2))
    save_file(agent.state_dict(), tmp_path / "agent.safetensors")
    restored.load_state_dict(load_file(tmp_path / "agent.safetensors"))
    assert agent.streams.moved.any()
    np.testing.assert_array_equal(live(restored, Stream(7)), live(agent, Stream(7)))
    assert restored.adapt() == agent.adapt()
    assert_same(restored.state_dict(), agent.state_dict())


@pytest.mark.parametrize(
    "changed",
    [
        {"update_every": 6},
        {"rollback_window": 3},
        {"buffer_size": 4, "batch_size": 4},
        {"parameters": "head"},
        {"optimizer": "adam"},
    ],
)
def test_a_state_of_another_configuration_is_refused_before_anything_changes(changed):
    agent, other = make("actor"), make("actor", replace(EAGER, **changed))
    trial(agent, Stream(5))
    before = snapshot(other)
    with pytest.raises(UsageError, match=f"with another .*{next(iter(changed))}"):
        other.load_state_dict(snapshot(agent))
    assert_same(snapshot(other), before)


def test_a_state_of_streams_of_other_rows_is_refused_before_anything_changes():
    pairs, single = (AdaptationAgent(Adapter(gradients().actor, EAGER), trial_rows=rows) for rows in (2, 1))
    trial(pairs, Stream(5, rows=2))
    before = snapshot(single)
    with pytest.raises(UsageError, match="with another trial_rows: make this one as that one was made"):
        single.load_state_dict(snapshot(pairs))
    assert_same(snapshot(single), before)
    single.begin_trial(1)
    pairs.load_state_dict(snapshot(single))  # a trial of a single row is a stream of its own
    observation = Stream(6).observation[0, 0]
    np.testing.assert_array_equal(pairs.act(observation), single.act(observation))


def test_a_state_taken_does_not_move_with_what_is_lived_through_later():
    agent, stream = make("ssm"), Stream(5)
    trial(agent, stream)
    state = agent.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    restored = make("ssm")
    restored.load_state_dict(state)
    for each in (agent, restored):
        live(each, stream)
    assert_same(state, before)


def test_a_restored_agent_learns_by_the_rates_that_meta_learning_found():
    """Also one that was made from an agent that has not learned any."""
    trained, fresh = planning(), planning()
    with torch.no_grad():
        for number, logarithm in enumerate(trained.maml.learned["inner_lr"].parameters()):
            logarithm.fill_(math.log(0.05 * (number + 1)))
    agent, restored = (AdaptationAgent.from_agent(each, EAGER) for each in (trained, fresh))
    trial(agent, Stream(4))
    restored.load_state_dict(snapshot(agent))
    np.testing.assert_array_equal(trial(restored, Stream(5)), trial(agent, Stream(5)))
    assert torch.equal(restored.streams.values, agent.streams.values)
    assert_same(restored.state_dict(), agent.state_dict())


def test_a_seed_is_that_of_all_draws():
    by_adapter = AdaptationAgent(Adapter(gradients().actor, EAGER, seed=1))
    by_argument = AdaptationAgent(Adapter(gradients().actor, EAGER), seed=1)
    agents = (*(make("actor", seed=seed) for seed in (1, 1, 2)), by_adapter, by_argument)
    once, again, other, *outside = (trial(agent, Stream(5, steps=6)) for agent in agents)
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()
    np.testing.assert_array_equal(*outside)


def dropping():
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 4))
    return Actor(OBSERVATIONS, ACTIONS, body=body)


@pytest.mark.parametrize("rollback", [True, False])
def test_a_policy_with_dropout_learns_in_either_mode_and_follows_its_model_s(rollback):
    actor = dropping()
    agent = AdaptationAgent(Adapter(actor, replace(EAGER, rollback=rollback, rollback_tolerance=1e9)))
    trial(agent, Stream(5))
    assert agent.streams.moved.all()
    agent.explore = False
    seen = Stream(6).observation[0]
    assert (agent.act(seen) != agent.act(seen)).any()
    actor.eval()
    np.testing.assert_array_equal(agent.act(seen), agent.act(seen))
    agent.explore = True
    live(agent, Stream(6))
    assert (agent.streams.steps > STEPS // 4).all()


class Tempered(torch.nn.Module):
    """A body with a parameter that is a number."""

    def __init__(self):
        super().__init__()
        self.layer, self.temperature = torch.nn.Linear(3, 4), torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.layer(x) * self.temperature


def test_a_parameter_that_is_a_number_is_one_in_every_stream():
    torch.manual_seed(0)
    actor = Actor(OBSERVATIONS, ACTIONS, body=Tempered())
    agent = AdaptationAgent(Adapter(actor, EAGER), meta_rate=1.0)
    trial(agent, Stream(5))
    numbers = agent.streams.weights["body.temperature"]
    assert numbers.shape == (ROWS,)
    assert (numbers != 1).all()
    mean = numbers.mean()
    agent.update()
    torch.testing.assert_close(actor.body.temperature.detach(), mean)


# --- wrong use --------------------------------------------------------------------------------------------------------


def test_what_cannot_act_is_refused():
    with pytest.raises(UsageError, match=r"needs a controller for a Linear: .*from_agent"):
        AdaptationAgent(Adapter(torch.nn.Linear(3, 2)))
    with pytest.raises(UsageError, match="need the same model object"):
        AdaptationAgent(Adapter(Actor(OBSERVATIONS, ACTIONS, SMALL)), planning().controller())
    with pytest.raises(UsageError, match=r"at least 1 and meta_rate in .*, got 0 and 0"):
        AdaptationAgent(Adapter(Actor(OBSERVATIONS, ACTIONS, SMALL)), trial_rows=0)
    with pytest.raises(UsageError, match="learns by its controller's loss: give its Adapter no loss_fn"):
        AdaptationAgent(Adapter(Actor(OBSERVATIONS, ACTIONS, SMALL), loss_fn=torch.nn.functional.l1_loss))
    gains = GrBALAgent(OBSERVATIONS, ACTIONS, replace(PLAN, adapt="gain"), SMALL, reward_model=REWARD)
    with pytest.raises(UsageError, match="found rates for gain alone, and parameters names none of them: choose all"):
        AdaptationAgent.from_agent(gains, replace(EAGER, parameters="head"))
    for single in ({"update_every": 1}, {"rollback_window": 1}):
        with pytest.raises(UsageError, match="one of a single step teaches it nothing: set update_every"):
            make("actor", replace(EAGER, **single))
        make("plans", replace(EAGER, **single))
    several = Adapter(Actor(OBSERVATIONS, ACTIONS, SMALL), replace(EAGER, update_every=1))
    with pytest.raises(UsageError, match="one of a single step teaches it nothing"):
        AdaptationAgent(several, trial_rows=2).begin_trial(1)
    with pytest.raises(UsageError, match="AdaptationAgent has nothing that can be adapted"):
        make().controller()
    with pytest.raises(UsageError, match="entropy_weight is for policies"):
        trial(make(config=replace(EAGER, entropy_weight=0.1)), Stream(0))


def test_entropy_can_be_lowered_on_the_way():
    plain, sharpened = (make("actor", replace(EAGER, entropy_weight=weight)) for weight in (0.0, 1.0))
    for agent in (plain, sharpened):
        trial(agent, Stream(5))
    index = list(plain.adapter.names).index("output.log_std")
    spread = [agent.streams._by_name(agent.streams.values)[agent.adapter.names[index]] for agent in (plain, sharpened)]
    assert (spread[1].sum(1) < spread[0].sum(1)).all()
