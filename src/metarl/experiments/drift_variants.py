"""The ways in which the drift protocol lets one trained agent meet a change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from metarl.adaptation.adaptation_agent import AdaptationAgent
from metarl.adaptation.config import AdaptationConfig
from metarl.core.agent import Agent
from metarl.meta_rl.grbal_agent import GrBALConfig
from metarl.meta_rl.registry import find_algorithm

AS_TRAINED, FROZEN, ADAPTED, UNGUARDED, RESETS = "as trained", "frozen", "adapted", "without guard", "with resets"

RESET_EVERY = 64
"""Steps from one return to the source to the next, where those take the guard's place (RDumb, Press et al. 2023, arXiv
2306.05401, who reset after a thousand batches of images; an episode has a few hundred steps)."""

UNCLIPPED = 1e9
"""A largest norm of gradients that none reaches: meta-learned steps are taken as they were learned."""


def online_config(algorithm: Any) -> AdaptationConfig:
    """How an agent of these hyper-parameters goes on learning where it runs.

    A dynamics model learns from the last `past` transitions, four times in as many as it was trained to predict. One
    that was meta-learned takes the steps that it was trained for, from the source and by its own rates; one that was
    trained plainly goes on from where its last update ended. Anything else has the defaults of `AdaptationConfig`.
    """
    if not isinstance(algorithm, GrBALConfig):
        return AdaptationConfig()
    return AdaptationConfig(
        learning_rate=1.0,
        num_steps=algorithm.inner_steps,
        from_source=algorithm.meta,
        update_every=max(1, algorithm.future // 4),
        parameters=algorithm.adapt,
        buffer_size=algorithm.past,
        batch_size=algorithm.past,
        grad_clip_norm=UNCLIPPED,
    )


def variants(algo: str, algorithm: Any, trained: Callable[[Any], Agent], seed: int = 0) -> dict[str, Agent]:
    """Agents of one checkpoint by name; the first is the agent as it was trained.

    - "as trained": adapts online by itself; where nothing does, it is "frozen";
    - "frozen": acts by what all tasks share, and by its memory where it has one;
    - "adapted": goes on learning online (`online_config`), guarded;
    - "without guard": the same without the guard;
    - "with resets": every update goes on from the last, and instead of the guard it returns to the source regularly.

    Args:
        algo: its name.
        algorithm: its hyper-parameters.
        trained: makes the agent of the checkpoint, with the hyper-parameters given.
        seed: of the draws from recent experience.
    """
    still = replace(algorithm, **find_algorithm(algo).frozen)
    online = online_config(algorithm)
    configs = {
        ADAPTED: online,
        UNGUARDED: replace(online, rollback=False),
        RESETS: replace(online, rollback=False, from_source=False, reset_every=RESET_EVERY),
    }
    frozen = trained(still)
    return {
        **({AS_TRAINED: trained(algorithm)} if still != algorithm else {}),
        FROZEN: frozen,
        **{name: AdaptationAgent.from_agent(frozen, config, seed=seed) for name, config in configs.items()},
    }
