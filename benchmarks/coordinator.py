"""What threads bring a population: the same episodes with a thread an agent, and with one agent after the other.

    python benchmarks/coordinator.py --out results/coordinator.json

Agents with an ssm memory run half-cheetah-vel, each in worlds of its own (apart) or in rows of one batch (shared). Both
modes give the same returns, which is checked.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import median_ratio, take_turns, write_report

from metarl.core.coordinator import AgentCoordinator, Mode
from metarl.meta_rl.rl2_agent import RL2Agent
from metarl.tasks.registry import make_tasks

FAMILY = "halfcheetah-vel"

NOTES = (
    "One episode a row. Every agent runs torch on one thread in both modes; the simulator shares its rows between all "
    "cores in both modes, so that sequential leaves cores idle only while it computes actions.",
    "Apart: a thread runs an agent's whole trial. Shared: threads meet after every step.",
)


def run(mode: Mode, agents: int, rows: int, steps: int, apart: bool) -> dict[str, list[list[float]]]:
    """Returns of one episode in every row, by agent."""
    distribution = make_tasks(FAMILY)
    tasks = [distribution.train[row % len(distribution.train)] for row in range(rows)]
    shared = distribution.make_env(tasks * agents)
    coordinator = AgentCoordinator()
    for index in range(agents):
        agent = RL2Agent(shared.single_observation_space, shared.single_action_space, seed=index)
        agent.training = False
        coordinator.register_agent(agent, str(index))
    if apart:
        results = coordinator.run_episodes(distribution.make_env, 1, steps, mode, tasks=coordinator.distribute(tasks))
    else:
        results = coordinator.run_episodes(shared, 1, steps, mode, seed=0)
    shared.close()
    return {agent_id: result.returns for agent_id, result in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 64], help="of every agent")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for apart in (True, False):
        for rows in arguments.rows:
            returns: dict[str, Any] = {}

            def side(mode: Mode, rows: int = rows, apart: bool = apart, returns: dict[str, Any] = returns) -> float:
                start = time.perf_counter()
                returns[mode] = run(mode, arguments.agents, rows, arguments.steps, apart)
                return time.perf_counter() - start

            sides = {"sequential": lambda: side("sequential"), "parallel": lambda: side("parallel")}
            take_turns(sides, 1)  # not counted: compiles, and brings memory in
            seconds = take_turns(sides, arguments.repeats)
            if returns["parallel"] != returns["sequential"]:
                raise RuntimeError("parallel and sequential gave different returns")
            lines.append(
                {
                    "worlds": "apart" if apart else "shared",
                    "agents": arguments.agents,
                    "rows": rows,
                    **{f"{name} s": median(own) for name, own in seconds.items()},
                    "sequential / parallel": median_ratio(seconds["sequential"], seconds["parallel"]),
                }
            )
    write_report("A population in threads and in turn", lines, arguments.out, NOTES)


if __name__ == "__main__":
    main()
