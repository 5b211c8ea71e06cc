"""RL2Agent by its contract. Worlds here are recorded streams, the same whatever the agent does: what two agents do in
them can be compared action by action."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.core.errors import UsageError
from metarl.core.memory import METHODS, MemoryConfig, NoMemory
from metarl.core.optimization import TrainingDiverged
from metarl.meta_rl.compiled import COMPILED_STEPS, can_compile
from metarl.meta_rl.registry import ALGOS, find_algorithm
from metarl.meta_rl.rl2_agent import RL2Agent, RL2Config

OBSERVATIONS = spaces.Box(-5.0, 5.0, (3,), np.float32)
ACTIONS = {
    "continuous": spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 3.0], np.float32)),
    "discrete": spaces.Discrete(3, start=1),
}
ROWS, STEPS = 4, 12
SMALL = MemoryConfig(width=8, state_dim=8, heads=2, context=5)
CONFIG = RL2Config(
    update_epochs=2, num_minibatches=2, update_steps=STEPS, learning_rate=1e-2, max_divergence=float("inf")
)
WHOLE = replace(CONFIG, update_epochs=1, num_minibatches=1)
"""One pass over everything: losses and ratios are those of the policy that collected."""


@dataclass
class Stream:
    """Recorded transitions: observation [T, B, 3], reward, terminated, truncated [T, B], next_observation [T, B, 3]."""

    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_observation: np.ndarray

    @classmethod
    def draw(cls, seed, steps=STEPS, rows=ROWS):
        generator = np.random.default_rng(seed)
        observation = generator.normal(1.0, 2.0, (steps + 1, rows, 3)).astype(np.float32)
        terminated, truncated = generator.random((2, steps, rows)) < 0.1
        terminated[3, 0], truncated[3, 0] = True, False
        terminated[5, 1], truncated[5, 1] = False, True
        final = generator.normal(1.0, 2.0, (steps, rows, 3)).astype(np.float32)
        successor = np.where((terminated | truncated)[..., None], final, observation[1:])
        reward = generator.normal(0.0, 3.0, (steps, rows)).astype(np.float32)
        return cls(observation[:-1], reward, terminated, truncated, successor)

    def rows(self, rows):
        return Stream(*(getattr(self, field.name)[:, rows] for field in fields(self)))

    def first(self, steps):
        return Stream(*(getattr(self, field.name)[:steps] for field in fields(self)))

    def at(self, time):
        """The arguments of `observe` after the action."""
        return self.reward[time], self.terminated[time], self.truncated[time], self.next_observation[time]


def make_agent(method="ssm", kind="continuous", config=CONFIG, memory=SMALL, seed=0, stirred=True, **options):
    """An agent; stirred: with an actor whose output is large enough for differences in memory to show."""
    agent = RL2Agent(OBSERVATIONS, ACTIONS[kind], config, replace(memory, method=method), seed=seed, **options)
    if stirred:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in agent.policy.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return agent


def live(agent, stream, acts_per_step=1):
    """Go through a stream without beginning a trial; returns the actions [T, B, ...]."""
    actions = []
    for time in range(len(stream.reward)):
        for _ in range(acts_per_step):
            action = agent.act(stream.observation[time])
        agent.observe(stream.observation[time], action, *stream.at(time))
        actions.append(action)
    return np.stack(actions)


def trial(agent, stream, renew=None):
    agent.begin_trial(stream.reward.shape[1], renew)
    return live(agent, stream)


def learn(agent, seeds):
    """Updates from fresh trials; returns the metrics of each."""
    metrics = []
    for seed in seeds:
        trial(agent, Stream.draw(seed))
        metrics.append(agent.update())
    return metrics


def snapshot(agent):
    return {name: tensor.clone() for name, tensor in agent.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])), name


needs_compiler = pytest.mark.skipif(not can_compile(), reason="torch compiles with g++, which is not installed")
each_kind = pytest.mark.parametrize("kind", ACTIONS)
each_method = pytest.mark.parametrize("method", METHODS)


# --- acting -----------------------------------------------------------------------------------------------------------


@each_kind
@each_method
@pytest.mark.parametrize("explore", [True, False])
def test_acting_again_changes_nothing(method, kind, explore):
    once, often = make_agent(method, kind), make_agent(method, kind)
    once.explore = often.explore = explore
    stream = Stream.draw(0)
    for agent in (once, often):
        agent.begin_trial(ROWS)
    np.testing.assert_array_equal(live(often, stream, acts_per_step=3), live(once, stream))
    assert_same(often.take_experience(), once.take_experience())
    assert_same(often.state_dict(), once.state_dict())


@each_kind
def test_actions_belong_to_the_action_space(kind):
    agent = make_agent(kind=kind)
    actions = trial(agent, Stream.draw(0))
    assert all(ACTIONS[kind].contains(action) for row in actions for action in row)
    assert len(np.unique(actions)) > 2


@each_kind
def test_a_single_observation_is_a_batch_of_one_row(kind):
    single, batch = make_agent(kind=kind), make_agent(kind=kind)
    stream = Stream.draw(0).rows([1])
    expected = trial(batch, stream)
    single.begin_trial(1)
    for time in range(STEPS):
        observation = stream.observation[time, 0]
        action = single.act(observation)
        np.testing.assert_array_equal(action, expected[time, 0])
        reward, terminated, truncated, following = (part[0] for part in stream.at(time))
        single.observe(observation, action, float(reward), bool(terminated), bool(truncated), following)
    assert_same(single.take_experience(), batch.take_experience())


@each_method
def test_acting_and_observing_change_no_parameter_and_no_statistics(method):
    agent = make_agent(method)
    before = snapshot(agent)
    trial(agent, Stream.draw(0))
    after = snapshot(agent)
    assert not torch.equal(before.pop("counters.generator"), after.pop("counters.generator"))
    assert_same(after, before)
    assert agent.adapt() == {}


@each_kind
def test_without_exploration_it_takes_the_mode_and_draws_nothing(kind):
    agent, other = make_agent(kind=kind), make_agent(kind=kind)
    agent.explore = other.explore = False
    before = agent.state_dict()["counters.generator"].clone()
    other.seed(99)
    actions = trial(agent, Stream.draw(0))
    np.testing.assert_array_equal(actions, trial(other, Stream.draw(0)))
    assert torch.equal(agent.state_dict()["counters.generator"], before)
    taken = agent.take_experience()
    mode = agent.policy.head.mode(taken["output"])
    np.testing.assert_array_equal(actions.reshape(-1), agent.policy.head.to_environment(mode).reshape(-1))


@each_kind
def test_exploring_follows_from_the_seed(kind):
    actions = {}
    for seed in (5, 6):
        for copy in range(2):
            agent = make_agent(kind=kind)
            agent.seed(seed)
            actions[seed, copy] = trial(agent, Stream.draw(0))
    np.testing.assert_array_equal(actions[5, 0], actions[5, 1])
    assert not np.array_equal(actions[5, 0], actions[6, 0])


def test_the_seed_of_the_agent_draws_its_parameters_and_the_global_stream_is_left_alone():
    before = torch.get_rng_state()
    agents = [make_agent(seed=seed, stirred=False) for seed in (1, 1, 2)]
    states = [snapshot(agent) for agent in agents]
    assert_same(states[0], states[1])
    assert not torch.equal(states[0]["policy.encoder.0.weight"], states[2]["policy.encoder.0.weight"])
    learn(agents[0], [0])
    assert torch.equal(torch.get_rng_state(), before)


@each_method
def test_inactive_rows_keep_memory_and_previous_action_and_reward(method):
    agent, reference = make_agent(method), make_agent(method)
    before, between, after = (Stream.draw(seed) for seed in (0, 1, 2))
    active = np.array([True, False, True, False])
    for each in (agent, reference):
        each.explore = each.training = False
        trial(each, before)
    for time in range(4):
        action = agent.act(between.observation[time])
        agent.observe(between.observation[time], action, *between.at(time), active)
    got, expected = live(agent, after), live(reference, after)
    np.testing.assert_allclose(got[:, ~active], expected[:, ~active], atol=1e-5)
    assert (np.abs(got[:, active] - expected[:, active]).max((0, 2)) > 1e-4).all()


@each_kind
@each_method
def test_a_number_that_is_not_finite_does_not_stay_in_an_agent_that_acts(method, kind):
    agent, reference = make_agent(method, kind), make_agent(method, kind)
    for each in (agent, reference):
        each.explore = each.training = False
        trial(each, Stream.draw(0))
    broken, whole = (Stream.draw(1).first(2) for _ in range(2))
    for stream in (broken, whole):
        stream.terminated[:] = stream.truncated[:] = False
    broken.observation[0, 0] = broken.reward[1, 2] = np.nan
    live(agent, broken)
    for time, active in enumerate(([False, True, True, True], [True, True, False, True])):
        action = reference.act(whole.observation[time])
        reference.observe(whole.observation[time], action, *whole.at(time), np.array(active))
    got, expected = (live(each, Stream.draw(2)) for each in (agent, reference))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, atol=1e-5)


@each_method
def test_a_partly_renewed_trial_forgets_only_the_renewed_rows(method):
    agent, continued, fresh = (make_agent(method) for _ in range(3))
    before, after = Stream.draw(0), Stream.draw(1)
    renew = np.array([False, True, True, False])
    for each in (agent, continued, fresh):
        each.explore = each.training = False
    trial(agent, before)
    trial(continued, before)
    whole = live(continued, after)
    new = trial(fresh, after)
    got = trial(agent, after, renew)
    np.testing.assert_allclose(got[:, renew], new[:, renew], atol=1e-5)
    np.testing.assert_allclose(got[:, ~renew], whole[:, ~renew], atol=1e-5)
    assert (np.abs(whole - new).max((0, 2)) > 1e-4).all()


@pytest.mark.parametrize("rows", [1, ROWS - 1, ROWS + 1])
def test_a_trial_goes_on_with_the_rows_it_began_with(rows):
    agent, other = make_agent(), make_agent()
    for each in (agent, other):
        each.explore = False
        trial(each, Stream.draw(0))
    observation = np.zeros((rows, 3), np.float32)
    message = f"a trial of {ROWS} rows is running, got {rows} rows: call begin_trial\\({rows}\\)"
    with pytest.raises(UsageError, match=message):
        agent.act(observation)
    with pytest.raises(UsageError, match=message):
        agent.begin_trial(rows, renew=np.arange(rows) > 0)
    np.testing.assert_array_equal(live(agent, Stream.draw(2)), live(other, Stream.draw(2)))
    agent.begin_trial(rows)
    assert len(agent.act(observation)) == rows


def test_no_trial_is_running_at_first():
    with pytest.raises(UsageError, match="a trial of 0 rows is running, got 4 rows"):
        make_agent().act(Stream.draw(0).observation[0])


def test_a_new_trial_remembers_nothing():
    agent, fresh = make_agent(), make_agent()
    agent.explore = fresh.explore = False
    trial(agent, Stream.draw(0))
    np.testing.assert_array_equal(trial(agent, Stream.draw(1)), trial(fresh, Stream.draw(1)))


@each_method
def test_its_memory_can_be_looked_at_row_by_row(method):
    agent = make_agent(method)
    agent.begin_trial(ROWS)
    assert not agent.trial_state().any()
    live(agent, Stream.draw(0))
    if method == "mlp":
        assert agent.trial_state().size == 0
        return
    states = [agent.trial_state(row) for row in range(ROWS)]
    assert all(state.any() for state in states)
    assert not np.array_equal(states[0], states[1])
    agent.begin_trial(ROWS, np.arange(ROWS) == 1)
    assert [agent.trial_state(row).any() for row in (0, 1)] == [True, False]
    assert states[1].any()  # what was looked at stays as it was


def test_the_memory_goes_on_over_the_end_of_an_episode():
    agent, other = make_agent(), make_agent()
    agent.explore = other.explore = False
    stream = Stream.draw(0)
    stream.terminated[:], stream.truncated[:] = False, False
    stream.terminated[6] = True
    changed = replace(stream, observation=stream.observation.copy())
    changed.observation[2] *= -1
    moved = np.abs(trial(agent, stream) - trial(other, changed)).max((1, 2))
    assert moved[1] == 0
    assert (moved[[2, 7]] > 1e-4).all()


@each_kind
def test_it_sees_its_observation_last_action_last_reward_and_whether_an_episode_starts(kind):
    agent = make_agent(kind=kind)
    stream = Stream.draw(0)
    trial(agent, stream)
    experience = agent.take_experience()
    encoded = agent.policy.head.encode(experience["action"])
    ended = torch.from_numpy(stream.terminated | stream.truncated).float()
    first = [torch.zeros(1, *encoded.shape[1:]), torch.zeros(1, ROWS, 1), torch.ones(1, ROWS, 1)]
    later = [encoded, torch.from_numpy(stream.reward)[..., None], ended[..., None]]
    previous = [torch.cat([start, rest[:-1]]) for start, rest in zip(first, later, strict=True)]
    expected = torch.cat([torch.from_numpy(stream.observation), *previous], -1)  # no statistics yet: nothing is scaled
    torch.testing.assert_close(experience["inputs"], expected)


# --- experience -------------------------------------------------------------------------------------------------------


def test_an_agent_that_does_not_train_keeps_no_experience_and_no_statistics():
    agent = make_agent()
    agent.training = agent.explore = False
    before = snapshot(agent)
    trial(agent, Stream.draw(0))
    assert_same(agent.state_dict(), before)
    with pytest.raises(UsageError, match="holds no experience"):
        agent.take_experience()


def test_training_takes_no_inactive_rows():
    agent = make_agent()
    stream = Stream.draw(0)
    agent.begin_trial(ROWS)
    action = agent.act(stream.observation[0])
    with pytest.raises(UsageError, match="training needs every row in every step"):
        agent.observe(stream.observation[0], action, *stream.at(0), np.array([True, True, False, True]))
    with pytest.raises(UsageError, match="holds no experience"):
        agent.take_experience()


def test_an_update_consumes_the_experience_and_moves_the_statistics():
    agent = make_agent()
    stream = Stream.draw(0)
    trial(agent, stream)
    agent.update()
    assert int(agent.state_dict()["moments.count"]) == STEPS * ROWS
    seen = np.concatenate([stream.observation, stream.reward[..., None]], -1).reshape(-1, 4)
    np.testing.assert_allclose(agent.state_dict()["moments.mean"], seen.mean(0), rtol=1e-5)
    with pytest.raises(UsageError, match="holds no experience"):
        agent.update()


@each_kind
@each_method
def test_experience_given_to_a_copy_makes_the_same_update(method, kind):
    learner, collector = make_agent(method, kind), make_agent(method, kind)
    for agent in (learner, collector):
        learn(agent, [0])
        trial(agent, Stream.draw(1))
    copy = make_agent(method, kind, seed=7)
    copy.load_state_dict(snapshot(collector))
    shipped = {name: tensor.clone() for name, tensor in collector.take_experience().items()}
    copy.give_experience(shipped)
    assert copy.update() == learner.update()
    assert_same(copy.state_dict(), learner.state_dict())
    with pytest.raises(UsageError, match="holds no experience"):
        collector.take_experience()


def test_worlds_may_reuse_their_arrays():
    agent, other = make_agent(), make_agent()
    stream, reused = Stream.draw(0), Stream.draw(1)
    trial(agent, stream)
    other.begin_trial(ROWS)
    for time in range(STEPS):
        for name, values in vars(reused).items():
            values[0] = getattr(stream, name)[time]
        other.observe(reused.observation[0], other.act(reused.observation[0]), *reused.at(0))
    for values in vars(reused).values():
        values[0] = 1
    assert other.update() == agent.update()
    assert_same(other.state_dict(), agent.state_dict())


@each_kind
@each_method
def test_what_was_stored_equals_the_sequence_from_the_first_memory(method, kind):
    """Rows at different ages of their trials, statistics in use: the collecting policy must be met again exactly."""
    agent = make_agent(method, kind, WHOLE)
    trial(agent, Stream.draw(0))
    agent.update()
    for seed, renew in ((1, [True, False, False, True]), (2, [False, True, False, False])):
        trial(agent, Stream.draw(seed), np.array(renew))
        experience = {name: tensor.clone() for name, tensor in agent.take_experience().items()}
        output, value, _ = agent.policy(experience["inputs"], experience["first_memory"])
        torch.testing.assert_close(output, experience["output"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(value, agent.policy.value(experience["features"]), atol=1e-5, rtol=1e-4)
        agent.give_experience(experience)
        metrics = agent.update()
        assert metrics["kl"] == pytest.approx(0, abs=1e-7)
        assert metrics["clip_fraction"] == 0
        assert metrics["policy_loss"] == pytest.approx(0, abs=1e-4)  # normalised advantages, every ratio 1


@each_method
def test_a_trial_that_goes_on_after_an_update_is_learned_from_as_it_went(method):
    agent = make_agent(method, config=replace(WHOLE, learning_rate=1e-9))
    trial(agent, Stream.draw(0))
    agent.update()
    live(agent, Stream.draw(1))
    assert agent.update()["kl"] == pytest.approx(0, abs=1e-7)
    for agent.training in (False, True):
        live(agent, Stream.draw(2))
    assert agent.update()["kl"] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "mlp"])
def test_another_first_memory_would_show(method):
    agent = make_agent(method, config=WHOLE)
    for seed in (0, 1):
        trial(agent, Stream.draw(seed), np.array([seed == 0] * ROWS))
        experience = agent.take_experience()
    agent.give_experience(experience | {"first_memory": torch.zeros_like(experience["first_memory"])})
    assert agent.update()["kl"] > 1e-5


# --- learning ---------------------------------------------------------------------------------------------------------


def metrics_after(stream, **changes):
    agent = make_agent(config=replace(WHOLE, **changes))
    trial(agent, stream)
    return agent.update()


def test_the_final_observation_counts_at_a_truncation_and_not_at_a_termination():
    stream = Stream.draw(0)
    stream.terminated[:], stream.truncated[:] = False, False
    stream.terminated[3, 0] = stream.truncated[5, 1] = True
    expected = metrics_after(stream)
    for time, row, counts in ((3, 0, False), (5, 1, True), (7, 2, False)):
        changed = replace(stream, next_observation=stream.next_observation.copy())
        changed.next_observation[time, row] += 1
        assert (metrics_after(changed)["value_loss"] != expected["value_loss"]) == counts


def test_the_successor_of_the_last_step_counts_unless_the_episode_terminated():
    stream = Stream.draw(0)
    stream.terminated[-1], stream.truncated[-1] = [True, False, False, False], [False, True, False, False]
    expected = metrics_after(stream)["value_loss"]
    for row, counts in enumerate([False, True, True, True]):
        changed = replace(stream, next_observation=stream.next_observation.copy())
        changed.next_observation[-1, row] += 1
        assert (metrics_after(changed)["value_loss"] != expected) == counts


def test_advantages_and_targets_by_a_plain_loop():
    """The discount, the trace and the reward's scale, each in its own place."""
    agent = make_agent(config=replace(WHOLE, discount=0.9, trace=0.5, reward_scale=0.3))
    trial(agent, Stream.draw(0))
    experience = agent.take_experience()
    batch = agent._with_targets(dict(experience))
    value = agent.policy.value(experience["features"])
    following, estimate, advantage = experience["last_value"], torch.zeros(ROWS), torch.zeros(STEPS, ROWS)
    for time in reversed(range(STEPS)):
        terminated, truncated = experience["terminated"][time], experience["truncated"][time]
        following = torch.where(truncated, experience["final_value"][time], following).masked_fill(terminated, 0.0)
        error = 0.3 * experience["reward"][time] + 0.9 * following - value[time]
        estimate = error + 0.9 * 0.5 * estimate.masked_fill(terminated | truncated, 0.0)
        following, advantage[time] = value[time], estimate
    torch.testing.assert_close(batch["target"], advantage + value, atol=1e-5, rtol=1e-5)
    normal = (advantage - advantage.mean()) / advantage.std(correction=0)
    torch.testing.assert_close(batch["advantage"], normal, atol=1e-5, rtol=1e-5)


@each_method
def test_what_follows_a_cut_is_worth_what_it_is_where_the_episode_goes_on(method):
    """From the memory, the action and the reward of that step."""
    stream = Stream.draw(0)
    stream.terminated[:], stream.truncated[:] = False, False
    stream.next_observation[:-1] = stream.observation[1:]
    cut = replace(stream, truncated=stream.truncated.copy())
    cut.truncated[5, 1] = True
    whole, truncated, ended = make_agent(method), make_agent(method), make_agent(method)
    trial(whole, stream)
    trial(truncated, cut)
    trial(ended, stream.first(6))
    expected = whole.policy.value(whole.take_experience()["features"][6])
    torch.testing.assert_close(truncated.take_experience()["final_value"][5, 1], expected[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ended.take_experience()["last_value"], expected, atol=1e-5, rtol=1e-5)


def test_losses_by_hand():
    """Ratios on both sides of the clip, with advantages of both signs."""
    agent = make_agent(kind="discrete", config=replace(WHOLE, clip=0.2, value_weight=0.25, entropy_weight=0.5))
    trial(agent, Stream.draw(0))
    held = agent.take_experience()
    output, value, _ = agent.policy(held["inputs"], held["first_memory"])
    policy = torch.distributions.Categorical(logits=output)
    ratio = torch.linspace(0.51, 1.47, STEPS * ROWS).view(STEPS, ROWS)
    advantage = torch.tensor([1.0, -2.0, 3.0, -1.0]).expand(STEPS, ROWS)
    before = policy.log_prob(held["action"]) - ratio.log()
    losses, measures = agent._losses(
        held["first_memory"], held["inputs"], held["action"], before, advantage, value - 2.0
    )
    pairs = [*zip(ratio.flatten().tolist(), advantage.flatten().tolist(), strict=True)]
    gained = np.mean([min(r * a, min(max(r, 0.8), 1.2) * a) for r, a in pairs])
    entropy = policy.entropy().mean().item()
    assert [loss.item() for loss in losses] == pytest.approx([-gained, 0.25 * 4.0, -0.5 * entropy], rel=1e-4)
    moved, clipped = np.mean([r - 1 - np.log(r) for r, _ in pairs]), np.mean([abs(r - 1) > 0.2 for r, _ in pairs])
    assert [measure.item() for measure in measures] == pytest.approx([4.0, entropy, moved, clipped], rel=1e-4)


def test_returns_may_flow_over_the_ends_of_episodes():
    stream = Stream.draw(0)
    never = replace(stream, terminated=np.zeros_like(stream.terminated), truncated=np.zeros_like(stream.truncated))
    agents = [make_agent(config=replace(WHOLE, discount_across_episodes=across)) for across in (True, False)]
    for agent in agents:
        trial(agent, never)
    unbroken = [agent.update()["value_loss"] for agent in agents]
    assert unbroken[0] == unbroken[1]
    # The flags still reach the policy's input, so experience is made to differ in nothing but them.
    losses = []
    for across in (True, False):
        agent = make_agent(config=replace(WHOLE, discount_across_episodes=across))
        trial(agent, never)
        flags = {name: torch.from_numpy(getattr(stream, name)) for name in ("terminated", "truncated")}
        agent.give_experience(agent.take_experience() | flags)
        losses.append(agent.update()["value_loss"])
    assert losses[0] == unbroken[0]
    assert losses[1] != unbroken[0]


def test_what_follows_an_episode_that_ends_with_the_data_is_not_made_up():
    stream = Stream.draw(0)
    stream.terminated[-1], stream.truncated[-1] = [True, False, False, False], [False, True, False, False]
    expected = metrics_after(stream, discount_across_episodes=True)["value_loss"]
    for row, counts in enumerate([False, False, True, True]):
        for name in ("next_observation", "reward"):
            changed = replace(stream, **{name: getattr(stream, name).copy()})
            getattr(changed, name)[-1, row] += 1
            assert (metrics_after(changed, discount_across_episodes=True)["value_loss"] != expected) == counts


def test_a_step_that_is_left_out_moves_no_policy():
    """Its advantage is 0, whatever the mean of the others."""
    stream = Stream.draw(0)
    stream.terminated[-1], stream.truncated[-1] = [True, False, False, False], [False, True, False, False]
    agent = make_agent(config=replace(WHOLE, discount_across_episodes=True))
    trial(agent, stream)
    advantage = agent._with_targets(agent.take_experience())["advantage"]
    assert advantage[-1, :2].tolist() == [0.0, 0.0]
    others = torch.cat([advantage[:-1].flatten(), advantage[-1, 2:]])
    assert float(others.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(others.std(correction=0)) == pytest.approx(1.0, rel=1e-5)


def test_given_experience_takes_the_place_of_the_own_and_ends_with_the_trial():
    giver, taker = make_agent(seed=3), make_agent()
    trial(giver, Stream.draw(1))
    trial(taker, Stream.draw(0))
    experience = giver.take_experience()
    taker.give_experience(experience)
    taker.update()
    with pytest.raises(UsageError, match="holds no experience"):
        taker.update()
    taker.give_experience(experience)
    trial(taker, Stream.draw(0))
    assert not torch.equal(taker.take_experience()["reward"], experience["reward"])


def test_repeated_updates_on_the_same_data_fit_the_critic():
    agent = make_agent(config=replace(WHOLE, discount=0.0, reward_scale=1.0), num_updates=10_000)
    trial(agent, Stream.draw(0))
    experience = agent.take_experience()
    losses = []
    for _ in range(60):
        agent.give_experience({name: tensor.clone() for name, tensor in experience.items()})
        losses.append(agent.update()["value_loss"])
    assert losses[-1] < 0.5 * losses[0]


def test_a_single_transition_is_enough_for_an_update():
    """Its advantage, normalised, is 0: the actor is left alone and nothing is divided by nothing."""
    agent = make_agent(config=replace(WHOLE, entropy_weight=0.0))
    actor = snapshot(agent)["policy.actor.2.mean.weight"]
    trial(agent, Stream.draw(0).first(1).rows([2]))
    metrics = agent.update()
    assert metrics["policy_loss"] == 0
    assert all(np.isfinite(value) for value in metrics.values())
    assert torch.equal(snapshot(agent)["policy.actor.2.mean.weight"], actor)


@pytest.mark.parametrize("really", [False, pytest.param(True, marks=[needs_compiler, pytest.mark.nightly])])
@each_kind
@pytest.mark.parametrize("method", ["ssm", "transformer", "mlp"])
def test_compiled_it_acts_and_learns_the_same(method, kind, really, monkeypatch):
    if not really:  # programs are the traces themselves, which takes no time
        monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)
    plain, compiled = make_agent(method, kind), make_agent(method, kind, replace(CONFIG, compile=True))
    for seed in range(3):
        stream = Stream.draw(seed)
        np.testing.assert_allclose(trial(compiled, stream), trial(plain, stream), atol=1e-4)
        assert compiled.update() == pytest.approx(plain.update(), rel=1e-3, abs=1e-5)
    assert len(compiled._programs._programs) == 3
    assert plain._programs is None
    one, other = snapshot(plain), snapshot(compiled)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=1e-4)


def test_a_compiled_agent_is_measured_uncompiled(monkeypatch):
    """Measurements have other numbers of rows, each of which would be another program."""
    monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)
    agent = make_agent(config=replace(CONFIG, compile=True))
    agent.training = False
    trial(agent, Stream.draw(0))
    assert not agent._programs._programs


def test_long_runs_are_compiled_where_that_is_possible(monkeypatch):
    for compiler in (True, False):
        monkeypatch.setattr("metarl.meta_rl.compiled.can_compile", lambda: compiler)  # noqa: B023
        compiled = {
            (method, steps)
            for method in METHODS
            for steps in (0, COMPILED_STEPS - 1, COMPILED_STEPS)
            if make_agent(method, env_steps=steps).compiles
        }
        methods = ("ssm", "transformer", "mlp") if compiler else ()
        assert compiled == {(method, COMPILED_STEPS) for method in methods}
    for asked in (True, False):
        assert make_agent(config=replace(CONFIG, compile=asked), env_steps=COMPILED_STEPS).compiles == asked


def test_agents_compile_in_threads_as_one_after_the_other(monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)
    at_once, in_turn = (
        [make_agent(config=replace(CONFIG, compile=True), seed=seed) for seed in range(4)] for _ in "12"
    )
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda agent: learn(agent, [0])[0], at_once))
    assert [len(agent._programs._programs) for agent in at_once] == [3] * 4
    for metrics, agent in zip(found, in_turn, strict=True):
        assert metrics == pytest.approx(learn(agent, [0])[0], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["gru", "lstm"])
def test_what_cannot_be_compiled_is_refused(method):
    with pytest.raises(UsageError, match=r"^--compile True goes with ssm, transformer or mlp .*: leave it out$"):
        make_agent(method, config=replace(CONFIG, compile=True))


def test_the_learning_rate_stays_where_the_length_of_the_run_is_unknown():
    assert {metrics["learning_rate"] for metrics in learn(make_agent(), range(3))} == {CONFIG.learning_rate}


def test_the_learning_rate_falls_linearly_to_five_percent():
    agent = make_agent(num_updates=4)
    rates = [metrics["learning_rate"] / CONFIG.learning_rate for metrics in learn(agent, range(6))]
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.05, 0.05])


def test_an_update_reports_finite_numbers():
    for metrics in learn(make_agent(), [0, 1]):
        assert {"policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "grad_norm"} < metrics.keys()
        assert all(isinstance(value, float) and np.isfinite(value) for value in metrics.values())


def test_an_update_ends_once_the_policy_has_moved_too_far():
    wide = make_agent(config=replace(CONFIG, update_epochs=6, learning_rate=3e-2))
    tight = make_agent(config=replace(CONFIG, update_epochs=6, learning_rate=3e-2, max_divergence=0.05))
    (free,), (held,) = learn(wide, [0]), learn(tight, [0])
    assert free["minibatches"] == 6 * CONFIG.num_minibatches
    assert 1 <= held["minibatches"] < free["minibatches"]
    assert 0.05 < held["kl"] < free["kl"]  # what ended the update is reported


def test_an_update_that_went_too_far_goes_back_to_the_limit():
    limits = {"learning_rate": 3e-2, "max_divergence": 0.05, "num_minibatches": 1}
    agent = make_agent(config=replace(CONFIG, update_epochs=12, **limits))
    trial(agent, Stream.draw(0))
    experience = {name: tensor.clone() for name, tensor in agent.take_experience().items()}
    agent.give_experience(experience)
    assert agent.update()["kl"] > 0.3
    agent.config = replace(agent.config, update_epochs=1)
    agent.give_experience(experience)
    assert agent.update()["kl"] == pytest.approx(0.05, abs=0.02)  # before the one step that this takes


def test_experience_of_another_policy_still_gets_one_step():
    agent, other = make_agent(config=replace(CONFIG, max_divergence=1e-9)), make_agent(seed=3)
    trial(other, Stream.draw(0))
    agent.give_experience(other.take_experience())
    before = agent._parameters.values.clone()
    assert agent.update()["minibatches"] == 1
    assert (agent._parameters.values - before).abs().max() > CONFIG.learning_rate / 2


def test_more_minibatches_than_rows_are_as_many_as_rows():
    agents = [make_agent(config=replace(CONFIG, num_minibatches=number)) for number in (ROWS, 50)]
    for agent in agents:
        learn(agent, [0])
    assert_same(agents[0].state_dict(), agents[1].state_dict())


class Idle(NoMemory):
    """A memory with a parameter that does nothing."""

    def __init__(self, config):
        super().__init__(config)
        self.idle = torch.nn.Parameter(torch.ones(3))


def test_a_parameter_that_nothing_depends_on_stays(monkeypatch):
    monkeypatch.setattr("metarl.core.memory._METHODS", {"idle": Idle})
    agent = make_agent("idle", stirred=False)
    learn(agent, [0])
    assert torch.equal(agent.policy.memory.idle, torch.ones(3))


def test_a_reward_that_is_not_finite_stops_training_with_the_agent_as_it_was():
    agent = make_agent()
    learn(agent, [0])
    stream = Stream.draw(1)
    stream.reward[4, 2] = np.nan
    before = snapshot(agent)
    trial(agent, stream)
    with pytest.raises(TrainingDiverged, match="the policy loss"):
        agent.update()
    after = snapshot(agent)
    for state in (before, after):
        del state["counters.generator"]
    assert_same(after, before)


@each_kind
@each_method
def test_a_restored_agent_goes_on_as_the_old_one(method, kind):
    agent, restored = make_agent(method, kind), make_agent(method, kind, seed=3)
    learn(agent, [0, 1])
    restored.load_state_dict(snapshot(agent))
    assert learn(restored, [2, 3]) == learn(agent, [2, 3])
    assert_same(restored.state_dict(), agent.state_dict())


@each_method
def test_a_running_trial_goes_on_with_the_parameters_of_the_last_update_or_restored_state(method):
    """What acting keeps prepared for fixed parameters is prepared anew, also in a trial that is not begun again."""
    agent, restored = make_agent(method), make_agent(method, seed=3)
    for each in (agent, restored):
        trial(each, Stream.draw(0))
        each.explore = False
    agent.update()
    restored.load_state_dict(snapshot(agent))
    for each in (agent, restored):
        observation = Stream.draw(1).observation[0]
        each.act(observation)
        output, _, memory = each.policy(each._step.inputs[None], each._memory)
        torch.testing.assert_close(each._step.output, output[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(each._step.memory, memory, atol=1e-5, rtol=1e-4)


def test_a_state_that_was_taken_stands_still_while_the_agent_learns():
    agent = make_agent()
    learn(agent, [0])
    taken, copy = agent.state_dict(), snapshot(agent)
    learn(agent, [1])
    assert_same(taken, copy)
    assert not torch.equal(agent.state_dict()["policy.actor.2.mean.weight"], copy["policy.actor.2.mean.weight"])


def test_restoring_an_untrained_state_forgets_all_learning():
    agent = make_agent()
    start = snapshot(agent)
    first = learn(agent, [0, 1])
    agent.load_state_dict(start)
    assert learn(agent, [0, 1]) == first


# --- configs ----------------------------------------------------------------------------------------------------------

CHANGED = {
    "learning_rate": 2e-2,
    "discount": 0.5,
    "trace": 0.5,
    "clip": 1e-4,
    "max_divergence": 1e-6,
    "update_epochs": 3,
    "num_minibatches": 4,
    "entropy_weight": 0.5,
    "value_weight": 2.0,
    "grad_clip_norm": 1e-3,
    "reward_scale": 1.0,
    "update_steps": STEPS + 1,
    "continuation": 0.25,
    "discount_across_episodes": True,
    "compile": True,
}


@pytest.mark.parametrize("field", [field.name for field in fields(RL2Config)])
def test_every_field_of_the_config_makes_a_difference(field):
    assert field in CHANGED, "give the new field a value that must make a difference"
    changed = make_agent(config=replace(CONFIG, **{field: CHANGED[field]}))
    base = make_agent()
    if field in ("update_steps", "continuation"):  # read by whoever runs the trials
        seen = {"update_steps": "round_steps"}.get(field, field)
        assert getattr(changed, seen) == CHANGED[field] != getattr(base, seen)
        return
    if field == "compile":  # which changes how, not what
        assert (changed.compiles, base.compiles) == (True, False)
        return
    learn(changed, [0])
    learn(base, [0])
    after, before = changed.state_dict(), base.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in after if name.startswith("policy."))


def test_trials_of_recurrent_memories_last_longer_unless_the_config_says_how_long():
    assert {method: make_agent(method).continuation for method in METHODS} == {
        "ssm": 0.75,
        "gru": 0.95,
        "lstm": 0.95,
        "transformer": 0.75,
        "mlp": 0.75,
    }
    assert {make_agent(method, config=replace(CONFIG, continuation=0.5)).continuation for method in METHODS} == {0.5}


def test_the_familys_reward_scale_holds_where_the_config_has_none():
    spaces_of = (OBSERVATIONS, ACTIONS["discrete"])
    assert RL2Agent(*spaces_of).reward_scale == 0.1
    assert RL2Agent(*spaces_of, reward_scale=0.01).reward_scale == 0.01
    assert RL2Agent(*spaces_of, RL2Config(reward_scale=2.0), reward_scale=0.01).reward_scale == 2.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("discount", 1.1),
        ("discount", -0.1),
        ("trace", 1.1),
        ("clip", 0.0),
        ("max_divergence", 0.0),
        ("update_epochs", 0),
        ("num_minibatches", 0),
        ("grad_clip_norm", 0.0),
        ("reward_scale", -1.0),
        ("update_steps", 0),
        ("continuation", 1.0),
        ("learning_rate", float("nan")),
    ],
)
def test_a_config_out_of_range_is_a_one_line_error(field, value):
    with pytest.raises(UsageError, match=f"^--{field.replace('_', '-')} .*got {value}") as error:
        RL2Config(**{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (4, 4)), spaces.Discrete(3)], ids=["image", "number"])
def test_observations_need_one_axis(space):
    with pytest.raises(UsageError, match="one axis"):
        RL2Agent(space, ACTIONS["discrete"])


def test_the_algorithm_is_known_by_name():
    assert "rl2" in ALGOS
    algorithm = find_algorithm("rl2")
    assert (algorithm.config_class, algorithm.make) == (RL2Config, RL2Agent)
    with pytest.raises(UsageError, match=r"unknown algo 'rl3': choose from .*did you mean 'rl2'"):
        find_algorithm("rl3")
