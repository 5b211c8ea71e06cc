from __future__ import annotations

from dataclasses import fields, is_dataclass

import gymnasium
import pytest

from metarl.core.agent import Agent
from metarl.core.errors import UsageError
from metarl.meta_rl.registry import ALGOS, find_algorithm
from metarl.tasks.reward_model import RewardModel


@pytest.mark.parametrize("name", ALGOS)
def test_every_algorithm_makes_an_agent_from_its_config(name: str) -> None:
    algorithm = find_algorithm(name)
    assert is_dataclass(algorithm.config_class)
    assert fields(algorithm.config_class)
    space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    family = {"reward_model": RewardModel(lambda *step: step[0].sum(-1)), "reward_scale": 0.5}
    known = {name: family[name] for name in algorithm.knows}
    agent = algorithm.make(
        space, space, algorithm.config(), algorithm.memory, num_updates=10, seed=1, device="cpu", **known
    )
    assert isinstance(agent, Agent)
    assert algorithm.num_envs % agent.trial_rows == 0


def test_variants_differ_from_maml_in_what_their_name_says() -> None:
    maml = find_algorithm("maml").config()
    differences = {
        name: {
            field.name: getattr(other, field.name)
            for field in fields(maml)
            if getattr(other, field.name) != getattr(maml, field.name)
        }
        for name in ALGOS
        if isinstance(other := find_algorithm(name).config(), type(maml))
    }
    assert differences == {
        "maml": {},
        "promp": {"outer": "ppo"},
        "fomaml": {"first_order": True},
        "reptile": {"reptile": True, "outer": "ppo"},
        "anil": {"adapt": "head"},
        "metasgd": {"learn_rates": True},
    }


def test_a_single_environment_has_defaults_of_its_own() -> None:
    rl2 = find_algorithm("rl2")
    assert rl2.config(single=True).update_steps == 128 != rl2.config().update_steps


def test_an_unknown_algorithm_names_the_known() -> None:
    with pytest.raises(UsageError, match=r"unknown algo 'rl3': choose from .*rl2.*did you mean 'rl2'"):
        find_algorithm("rl3")
