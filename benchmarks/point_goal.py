"""Does every algorithm adapt? Return by shot on point-goal, whose goal nothing but the reward tells.

    python benchmarks/point_goal.py --out results/point_goal.json

Every algorithm that needs to be told no reward trains for as many epochs with its own defaults, on the same tasks, and
is measured on the same held-out goals. The best return is near −4: straight to a goal at distance 1, and no reward lost
after that.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import write_report

from metarl.core.memory import MemoryConfig
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.meta_rl.registry import ALGOS, find_algorithm

CANDIDATES = tuple(algo for algo in ALGOS if "reward_model" not in find_algorithm(algo).knows)
SHOTS = (1, 3)
NOTES = (
    "Returns are means over 30 held-out goals with 95 % intervals over repeats, for rl2 over goals: it acts by its "
    "mode, and so its repeats are copies of each other. A shot is an episode in memory for rl2, and a gradient step on "
    "ten episodes for the others.",
)


def measure(algo: str, method: str, epochs: int, num_envs: int | None, folder: str) -> dict[str, Any]:
    """One algorithm's row of the table."""
    config = RunConfig(
        task_dist="point-goal", algo=algo, epochs=epochs, num_envs=num_envs, few_shot=SHOTS, output_dir=folder
    )
    run = Run.plan(config, find_algorithm(algo).config(), MemoryConfig(method=method), "benchmarks/point_goal.py")
    run = run.prepare_folder()
    run.train(lambda progress: None, lambda: False)
    measured = run.measure()
    row: dict[str, Any] = {"algo": algo, "method": method}
    for shot, scores in measured["shots"].items():
        low, high = scores["return"]["ci95"]
        row[f"shot {shot}"] = f"{scores['return']['mean']:.1f} [{low:.1f}, {high:.1f}]"
    last, first = measured["shots"][str(SHOTS[-1])]["return"], measured["shots"]["0"]["return"]
    row["improves"] = "yes" if last["ci95"][0] > first["ci95"][1] else "no"
    return row | {
        "success": measured["shots"][str(SHOTS[-1])]["success"]["any_step"]["mean"],
        "seconds": measured["wall_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3, help="epochs of training of every algorithm")
    parser.add_argument("--quick", action="store_true", help="one epoch in few rows: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    epochs, num_envs = (1, 20) if arguments.quick else (arguments.epochs, None)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for algo in CANDIDATES:
            rows.append(measure(algo, "ssm" if algo == "rl2" else "mlp", epochs, num_envs, folder))
            print(f"{algo}: {rows[-1]['shot 0']} -> {rows[-1][f'shot {SHOTS[-1]}']}", flush=True)
    write_report("Adaptation on point-goal", rows, arguments.out, NOTES)


if __name__ == "__main__":
    main()
