"""metarl: agents that learn to adapt, measured honestly, in worlds at the speed of the simulator."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and where they live. They are imported at first use: `import metarl` stays instant.
_HOMES = {
    "Choice": "metarl.tasks.samplers",
    "LogUniform": "metarl.tasks.samplers",
    "Drift": "metarl.tasks.distribution",
    "TaskDistribution": "metarl.tasks.distribution",
    "Uniform": "metarl.tasks.samplers",
    "RewardModel": "metarl.tasks.reward_model",
    "MorphologyDistribution": "metarl.tasks.morphology",
    "Task": "metarl.core.task",
    "UsageError": "metarl.core.errors",
    "Agent": "metarl.core.agent",
    "AgentCoordinator": "metarl.core.coordinator",
    "AdaptationAgent": "metarl.adaptation.adaptation_agent",
    "AdaptationConfig": "metarl.adaptation.config",
    "Adapter": "metarl.adaptation.test_time_adaptation",
    "Environment": "metarl.env_runner.environment",
    "Actor": "metarl.core.policy",
    "MetaMAML": "metarl.meta_rl.meta_maml",
    "MetaMAMLAgent": "metarl.meta_rl.maml_agent",
    "MAMLConfig": "metarl.meta_rl.maml_config",
    "RL2Agent": "metarl.meta_rl.rl2_agent",
    "RL2Config": "metarl.meta_rl.rl2_config",
    "MemoryConfig": "metarl.core.memory",
    "Protocol": "metarl.experiments.protocol",
    "Trainer": "metarl.experiments.trainer",
    "evaluate": "metarl.experiments.protocol",
    "run_trial": "metarl.env_runner.trial",
    "check_tasks": "metarl.tasks.checks",
    "list_pretrained": "metarl.experiments.shipped",
    "list_tasks": "metarl.tasks",
    "load_agent": "metarl.experiments.pretrained",
    "load_pretrained": "metarl.experiments.pretrained",
    "make_tasks": "metarl.tasks",
    "register_tasks": "metarl.tasks",
    "split_tasks": "metarl.tasks.samplers",
}
__all__ = list(_HOMES)

if TYPE_CHECKING:  # the same names, for type checkers and editors, to which those that `__getattr__` gives are Any
    from metarl.adaptation.adaptation_agent import AdaptationAgent as AdaptationAgent
    from metarl.adaptation.config import AdaptationConfig as AdaptationConfig
    from metarl.adaptation.test_time_adaptation import Adapter as Adapter
    from metarl.core.agent import Agent as Agent
    from metarl.core.coordinator import AgentCoordinator as AgentCoordinator
    from metarl.core.errors import UsageError as UsageError
    from metarl.core.memory import MemoryConfig as MemoryConfig
    from metarl.core.policy import Actor as Actor
    from metarl.core.task import Task as Task
    from metarl.env_runner.environment import Environment as Environment
    from metarl.env_runner.trial import run_trial as run_trial
    from metarl.experiments.pretrained import load_agent as load_agent
    from metarl.experiments.pretrained import load_pretrained as load_pretrained
    from metarl.experiments.protocol import Protocol as Protocol
    from metarl.experiments.protocol import evaluate as evaluate
    from metarl.experiments.shipped import list_pretrained as list_pretrained
    from metarl.experiments.trainer import Trainer as Trainer
    from metarl.meta_rl.maml_agent import MetaMAMLAgent as MetaMAMLAgent
    from metarl.meta_rl.maml_config import MAMLConfig as MAMLConfig
    from metarl.meta_rl.meta_maml import MetaMAML as MetaMAML
    from metarl.meta_rl.rl2_agent import RL2Agent as RL2Agent
    from metarl.meta_rl.rl2_config import RL2Config as RL2Config
    from metarl.tasks import list_tasks as list_tasks
    from metarl.tasks import make_tasks as make_tasks
    from metarl.tasks import register_tasks as register_tasks
    from metarl.tasks.checks import check_tasks as check_tasks
    from metarl.tasks.distribution import Drift as Drift
    from metarl.tasks.distribution import TaskDistribution as TaskDistribution
    from metarl.tasks.morphology import MorphologyDistribution as MorphologyDistribution
    from metarl.tasks.reward_model import RewardModel as RewardModel
    from metarl.tasks.samplers import Choice as Choice
    from metarl.tasks.samplers import LogUniform as LogUniform
    from metarl.tasks.samplers import Uniform as Uniform
    from metarl.tasks.samplers import split_tasks as split_tasks
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'metarl' has no attribute '{name}'")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
