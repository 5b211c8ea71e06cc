"""Which agents are made of one checkpoint, and how they go on learning."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.adaptation.adaptation_agent import AdaptationAgent
from metarl.adaptation.config import AdaptationConfig
from metarl.core.agent import Agent
from metarl.core.memory import MemoryConfig
from metarl.experiments.drift_variants import RESET_EVERY, online_config, variants
from metarl.meta_rl.grbal_agent import GrBALAgent, GrBALConfig
from metarl.meta_rl.rl2_agent import RL2Agent, RL2Config
from metarl.tasks.reward_model import RewardModel

SPACES = (spaces.Box(-5.0, 5.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32))
PLANS = GrBALConfig(past=3, future=2, horizon=2, candidates=4)
REWARD = RewardModel(lambda before, action, after: after[..., 0])


def planner(config: GrBALConfig) -> GrBALAgent:
    agent = GrBALAgent(*SPACES, config, MemoryConfig("mlp", width=8), reward_model=REWARD)
    agent.updates = 1
    return agent


def test_a_planner_is_measured_as_trained_frozen_and_going_on_in_three_ways() -> None:
    agents = variants("grbal", PLANS, planner)
    assert list(agents) == ["as trained", "frozen", "adapted", "without guard", "with resets"]
    assert [agent.config.online_adaptation for agent in list(agents.values())[:2]] == [True, False]
    guarded, unguarded, resetting = (_config(agents[name]) for name in ("adapted", "without guard", "with resets"))
    assert (guarded.rollback, guarded.from_source, guarded.reset_every) == (True, True, None)
    assert replace(guarded, rollback=False) == unguarded
    assert replace(unguarded, from_source=False, reset_every=RESET_EVERY) == resetting


def test_a_model_that_does_not_adapt_by_itself_is_trained_frozen() -> None:
    plain = replace(PLANS, meta=False, online_adaptation=False)
    agents = variants("grbal", plain, planner)
    assert list(agents) == ["frozen", "adapted", "without guard", "with resets"]
    # It was not trained to begin at the source each time.
    assert _config(agents["adapted"]).from_source is False


def test_an_agent_with_memory_goes_on_by_the_defaults() -> None:
    agents = variants("rl2", RL2Config(), lambda config: RL2Agent(*SPACES, config, MemoryConfig("gru", width=8)))
    assert list(agents) == ["frozen", "adapted", "without guard", "with resets"]
    assert _config(agents["adapted"]) == AdaptationConfig()


@pytest.mark.parametrize("adapt", ["gain", "all"])
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_online_a_model_takes_the_steps_that_it_was_trained_for(inner_steps: int, adapt: Any) -> None:
    """After `past` transitions it has the parameters that a planner which adapts by itself then has."""
    config = replace(PLANS, past=2, inner_steps=inner_steps, adapt=adapt)
    itself = planner(config)
    online = AdaptationAgent.from_agent(itself, replace(online_config(config), rollback=False))
    stream = np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32)
    for agent in (itself, online):
        agent.training = False
        agent.begin_trial(4)
    for before, after in pairwise(stream):
        action = itself.act(before)
        online.act(before)
        for agent in (itself, online):
            agent.observe(before, action, np.zeros(4), np.zeros(4, bool), np.zeros(4, bool), after)
    expected, adapted = itself.row_weights(), online.streams.weights
    assert adapted is not None
    assert expected is not None
    assert list(adapted) == (["gain"] if adapt == "gain" else list(expected))
    for name, value in adapted.items():
        torch.testing.assert_close(value, expected[name])
        assert not torch.equal(value[0], itself.maml.parameters()[name])
    assert itself.expected is not None
    assert online.expected is not None


def _config(agent: Agent | Any) -> AdaptationConfig:
    assert isinstance(agent, AdaptationAgent)
    return agent.config
