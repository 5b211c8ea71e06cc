"""Three ways to adapt meet the same tasks: gradient steps between episodes, the same steps online, and a memory.

    python examples/multi_agent_demo.py        # under a minute on two cores

A point looks for a goal that it cannot see; only the reward, minus the distance, tells where it is. MAML and the memory
(RL²) are meta-trained for some seconds each, on 100 goals. Then an `AgentCoordinator` lets three agents play on goals
that none of them has met, each in a thread of its own: the memory; MAML, which takes a gradient step after each episode
on all of it; and an `AdaptationAgent`, which starts from a copy of MAML's policy, learns while the episode goes on, and
goes back to what it came from where that costs return.
"""

import argparse
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.live import Live
from rich.table import Table

from metarl.adaptation.adaptation_agent import AdaptationAgent
from metarl.adaptation.config import AdaptationConfig
from metarl.core.agent import Agent
from metarl.core.coordinator import AgentCoordinator
from metarl.core.memory import MemoryConfig
from metarl.core.population import AgentResult
from metarl.core.threads import torch_threads
from metarl.env_runner.trial import run_trial
from metarl.experiments.protocol import Protocol, reference_lines
from metarl.meta_rl.maml_agent import MAMLConfig, make_maml_agent
from metarl.meta_rl.rl2_agent import RL2Agent, RL2Config
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import make_tasks

HORIZON, TRIAL_ROWS = 20, 5
GRADIENTS = MAMLConfig(outer="ppo", learning_rate=1e-2, trial_rows=TRIAL_ROWS)
REMEMBERING = RL2Config(
    learning_rate=5e-3, num_minibatches=4, update_steps=2 * HORIZON, continuation=0.0, discount=0.9, trace=0.9
)
ONLINE = AdaptationConfig(
    learning_rate=0.1,
    update_every=HORIZON // 2,
    buffer_size=2 * TRIAL_ROWS,
    batch_size=2 * TRIAL_ROWS,
    grad_clip_norm=10.0,
)
"""Rows of its memory are segments of a world between updates: the last two of each."""


def train(name: str, agent: Agent, distribution: TaskDistribution, updates: int, rows: int, seed: int) -> None:
    """Meta-train: trials in drawn tasks, and an update after each."""
    begin, generator = time.perf_counter(), np.random.default_rng(seed)
    with closing(distribution.make_env(distribution.train[:1] * rows, seed=seed)) as env, torch_threads(1):
        for _ in range(updates):
            drawn = generator.choice(len(distribution.train), rows // agent.trial_rows, replace=False)
            tasks = [distribution.train[index] for index in drawn for _ in range(agent.trial_rows)]
            run_trial(agent, env, tasks, shots=agent.trial_rounds - 1, steps=agent.round_steps or HORIZON)
            agent.update()
    print(f"meta-trained {name}: {updates} updates in {time.perf_counter() - begin:.1f} s")


def table_of(results: Mapping[str, AgentResult], episodes: int, tasks: int) -> Table:
    """Mean return of every episode that has been played."""
    numbers = [f"episode {episode + 1}" for episode in range(episodes)]
    table = Table("agent", *numbers, title=f"Mean return ± 95 % interval on {tasks} goals never met before")
    for agent_id, result in results.items():
        means = [result.mean_interval(episode) for episode in range(episodes)]
        cells = ["" if np.isnan(mean) else f"{mean:.1f} ± {high - mean:.1f}" for mean, _, high in means]
        table.add_row(agent_id, *cells)
    return table


def draw(results: Mapping[str, AgentResult], episodes: int, best: float, path: Path) -> None:
    """Mean return by episode, with 95 % intervals."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for agent_id, result in results.items():
        mean, low, high = np.array([result.mean_interval(episode) for episode in range(episodes)]).T
        number = np.arange(1, episodes + 1)
        (line,) = axes.plot(number, mean, "o-", label=agent_id)
        axes.fill_between(number, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.axhline(best, color="0.4", linestyle="--", label="told the goal")
    axes.set(xlabel="episode in the same task", ylabel="return", title="Goals never met before, 95 % intervals")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=len(results) + 1, frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="A MAML agent, an adaptation agent and a memory agent side by side")
    parser.add_argument("--updates", type=int, default=60, help="meta-training updates of MAML, and of the memory")
    parser.add_argument("--episodes", type=int, default=5, help="episodes in every held-out task")
    parser.add_argument("--tasks", type=int, default=30, help="held-out tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/multi_agent_demo.png"), help="where the chart goes")
    flags = parser.parse_args()

    distribution = make_tasks("point-goal", horizon=HORIZON)
    with closing(distribution.make_env(distribution.train[:1])) as env:
        spaces = env.single_observation_space, env.single_action_space
    network = MemoryConfig("mlp", width=32)
    maml = make_maml_agent(*spaces, GRADIENTS, network, num_updates=flags.updates, seed=flags.seed)
    memory = RL2Agent(*spaces, REMEMBERING, MemoryConfig("gru", width=32), num_updates=flags.updates, seed=flags.seed)
    train("MAML", maml, distribution, flags.updates, 16 * TRIAL_ROWS, flags.seed)
    train("memory", memory, distribution, flags.updates, 64, flags.seed)

    coordinator = AgentCoordinator()
    coordinator.register_agent(maml, "MAML")
    coordinator.register_agent(AdaptationAgent.from_agent(maml, ONLINE, seed=flags.seed), "Adapt")
    coordinator.register_agent(memory, "memory")
    for agent in coordinator.agents.values():  # as an evaluation has them: nothing is collected for another update
        agent.training, agent.explore = False, agent.explores_to_adapt
    held_out = distribution.test[: flags.tasks]
    played: dict[str, AgentResult] = {}
    with Live(console=Console(), auto_refresh=False) as live:

        def show(agent_id: str, result: AgentResult) -> None:
            played[agent_id] = result
            known = {agent_id: played[agent_id] for agent_id in coordinator.agents if agent_id in played}
            live.update(table_of(known, flags.episodes, len(held_out)), refresh=True)

        results = coordinator.run_episodes(
            distribution.make_env,
            flags.episodes,
            HORIZON,
            tasks=coordinator.distribute(held_out),
            seed=flags.seed,
            on_episode=show,
        )
    best = reference_lines(distribution, held_out, Protocol("zero-shot", repeats=2))["task_conditioned"]["mean"]
    draw(results, flags.episodes, best, flags.out)
    print(f"\nan episode of MAML and of Adapt is {TRIAL_ROWS} worlds side by side; told the goal: {best:.1f}")
    print(f"chart: {flags.out}")


if __name__ == "__main__":
    main()
