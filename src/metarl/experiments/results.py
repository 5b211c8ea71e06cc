"""`results.json`: what a run found out, with everything needed to judge and to repeat it."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias, cast

from metarl.core.errors import UsageError
from metarl.core.task import Task, TaskValue
from metarl.experiments.doctor import DISTRIBUTION, hardware
from metarl.experiments.protocol import Evaluation, References, ShotScores
from metarl.experiments.results_check import first_fault
from metarl.experiments.statistics import Scores, Summary
from metarl.tasks.distribution import TaskDistribution, check_disjoint

Results: TypeAlias = dict[str, Any]

RESULTS_FILE = "results.json"
PACKAGES = ("torch", "numpy", "scipy", "gymnasium", "mujoco", "mjbatch")
"""Packages whose version can change a number."""


def results(
    evaluation: Evaluation,
    *,
    distribution: TaskDistribution,
    train_tasks: Sequence[Task],
    algo: str,
    method: str,
    seeds: Sequence[int],
    references: References,
    env_steps: int,
    wall_seconds: float,
    epoch: int,
    checkpoint: str,
    command: str,
) -> Results:
    """The content of `results.json`, ready for JSON.

    Scores are summarised by shot (`shots`) and given whole by task (`tasks`: per shot one number a repeat, so that any
    other statistic can be drawn from the file). `task_split.same_as_train` names the test tasks whose parameters were
    also trained on, under another id: in a family of two directions nothing is left to hold out. `versions` and
    `hardware` are those of the measurement; config.json holds those of the training.

    `interval` says what the confidence intervals are over: a task's "repeats", or the "tasks" of each environment,
    which is the task parameter `environment` where the family has one.

    `details` is what else decides the numbers, as the distribution says: results that differ in it are not compared.
    `max_episode_steps` is the horizon, `evaluation_seed` the seed of the worlds, `code` what `code` says.

    Args:
        train_tasks: what the agent was trained on; an overlap with the evaluated tasks is refused.
        seeds: training seeds.
        env_steps, wall_seconds: environment steps and time that training took.
        epoch, checkpoint: after how many epochs, and which of the kept ones (last, best): what was measured.
    """
    check_disjoint(train_tasks, evaluation.tasks)
    protocol = evaluation.protocol
    trained = {task.items_ for task in train_tasks}
    return {
        "task_dist": distribution.name,
        "details": distribution.details,
        "algo": algo,
        "method": method,
        "seeds": list(seeds),
        "protocol": protocol.name,
        "adaptation_episodes": protocol.adaptation_episodes,
        "evaluation_episodes": protocol.evaluation_episodes,
        "interval": "repeats" if evaluation.strata is None else "tasks",
        "environment": distribution.environment,
        "max_episode_steps": distribution.max_episode_steps,
        "evaluation_seed": protocol.seed,
        "shots": {
            str(shot.shot): {
                "return": evaluation.summary(shot.returns),
                "success": _of_success(shot, evaluation.summary),
                "episodes": shot.episodes,
                "gradient_steps": shot.gradient_steps,
            }
            for shot in evaluation.shots
        },
        "tasks": [
            {"id": task.id, "params": _plain(task), "shots": _scores_of_task(evaluation, column)}
            for column, task in enumerate(evaluation.tasks)
        ],
        "references": dict(references),
        "task_split": {
            "train": [task.id for task in train_tasks],
            "test": [task.id for task in evaluation.tasks],
            "same_as_train": [task.id for task in evaluation.tasks if task.items_ in trained],
            "distribution_seed": distribution.seed,
        },
        "env_steps": env_steps,
        "wall_seconds": wall_seconds,
        "epoch": epoch,
        "checkpoint": checkpoint,
        "versions": versions(),
        **code(),
        "hardware": hardware(),
        "command": command,
    }


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the packages that can change a number."""
    return {
        "python": platform.python_version(),
        "metarl": version(DISTRIBUTION),
        **{package: version(package) for package in PACKAGES},
    }


@cache
def code() -> dict[str, Any]:
    """`{"code": {"commit", "dirty"}}` where the package runs from its git checkout; elsewhere nothing.

    Dirty: something in the package differs from the commit.
    """
    package = Path(__file__).parents[1]
    root = package.parents[1]
    if not (root / ".git").exists():  # an installed package may lie in somebody else's checkout
        return {}
    git = ("git", "--no-optional-locks", "-C", str(root))
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", str(package)], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, no commit yet, or a checkout that git distrusts
        return {}
    return {"code": {"commit": commit, "dirty": bool(changes)}}


code()  # now: when a run that trained for hours is measured, the checkout may be at another commit than what runs


def reference_from_run(path: str | Path, distribution: TaskDistribution, tasks: Sequence[Task]) -> Summary:
    """Shot 0 of a finished run, to be drawn as the task-conditioned reference line.

    Args:
        path: the run's folder, or its `results.json`.
        distribution, tasks: what the line is drawn beside; the run must have been measured on the same tasks.
    """
    try:
        run = load_results(path)
    except UsageError as error:
        raise UsageError(f"--reference: {error}") from error
    if run["task_dist"] != distribution.name:
        raise UsageError(
            f"--reference {path} is a run on '{run['task_dist']}': give one on '{distribution.name}' and the same tasks"
        )
    details = run.get("details", {})
    if details != distribution.details:
        raise UsageError(
            f"--reference {path} was measured with {_listed(details)}, not {_listed(distribution.details)}: "
            "give a run with the same"
        )
    # Results from before it was recorded do not say how long their episodes could last.
    if (horizon := run.get("max_episode_steps", distribution.max_episode_steps)) != distribution.max_episode_steps:
        raise UsageError(
            f"--reference {path} was measured in episodes of {horizon} steps, not {distribution.max_episode_steps}: "
            "give a run with the same"
        )
    there = {task["id"]: task["params"] for task in run["tasks"]}
    if there != {task.id: _plain(task) for task in tasks}:
        raise UsageError(
            f"--reference {path} was measured on other test tasks (ids {sorted(there)}): evaluate it on the same ones"
        )
    return cast(Summary, run["shots"]["0"]["return"])


def load_results(path: str | Path) -> Results:
    """Read a run's `results.json`, given the run's folder or the file itself.

    Raises:
        UsageError: there is none, or a value in it is missing or wrong; the first of these, by its path.
    """
    file = Path(path)
    try:
        file = file / RESULTS_FILE if file.is_dir() else file
        run = json.loads(file.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}; give the folder of a finished run") from error
    except ValueError as error:
        raise UsageError(f"{file} is not JSON ({error}): give the folder of a finished run") from error
    if not isinstance(run, dict) or "task_dist" not in run:
        raise UsageError(f"{file} is not a result of this package: give the folder of a finished run")
    if fault := first_fault(run):
        raise UsageError(f"{file}: {fault}; put back what was written, or measure again with  metarl evaluate")
    return run


def _scores_of_task(evaluation: Evaluation, column: int) -> dict[str, Any]:
    def one(scores: Scores) -> list[float]:
        return [float(score) for score in scores[:, column]]

    return {
        str(shot.shot): {"return": one(shot.returns), "success": _of_success(shot, one)} for shot in evaluation.shots
    }


def _of_success(shot: ShotScores, measure: Any) -> dict[str, Any] | None:
    """`measure` of both kinds of success: of any step of an episode, and of its last step; None where undefined."""
    if shot.success is None or shot.final_success is None:
        return None
    return {"any_step": measure(shot.success), "final_step": measure(shot.final_success)}


def _listed(details: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in details.items()) or "no details"


def _plain(task: Task) -> dict[str, TaskValue | list[float]]:
    """The task's parameters as JSON has them: vectors as lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in task.params.items()}
