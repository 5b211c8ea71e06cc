from __future__ import annotations

from dataclasses import fields, is_dataclass

import gymnasium
import pytest

from metarl.core.agent import Agent
from metarl.core.errors import UsageError
from metarl.meta_rl.registry import ALGOS, find_algorithm


@pytest.mark.parametrize("name", ALGOS)
def test_every_algorithm_makes_an_agent_from_its_config(name: str) -> None:
    algorithm = find_algorithm(name)
    assert is_dataclass(algorithm.config)
    assert fields(algorithm.config)
    space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    agent = algorithm.make(space, space, algorithm.config(), num_updates=10, seed=1, device="cpu")
    assert isinstance(agent, Agent)


def test_an_unknown_algorithm_names_the_known() -> None:
    with pytest.raises(UsageError, match=r"unknown algo 'rl3': choose from .*rl2.*did you mean 'rl2'"):
        find_algorithm("rl3")
