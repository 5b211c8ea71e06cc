"""What threads bring a population: the same episodes with a thread an agent, and with one agent after the other.

    python benchmarks/coordinator.py --out results/coordinator.json

Agents that a policy with an ssm memory drives run halfcheetah-vel, and agents that plan halfcheetah-cripple, each in
worlds of its own (apart) or in rows of one batch (shared). Both modes give the same returns, which is checked.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from common import median_ratio, take_turns, write_report

from metarl.core.agent import Agent
from metarl.core.coordinator import AgentCoordinator, Mode
from metarl.env_runner.trial import run_trial
from metarl.meta_rl.grbal_agent import GrBALAgent, GrBALConfig
from metarl.meta_rl.rl2_agent import RL2Agent
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import make_tasks

NOTES = (
    "One episode a row. Every agent runs torch on one thread in both modes; the simulator shares its rows between all "
    "cores in both modes, so that sequential leaves cores idle only while it computes actions: little with a policy, "
    "nearly always with a planner.",
    "Apart: a thread runs an agent's whole trial. Shared: threads meet after every step.",
)


@dataclass(frozen=True)
class Work:
    """A population's agents and what they do."""

    agents: str
    family: str
    rows: int
    """Of every agent."""
    steps: int


FULL = (
    Work("policy", "halfcheetah-vel", 8, 200),
    Work("policy", "halfcheetah-vel", 64, 200),
    Work("planner", "halfcheetah-cripple", 8, 50),
)
QUICK = tuple(replace(work, rows=2, steps=4) for work in (FULL[0], FULL[-1]))


def make_agent(kind: str, distribution: TaskDistribution, env: Any, seed: int) -> Agent:
    """An agent that acts as a trained one of its kind does, as far as time is concerned."""
    spaces = env.single_observation_space, env.single_action_space
    if kind == "policy":
        return RL2Agent(*spaces, seed=seed)
    agent = GrBALAgent(
        *spaces, GrBALConfig(model_updates=1, random_updates=0), reward_model=distribution.reward_model, seed=seed
    )
    tasks = distribution.train[:1]
    world = distribution.make_env(tasks)
    run_trial(agent, world, tasks, steps=agent.config.past + agent.config.future)
    world.close()
    agent.update()  # before the first one it acts at random
    return agent


def run(mode: Mode, agents: int, work: Work, apart: bool) -> tuple[float, dict[str, list[list[float]]]]:
    """Seconds of one episode in every row, and its returns by agent."""
    distribution = make_tasks(work.family)
    tasks = [distribution.train[row % len(distribution.train)] for row in range(work.rows)]
    shared = distribution.make_env(tasks * agents)
    coordinator = AgentCoordinator()
    for index in range(agents):
        agent = make_agent(work.agents, distribution, shared, index)
        agent.training = False
        coordinator.register_agent(agent, str(index))
    start = time.perf_counter()
    if apart:
        results = coordinator.run_episodes(
            distribution.make_env, 1, work.steps, mode, tasks=coordinator.distribute(tasks)
        )
    else:
        results = coordinator.run_episodes(shared, 1, work.steps, mode, seed=0)
    seconds = time.perf_counter() - start
    shared.close()
    return seconds, {agent_id: result.returns for agent_id, result in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for apart in (True, False):
        for work in QUICK if arguments.quick else FULL:
            returns: dict[str, Any] = {}

            def side(mode: Mode, work: Work = work, apart: bool = apart, returns: dict[str, Any] = returns) -> float:
                seconds, returns[mode] = run(mode, arguments.agents, work, apart)
                return seconds

            sides = {"sequential": lambda: side("sequential"), "parallel": lambda: side("parallel")}
            take_turns(sides, 1)  # not counted: compiles, and brings memory in
            seconds = take_turns(sides, arguments.repeats)
            if returns["parallel"] != returns["sequential"]:
                raise RuntimeError("parallel and sequential gave different returns")
            lines.append(
                {
                    "worlds": "apart" if apart else "shared",
                    "agents": f"{arguments.agents} {work.agents}",
                    "rows": work.rows,
                    **{f"{name} s": median(own) for name, own in seconds.items()},
                    "sequential / parallel": median_ratio(seconds["sequential"], seconds["parallel"]),
                }
            )
    write_report("A population in threads and in turn", lines, arguments.out, NOTES)


if __name__ == "__main__":
    main()
