"""MetaMAMLAgent by its contract and by its numbers. Worlds here are recorded streams, the same whatever the agent does:
what two agents do in them can be compared action by action."""

from __future__ import annotations

import math
from collections import OrderedDict
from copy import deepcopy
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from metarl.core.errors import UsageError
from metarl.core.memory import METHODS, MemoryConfig
from metarl.core.optimization import TrainingDiverged
from metarl.core.policy import Actor
from metarl.core.policy_gradient import with_advantages
from metarl.meta_rl import meta_objective, trust_region
from metarl.meta_rl.compiled import COMPILED_STEPS, can_compile
from metarl.meta_rl.maml_agent import MAMLConfig, MetaMAMLAgent, make_maml_agent
from metarl.meta_rl.maml_config import OF_OUTER
from metarl.meta_rl.meta_maml import MetaMAML
from metarl.meta_rl.trial_parts import TrialParts

needs_compiler = pytest.mark.skipif(not can_compile(), reason="torch compiles with g++, which is not installed")

OBSERVATIONS = spaces.Box(-5.0, 5.0, (3,), np.float32)
ACTIONS = {
    "continuous": spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 3.0], np.float32)),
    "discrete": spaces.Discrete(3, start=1),
}
ROWS, TASK_ROWS, STEPS = 4, 2, 6
TASKS = ROWS // TASK_ROWS
SMALL = MemoryConfig(method="mlp", width=8, state_dim=8, heads=2, context=5)
COMMON = {"trial_rows": TASK_ROWS, "inner_lr": 0.5}
TRPO = MAMLConfig(**COMMON, curvature_share=1.0)
PPO = MAMLConfig(**COMMON, outer="ppo", update_epochs=3, learning_rate=1e-2)
OUTER = {"trpo": TRPO, "ppo": PPO}
VARIANTS = {
    "maml": TRPO,
    "promp": PPO,
    "fomaml": replace(TRPO, first_order=True),
    "reptile": replace(PPO, reptile=True),
    "anil": replace(TRPO, adapt="head"),
    "metasgd": replace(TRPO, learn_rates=True),
}
REMEMBERING = [method for method in METHODS if method != "mlp"]


class Stream(dict):
    """Recorded transitions by name: observation, next_observation [T, B, 3], reward, terminated, truncated, active
    [T, B]."""

    @classmethod
    def draw(cls, seed, steps=STEPS, rows=ROWS, ends=True):
        """Row 0 terminates after step 2, row 1 is truncated after step 3 and row 3 after the last; others go on."""
        generator = np.random.default_rng(seed)
        observation = generator.normal(0.5, 1.5, (steps + 1, rows, 3)).astype(np.float32)
        terminated, truncated = np.zeros((2, steps, rows), dtype=bool)
        if ends:
            terminated[2, 0] = truncated[3, 1 % rows] = truncated[-1, -1] = True
        final = generator.normal(0.5, 1.5, (steps, rows, 3)).astype(np.float32)
        return cls(
            observation=observation[:-1],
            next_observation=np.where((terminated | truncated)[..., None], final, observation[1:]),
            reward=generator.normal(0.0, 3.0, (steps, rows)).astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            active=np.ones((steps, rows), dtype=bool),
        )

    def rows(self, rows):
        return Stream({name: values[:, rows] for name, values in self.items()})

    def changed(self, place, **values):
        copy = Stream({name: array.copy() for name, array in self.items()})
        for name, value in values.items():
            copy[name][place] = value
        return copy

    def one_episode_each(self):
        """Rows are inactive from the end of their first episode on."""
        ended = np.logical_or.accumulate(self["terminated"] | self["truncated"])
        active = np.ones_like(ended)
        active[1:] = ~ended[:-1]
        return Stream(self, active=active)

    def at(self, time):
        """The arguments of `observe` after the action."""
        names = ("reward", "terminated", "truncated", "next_observation", "active")
        return tuple(self[name][time] for name in names)


def make_agent(config=TRPO, kind="continuous", method="mlp", seed=0, stirred=True, **options):
    """An agent; stirred: with an output that is large enough for differences to show."""
    memory = replace(SMALL, method=method)
    agent = make_maml_agent(OBSERVATIONS, ACTIONS[kind], config, memory, seed=seed, **options)
    if stirred:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in agent.actor.named_parameters():
                if not name.endswith("log_std"):
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return agent


def live(agent, stream, acts_per_step=1):
    """Go through a stream without beginning a trial; returns the actions [T, B, ...]."""
    actions = []
    for time in range(len(stream["reward"])):
        for _ in range(acts_per_step):
            action = agent.act(stream["observation"][time])
        agent.observe(stream["observation"][time], action, *stream.at(time))
        actions.append(action)
    return np.stack(actions)


def trial(agent, seeds, **options):
    """A trial of as many rounds as seeds, up to the end of the last round; returns the actions of each round."""
    agent.begin_trial(options.get("rows", ROWS))
    actions = [live(agent, Stream.draw(seeds[0], **options))]
    for seed in seeds[1:]:
        agent.adapt()
        actions.append(live(agent, Stream.draw(seed, **options)))
    return actions


def learn(agent, updates, first=0):
    """Updates from fresh trials; returns the metrics of each."""
    metrics = []
    for number in range(updates):
        seeds = range(first + 10 * number, first + 10 * number + agent.trial_rounds)
        trial(agent, seeds)
        metrics.append(agent.update())
    return metrics


def outputs(agent, stream):
    """What the policy says [T, B, output] going through a stream without exploration."""
    agent.explore = False
    live(agent, stream)
    agent.explore = True
    return agent._collected()["output"][-STEPS:].numpy()


def meta_parameters(agent):
    """All that is saved but the random stream, which acting moves."""
    state = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    del state["generator"]
    return state


def learned(agent):
    return {name: value.clone() for name, value in meta_parameters(agent).items() if name.startswith("maml.learned.")}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])), name


def moved(one, other):
    """Names of what differs."""
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


each_kind = pytest.mark.parametrize("kind", ACTIONS)
each_method = pytest.mark.parametrize("method", METHODS)
each_policy = pytest.mark.parametrize(
    ("method", "kind"), [*((method, "continuous") for method in METHODS), ("mlp", "discrete")]
)
each_learner = pytest.mark.parametrize(
    ("variant", "method", "kind"),
    [
        *((variant, "mlp", "continuous") for variant in VARIANTS),
        *(("promp", method, "continuous") for method in ("ssm", "gru", "transformer")),
        *((variant, "mlp", "discrete") for variant in ("maml", "promp")),
    ],
)
each_outer = pytest.mark.parametrize("outer", OUTER)
each_variant = pytest.mark.parametrize("variant", VARIANTS)


# --- acting -----------------------------------------------------------------------------------------------------------


@each_policy
def test_acting_again_changes_nothing(method, kind):
    once, often = make_agent(kind=kind, method=method), make_agent(kind=kind, method=method)
    for agent in (once, often):
        agent.begin_trial(ROWS)
    for seed in (0, 1):
        stream = Stream.draw(seed)
        np.testing.assert_array_equal(live(often, stream, acts_per_step=3), live(once, stream))
        assert_same(often.adapt(), once.adapt())
    assert_same(often.state_dict(), once.state_dict())
    assert_same(often._params, once._params)


@each_kind
def test_actions_belong_to_the_action_space(kind):
    agent = make_agent(kind=kind)
    for actions in trial(agent, [0, 1]):
        assert all(ACTIONS[kind].contains(action) for row in actions for action in row)
        assert len(np.unique(actions)) > 2


@each_policy
def test_a_single_observation_is_a_batch_of_one_row(method, kind):
    """A trial of one row is a block of its own, also where blocks have more; it adapts to what that row saw."""
    single, batch = make_agent(kind=kind, method=method), make_agent(kind=kind, method=method)
    single.begin_trial(1)
    for seed, expected in zip((0, 1), trial(batch, [0, 1], rows=1), strict=True):
        stream = Stream.draw(seed, rows=1)
        for time in range(STEPS):
            observation = stream["observation"][time, 0]
            action = single.act(observation)
            assert np.shape(action) == ACTIONS[kind].shape
            np.testing.assert_array_equal(action, expected[time, 0])
            reward, terminated, truncated, following, _ = (part[0] for part in stream.at(time))
            single.observe(observation, action, float(reward), bool(terminated), bool(truncated), following)
        if seed == 0:
            single.adapt()
    assert_same(single.take_experience(), batch.take_experience())


@each_kind
def test_without_exploration_it_takes_the_mode_and_draws_nothing(kind):
    agent, other = make_agent(kind=kind), make_agent(kind=kind)
    agent.explore = other.explore = False
    other.seed(99)
    before = agent.state_dict()["generator"].clone()
    np.testing.assert_array_equal(trial(agent, [0]), trial(other, [0]))
    assert torch.equal(agent.state_dict()["generator"], before)
    taken = agent.take_experience()
    assert torch.equal(taken["0.action"], agent.actor.head.mode(taken["0.output"]))


@each_kind
def test_exploring_follows_from_the_seed(kind):
    actions = {}
    for seed in (5, 6):
        for copy in range(2):
            agent = make_agent(kind=kind)
            agent.seed(seed)
            actions[seed, copy] = np.stack(trial(agent, [0, 1]))
    np.testing.assert_array_equal(actions[5, 0], actions[5, 1])
    assert not np.array_equal(actions[5, 0], actions[6, 0])


def test_the_seed_of_the_agent_draws_its_parameters_and_the_global_stream_is_left_alone():
    before = torch.get_rng_state()
    agents = [make_agent(seed=seed, stirred=False) for seed in (1, 1, 2)]
    assert_same(agents[0].state_dict(), agents[1].state_dict())
    assert "maml.learned.model.encoder.0.weight" in moved(agents[0].state_dict(), agents[2].state_dict())
    learn(agents[0], 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rows", [1, TASK_ROWS, ROWS + TASK_ROWS])
def test_a_trial_goes_on_with_the_rows_it_began_with(rows):
    agent = make_agent()
    trial(agent, [0, 1])
    message = f"a trial of {ROWS} rows is running, got {rows} rows: call begin_trial\\({rows}\\)"
    with pytest.raises(UsageError, match=message):
        agent.act(np.zeros((rows, 3), np.float32))
    if rows > 1:
        with pytest.raises(UsageError, match=message):
            agent.begin_trial(rows, renew=np.arange(rows) >= TASK_ROWS)
    agent.begin_trial(rows)
    assert len(agent.act(np.zeros((rows, 3), np.float32))) == rows


def test_no_trial_is_running_at_first():
    with pytest.raises(UsageError, match="a trial of 0 rows is running, got 4 rows"):
        make_agent().act(Stream.draw(0)["observation"][0])


@pytest.mark.parametrize("running", [1, ROWS])
def test_rows_that_are_no_whole_blocks_are_refused_and_the_trial_goes_on(running):
    agent, other = make_agent(), make_agent()
    for each in (agent, other):
        trial(each, [0, 1], rows=running)
    with pytest.raises(UsageError, match=r"rows come in blocks of trial_rows = 2, got 3 rows"):
        agent.begin_trial(3)
    stream = Stream.draw(2, rows=running)
    np.testing.assert_array_equal(live(agent, stream), live(other, stream))


# --- blocks -----------------------------------------------------------------------------------------------------------


@each_policy
def test_tasks_adapted_together_are_tasks_adapted_alone(method, kind):
    """Experience of four rows, given by blocks to agents of two: the same parameters, and the same actions of them."""
    together = make_agent(kind=kind, method=method)
    together.begin_trial(ROWS)
    live(together, Stream.draw(0))
    experience = together.take_experience()
    together.give_experience(experience)
    together.adapt()
    output = outputs(together, Stream.draw(1))
    for task in range(TASKS):
        block = slice(task * TASK_ROWS, (task + 1) * TASK_ROWS)
        alone = make_agent(kind=kind, method=method)
        alone.begin_trial(TASK_ROWS)
        alone.give_experience({name: values[:, block] for name, values in experience.items()})
        alone.adapt()
        for name in alone.maml.adapted:
            torch.testing.assert_close(together._params[name][task], alone._params[name][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(output[:, block], outputs(alone, Stream.draw(1).rows(block)), atol=1e-4)


@each_method
@pytest.mark.parametrize(("at_once", "sizes"), [(10**6, [3]), (2 * STEPS * TASK_ROWS, [2, 1]), (1, [1, 1, 1])])
def test_tasks_adapted_in_groups_are_tasks_adapted_together(method, at_once, sizes, monkeypatch):
    """Twice, from what they share and from what each has; a group is as many tasks as stay in the cache."""
    params, groups = [], []
    for samples in (10**6, at_once):
        agent = make_agent(method=method)
        agent.maml._samples_at_once = samples
        agent.begin_trial(3 * TASK_ROWS)
        step = agent.maml.inner_step
        monkeypatch.setattr(
            agent.maml, "inner_step", lambda *given, step=step: groups.append(len(given[2]["x"])) or step(*given)
        )
        for seed in (0, 1):
            groups.clear()
            live(agent, Stream.draw(seed, rows=3 * TASK_ROWS))
            agent.adapt()
        params.append(agent._params)
    assert groups == sizes
    assert params[0].keys() == params[1].keys()
    for name, together in params[0].items():
        torch.testing.assert_close(params[1][name], together, rtol=1e-4, atol=1e-5)
    assert (params[0]["encoder.0.weight"][0] - params[0]["encoder.0.weight"][2]).abs().max() > 1e-2


@each_method
def test_rows_of_a_block_share_parameters_and_blocks_do_not(method):
    agent = make_agent(method=method)
    trial(agent, [0])
    agent.adapt()
    one = Stream.draw(1).rows([0])
    same = Stream({name: np.repeat(values, ROWS, 1) for name, values in one.items()})
    output = outputs(agent, same)
    np.testing.assert_allclose(output[:, 0], output[:, 1], atol=1e-5)
    np.testing.assert_allclose(output[:, 2], output[:, 3], atol=1e-5)
    assert np.abs(output[:, 0] - output[:, 2]).max() > 1e-3


@each_method
def test_what_one_task_goes_through_leaves_the_others_alone(method):
    outcomes = []
    for change in ({}, {"reward": -9.0}):
        agent = make_agent(method=method)
        agent.begin_trial(ROWS)
        live(agent, Stream.draw(0).changed((slice(3), slice(TASK_ROWS)), **change))
        agent.adapt()
        outcomes.append(outputs(agent, Stream.draw(1)))
    np.testing.assert_array_equal(outcomes[0][:, TASK_ROWS:], outcomes[1][:, TASK_ROWS:])
    assert np.abs(outcomes[0][:, :TASK_ROWS] - outcomes[1][:, :TASK_ROWS]).max() > 1e-3


@each_kind
@each_variant
def test_adapting_changes_the_next_round_and_no_meta_parameter(variant, kind):
    agent, unadapted = make_agent(VARIANTS[variant], kind), make_agent(VARIANTS[variant], kind)
    before = meta_parameters(agent)
    trial(agent, [0])
    metrics = agent.adapt()
    assert metrics["gradient_steps"] == 1
    assert metrics["reward"] == pytest.approx(Stream.draw(0)["reward"].mean(), rel=1e-5)
    assert_same(meta_parameters(agent), before)
    unadapted.begin_trial(ROWS)
    difference = np.abs(outputs(agent, Stream.draw(1)) - outputs(unadapted, Stream.draw(1)))
    assert (difference.max((0, 2)) > 1e-4).all()


@pytest.mark.parametrize("trained", [1, 2])
def test_steps_beyond_those_of_training_shrink(monkeypatch, trained):
    agent = make_agent(replace(TRPO, inner_steps=trained))
    plain, scales = agent.maml.inner_step, []

    def watched(*arguments):
        scales.append(arguments[-1].tolist())
        return plain(*arguments)

    monkeypatch.setattr(agent.maml, "inner_step", watched)
    for _ in range(2):
        trial(agent, range(5))
    assert scales == 2 * [TASKS * [pytest.approx(min(1.0, trained / step))] for step in (1, 2, 3, 4)]


def test_a_task_that_is_kept_goes_on_with_smaller_steps():
    agent = make_agent()
    trial(agent, range(4))
    renew = np.repeat([False, True], TASK_ROWS)
    agent.begin_trial(ROWS, renew)
    assert agent._steps.tolist() == [3.0, 0.0]
    live(agent, Stream.draw(4))
    before, collected = agent._params, agent._collected()
    stepped = agent._adapted(collected)
    agent._steps.zero_()
    whole = agent._adapted(collected)
    for name, value in before.items():
        scales = torch.tensor([1 / 4, 1.0]).view(-1, *[1] * (value.ndim - 1))
        torch.testing.assert_close(stepped[name] - value, scales * (whole[name] - value), atol=1e-6, rtol=1e-4)


def test_what_adapting_changed_can_be_looked_at():
    agent = make_agent(VARIANTS["anil"])
    agent.begin_trial(ROWS)
    assert not agent.trial_state().any()
    live(agent, Stream.draw(0))
    agent.adapt()
    by_row = [agent.trial_state(row) for row in range(ROWS)]
    sizes = [agent.maml.parameters()[name].numel() for name in agent.maml.adapted]
    assert {state.size for state in by_row} == {sum(sizes)}
    assert np.array_equal(by_row[0], by_row[1])
    assert not np.array_equal(by_row[1], by_row[2])
    agent.begin_trial(ROWS)
    assert not agent.trial_state().any()


def test_a_scaled_step_is_so_much_of_a_whole_one():
    agent = make_agent()
    trial(agent, [0])
    start, batch = agent._params, agent._batch(agent._collected())
    whole, half = (
        agent.maml.inner_step(agent.objective.inner_loss, start, batch, False, torch.full((TASKS,), scale))
        for scale in (1.0, 0.5)
    )
    for name, value in start.items():
        torch.testing.assert_close(half[name] - value, 0.5 * (whole[name] - value), atol=1e-6, rtol=1e-4)


@each_method
def test_a_new_trial_remembers_nothing(method):
    agent, fresh = make_agent(method=method), make_agent(method=method)
    trial(agent, [0, 1])
    for each in (agent, fresh):
        each.begin_trial(ROWS)
    assert_same(agent._params, fresh._params)
    np.testing.assert_array_equal(outputs(agent, Stream.draw(2)), outputs(fresh, Stream.draw(2)))


@each_method
def test_a_partly_renewed_trial_renews_whole_blocks_and_keeps_the_others(method):
    agent, kept, fresh = (make_agent(method=method) for _ in range(3))
    trial(agent, [0, 1])
    trial(kept, [0, 1])
    renew = np.repeat([False, True], TASK_ROWS)
    agent.begin_trial(ROWS, renew)
    kept.begin_trial(ROWS, np.zeros(ROWS, dtype=bool))
    fresh.begin_trial(ROWS, np.ones(ROWS, dtype=bool))
    stream = Stream.draw(2)
    got, adapted, new = (outputs(each, stream) for each in (agent, kept, fresh))
    np.testing.assert_allclose(got[:, ~renew], adapted[:, ~renew], atol=1e-6)
    np.testing.assert_allclose(got[:, renew], new[:, renew], atol=1e-5)
    assert (np.abs(adapted - new).max((0, 2)) > 1e-3).all()


@pytest.mark.parametrize("method", ["ssm", "gru", "lstm", "transformer"])
def test_rows_that_are_not_renewed_keep_their_memory(method):
    """Their worlds go on where they stand, and so does the episode in memory."""
    agent, whole = make_agent(method=method), make_agent(method=method)
    stream = Stream.draw(0).changed(np.s_[:, :TASK_ROWS], terminated=False, truncated=False)
    whole.begin_trial(ROWS)
    expected = outputs(whole, stream)
    agent.begin_trial(ROWS)
    outputs(agent, Stream({name: values[:2] for name, values in stream.items()}))
    agent.begin_trial(ROWS, np.repeat([False, True], TASK_ROWS))
    rest = outputs(agent, Stream({name: values[2:] for name, values in stream.items()}))
    np.testing.assert_allclose(rest[:, :TASK_ROWS], expected[2:, :TASK_ROWS], atol=1e-5)


def test_a_kept_block_goes_on_from_where_it_was():
    """Two inner steps, with and without a partial renewal of the other block between them."""
    agent, whole = make_agent(), make_agent()
    trial(agent, [0, 1])
    agent.begin_trial(ROWS, np.repeat([False, True], TASK_ROWS))
    trial(whole, [0, 1])
    whole.begin_trial(ROWS, np.zeros(ROWS, dtype=bool))
    for each in (agent, whole):
        each.seed(3)
        live(each, Stream.draw(2))
        each.adapt()
    for name in agent.maml.adapted:
        torch.testing.assert_close(agent._params[name][0], whole._params[name][0], rtol=1e-5, atol=1e-6)
    assert any(not torch.allclose(agent._params[name][1], whole._params[name][1]) for name in agent.maml.adapted)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_block_is_renewed_as_a_whole(rounds):
    agent = make_agent()
    trial(agent, range(rounds))
    with pytest.raises(UsageError, match="rows 2 by 2 share a task: renew all of a block or none"):
        agent.begin_trial(ROWS, renew=np.array([True, False, True, True]))


# --- episodes ---------------------------------------------------------------------------------------------------------


@each_policy
def test_a_second_episode_of_a_round_begins_as_the_first(method, kind):
    """The same observations twice in a round: a memory makes a difference unless an episode ends between."""
    agent = make_agent(kind=kind, method=method)
    half = STEPS // 2
    stream = Stream.draw(0, ends=False)
    stream["observation"][half:] = stream["observation"][:half]
    ended = stream.changed((half - 1, slice(0, 1)), terminated=True).changed((half - 1, slice(2, 3)), truncated=True)
    agent.begin_trial(ROWS)
    for _ in range(2):  # before adaptation, and with adapted parameters
        live(agent, ended)
        output = agent._collected()["output"]
        same = (output[:half] - output[half:]).abs().amax((0, 2))
        assert (same[[0, 2]] < 1e-5).all()
        if method != "mlp":
            assert (same[[1, 3]] > 1e-4).all()
        agent.adapt()


def test_the_time_of_a_step_is_that_of_its_episode():
    """The baseline is fitted to it."""
    agent = make_agent()
    trial(agent, [0, 1])
    for collected in agent._held():
        assert collected["time"].T.tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 1], [*range(6)], [*range(6)]]


def test_the_advantages_of_a_round_are_by_the_discount_and_the_trace_of_the_config():
    agent = make_agent(replace(TRPO, discount=0.9, trace=0.4))
    trial(agent, [0])
    collected = agent._collected()
    steps = {name: values for name, values in collected.items() if name not in ("raw", "memory")}
    expected = with_advantages(steps, TASK_ROWS, discount=0.9, trace=0.4)["advantage"]
    assert torch.equal(agent._batch(collected)["advantage"], expected)


def test_a_mean_over_groups_counts_every_task_alike():
    groups = [[{"x": torch.tensor(values)}] for values in ([0.0, 1.0, 5.0], [10.0])]
    parts = TrialParts(groups, None, ())
    assert parts.mean(lambda group: (group[0]["x"].mean(),))[0] == 4.0
    product = parts.mean_map(lambda group: lambda vector: group[0]["x"].mean() * vector, 2)
    assert product(torch.tensor([1.0, 2.0])).tolist() == [4.0, 8.0]


@pytest.mark.parametrize("method", REMEMBERING)
def test_a_round_begins_without_a_memory(method):
    agent = make_agent(replace(TRPO, inner_lr=1e-12), method=method)
    second = make_agent(replace(TRPO, inner_lr=1e-12), method=method)
    trial(agent, [0, 1])
    trial(second, [1])
    torch.testing.assert_close(agent._collected()["output"], second._collected()["output"], atol=1e-5, rtol=1e-4)


@each_policy
@pytest.mark.parametrize("window", [4, 50])
def test_what_collected_is_met_again_in_the_losses(window, method, kind):
    """Stepping, with memories emptied row by row, and the whole round, or its windows from the memory held then, give
    the same policy: every ratio is 1."""
    agent = make_agent(replace(PPO, window=window), kind, method)
    learn(agent, 1)  # statistics in use
    trial(agent, [10, 11])
    rounds = agent._held()
    params = [agent.maml.parameters(), agent._params]
    for number, collected in enumerate(rounds):
        batch = agent._batch(collected)
        for task in range(TASKS):
            own = {
                name: value[task] if number and name in agent.maml.adapted else value
                for name, value in params[number].items()
            }
            mine = {name: values[task] for name, values in batch.items()}
            there = mine["active"] > 0  # not what fills up the last window
            assert int(there.sum()) == STEPS * TASK_ROWS
            output = agent.objective.output_of(own, mine)
            torch.testing.assert_close(output[there], mine["output"][there], atol=1e-5, rtol=1e-4)
            log_prob = agent.actor.head.log_prob(output, mine["action"])
            torch.testing.assert_close(log_prob[there], mine["log_prob"][there], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", REMEMBERING)
def test_another_memory_at_a_windows_start_would_show(method):
    agent = make_agent(replace(PPO, window=4, update_epochs=1), method=method)
    metrics = []
    for factor in (1.0, 0.0):
        agent.begin_trial(ROWS)
        agent.seed(0)
        trial(agent, [0, 1])
        experience = agent.take_experience()
        assert experience["0.memory"].shape[0] == 2
        agent.give_experience(experience | {"0.memory": factor * experience["0.memory"]})
        batches = [agent._batch(each) for each in agent._held()]
        divergence = agent.maml.task_losses(
            agent.objective.divergence, agent.maml.parameters(), batches[0], stacked=False
        )
        metrics.append(float(divergence.max().detach()))
    assert metrics[0] < 1e-6
    assert metrics[1] > 1e-5


def test_without_a_memory_windows_make_no_difference():
    agents = [make_agent(replace(PPO, window=window)) for window in (1, 4, 50)]
    for agent in agents:
        learn(agent, 1)
    states = [learned(agent) for agent in agents]
    for name, value in states[0].items():
        for state in states[1:]:
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-5)


@each_method
def test_inactive_rows_keep_their_memory(method):
    agent, reference = make_agent(method=method), make_agent(method=method)
    before, after = Stream.draw(0, ends=False), Stream.draw(2, ends=False)
    between = Stream.draw(1, ends=False)
    between["active"][:] = [True, False, True, False]
    for each in (agent, reference):
        each.begin_trial(ROWS)
        each.explore = False
        live(each, before)
    live(agent, between)
    got, expected = outputs(agent, after), outputs(reference, after)
    inactive = ~between["active"][0]
    np.testing.assert_allclose(got[:, inactive], expected[:, inactive], atol=1e-5)
    if method != "mlp":
        assert (np.abs(got[:, ~inactive] - expected[:, ~inactive]).max((0, 2)) > 1e-4).all()


@each_method
def test_a_number_that_is_not_finite_does_not_stay_in_the_memory(method):
    """Neither within an episode nor where one begins, as that of row 0 does at step 3."""
    agent, reference = make_agent(method=method), make_agent(method=method)
    for each, change in ((agent, {"observation": np.nan}), (reference, {"active": False})):
        each.training = each.explore = False
        each.begin_trial(ROWS)
        live(each, Stream.draw(0).changed((1, 2), **change).changed((3, 0), **change))
    got, expected = live(agent, Stream.draw(1)), live(reference, Stream.draw(1))
    np.testing.assert_allclose(got, expected, atol=1e-5)


@each_policy
def test_episodes_of_different_lengths_are_a_loop_over_what_was_active(method, kind):
    """An inner step of a round of one episode a row, and each row's episode run alone and summed by hand."""
    agent = make_agent(kind=kind, method=method)
    agent.begin_trial(ROWS)
    stream = Stream.draw(0).one_episode_each()
    live(agent, stream)
    lengths = stream["active"].sum(0)
    assert lengths.tolist() == [3, 4, STEPS, STEPS]
    collected = agent._collected()
    advantage = agent._batch(collected)["advantage"]
    theta = agent.maml.parameters()
    expected = []
    for task in range(TASKS):
        loss = 0.0
        for own in range(TASK_ROWS):
            row, end = task * TASK_ROWS + own, lengths[task * TASK_ROWS + own]
            output = agent.maml.functional_forward(collected["x"][:end, row : row + 1], theta)[0][:, 0]
            log_prob = agent.actor.head.log_prob(output, collected["action"][:end, row])
            loss = loss - (advantage[task, :end, own] * log_prob).sum()
        loss = loss / int(lengths[task * TASK_ROWS : (task + 1) * TASK_ROWS].sum())
        gradients = torch.autograd.grad(loss, list(theta.values()), allow_unused=True, materialize_grads=True)
        expected.append(
            {name: value - 0.5 * grad for (name, value), grad in zip(theta.items(), gradients, strict=True)}
        )
    agent.adapt()
    for task in range(TASKS):
        for name in theta:
            torch.testing.assert_close(agent._params[name][task], expected[task][name], rtol=1e-4, atol=1e-5)
    assert any((agent._params[name][0] - theta[name]).abs().max() > 1e-2 for name in theta)


@each_outer
def test_what_happens_in_inactive_rows_does_not_count(outer):
    """Neither for the parameters nor for the statistics of the observations."""
    states = []
    for garbage in (0.0, 50.0):
        agent = make_agent(OUTER[outer])
        agent.begin_trial(ROWS)
        for seed in (0, 1):
            stream = Stream.draw(seed).one_episode_each()
            ignored = ~stream["active"]
            live(agent, stream.changed(ignored, observation=garbage, next_observation=garbage, reward=garbage))
            if seed == 0:
                assert agent.adapt()["reward"] == pytest.approx(stream["reward"][stream["active"]].mean(), rel=1e-5)
        metrics = agent.update()
        states.append({**meta_parameters(agent), **{name: torch.tensor(value) for name, value in metrics.items()}})
    assert_same(*states)
    active = sum(Stream.draw(seed).one_episode_each()["active"].sum() for seed in (0, 1))
    assert int(states[0]["moments.count"]) == active


@each_outer
@pytest.mark.parametrize("method", ["mlp", "gru"])
def test_what_happens_while_a_row_is_left_out_does_not_count(method, outer):
    """In the middle of an episode, and whatever it is."""
    states = []
    for garbage in (0.0, 50.0, np.nan):
        away = {"observation": garbage, "next_observation": garbage, "reward": garbage, "active": False}
        agent = make_agent(OUTER[outer], method=method)
        agent.begin_trial(ROWS)
        for seed in (0, 1):
            live(agent, Stream.draw(seed).changed((slice(1, 3), 1), **away))
            if seed == 0:
                agent.adapt()
        metrics = agent.update()
        states.append({**meta_parameters(agent), **{name: torch.tensor(value) for name, value in metrics.items()}})
    for state in states[1:]:
        assert_same(state, states[0])


def test_returns_are_cut_where_a_row_is_left_out():
    agent = make_agent()
    agent.begin_trial(ROWS)
    live(agent, Stream.draw(0).changed((1, 0), active=False))
    collected = agent._collected()
    steps = {name: values.clone() for name, values in collected.items() if name not in ("raw", "memory")}
    steps["truncated"][0, 0] = True
    expected = with_advantages(steps, TASK_ROWS, discount=TRPO.discount, trace=TRPO.trace)["advantage"]
    assert torch.equal(agent._batch(collected)["advantage"], expected)


@each_method
def test_of_a_row_that_is_left_out_only_what_can_be_met_again_is_learned_from(method):
    """A memory stands still meanwhile, and does not where the round is gone through again: up to the next episode."""
    agent = make_agent(method=method)
    agent.begin_trial(ROWS)
    live(agent, Stream.draw(0).changed((1, slice(TASK_ROWS)), active=False))
    batch = {name: values[0] for name, values in agent._batch(agent._collected()).items()}
    there = batch["active"] > 0
    remembered = [[1, 0, 0, 1, 1, 1], [1, 0, 0, 0, 1, 1]]  # episodes end after steps 2 and 3
    assert there.T.int().tolist() == (2 * [[1, 0, 1, 1, 1, 1]] if method == "mlp" else remembered)
    output = agent.objective.output_of(agent.maml.parameters(), batch)
    torch.testing.assert_close(output[there], batch["output"][there], atol=1e-5, rtol=1e-4)


# --- experience -------------------------------------------------------------------------------------------------------


def test_what_does_not_train_keeps_nothing_but_the_running_round():
    agent = make_agent()
    learn(agent, 1)
    agent.training = False
    before = meta_parameters(agent)
    trial(agent, [20, 21, 22])
    assert_same(meta_parameters(agent), before)
    assert {name.partition(".")[0] for name in agent.take_experience()} == {"0"}


@pytest.mark.parametrize("rounds", [1, 3])
def test_an_update_needs_the_rounds_of_a_trial(rounds):
    agent = make_agent()
    before = meta_parameters(agent)
    trial(agent, range(rounds))
    with pytest.raises(UsageError, match=f"an update needs a trial of 2 rounds, got {rounds}"):
        agent.update()
    assert_same(meta_parameters(agent), before)


@pytest.mark.parametrize("verb", ["adapt", "update", "take_experience"])
def test_without_experience_there_is_nothing_to_learn_from(verb):
    agent = make_agent()
    agent.begin_trial(ROWS)
    with pytest.raises(UsageError, match="there is no experience to adapt to or to learn from: act and observe first"):
        getattr(agent, verb)()


def test_an_update_consumes_the_experience_and_moves_the_statistics():
    agent = make_agent()
    trial(agent, [0, 1])
    metrics = agent.update()
    seen = np.concatenate([Stream.draw(seed)["observation"].reshape(-1, 3) for seed in (0, 1)])
    assert int(agent.state_dict()["moments.count"]) == len(seen)
    np.testing.assert_allclose(agent.state_dict()["moments.mean"], seen.mean(0), rtol=1e-5)
    assert metrics["reward_before"] == pytest.approx(Stream.draw(0)["reward"].mean(), rel=1e-5)
    assert metrics["reward_after"] == pytest.approx(Stream.draw(1)["reward"].mean(), rel=1e-5)
    with pytest.raises(UsageError, match="no experience"):
        agent.update()
    assert_same(agent._params, agent.maml.parameters())


def test_worlds_may_reuse_their_arrays():
    agent, other = make_agent(), make_agent()
    reused = Stream.draw(2)
    trial(agent, [0, 1])
    other.begin_trial(ROWS)
    for seed in (0, 1):
        if seed:
            other.adapt()
        for time in range(STEPS):
            for name, values in Stream.draw(seed).items():
                reused[name][0] = values[time]
            other.observe(reused["observation"][0], other.act(reused["observation"][0]), *reused.at(0))
    for values in reused.values():
        values[0] = 1
    assert other.update() == agent.update()
    assert_same(other.state_dict(), agent.state_dict())


def test_statistics_stand_still_within_a_trial_and_scale_what_comes_after():
    agent = make_agent()
    learn(agent, 1)
    before = meta_parameters(agent)
    trial(agent, [20, 21])
    assert_same(meta_parameters(agent), before)
    raw, x = (agent._collected()[name] for name in ("raw", "x"))
    mean, deviations = before["moments.mean"], before["moments.deviations"]
    scaled = (raw - mean) / torch.sqrt(deviations / before["moments.count"])
    torch.testing.assert_close(x.double(), scaled, atol=1e-4, rtol=1e-4)


@each_learner
def test_experience_given_to_a_copy_makes_the_same_update(variant, method, kind):
    learner, collector = (make_agent(VARIANTS[variant], kind, method) for _ in range(2))
    for agent in (learner, collector):
        learn(agent, 1)
        trial(agent, [20, 21])
    copy = make_agent(VARIANTS[variant], kind, method, seed=7)
    copy.load_state_dict({name: tensor.clone() for name, tensor in collector.state_dict().items()})
    shipped = {name: tensor.clone() for name, tensor in collector.take_experience().items()}
    copy.give_experience(dict(sorted(shipped.items(), reverse=True)))
    assert copy.update() == learner.update()
    assert_same(copy.state_dict(), learner.state_dict())
    with pytest.raises(UsageError, match="no experience"):
        collector.take_experience()


# --- keeping ----------------------------------------------------------------------------------------------------------


@each_learner
def test_a_restored_agent_goes_on_as_the_old_one(variant, method, kind):
    agent = make_agent(VARIANTS[variant], kind, method, num_updates=10)
    restored = make_agent(VARIANTS[variant], kind, method, seed=3, num_updates=10)
    learn(agent, 1)
    restored.load_state_dict({name: tensor.clone() for name, tensor in agent.state_dict().items()})
    assert learn(restored, 1, 50) == learn(agent, 1, 50)
    assert_same(restored.state_dict(), agent.state_dict())


def test_restoring_an_untrained_state_forgets_all_learning():
    agent = make_agent(PPO, num_updates=4)
    start = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    first = learn(agent, 2)
    agent.load_state_dict(start)
    assert learn(agent, 2) == first


def test_a_state_that_was_taken_stands_still_while_the_agent_learns():
    agent = make_agent()
    taken = agent.state_dict()
    copy = {name: tensor.clone() for name, tensor in taken.items()}
    learn(agent, 1)
    assert_same(taken, copy)
    assert moved(taken, agent.state_dict())


# --- learning ---------------------------------------------------------------------------------------------------------


def in_double(config=TRPO, kind="continuous", method="mlp", rounds=2, off_policy=0.0):
    """(agent in float64 that holds a trial, the trial's batches); off_policy: moved by so much since it collected."""
    agent = make_agent(replace(config, inner_lr=0.1, inner_steps=rounds - 1), kind, method)
    trial(agent, range(rounds))
    agent.maml.learned.double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in agent.maml.learned.parameters():
            parameter.add_(off_policy * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    taken = agent.take_experience()
    agent.give_experience({k: v.double() if v.is_floating_point() else v for k, v in taken.items()})
    return agent, [agent._batch(each) for each in agent._held()]


def meta_learned(agent):
    return dict(agent.maml.learned.named_parameters())


def gradient_of(loss, parameters):
    values = list(parameters.values())
    found = torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def directional(function, parameters, direction, step=1e-6):
    """d function / d direction by central differences; parameters are put back."""
    old = {name: value.detach().clone() for name, value in parameters.items()}
    results = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(old[name] + sign * step * direction[name])
        results.append(function())
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(old[name])
    one, other = results
    if isinstance(one, dict):
        return {name: (one[name] - other[name]) / (2 * step) for name in one}
    return (one - other).item() / (2 * step)


def direction_like(parameters, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in parameters.items()}


def inner(one, other):
    return sum(float((one[name] * other[name]).sum()) for name in one)


@pytest.mark.parametrize(
    ("variant", "method", "kind"),
    [
        *(("maml", method, "continuous") for method in METHODS),
        ("maml", "mlp", "discrete"),
        ("anil", "mlp", "continuous"),
        ("metasgd", "mlp", "discrete"),
        ("metasgd", "gru", "continuous"),
    ],
)
def test_the_meta_gradient_is_that_of_finite_differences(variant, method, kind):
    """Through two inner steps, and parameter by parameter for those without a memory."""
    agent, batches = in_double(VARIANTS[variant], kind, method, rounds=3)
    parameters = meta_learned(agent)

    def loss():
        return agent.objective.outer_loss(batches, agent.objective.inner_loss)

    gradient = gradient_of(loss(), parameters)
    names = list(parameters) if method == "mlp" else []
    whole = direction_like(parameters)
    for chosen in [list(parameters), *([name] for name in names)]:
        direction = {n: v if n in chosen else torch.zeros_like(v) for n, v in whole.items()}
        expected = directional(lambda: loss().detach(), parameters, direction)
        assert inner(gradient, direction) == pytest.approx(expected, rel=1e-5, abs=1e-9), chosen
    assert all(bool(value.any()) for name, value in gradient.items())


@each_kind
def test_the_meta_gradient_of_fomaml_is_the_gradient_at_the_adapted_parameters(kind):
    agent, batches = in_double(VARIANTS["fomaml"], kind, rounds=3)
    parameters = agent.maml.parameters()
    found = gradient_of(agent.objective.outer_loss(batches, agent.objective.inner_loss), parameters)
    *_, adapted = agent.maml.inner_loop(agent.objective.inner_loss, batches[:-1])
    adapted = {name: value.detach().requires_grad_() for name, value in adapted.items()}
    by_task = gradient_of(agent.maml.task_losses(agent.objective.inner_loss, adapted, batches[-1]).sum(), adapted)
    for name, value in found.items():
        torch.testing.assert_close(value, by_task[name].mean(0))
    exact, same = in_double(VARIANTS["maml"], kind, rounds=3)
    second_order = gradient_of(exact.objective.outer_loss(same, exact.objective.inner_loss), exact.maml.parameters())
    assert any((second_order[name] - found[name]).abs().max() > 1e-3 for name in found)


@each_kind
def test_the_meta_gradient_of_reptile_is_the_sum_of_all_policy_gradients(kind):
    agent, batches = in_double(VARIANTS["reptile"], kind, rounds=3)
    parameters = agent.maml.parameters()
    found = gradient_of(agent.objective.outer_loss(batches, agent.objective.inner_loss), parameters)
    expected = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for task in range(TASKS):
        own = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        for batch in batches:  # plain SGD on one round after the other
            mine = {name: values[task] for name, values in batch.items()}
            gradient = gradient_of(agent.objective.inner_loss(own, mine), own)
            for name, value in gradient.items():
                expected[name] += value / TASKS
            stepped = {name: value - agent.maml.inner_lr * gradient[name] for name, value in own.items()}
            own = {name: value.detach().requires_grad_() for name, value in stepped.items()}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("options", [{}, {"learn_rates": True}, {"adapt": "head"}, {"first_order": True}])
@pytest.mark.parametrize("rounds", [2, 3])
@pytest.mark.parametrize("method", ["mlp", "ssm", "gru"])
def test_products_with_the_curvature_are_those_of_the_exact_hessian(method, rounds, options):
    agent, batches = in_double(replace(TRPO, **options), method=method, rounds=rounds)
    objective, maml = agent.objective, agent.maml
    batches = collected_exactly(agent, batches)
    *_, adapted = maml.inner_loop(objective.inner_loss, batches[:-1])
    learned = maml.learned_tensors()
    divergence = maml.task_losses(objective.divergence, adapted, batches[-1]).mean()
    options = {"allow_unused": True, "materialize_grads": True}
    slopes = torch.autograd.grad(divergence, list(learned.values()), create_graph=True, **options)
    along = [torch.randn_like(value) for value in learned.values()]
    wanted = joined(torch.autograd.grad(slopes, list(learned.values()), along, **options))
    found = objective.curvature(batches)(joined(along))
    assert float(wanted.norm()) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9 * float(wanted.norm()))


def collected_exactly(agent, batches):
    """With the last round's outputs from the parameters as they are; in float32 nearly those collected."""
    *_, adapted = agent.maml.inner_loop(agent.objective.inner_loss, batches[:-1])
    axes = {name: 0 if name in agent.maml.adapted else None for name in adapted}
    with torch.no_grad():
        output = torch.func.vmap(agent.objective.output_of, in_dims=(axes, 0))(adapted, batches[-1])
    return [*batches[:-1], {**batches[-1], "output": output}]


def joined(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def names(agent):
    """Of what was compiled."""
    return sorted(key[0][0][0] for key in agent.maml.programs._programs)


@pytest.fixture(params=[False, pytest.param(True, marks=[needs_compiler, pytest.mark.nightly])])
def really_compiled(request, monkeypatch):
    """False: programs are the traces themselves, which takes no compiler and no time."""
    if not request.param:
        monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)


@pytest.mark.parametrize("adapt", ["all", "head"])
@pytest.mark.parametrize(
    ("method", "kind"), [("ssm", "continuous"), ("transformer", "discrete"), ("mlp", "continuous")]
)
def test_compiled_it_acts_and_adapts_the_same(method, kind, adapt, really_compiled):
    plain, compiled = (
        make_agent(replace(TRPO, compile=compile, adapt=adapt), kind, method) for compile in (False, True)
    )
    for one, other in zip(trial(plain, range(3)), trial(compiled, range(3)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)
    for name, value in plain._params.items():
        torch.testing.assert_close(compiled._params[name], value, rtol=1e-4, atol=1e-5)
    assert names(compiled) == ["policy", "policy", "step", "step"]  # from θ, and from what is adapted


@pytest.mark.parametrize(
    ("variant", "method", "kind"),
    [
        ("promp", "mlp", "continuous"),
        ("fomaml", "mlp", "continuous"),
        ("reptile", "mlp", "continuous"),
        ("metasgd", "mlp", "continuous"),
        ("maml", "ssm", "continuous"),
        ("anil", "transformer", "discrete"),
    ],
)
def test_compiled_it_learns_the_same(variant, method, kind, really_compiled):
    found = []
    for compile in (False, True):  # more iterations than directions that count would magnify the last bits
        config = replace(VARIANTS[variant], compile=compile)
        config = replace(config, conjugate_iterations=3) if config.outer == "trpo" else config
        agent, batches = in_double(config, kind, method)
        agent.maml._samples_at_once = 1  # two groups
        found.append((agent.objective.step(batches, agent.maml.programs), learned(agent)))
    outer = ["_outcome", "_slope"] if agent.config.outer == "trpo" else ["_clipped_slope"]
    assert [name for name in names(agent) if name.startswith("_")] == outer
    assert len(agent.maml.programs._splits) == len(outer) - 1  # products with the curvature
    (metrics, parameters), (others, compiled) = found
    assert others == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    for name, value in parameters.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-7)


def test_a_compiled_agent_is_measured_uncompiled(monkeypatch):
    """Measurements have other numbers of rows, each of which would be another program."""
    monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)
    agent = make_agent(replace(TRPO, compile=True), method="ssm")
    for training in (False, True):
        agent.training = training
        trial(agent, range(3))
        assert bool(agent.maml.programs._programs) == training


def test_a_copy_of_a_compiled_agent_acts_by_its_own_parameters(monkeypatch):
    """Also in the middle of a round, in which acting is bound to what the policy is."""
    monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)
    agent = make_agent(replace(TRPO, compile=True), method="ssm")
    agent.begin_trial(ROWS)
    live(agent, Stream.draw(0))
    copied, again = deepcopy(agent), deepcopy(agent)
    with torch.no_grad():
        for parameter in agent.maml.model.parameters():
            parameter.zero_()
    expected = live(again, Stream.draw(1))
    np.testing.assert_array_equal(live(copied, Stream.draw(1)), expected)
    assert np.abs(live(agent, Stream.draw(1)) - expected).max() > 1e-3


def test_a_compiled_trial_may_have_one_row(monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)
    config = replace(TRPO, conjugate_iterations=3)
    plain, compiled = (make_agent(replace(config, compile=compile), method="ssm") for compile in (False, True))
    for agent in (plain, compiled):
        trial(agent, range(2), rows=1)
    assert compiled.update() == pytest.approx(plain.update(), rel=1e-3, abs=1e-5)


def test_what_a_program_froze_makes_another_one(monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)
    body = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    agent = MetaMAMLAgent(MetaMAML(Actor(OBSERVATIONS, ACTIONS["continuous"], body=body), compile=True))
    observation = np.ones((4, 3), dtype=np.float32)
    agent.begin_trial(4)
    agent.explore = False
    np.testing.assert_array_equal(agent.act(observation), agent.act(observation))
    agent.actor.train()
    assert not np.array_equal(agent.act(observation), agent.act(observation))


def test_the_policy_is_one_whatever_its_modules_do_in_training():
    body = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    agent = MetaMAMLAgent(MetaMAML(Actor(OBSERVATIONS, ACTIONS["continuous"], body=body)))
    agent.explore = False
    trial(agent, [0, 1])
    first, again = (agent.act(np.ones((ROWS, 3), dtype=np.float32)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_a_body_that_cannot_be_vmapped_acts_task_by_task():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x):
            return self.layer(x) if bool(x.sum() > 0) else -self.layer(x)

    actor = Actor(OBSERVATIONS, ACTIONS["continuous"], body=Branching())
    agent = MetaMAMLAgent(MetaMAML(actor, vectorize=False), MAMLConfig(trial_rows=TASK_ROWS))
    trial(agent, [0, 1])
    assert agent.act(np.ones((ROWS, 3), dtype=np.float32)).shape == (ROWS, 2)


@pytest.mark.parametrize(
    ("learner", "config", "message"),
    [
        ({}, {"inner_steps": 3}, "inner_steps is 3 in the config and 1 in the MetaMAML: give it there"),
        ({"inner_lr": 0.3}, {"inner_lr": 0.2}, "inner_lr is 0.2 in the config and 0.3 in the MetaMAML: give it there"),
        ({}, {"learn_rates": True}, "learn_rates is True in the config and False in the MetaMAML: give it there"),
        ({}, {"adapt": "head"}, "adapt is head in the config and all in the MetaMAML: give it there"),
        ({}, {"compile": True}, "compile is True in the config and False in the MetaMAML: give it there"),
        ({"multi_step_updates": 9}, {}, "multi_step_updates is for supervised tasks"),
    ],
)
def test_settings_that_the_learner_has_in_another_way_are_refused(learner, config, message):
    maml = MetaMAML(Actor(OBSERVATIONS, ACTIONS["continuous"], SMALL), **learner)
    with pytest.raises(UsageError, match=message):
        MetaMAMLAgent(maml, MAMLConfig(**config))


def test_a_setting_of_the_other_outer_step_is_refused():
    with pytest.raises(UsageError, match=r"^--clip goes with --outer ppo, and this is trpo, whose settings are --max-"):
        MAMLConfig(clip=0.3)
    with pytest.raises(UsageError, match=r"^--max-divergence goes with --outer trpo, and this is ppo, whose .* --clip"):
        MAMLConfig(outer="ppo", max_divergence=0.1)


@pytest.mark.parametrize("num_updates", [None, 10])
def test_the_config_rules_the_step_size(num_updates):
    metrics = [
        learn(make_agent(replace(PPO, learning_rate=rate), num_updates=num_updates), 1)[0] for rate in (1e-3, 1e-2)
    ]
    assert [each["learning_rate"] for each in metrics] == [1e-3, 1e-2]


def test_given_experience_is_adapted_to_from_what_was_meta_learned():
    giver, taker = make_agent(), make_agent()
    giver.begin_trial(ROWS)
    live(giver, Stream.draw(0))
    experience = giver.take_experience()
    trial(taker, [1, 2])
    for agent in (giver, taker):
        agent.give_experience(experience)
        agent.adapt()
    assert_same(giver._params, taker._params)
    with pytest.raises(UsageError, match=f"rows come in blocks of trial_rows = {TASK_ROWS}, got 3 rows"):
        giver.give_experience({name: value[:, :3] for name, value in experience.items()})


def test_long_runs_are_compiled_where_that_is_possible(monkeypatch):
    monkeypatch.setattr("metarl.meta_rl.compiled.can_compile", lambda: True)
    compiled = {
        (method, steps)
        for method in METHODS
        for steps in (0, COMPILED_STEPS - 1, COMPILED_STEPS)
        if make_agent(method=method, env_steps=steps).maml.programs is not None
    }
    assert compiled == {(method, COMPILED_STEPS) for method in ("ssm", "transformer", "mlp")}
    with pytest.raises(UsageError, match=r"^--compile True goes with ssm, transformer or mlp .*: leave it out$"):
        make_agent(replace(TRPO, compile=True), method="gru")


@pytest.mark.parametrize("outer", ["trpo", "ppo"])
@pytest.mark.parametrize("options", [{}, {"reptile": True}, {"learn_rates": True}])
def test_an_outer_step_by_groups_of_tasks_is_that_of_all_at_once(outer, options):
    after = []
    for samples_at_once in (1, 10_000):
        config = replace(TRPO if outer == "trpo" else PPO, **options)
        agent, batches = in_double(config, method="ssm")
        agent.maml._samples_at_once = samples_at_once
        before = learned(agent)
        after.append((agent.objective.step(batches), learned(agent)))
        assert any(not torch.equal(value, before[name]) for name, value in learned(agent).items())
    (metrics, found), (expected_metrics, expected) = after
    assert metrics == pytest.approx(expected_metrics, rel=1e-6)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-9)


def test_the_curvature_may_come_from_some_of_the_windows():
    """Of every task; what a window holds stays together: the memory with which it began, and its steps."""
    agent, batches = in_double(replace(TRPO, window=2, curvature_share=0.5), method="gru")
    windows = batches[0]["starts"].shape[2]
    for part, whole in zip(agent.objective._sample(batches), batches, strict=True):
        assert len(part["x"]) == len(whole["x"])
        assert part["x"].shape[2] == part["memory"].shape[1] == -(-windows // 2)
        for task in range(len(whole["x"])):
            output, entire = (
                agent.objective.output_of(agent.maml.parameters(), {name: value[task] for name, value in each.items()})
                for each in (part, whole)
            )
            torch.testing.assert_close(output, entire[:, ::2])


def test_loss_and_divergence_are_of_all_the_data_whatever_the_curvature_is_of(monkeypatch):
    agent, batches = in_double(replace(TRPO, window=2, curvature_share=0.3))
    seen = {}

    def watch(parameters, outcome, slope, curvature, **bounds):
        seen.update(outcome=tuple(outcome()), slope=tuple(slope()), curvature=curvature)
        return {}

    monkeypatch.setattr(meta_objective, "trust_region_step", watch)
    agent.objective.trust_region(batches)
    torch.testing.assert_close(seen["outcome"], tuple(agent.objective._outcome(batches)))
    torch.testing.assert_close(seen["slope"], tuple(agent.objective._slope(batches)))
    vector = torch.randn(sum(value.numel() for value in agent.maml.learned_tensors().values()), dtype=torch.float64)
    found, everything = seen["curvature"](vector), agent.objective.curvature(batches)(vector)
    torch.testing.assert_close(found, agent.objective.curvature(agent.objective._sample(batches))(vector))
    assert float((everything - found).norm()) > 0.01 * float(everything.norm())


def test_the_windows_that_the_curvature_comes_from_are_spread_over_all():
    agent, batches = in_double(replace(TRPO, window=1))
    windows = batches[0]["starts"].shape[2]
    marked = [{**batch, "x": torch.arange(windows).expand((*batch["x"].shape[:2], windows))} for batch in batches]
    for share in (0.01, 0.3, 0.7, 1.0):
        agent.objective.config = replace(agent.config, curvature_share=share)
        (chosen,) = {tuple(part["x"][0, 0].tolist()) for part in agent.objective._sample(marked)}
        assert len(chosen) == math.ceil(share * windows)
        assert chosen[0] == 0
        gaps = np.diff([*chosen, windows])
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


def test_curvature_is_not_negative_where_some_of_the_data_adapt_to_other_parameters():
    """A step along a direction of negative curvature has no length: it was refused, and the update lost."""
    agent, batches = in_double(method="gru")
    batches = collected_exactly(agent, batches)
    windows = batches[0]["starts"].shape[2]
    half = [
        {
            name: values[:, : windows // 2] if name == "memory" else values[:, :, : windows // 2]
            for name, values in batch.items()
        }
        for batch in batches
    ]
    vector = torch.zeros(sum(value.numel() for value in agent.maml.learned_tensors().values()), dtype=torch.float64)
    product = agent.objective.curvature(half)
    columns = []
    for index in range(len(vector)):
        unit = vector.clone()
        unit[index] = 1.0
        columns.append(product(unit))
    hessian = torch.stack(columns)
    torch.testing.assert_close(hessian, hessian.T, rtol=1e-6, atol=1e-8 * float(hessian.abs().max()))
    lowest, *_, highest = torch.linalg.eigvalsh((hessian + hessian.T) / 2).tolist()
    assert lowest > -1e-9 * highest


@each_method
def test_the_curvature_of_the_trust_region_is_that_of_the_divergence(method, monkeypatch):
    """What conjugate gradients are given, against finite differences of the gradient of the mean KL after adapting."""
    agent, batches = in_double(method=method)
    batches = collected_exactly(agent, batches)
    parameters = meta_learned(agent)
    direction = direction_like(parameters)
    flat = torch.cat([value.flatten() for value in direction.values()])
    seen = {}

    def solve(product, target, iterations):
        seen["product"] = product(flat) - trust_region.DAMPING * flat
        seen["target"], seen["iterations"] = target, iterations
        return torch.zeros_like(target)

    def divergence_gradient():
        *_, adapted = agent.maml.inner_loop(agent.objective.inner_loss, batches[:-1])
        return gradient_of(agent.maml.task_losses(agent.objective.divergence, adapted, batches[-1]).mean(), parameters)

    expected = directional(divergence_gradient, parameters, direction)
    gradient = gradient_of(agent.objective.outer_loss(batches, agent.objective.inner_loss), parameters)
    monkeypatch.setattr(trust_region, "conjugate_gradient", solve)
    agent.objective.trust_region(batches)
    torch.testing.assert_close(
        seen["product"], torch.cat([value.flatten() for value in expected.values()]), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(seen["target"], -torch.cat([value.flatten() for value in gradient.values()]))
    assert seen["iterations"] == TRPO.conjugate_iterations
    assert float(flat @ seen["product"]) > 0


@each_policy
def test_a_trust_region_step_lowers_the_loss_within_the_divergence(method, kind):
    agent = make_agent(kind=kind, method=method)
    trial(agent, [0, 1])
    batches = [agent._batch(each) for each in agent._held()]
    before = float(agent.objective.outer_loss(batches, agent.objective.inner_loss).detach())
    metrics = agent.objective.trust_region(batches)
    *_, adapted = agent.maml.inner_loop(agent.objective.inner_loss, batches[:-1])
    divergence = float(agent.maml.task_losses(agent.objective.divergence, adapted, batches[-1]).mean().detach())
    assert metrics["policy_loss"] == pytest.approx(before, abs=1e-6)
    assert float(agent.objective.outer_loss(batches, agent.objective.inner_loss).detach()) < before - 1e-3
    assert metrics["step_fraction"] > 0
    assert metrics["kl"] == pytest.approx(divergence, rel=1e-3)
    assert 0.2 * TRPO.max_divergence < divergence <= 1.001 * TRPO.max_divergence


def test_the_divergence_is_zero_for_the_policy_that_collected():
    agent, batches = in_double()
    params = list(agent.maml.inner_loop(agent.objective.inner_loss, batches[:-1]))
    for number, (each, batch) in enumerate(zip(params, batches, strict=True)):
        divergence = agent.maml.task_losses(agent.objective.divergence, each, batch, stacked=number > 0)
        assert divergence.shape == (TASKS,)
        assert float(divergence.abs().max().detach()) < 1e-10
    agent, batches = in_double(off_policy=0.1)
    divergence = agent.maml.task_losses(agent.objective.divergence, agent.maml.parameters(), batches[0], stacked=False)
    assert float(divergence.min().detach()) > 1e-3


def test_the_gradient_of_promp_is_that_of_the_clipped_loss_and_the_penalty_by_hand():
    """KL(what collected ‖ policy) of the rounds before the last, so that it pulls back; in float64, off policy."""
    agent, batches = in_double(replace(PPO, divergence_weight=3.0, clip=0.05), rounds=3, off_policy=0.05)
    parameters, head = meta_learned(agent), agent.actor.head

    def normal(output):
        mean, log_std = output.chunk(2, -1)
        return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)

    def by_hand():
        params = list(agent.maml.inner_loop(agent.objective.inner_loss, batches[:-1]))
        policy, divergence = [], []
        for number, (phi, batch) in enumerate(zip(params, batches, strict=True)):
            for task in range(TASKS):
                own = {name: value[task] if number else value for name, value in phi.items()}
                mine = {name: values[task] for name, values in batch.items()}
                output = agent.objective.output_of(own, mine)
                if number < len(batches) - 1:
                    moved = torch.distributions.kl_divergence(normal(mine["output"]), normal(output))
                    divergence.append(moved.mean())
                    continue
                ratio = (head.log_prob(output, mine["action"]) - mine["log_prob"]).exp()
                gained = torch.minimum(ratio * mine["advantage"], ratio.clamp(0.95, 1.05) * mine["advantage"])
                policy.append(-gained.mean())
        return torch.stack(policy).mean(), torch.stack(divergence).mean()

    def penalised():
        policy, divergence = by_hand()
        return (policy + 3.0 * divergence).detach()

    policy, divergence, gradient = agent.objective._clipped_slope(batches)
    torch.testing.assert_close((policy, divergence), tuple(each.detach() for each in by_hand()))
    assert float(divergence) > 1e-3
    for seed in range(3):
        direction = direction_like(parameters, seed)
        expected = directional(penalised, parameters, direction)
        assert float(gradient @ joined(direction.values())) == pytest.approx(expected, rel=1e-5)


@each_outer
def test_the_step_size_falls_to_a_twentieth_with_ppo_alone(outer):
    agent = make_agent(OUTER[outer], num_updates=4)
    sizes = []
    for number in range(5):
        agent.maml.updates = number
        learn(agent, 1)
        sizes.append(agent.maml.optimizer.param_groups[0]["lr"] / OUTER[outer].learning_rate)
    assert sizes == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.05] if outer == "ppo" else [1.0] * 5)


def test_metrics_of_ppo_are_means_over_its_epochs():
    agent = make_agent(PPO)
    (metrics,) = learn(agent, 1)
    assert metrics.keys() == {
        *("policy_loss", "kl", "grad_norm", "learning_rate", "entropy", "reward_before", "reward_after")
    }
    once = make_agent(replace(PPO, update_epochs=1))
    (first,) = learn(once, 1)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert first["policy_loss"] == pytest.approx(0, abs=1e-5)
    assert metrics["kl"] > 1e-6
    assert metrics["policy_loss"] < first["policy_loss"] - 1e-4


@each_outer
@pytest.mark.parametrize("round_", [0, 1])
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_what_is_not_finite_is_an_error_and_leaves_the_parameters_as_they_were(what, round_, outer):
    agent = make_agent(OUTER[outer])
    learn(agent, 1)
    before = meta_parameters(agent)
    agent.begin_trial(ROWS)
    place = (4, 2)
    for number in range(2):
        stream = Stream.draw(20 + number)
        live(agent, stream.changed(place, **{what: np.nan}) if number == round_ else stream)
        if number == round_ == 0:
            with pytest.raises(TrainingDiverged, match=r"^not finite: .* of task 1 after adapting; try a lower"):
                agent.adapt()
            break
        if number == 0:
            agent.adapt()
        else:
            with pytest.raises(TrainingDiverged, match=r"^not finite: the policy loss"):
                agent.update()
    assert_same(meta_parameters(agent), before)


@each_method
def test_a_round_that_is_not_finite_is_dropped_and_the_trial_goes_on(method):
    agent, reference = make_agent(method=method), make_agent(method=method)
    for each in (agent, reference):
        each.training = False
        trial(each, [0])
        each.adapt()
    live(agent, Stream.draw(1).changed((4, 2), observation=np.nan))
    with pytest.raises(TrainingDiverged, match="of task 1 after adapting"):
        agent.adapt()
    for each in (agent, reference):
        each.seed(3)
        live(each, Stream.draw(2))
        each.adapt()
    for name in agent.maml.adapted:
        torch.testing.assert_close(agent._params[name], reference._params[name])


# --- variants ---------------------------------------------------------------------------------------------------------


@each_policy
def test_anil_adapts_the_last_layer_and_meta_learns_the_rest(method, kind):
    agent = make_agent(VARIANTS["anil"], kind, method)
    theta = agent.maml.parameters()
    before = learned(agent)
    trial(agent, [0])
    agent.adapt()
    adapted = {name for name in theta if agent._params[name].shape != theta[name].shape}
    assert adapted == {name for name in theta if name.startswith("output.")} == set(agent.maml.adapted)
    assert all(agent._params[name] is theta[name] for name in theta.keys() - adapted)
    live(agent, Stream.draw(1))
    agent.update()
    changed = moved(before, learned(agent))
    assert {"maml.learned.model.encoder.0.weight", *(f"maml.learned.model.{name}" for name in adapted)} <= changed


@each_outer
def test_metasgd_learns_the_rate_of_every_parameter(outer):
    agent = make_agent(replace(OUTER[outer], learn_rates=True))
    rates = {name: value for name, value in learned(agent).items() if ".inner_lr." in name}
    assert len(rates) == len(agent.maml.parameters())
    assert all(bool((value == TRPO.inner_lr).all()) for value in rates.values())
    learn(agent, 1)
    now = learned(agent)
    assert all(not torch.equal(now[name], value) for name, value in rates.items())


def test_learned_rates_are_those_that_a_task_adapts_with():
    agent = make_agent(replace(TRPO, learn_rates=True))
    trial(agent, [0])
    experience = agent.take_experience()
    steps = []
    for factor in (1.0, 3.0):
        with torch.no_grad():
            for rate in agent.maml.rates().values():
                rate.fill_(TRPO.inner_lr * factor)
        agent.begin_trial(ROWS)
        agent.give_experience(experience)
        agent.adapt()
        steps.append({name: agent._params[name] - value for name, value in agent.maml.parameters().items()})
    for name, step in steps[0].items():
        torch.testing.assert_close(3 * step, steps[1][name], rtol=1e-3, atol=1e-5)


@each_outer
def test_the_deviation_of_actions_is_held(outer):
    agent = make_agent(replace(OUTER[outer], min_std=0.9))
    assert float(agent.actor.output.log_std.max().detach()) < math.log(0.9)
    learn(agent, 1)
    assert (agent.actor.output.log_std >= math.log(0.9) - 1e-6).all()
    free = make_agent(OUTER[outer])
    learn(free, 1)
    assert (free.actor.output.log_std < math.log(0.9)).all()


# --- over any module --------------------------------------------------------------------------------------------------


class Tempered(nn.Module):
    """A body of one's own, with a parameter that is a number."""

    def __init__(self, outputs):
        super().__init__()
        self.layers = nn.Sequential(OrderedDict(first=nn.Linear(3, 8), act=nn.Tanh(), last=nn.Linear(8, outputs)))
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.layers(x) * self.temperature


@each_kind
def test_it_is_made_from_a_metamaml_over_any_module(kind):
    outputs = {"continuous": 4, "discrete": 3}[kind]
    actor = Actor(OBSERVATIONS, ACTIONS[kind], body=Tempered(outputs))
    agent = MetaMAMLAgent(MetaMAML(actor, inner_lr=0.2, inner_steps=2))
    assert (agent.trial_rounds, agent.trial_rows, agent.explores_to_adapt) == (3, 1, True)
    before = learned(agent)
    trial(agent, range(3), rows=agent.trial_rows)
    assert agent._params["body.temperature"].shape == (1,)
    agent.begin_trial(1)
    agent.act(np.zeros(3, np.float32))
    trial(agent, range(3), rows=agent.trial_rows)
    agent.update()
    assert moved(before, learned(agent)) == before.keys()


def test_a_module_that_is_no_actor_is_refused_with_the_remedy():
    with pytest.raises(
        UsageError, match=r"needs a MetaMAML over an Actor, got one over Linear: .*body=module"
    ) as error:
        MetaMAMLAgent(MetaMAML(nn.Linear(3, 2)))
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="needs a MetaMAML over an Actor, got Actor: wrap"):
        MetaMAMLAgent(Actor(spaces.Box(-1, 1, (3,)), spaces.Discrete(2)))


# --- configs ----------------------------------------------------------------------------------------------------------

CHANGED = {
    "inner_lr": 0.05,
    "inner_steps": 2,
    "trial_rows": ROWS,
    "outer": "trpo",
    "first_order": True,
    "window": 2,
    "reptile": True,
    "adapt": "head",
    "learn_rates": True,
    "discount": 0.5,
    "trace": 0.2,
    "max_divergence": 1e-3,
    "conjugate_iterations": 1,
    "curvature_share": 0.5,
    "learning_rate": 2e-2,
    "update_epochs": 4,
    "clip": 1e-4,
    "divergence_weight": 100.0,
    "grad_clip_norm": 1e-3,
    "min_std": 0.9,
    "compile": True,
}


@pytest.mark.parametrize("field", [field.name for field in fields(MAMLConfig)])
def test_every_field_of_the_config_makes_a_difference(field):
    assert field in CHANGED, "give the new field a value that must make a difference"
    config = TRPO if field in OF_OUTER["trpo"] else MAMLConfig(**COMMON, outer="ppo") if field == "outer" else PPO
    method = "gru" if field == "window" else "mlp"
    assert getattr(config, field) != CHANGED[field]
    changed = make_agent(replace(config, **{field: CHANGED[field]}), method=method)
    base = make_agent(config, method=method)
    if field == "compile":  # which changes how, not what
        assert (changed.maml.programs is None, base.maml.programs is None) == (False, True)
        return
    learn(changed, 1)
    learn(base, 1)
    after, before = learned(changed), learned(base)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    if field == "trial_rows":
        assert changed.trial_rows == CHANGED[field]
    if field == "inner_steps":
        assert changed.trial_rounds == CHANGED[field] + 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("inner_lr", 0.0),
        ("inner_lr", float("nan")),
        ("inner_steps", 0),
        ("trial_rows", 0),
        ("outer", "adam"),
        ("adapt", "body"),
        ("discount", 1.1),
        ("discount", -0.1),
        ("trace", 1.1),
        ("trace", -0.1),
        ("max_divergence", 0.0),
        ("max_divergence", float("inf")),
        ("conjugate_iterations", 0),
        ("curvature_share", 0.0),
        ("curvature_share", 1.1),
        ("window", 0),
        ("learning_rate", 0.0),
        ("update_epochs", 0),
        ("clip", 0.0),
        ("divergence_weight", -0.1),
        ("grad_clip_norm", 0.0),
        ("min_std", 0.0),
    ],
)
def test_a_config_out_of_range_is_a_one_line_error(field, value):
    with pytest.raises(UsageError, match=f"^--{field.replace('_', '-')} .*got {value}") as error:
        MAMLConfig(**{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("edge", [{"discount": 0.0}, {"discount": 1.0}, {"trace": 0.0}, {"divergence_weight": 0.0}])
def test_the_ends_of_closed_ranges_are_allowed(edge):
    (name,) = edge
    assert getattr(MAMLConfig(outer="ppo", **edge), name) == edge[name]


def test_reptile_goes_without_learned_rates():
    with pytest.raises(UsageError, match="reptile takes inner gradients as constants: it goes without learn_rates"):
        make_agent(replace(VARIANTS["reptile"], learn_rates=True))
