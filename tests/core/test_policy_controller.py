"""The controller of policies: what its memory takes on, which weights act, and what its advantages are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from metarl.core.memory import MemoryConfig
from metarl.core.policy import Actor, ActorCritic
from metarl.core.policy_controller import PolicyController
from metarl.core.policy_gradient import with_advantages

OBSERVATIONS, ACTIONS = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)
ROWS, STEPS, BAD = 3, 6, 2
METHODS = ("ssm", "gru", "lstm", "transformer")


def make(kind="actor", method="gru", **options):
    memory = MemoryConfig(method=method, width=8, state_dim=8, heads=2, context=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (
            Actor(OBSERVATIONS, ACTIONS, memory=memory) if kind == "actor" else ActorCritic(3, ACTIONS, memory=memory)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    controller = PolicyController(model, OBSERVATIONS, ACTIONS, **options)
    controller.begin(ROWS)
    return controller


def stacked(controller, scale=1.0):
    """The model's own weights for one stream a row, those of the first times `scale`."""
    factors = torch.tensor([scale, *[1.0] * (ROWS - 1)])
    parameters = controller.model.named_parameters()
    return {name: factors.view(-1, *[1] * value.ndim) * value.detach() for name, value in parameters}


def live(controller, observations, rewards, active=None, ended=(), weights=None):
    """Act and observe; returns the actions [T, B, 2] that were most likely."""
    actions = []
    for time in range(len(rewards)):
        action = controller.act(observations[time], weights, explore=False)
        over, never = np.full(ROWS, time in ended), np.zeros(ROWS, bool)
        rows = np.ones(ROWS, bool) if active is None else active[time]
        controller.observe(observations[time], action, rewards[time], over, never, observations[time + 1], rows)
        actions.append(action)
    return np.stack(actions)


def stream(seed=0):
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(STEPS + 1, ROWS, 3)).astype(np.float32),
        generator.normal(size=(STEPS, ROWS)).astype(np.float32),
    )


# --- numbers that are not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["actor", "actor-critic"])
@pytest.mark.parametrize("method", METHODS)
def test_a_row_with_a_number_that_is_not_finite_is_as_one_that_took_no_part(kind, method):
    observations, rewards = stream()
    active = np.ones((STEPS, ROWS), bool)
    active[BAD, 0] = False
    expected = live(make(kind, method), observations, rewards, active)
    observations[BAD, 0, 1] = np.nan
    found = live(make(kind, method), observations, rewards)
    assert np.isfinite(found[BAD + 1 :]).all()
    np.testing.assert_array_equal(found[BAD + 1 :], expected[BAD + 1 :])
    np.testing.assert_array_equal(found[:, 1:], expected[:, 1:])


def test_a_reward_that_is_not_finite_is_not_remembered():
    observations, rewards = stream()
    rewards[BAD, 0] = np.nan
    assert np.isfinite(live(make("actor-critic"), observations, rewards)).all()


def test_an_episode_start_that_was_not_seen_is_still_to_come():
    observations, rewards = stream()
    observations[BAD, 0] = np.nan  # the first step of an episode
    fresh = make()
    expected = live(fresh, observations[BAD + 1 :], rewards[BAD + 1 :])
    found = live(make(), observations, rewards, ended=(BAD - 1,))
    np.testing.assert_allclose(found[BAD + 1 :, 0], expected[:, 0], rtol=1e-5)


@pytest.mark.parametrize("kind", ["actor", "actor-critic"])
def test_where_weights_give_no_finite_action_the_own_ones_act(kind):
    observations, rewards = stream()
    controller = make(kind)
    own, broken = live(make(kind), observations, rewards), stacked(controller, scale=np.nan)
    found = live(controller, observations, rewards, weights=broken)
    np.testing.assert_allclose(found, own, atol=1e-5)
    assert all(torch.isfinite(tensor).all() for tensor in controller.remembered().values())


# --- acting -----------------------------------------------------------------------------------------------------------


def test_weights_act_in_the_mode_that_the_model_is_in_now():
    body = nn.Sequential(nn.Linear(3, 16), nn.Dropout(), nn.Linear(16, 4))
    controller = PolicyController(Actor(OBSERVATIONS, ACTIONS, body=body), OBSERVATIONS, ACTIONS)
    controller.begin(ROWS)
    controller.model.eval()
    observation = stream()[0][0]
    own, by_weights = (controller.act(observation, weights, explore=False) for weights in (None, stacked(controller)))
    np.testing.assert_allclose(by_weights, own, atol=1e-6)


def test_without_moments_observations_reach_the_model_as_they_are():
    controller = make(method="mlp")
    far = np.full((ROWS, 3), 40.0, np.float32)
    output, _ = controller.model(torch.from_numpy(far)[None])
    expected = controller.model.head.to_environment(output[0, :, :2].detach())
    np.testing.assert_array_equal(controller.act(far, None, explore=False), expected)


def test_of_an_actor_all_parameters_act_and_of_an_actor_critic_all_but_the_critic_s():
    actor, both = make(), make("actor-critic")
    assert actor.acting == [name for name, _ in actor.model.named_parameters()]
    assert {name for name, _ in both.model.named_parameters()} - set(both.acting) == {
        f"critic.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("kind", ["actor", "actor-critic"])
def test_it_goes_on_from_what_it_remembered(kind):
    (before, rewards), (after, _) = stream(0), stream(1)
    one, other = make(kind), make(kind, seed=5)
    live(one, before, rewards)
    one.act(after[0], None, explore=True)  # the noise of this step is drawn
    held = {name: tensor.clone() for name, tensor in one.remembered().items()}
    before = {name: tensor.clone() for name, tensor in held.items()}
    other.remember(held)
    np.testing.assert_array_equal(other.act(after[0], None, explore=True), one.act(after[0], None, explore=True))
    np.testing.assert_array_equal(live(other, after, rewards), live(one, after, rewards))
    assert all(torch.equal(held[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", ["actor", "actor-critic"])
def test_it_goes_back_to_what_it_remembered(kind):
    (before, rewards), (after, _) = stream(0), stream(1)
    controller = make(kind)
    live(controller, before, rewards)
    held = controller.remembered()
    expected = live(controller, after, rewards)
    controller.remember(held)
    np.testing.assert_array_equal(live(controller, after, rewards), expected)


# --- advantages -------------------------------------------------------------------------------------------------------


def segment(reward_of, steps=20, horizon=None, falls_at=None):
    """(advantages [B, T], first action [B, T]) of one segment in which actions are sampled, each row a stream.

    An episode is cut after `horizon` steps, and terminates where the first action is above `falls_at`.
    """
    controller = make(method="mlp")
    generator = np.random.default_rng(1)
    observation, never = generator.normal(size=(ROWS, 3)).astype(np.float32), np.zeros(ROWS, bool)
    taken = []
    for time in range(steps):
        action = controller.act(observation, None, explore=True)
        following = generator.normal(size=(ROWS, 3)).astype(np.float32)
        fallen = never if falls_at is None else action[:, 0] > falls_at
        cut = np.full(ROWS, horizon is not None and (time + 1) % horizon == 0)
        step, before = controller.observe(
            observation, action, reward_of(action), fallen, cut, following, np.ones(ROWS, bool)
        )
        taken.append({name: tensor[:, None] for name, tensor in step.items()})
        observation = following
    steps = {name: torch.stack([step[name] for step in taken]) for name in taken[0]}
    samples = controller.samples(steps, {name: tensor[:, None] for name, tensor in before.items()})
    return samples["advantage"][:, 0], samples["action"][:, 0, :, 0]


@pytest.mark.parametrize("level", [1.0, -7.7, 1e-3, 1234.5])
@pytest.mark.parametrize("horizon", [None, 7])
def test_a_constant_reward_says_nothing_about_actions(level, horizon):
    found, _ = segment(lambda action: np.full(ROWS, level), horizon=horizon)
    assert found.abs().max() < 1e-2


@pytest.mark.parametrize("horizon", [None, 7])
def test_a_signal_of_a_tenth_of_the_reward_counts_in_full(horizon):
    found, _ = segment(lambda action: 1 + 0.1 * action[:, 0], horizon=horizon)
    torch.testing.assert_close(found.square().mean(1).sqrt(), torch.ones(ROWS))


def test_to_fall_is_worse_than_to_go_on_at_a_constant_reward():
    found, first = segment(lambda action: np.ones(ROWS), steps=60, falls_at=0.9)
    assert found[first > 0.9].mean() < found[first < 0.9].mean() - 1
    torch.testing.assert_close(found.square().mean(1).sqrt(), torch.ones(ROWS))


# --- segments ---------------------------------------------------------------------------------------------------------


def sampled_steps(controller, ended=()):
    """Steps [T, B, 1, ...], each row a stream, and what was remembered before the last one."""
    observations, rewards = stream()
    never, taken = np.zeros(ROWS, bool), []
    for time in range(STEPS):
        action, over = controller.act(observations[time], None, explore=True), np.full(ROWS, time in ended)
        step, before = controller.observe(
            observations[time], action, rewards[time], over, never, observations[time + 1], ~never
        )
        taken.append({name: tensor[:, None] for name, tensor in step.items()})
    steps = {name: torch.stack([step[name] for step in taken]) for name in taken[0]}
    return steps, {name: tensor[:, None] for name, tensor in before.items()}


def test_the_time_of_a_step_is_that_of_its_episode():
    steps, _ = sampled_steps(make(), ended=(BAD,))
    assert steps["time"][:, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]


def test_a_segment_that_ended_early_is_one_of_its_length():
    """What stands behind its last step is of another time."""
    controller = make(method="mlp")
    steps, before = sampled_steps(controller)
    length = STEPS - 2
    early = {**steps, "active": steps["active"] & (torch.arange(STEPS) < length)[:, None, None]}
    short = {name: values[:length] for name, values in steps.items()}
    found, expected = (controller.samples(each, before)["advantage"] for each in (early, short))
    torch.testing.assert_close(found[:, :, :length], expected)
    assert not found[:, :, length:].any()


def left_out(kind, reward, falls):
    """A stream of all rows. The first is left out of a step, whose reward is `reward`; or it falls before, and a new
    episode begins after that step."""
    controller, (observations, rewards), never = make(kind), stream(), np.zeros(ROWS, bool)
    rewards[BAD, 0] = reward
    taken = []
    for time in range(STEPS):
        action, first = controller.act(observations[time], None, explore=True), np.arange(ROWS) == 0
        fallen, rows = first & (falls and time == BAD - 1), ~(first & (time == BAD))
        taken.append(
            controller.observe(observations[time], action, rewards[time], fallen, never, observations[time + 1], rows)
        )
    steps = {name: torch.stack([step[name][None] for step, _ in taken]) for name in taken[0][0]}
    samples = controller.samples(steps, {name: tensor[None] for name, tensor in taken[0][1].items()})
    return controller, {name: values[0] for name, values in samples.items()}


@pytest.mark.parametrize("kind", ["actor", "actor-critic"])
@pytest.mark.parametrize("falls", [False, True])
def test_a_step_in_which_a_row_was_left_out_counts_for_nothing(kind, falls):
    controller, found = left_out(kind, 1.0, falls)
    _, other = left_out(kind, 1e3, falls)
    for name in ("active", "advantage"):
        torch.testing.assert_close(found[name], other[name])
    again = float(falls and kind == "actor")  # its memory is empty then
    assert found["active"].tolist() == [[1, 1, 0, again, again, again], [1] * STEPS, [1] * STEPS]
    own = {name: value.detach() for name, value in controller.model.named_parameters()}
    ratio = torch.exp(controller._log_prob(own, found) - found["log_prob"])[found["active"] > 0]
    torch.testing.assert_close(ratio.detach(), torch.ones_like(ratio), rtol=1e-4, atol=1e-4)


def test_a_score_counts_no_ratio_beyond_its_bound():
    controller = make(method="mlp")
    samples = controller.samples(*sampled_steps(controller))
    one = {name: values[0] for name, values in samples.items()}
    weights = {name: value.detach() for name, value in controller.model.named_parameters()}
    ratio = torch.tensor([[0.1, 1.0, 5.0, 9.0, 11.0, 1e6]])
    one["log_prob"] = controller._log_prob(weights, one).detach() - ratio.log()
    one["advantage"] = torch.tensor([[1.0, -2.0, 1.0, -1.0, 1.0, -1.0]])
    expected = np.mean([1 - 0.1, 1 + 2, 1 - 5, 1 + 9, 1 - 10, 1 + 10])
    assert controller.score(weights, one).item() == pytest.approx(expected, rel=1e-4)


def test_advantages_are_by_its_own_discount_and_trace(monkeypatch):
    controller, given = make(method="mlp", discount=0.9, trace=0.4), {}

    def watched(collected, rows, **options):
        given.update(options)
        return with_advantages(collected, rows, **options)

    monkeypatch.setattr("metarl.core.policy_controller.with_advantages", watched)
    controller.samples(*sampled_steps(controller))
    assert (given["discount"], given["trace"]) == (0.9, 0.4)
