"""Does a dynamics model that adapts online plan better than one that does not? Returns on held-out tasks.

    python benchmarks/model_adaptation.py --task-dist halfcheetah-cripple --out results/halfcheetah_cripple.json

Two runs of `--algo grbal` train for as many epochs, on the same tasks: a meta-learned model, and a plain one of the
same size. Both are measured frozen and adapting (the plain one by the rate that the meta-learned one began with), in
the same worlds: on the held-out tasks, and on the body of the family with nothing broken or changed. `--meta` and
`--plain` take the folders of runs that are there already.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import write_report

from metarl.core.task import Task
from metarl.experiments.checkpoint import LAST, restore
from metarl.experiments.protocol import Protocol, evaluate
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.experiments.statistics import Scores, summary
from metarl.meta_rl.grbal_agent import GrBALConfig
from metarl.meta_rl.registry import find_algorithm
from metarl.tasks.drift import FAMILIES

QUICK = GrBALConfig(past=4, future=4, model_updates=1, batch_windows=4, horizon=2, candidates=4)
UNCHANGED = 10_000
"""Id of the task in which nothing is broken or changes."""
NOTES = (
    "Returns of the first episode (shot 0): whoever adapts does so within it. Intervals are 95 %: of a return over "
    "repeats of the same tasks, of a gain over tasks (unchanged: over repeats).",
    "A gain is adapted minus frozen by the same model in the same worlds.",
)


def find_or_train(config: RunConfig, algorithm: GrBALConfig, folder: str | None) -> Run:
    """The run in `folder`, or a new one."""
    if folder is not None:
        return Run.load(folder)
    run = Run.plan(config, algorithm, find_algorithm("grbal").memory, "benchmarks/model_adaptation.py").prepare_folder()
    run.train(lambda progress: None, lambda: False)
    return run


def returns(run: Run, tasks: Sequence[Task], adapting: bool, repeats: int) -> Scores:
    """[repeats, tasks] of the run's last checkpoint."""
    run = replace(run, algorithm=replace(run.algorithm, online_adaptation=adapting))
    agent = run.make_agent()
    restore(agent, run.checkpoints / LAST)
    protocol = Protocol("zero-shot", repeats=repeats, seed=run.config.seed)
    return evaluate(agent, run.distribution, tasks, protocol).shots[0].returns


def gain_interval(gain: np.ndarray, resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of the mean of `gain` [n], by the bootstrap."""
    drawn = np.random.default_rng(0).integers(len(gain), size=(resamples, len(gain)))
    low, high = np.quantile(gain[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


def rows_of(name: str, run: Run, tasks: Sequence[Task], where: str, repeats: int) -> list[dict[str, Any]]:
    """Frozen and adapting, on some tasks."""
    scores = {adapting: returns(run, tasks, adapting, repeats) for adapting in (False, True)}
    gain = scores[True] - scores[False]
    by_unit = gain.mean(0) if len(tasks) > 1 else gain[:, 0]
    rows = []
    for adapting, measured in scores.items():
        numbers = summary(measured)
        low, high = numbers["ci95"]
        gained = f"{gain.mean():.1f} [{{:.1f}}, {{:.1f}}]".format(*gain_interval(by_unit)) if adapting else "-"
        rows.append(
            {
                "tasks": where,
                "model": name,
                "acts": "adapting" if adapting else "frozen",
                "return": f"{numbers['mean']:.1f} [{low:.1f}, {high:.1f}]",
                "gain": gained,
                "repeats x tasks": f"{measured.shape[0]} x {measured.shape[1]}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task-dist", default="halfcheetah-cripple", choices=FAMILIES, help="task family")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of training of each model")
    parser.add_argument("--seed", type=int, default=0, help="of training and of the worlds measured in")
    parser.add_argument("--repeats", type=int, default=4, help="episodes a task")
    parser.add_argument("--meta", help="folder of a run with the meta-learned model")
    parser.add_argument("--plain", help="folder of a run with the plain model (--no-meta --no-online-adaptation)")
    parser.add_argument("--quick", action="store_true", help="one epoch of tiny models on two tasks: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    repeats = 2 if arguments.quick else arguments.repeats
    algorithm = QUICK if arguments.quick else GrBALConfig()
    plain = replace(algorithm, meta=False, online_adaptation=False)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            task_dist=arguments.task_dist,
            algo="grbal",
            epochs=1 if arguments.quick else arguments.epochs,
            num_envs=2 if arguments.quick else None,
            test_tasks=(100, 101) if arguments.quick else (),
            seed=arguments.seed,
            output_dir=folder,
        )
        for name, chosen, given in (
            ("meta-learned", algorithm, arguments.meta),
            ("plain", plain, arguments.plain),
        ):
            run = find_or_train(config, chosen, given)
            tasks = run.test_tasks if arguments.quick else run.distribution.test
            whole = [Task(UNCHANGED, FAMILIES[run.distribution.name].whole)]
            for where, those, often in (("held out", tasks, repeats), ("unchanged", whole, 8 * repeats)):
                rows += rows_of(name, run, those, where, often)
                print("\n".join(f"{row['tasks']}, {name}, {row['acts']}: {row['return']}" for row in rows[-2:]))
    write_report(f"Adaptation of a dynamics model on {arguments.task_dist}", rows, arguments.out, NOTES)


if __name__ == "__main__":
    main()
