"""Action distributions against torch.distributions, action scaling by hand, and the actor-critic in steps and whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.stats import chisquare, kstest
from torch import nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from metarl.core.errors import UsageError
from metarl.core.memory import METHODS, MemoryConfig
from metarl.core.policy import Actor, ActorCritic, CategoricalHead, GaussianHead, make_action_head
from metarl.meta_rl.policy_step import policy_step
from metarl.meta_rl.rl2_agent import RL2Agent

OBSERVATION, STEPS, ROWS = 3, 7, 4
BOX = spaces.Box(np.array([-1.0, -1.0], np.float32), np.array([1.0, 1.0], np.float32))
DISCRETE = spaces.Discrete(5)
EVERY_SPACE = pytest.mark.parametrize("space", [BOX, DISCRETE], ids=["continuous", "discrete"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_output(mean, log_std=(-1.0, 0.3)):
    """What a policy's last layer gives for these means."""
    return torch.cat([mean, torch.tensor(log_std).expand_as(mean)], -1)


def make_policy(space, method="ssm"):
    sizes = {"width": 8, "state_dim": 6, "heads": 2, "context": 5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = ActorCritic(OBSERVATION, space, MemoryConfig(method=method, **sizes))
        with torch.no_grad():  # away from the small first actions, so that differences would show
            for parameter in policy.actor.parameters():
                parameter.normal_()
    return policy


def make_inputs(policy, steps=STEPS):
    size = OBSERVATION + policy.head.size + 2
    return torch.randn(steps, ROWS, size, generator=generator(1))


def test_gaussian_log_probability_and_entropy_are_those_of_torch():
    head = GaussianHead(BOX)
    mean = torch.randn(STEPS, ROWS, 2, generator=generator())
    output = gaussian_output(mean)
    action = torch.randn(STEPS, ROWS, 2, generator=generator(1))
    reference = Independent(Normal(mean, torch.tensor([-1.0, 0.3]).exp()), 1)
    torch.testing.assert_close(head.log_prob(output, action), reference.log_prob(action))
    torch.testing.assert_close(head.entropy(output), reference.entropy())


def test_categorical_log_probability_and_entropy_are_those_of_torch():
    head = CategoricalHead(DISCRETE)
    output = 3 * torch.randn(STEPS, ROWS, 5, generator=generator())
    action = torch.randint(5, (STEPS, ROWS), generator=generator(1))
    reference = Categorical(logits=output)
    torch.testing.assert_close(head.log_prob(output, action), reference.log_prob(action))
    torch.testing.assert_close(head.entropy(output), reference.entropy())


def test_divergences_are_those_of_torch():
    gaussian, categorical = GaussianHead(BOX), CategoricalHead(DISCRETE)
    means = torch.randn(2, STEPS, ROWS, 2, generator=generator())
    ours = gaussian.divergence(gaussian_output(means[0]), gaussian_output(means[1], (0.4, -0.7)))
    first = Normal(means[0], torch.tensor([-1.0, 0.3]).exp())
    second = Normal(means[1], torch.tensor([0.4, -0.7]).exp())
    torch.testing.assert_close(ours, kl_divergence(first, second).sum(-1))
    logits = 3 * torch.randn(2, STEPS, ROWS, 5, generator=generator())
    torch.testing.assert_close(
        categorical.divergence(*logits), kl_divergence(*(Categorical(logits=each) for each in logits))
    )


def test_gaussian_samples_have_the_mean_and_deviation_of_the_head():
    head = GaussianHead(BOX)
    mean = torch.tensor([0.5, -2.0])
    rows = 20_000
    draws = head.sample(gaussian_output(mean.expand(rows, 2)), head.noise(rows, generator())).numpy()
    for axis, deviation in enumerate(np.exp([-1.0, 0.3])):
        assert kstest(draws[:, axis], "norm", args=(float(mean[axis]), deviation)).pvalue > 0.01


def test_categorical_samples_come_as_often_as_the_softmax_says():
    head = CategoricalHead(DISCRETE)
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, 0.5])
    rows = 20_000
    draws = head.sample(logits.expand(rows, 5), head.noise(rows, generator()))
    counts = torch.bincount(draws, minlength=5).numpy()
    expected = torch.softmax(logits.double(), 0).numpy() * rows
    assert chisquare(counts, expected).pvalue > 0.01
    assert chisquare(counts, np.roll(expected, 1)).pvalue < 1e-6


def test_the_categorical_draw_is_the_smallest_exponential_over_its_probability():
    """argmin_k −log(u_k) / p_k: the first of K independent clocks with rates p_k to ring is k with probability p_k."""
    head = CategoricalHead(DISCRETE)
    logits, noise = torch.tensor([2.0, 0.0, -1.0, 1.0, 0.5]), head.noise(1000, generator())
    first = torch.argmin(-torch.log(noise) / torch.softmax(logits, 0), -1)
    assert torch.equal(head.sample(logits.expand(1000, 5), noise), first)


def test_noise_at_the_edge_of_its_range_gives_a_valid_action():
    """u = 0 never wins against a larger u, and u = 1, which rounding may reach, always wins; neither makes a NaN."""
    head = CategoricalHead(DISCRETE)
    noise = torch.tensor([[0.0] * 5, [1.0] * 5, [0.0, 1.0, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 1e-30, 0.0]])
    preferred = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    assert head.sample(torch.zeros(4, 5), noise)[2:].tolist() == [1, 3]
    assert head.sample(preferred.expand(4, 5), noise)[:3].tolist() == [4, 4, 1]


@EVERY_SPACE
def test_the_mode_is_the_likeliest_action(space):
    head = make_action_head(space)
    output = torch.randn(50, head.output_size, generator=generator())
    best = head.log_prob(output, head.mode(output))
    for seed in range(5):
        other = head.sample(output, head.noise(50, generator(seed)))
        assert (head.log_prob(output, other) <= best).all()


@EVERY_SPACE
def test_noise_comes_from_the_given_generator_alone(space):
    head = make_action_head(space)
    before = torch.get_rng_state()
    noise = head.noise(6, generator(3))
    assert torch.equal(noise, head.noise(6, generator(3)))
    assert not torch.equal(noise, head.noise(6, generator(4)))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_unit_interval_is_mapped_onto_asymmetric_bounds_and_clipped():
    head = GaussianHead(spaces.Box(np.array([-2.0, 1.0], np.float32), np.array([6.0, 2.0], np.float32)))
    action = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [0.5, -0.5], [7.0, -7.0]])
    expected = [[-2.0, 1.0], [2.0, 1.5], [6.0, 2.0], [4.0, 1.25], [6.0, 1.0]]
    sent = head.to_environment(action)
    assert sent.dtype == np.float32
    np.testing.assert_allclose(sent, expected, atol=1e-6)
    assert head.encode(action)[-1].tolist() == [1.0, -1.0]


LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (-1.0, 1.0, np.float32),
        (0.1, 0.7, np.float64),
        (-1 / 3, 1 / 7, np.float64),
        (np.float32(0.1), np.float32(0.7), np.float32),
        (np.float32(-1.1), np.float32(0.3), np.float32),
        (np.float32(-1000.1), np.float32(0.7), np.float32),
        (-0.1, 0.3, np.float16),
        (-LARGEST, LARGEST, np.float32),
        (0.9 * LARGEST, LARGEST, np.float32),
    ],
)
def test_actions_are_of_the_space_and_reach_its_bounds(low, high, dtype):
    space = spaces.Box(low, high, (1,), dtype)
    sent = GaussianHead(space).to_environment(
        torch.cat([torch.tensor([-9.0, 9.0]), torch.linspace(-1, 1, 999)])[:, None]
    )
    assert sent.dtype == dtype
    assert all(space.contains(action) for action in sent)
    np.testing.assert_allclose(sent[:2, 0], [low, high], rtol=1e-3)
    assert (np.diff(sent[2:, 0]) >= 0).all()


def test_bounds_between_which_rounding_leads_out_are_kept():
    """Many of these would be passed by a last digit."""
    draws = np.random.default_rng(0)
    for low, high in np.sort(draws.uniform(-10, 10, (200, 2)).astype(np.float32)):
        space = spaces.Box(low, high, (1,), np.float32)
        ends = GaussianHead(space).to_environment(torch.tensor([[-1.0], [1.0]]))
        assert space.contains(ends[0])
        assert space.contains(ends[1])


def test_a_policy_as_a_function_stays_in_float32_where_bounds_are_float64():
    agent = RL2Agent(OBSERVATIONS, spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 3.0]), dtype=np.float64))
    agent.training = agent.explore = False
    agent.begin_trial(ROWS)
    observation, first = observations()[0], torch.ones(ROWS, dtype=torch.bool)
    step, wanted = policy_step(agent), agent.act(observation.numpy())
    state = agent.policy.memory.init_state(ROWS)
    action, _ = step(observation, torch.zeros(ROWS, 2), torch.zeros(ROWS), first, first, state)
    assert (wanted.dtype, action.dtype) == (np.float64, torch.float32)
    np.testing.assert_allclose(action.detach(), wanted, atol=1e-6)


def test_discrete_actions_start_where_the_space_starts():
    space = spaces.Discrete(3, start=-1)
    head = CategoricalHead(space)
    action = torch.tensor([0, 1, 2])
    sent = head.to_environment(action)
    assert sent.tolist() == [-1, 0, 1]
    assert all(space.contains(each) for each in sent)
    assert head.encode(action).tolist() == torch.eye(3).tolist()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (2, 2)),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(0, 5, (2,), np.int64),
        spaces.MultiDiscrete([2, 3]),
        spaces.Dict({"a": spaces.Discrete(2)}),
    ],
    ids=["matrix", "unbounded", "integers", "several", "dict"],
)
def test_action_spaces_that_are_not_supported_are_one_line_errors(space):
    with pytest.raises(UsageError, match="wrap the environment") as error:
        make_action_head(space)
    assert "\n" not in str(error.value)


@EVERY_SPACE
@pytest.mark.parametrize("method", METHODS)
def test_stepping_equals_the_sequence(method, space):
    policy = make_policy(space, method)
    inputs = make_inputs(policy)
    output, value, last = policy(inputs)
    assert output.shape == (STEPS, ROWS, policy.head.output_size)
    assert value.shape == (STEPS, ROWS)
    state = policy.memory.init_state(ROWS)
    for time in range(STEPS):
        actor, features, state = policy.step(inputs[time], state, policy.memory.prepare())
        torch.testing.assert_close(actor, output[time], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(policy.value(features), value[time], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(policy(inputs, state)[0], policy(inputs, last)[0], atol=1e-5, rtol=1e-5)


def test_starts_reach_the_memory():
    policy = make_policy(BOX)
    inputs = make_inputs(policy)
    starts = torch.zeros(STEPS, ROWS)
    starts[3, 1] = 1
    output, value, _ = policy(inputs, None, starts)
    fresh_output, fresh_value, _ = policy(inputs[3:, 1:2])
    torch.testing.assert_close(output[3:, 1:2], fresh_output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(value[3:, 1:2], fresh_value, atol=1e-5, rtol=1e-5)


def test_the_input_is_observation_previous_action_previous_reward_and_start():
    parts = (torch.full((2, 3), 1.0), torch.full((2, 2), 2.0), torch.full((2,), 3.0), torch.full((2,), 4.0))
    assert ActorCritic.join(*parts).tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 4.0]] * 2


@EVERY_SPACE
def test_first_actions_are_near_the_middle(space):
    policy = ActorCritic(OBSERVATION, space, MemoryConfig())
    output, _, _ = policy(make_inputs(policy))
    assert output[..., : policy.head.size].abs().max() < 0.05


@EVERY_SPACE
def test_every_parameter_learns(space):
    policy = make_policy(space)
    inputs = make_inputs(policy)
    output, value, _ = policy(inputs)
    action = policy.head.mode(output).detach()
    (policy.head.log_prob(output, action + (0.5 if space is BOX else 0)).mean() + value.mean()).backward()
    untouched = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.any()]
    assert not untouched


# --- the actor alone --------------------------------------------------------------------------------------------------

OBSERVATIONS = spaces.Box(-1.0, 1.0, (OBSERVATION,))


def make_actor(space, method="mlp"):
    sizes = {"width": 8, "state_dim": 6, "heads": 2, "context": 5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        actor = Actor(OBSERVATIONS, space, MemoryConfig(method=method, **sizes))
        with torch.no_grad():
            for parameter in actor.output.parameters():
                parameter.normal_()
    return actor


def observations(steps=STEPS):
    return torch.randn(steps, ROWS, OBSERVATION, generator=generator(1))


@EVERY_SPACE
@pytest.mark.parametrize("method", METHODS)
def test_an_actor_stepped_is_the_actor_on_the_sequence(method, space):
    actor, x = make_actor(space, method), observations()
    starts = torch.zeros(STEPS, ROWS)
    starts[3, 1] = starts[5, 2] = 1
    output, last = actor(x, None, starts)
    assert output.shape == (STEPS, ROWS, actor.head.output_size)
    state = actor.init_state(ROWS)
    for time in range(STEPS):
        step, state = actor(x[time][None], state, starts[time][None])
        torch.testing.assert_close(step[0], output[time], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)
    fresh, _ = actor(x[3:, 1:2])
    torch.testing.assert_close(output[3:, 1:2], fresh, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_an_actor_remembers_unless_its_method_is_mlp(method):
    actor, x = make_actor(BOX, method), observations()
    changed = x.clone()
    changed[0] += 1
    difference = (actor(x)[0][1:] - actor(changed)[0][1:]).abs().max()
    assert (difference == 0) == (method == "mlp")


def test_an_actor_is_feed_forward_unless_told_otherwise():
    assert Actor(OBSERVATIONS, BOX).init_state(ROWS).shape == (ROWS, 0)


@EVERY_SPACE
def test_first_actions_of_an_actor_are_near_the_middle(space):
    actor = Actor(OBSERVATIONS, space)
    assert actor(observations())[0][..., : actor.head.size].abs().max() < 0.05


@EVERY_SPACE
def test_every_parameter_of_an_actor_learns(space):
    actor = make_actor(space, "ssm")
    output, _ = actor(observations())
    action = actor.head.mode(output).detach()
    actor.head.log_prob(output, action + (0.5 if space is BOX else 0)).mean().backward()
    assert not [name for name, p in actor.named_parameters() if p.grad is None or not p.grad.any()]


@EVERY_SPACE
def test_the_body_of_an_actor_is_any_module(space):
    size = make_action_head(space).output_size
    body = nn.Sequential(nn.Linear(OBSERVATION, 4), nn.ReLU(), nn.Linear(4, size))
    actor, x = Actor(OBSERVATIONS, space, body=body), observations()
    output, state = actor(x)
    assert torch.equal(output, body(x))
    assert state.shape == actor.init_state(ROWS).shape == (ROWS, 0)
    assert {name for name, _ in actor.named_parameters()} == {f"body.{name}" for name, _ in body.named_parameters()}


def test_an_actor_has_a_memory_or_a_body():
    with pytest.raises(UsageError, match="a memory or a body, got both"):
        Actor(OBSERVATIONS, BOX, MemoryConfig(), body=nn.Linear(OBSERVATION, 4))


@EVERY_SPACE
def test_a_body_of_another_size_is_refused(space):
    """A mean for each action and no deviation would be read as half as many actions."""
    size = make_action_head(space).output_size
    actor = Actor(OBSERVATIONS, space, body=nn.Linear(OBSERVATION, size // 2))
    with pytest.raises(UsageError, match=rf"body of an Actor gives {size} values for .*, got {size // 2}$") as error:
        actor(observations())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (4, 4)), spaces.Discrete(3)], ids=["image", "number"])
def test_observations_of_an_actor_need_one_axis(space):
    with pytest.raises(UsageError, match="observations need one axis"):
        Actor(space, BOX)
