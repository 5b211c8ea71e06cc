"""The algorithms by name: what `--algo` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from metarl.core.agent import Agent
from metarl.core.errors import unknown_name
from metarl.meta_rl.rl2_agent import RL2Agent, RL2Config


@dataclass(frozen=True)
class Algorithm:
    """A config class, and a constructor with the arguments of `RL2Agent`."""

    config: type[Any]
    make: Callable[..., Agent]


_ALGORITHMS = {"rl2": Algorithm(RL2Config, RL2Agent)}
ALGOS = tuple(_ALGORITHMS)


def find_algorithm(name: str) -> Algorithm:
    """The algorithm called `name`; an unknown one raises with the known names and the nearest."""
    if name not in _ALGORITHMS:
        raise unknown_name("algo", name, ALGOS)
    return _ALGORITHMS[name]
