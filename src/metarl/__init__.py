"""metarl: agents that learn to adapt, measured honestly, in worlds at the speed of the simulator."""

from __future__ import annotations

from importlib import import_module
from typing import Any

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
    "AdaptationConfig": "metarl.adaptation.test_time_adaptation",
    "Adapter": "metarl.adaptation.test_time_adaptation",
    "Environment": "metarl.env_runner.environment",
    "Actor": "metarl.core.policy",
    "MetaMAML": "metarl.meta_rl.meta_maml",
    "MetaMAMLAgent": "metarl.meta_rl.maml_agent",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'metarl' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
