"""The algorithms by name: what `--algo` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from metarl.core.agent import Agent
from metarl.core.errors import UsageError, unknown_name
from metarl.core.memory import MemoryConfig
from metarl.meta_rl.dynamics import MODEL_MEMORY
from metarl.meta_rl.grbal_agent import GrBALAgent, GrBALConfig
from metarl.meta_rl.maml_agent import MAMLConfig, make_maml_agent
from metarl.meta_rl.rl2_agent import RL2Agent, RL2Config


@dataclass(frozen=True)
class Algorithm:
    """How agents of one kind are made.

    Args:
        make: a constructor with the arguments of `RL2Agent` up to `device`, and what `knows` and `compiles` add.
        config_class: of its hyper-parameters. Its fields are flags, beside those of `RunConfig` and `MemoryConfig`: no
            name stands in two of them.
        num_envs: rows that it is trained in where nobody asks for another number.
        variant: values of the config that make this algorithm out of the class's defaults.
        single: values that change where there is only one environment, nothing to adapt to.
        metaworld: values that change in Meta-World, whose steps cost several times those of a half-cheetah and whose
            episodes are longer; `num_envs` may be among them.
        memory: the default network.
        knows: what `make` is also told of the task family: "reward_model" or "reward_scale", as `TaskDistribution` has
            them.
        compiles: `make` is also told `env_steps`, about how many steps of all rows training takes, by which it decides
            whether to compile: `config.row_steps(horizon)` says how many of a row are in an update, where episodes last
            `horizon` steps at most.
        frozen: values of the config with which it acts by what all tasks share; empty: nothing of it changes between
            calls of `adapt`, but for its memory.
    """

    make: Callable[..., Agent]
    config_class: type[Any]
    num_envs: int
    variant: Mapping[str, Any] = field(default_factory=dict)
    single: Mapping[str, Any] = field(default_factory=dict)
    metaworld: Mapping[str, Any] = field(default_factory=dict)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    knows: tuple[str, ...] = ()
    compiles: bool = False
    frozen: Mapping[str, Any] = field(default_factory=dict)

    def config(self, task_dist: str = "", single: bool = False) -> Any:
        """The default hyper-parameters in a family of this name."""
        here = {name: value for name, value in self._here(task_dist).items() if name != "num_envs"}
        return self.config_class(**{**self.variant, **here, **(self.single if single else {})})

    def rows(self, task_dist: str) -> int:
        """The rows that it is trained in by default in a family of this name."""
        return int(self._here(task_dist).get("num_envs", self.num_envs))

    def _here(self, task_dist: str) -> Mapping[str, Any]:
        return self.metaworld if task_dist.startswith("metaworld-") else {}


def _maml(**variant: Any) -> Algorithm:
    # 20 tasks in 10 episodes each, as published. In Meta-World 50 epochs of that are 100M steps and six hours on two
    # cores; 8 tasks in 5 episodes each are as many updates of a fifth of the steps.
    return Algorithm(
        make_maml_agent,
        MAMLConfig,
        num_envs=200,
        metaworld={"num_envs": 40, "trial_rows": 5},
        variant=variant,
        compiles=True,
    )


_ALGORITHMS = {
    "maml": _maml(),
    "promp": _maml(outer="ppo"),
    "fomaml": _maml(first_order=True),
    "reptile": _maml(reptile=True, outer="ppo"),
    "anil": _maml(adapt="head"),
    "metasgd": _maml(learn_rates=True),
    # With one environment nothing is carried from episode to episode, so short updates do.
    "rl2": Algorithm(
        RL2Agent, RL2Config, num_envs=64, single={"update_steps": 128}, knows=("reward_scale",), compiles=True
    ),
    "grbal": Algorithm(
        GrBALAgent,
        GrBALConfig,
        num_envs=16,
        memory=MODEL_MEMORY,
        knows=("reward_model",),
        frozen={"online_adaptation": False},
    ),
}
ALGOS = tuple(_ALGORITHMS)
"""Those of the package."""


def register_algorithm(name: str, algorithm: Algorithm) -> None:
    """Make `--algo name` stand for `algorithm`, in this process.

    Raises:
        UsageError: a name that is taken.
    """
    if name in _ALGORITHMS:
        raise UsageError(f"algo '{name}' is registered already; choose another name")
    _ALGORITHMS[name] = algorithm


def find_algorithm(name: str) -> Algorithm:
    """The algorithm called `name`; an unknown one raises with the known names and the nearest."""
    if name not in _ALGORITHMS:
        raise unknown_name("algo", name, _ALGORITHMS)
    return _ALGORITHMS[name]
