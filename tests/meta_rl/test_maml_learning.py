"""Gradient-based adaptation is learned: a point finds goals that it was never trained on, in seconds of training.

Thresholds hold with a margin for seeds 0 and 1.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from metarl import make_tasks
from metarl.core.memory import MemoryConfig
from metarl.experiments.protocol import Protocol, evaluate, reference_lines
from metarl.experiments.statistics import summary
from metarl.experiments.trainer import UPDATES_PER_EPOCH, Trainer
from metarl.meta_rl.maml_agent import MAMLConfig, MetaMAMLAgent, make_maml_agent
from metarl.tasks.distribution import TaskDistribution

SEED = 0
ROWS, EPOCHS = 80, 3
PROMP = MAMLConfig(outer="ppo", inner_lr=0.1, learning_rate=1e-2, trial_rows=5)
PROTOCOL = Protocol("few-shot", (3,), repeats=4, seed=SEED)


def make_agent(distribution: TaskDistribution, seed: int = SEED) -> MetaMAMLAgent:
    with closing(distribution.make_env(distribution.train[:1])) as env:
        spaces = env.single_observation_space, env.single_action_space
    memory = MemoryConfig("mlp", width=32)
    return make_maml_agent(*spaces, PROMP, memory, num_updates=EPOCHS * UPDATES_PER_EPOCH, seed=seed)


def test_three_gradient_steps_lead_to_a_goal_never_seen_before(tmp_path: Path) -> None:
    distribution = make_tasks("point-goal", horizon=20)
    agent = make_agent(distribution)

    def measured() -> list[tuple[float, list[float]]]:
        shots = evaluate(agent, distribution, distribution.test, PROTOCOL).shots
        scores = [summary(shot.returns) for shot in shots]
        return [(score["mean"], score["ci95"]) for score in scores]

    (_, _), (_, untrained) = measured()
    tasks = distribution.train, distribution.test
    Trainer(agent, distribution, *tasks, tmp_path, epochs=EPOCHS, num_envs=ROWS, seed=SEED).train()
    (first, (_, highest)), (third, (lowest, _)) = measured()
    lines = reference_lines(distribution, distribution.test, PROTOCOL)
    random, best = lines["random"]["mean"], lines["task_conditioned"]["mean"]
    assert lowest > highest, "the intervals of shot 0 and shot 3 meet"
    assert third - first > 0.4 * (best - random)
    assert lowest > untrained[1], "the same steps help an agent as much that was not meta-trained"
