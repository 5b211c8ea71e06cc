"""Which finished runs belong in one report, and which of them are one method: the lines of its figures."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from metarl.core.agent import Metrics
from metarl.core.errors import UsageError
from metarl.experiments.comparable import check_comparable
from metarl.experiments.metrics_log import read_metrics
from metarl.experiments.plots import references_of
from metarl.experiments.results import Results, load_results
from metarl.experiments.run import LABELLED_SETTINGS
from metarl.experiments.run_folder import CONFIG_FILE, EVALUATIONS
from metarl.experiments.statistics import SEEDS, Scores, Strata, summary

SETTINGS = ("run", "algorithm", "memory")
"""The groups of settings in config.json."""
NOT_THE_METHOD = {
    f"run.{name}" for name in ("seed", "output_dir", "device", "num_workers", "reference", "benchmark_mode", "beside")
}
"""Settings in which two runs of one method may differ: all others make it another method."""


@dataclass(frozen=True)
class FinishedRun:
    """A folder with results.json; config.json and metrics.csv are empty where they are not beside it.

    `metrics` ends with the epoch that was measured.
    """

    folder: Path
    results: Results
    config: Mapping[str, Any]
    metrics: Sequence[Metrics]

    @property
    def settings(self) -> dict[str, Any]:
        """All hyper-parameters, as 'group.name': those of training, but for what the measurement changed."""
        groups = {group: self.config.get(group, {}) for group in SETTINGS}
        settings = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
        if "run.task_dist" in settings:  # an own file lies elsewhere on every machine
            settings["run.task_dist"] = Path(settings["run.task_dist"]).name
        return settings | {f"algorithm.{name}": value for name, value in self.results.get("measured_with", {}).items()}

    @property
    def trained(self) -> str:
        """Which state was measured: that after so many steps, or the best of the training."""
        best = self.results.get("checkpoint") == "best"
        return "best checkpoint" if best else f"{self.results['env_steps']:,} steps"

    @property
    def hardware(self) -> Mapping[str, str]:
        """What the run was trained on; where only its measurement recorded that, what it was measured on."""
        return cast(Mapping[str, str], self.config.get("hardware") or self.results.get("hardware") or {})


@dataclass(frozen=True)
class Entry:
    """What has a line in every figure: one run, or the runs of one method that differ in nothing but the seed."""

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def seeds(self) -> list[int]:
        """Training seeds."""
        return [seed for run in self.runs for seed in run.results["seeds"]]

    @property
    def strata(self) -> Strata | None:
        """What intervals are over: `SEEDS`, where there are several; the environment of each task, where those of a
        single run are over tasks; None: repeats."""
        results = self.runs[0].results
        if len(self.runs) > 1:
            return SEEDS
        if results.get("interval") != "tasks":
            return None
        environment = results["environment"]
        return [str(task["params"][environment]) if environment else results["task_dist"] for task in results["tasks"]]

    @property
    def results(self) -> Results:
        """What pictures and tables of adaptation show of it: of several runs a repeat a seed, intervals over seeds."""
        first = self.runs[0].results
        if len(self.runs) == 1:
            return first
        shots, tasks = {}, [{"id": task["id"], "params": task["params"], "shots": {}} for task in first["tasks"]]
        for shot, of_shot in first["shots"].items():
            scores = self.scores(int(shot))
            # Worlds that report a success and nothing else leave it undefined in a run that has none.
            defined = all(run.results["shots"][shot]["success"] for run in self.runs)
            succeeded = {"any_step": summary(self.scores(int(shot), "success"), SEEDS)} if defined else None
            shots[shot] = {**of_shot, "return": summary(scores, SEEDS), "success": succeeded}
            for task, by_seed in zip(tasks, scores.T.tolist(), strict=True):
                task["shots"][shot] = {"return": by_seed}
        changes = {"seeds": self.seeds, "interval": SEEDS, "shots": shots, "tasks": tasks}
        return {**first, **changes, "references": references_of([run.results for run in self.runs])}

    def scores(self, shot: int, measure: str = "return") -> Scores:
        """Matrix [repeats, tasks]. Of one run: its rows. Of several: a repeat a seed, the mean of that seed's rows."""
        each = [_scores(run.results, shot, measure) for run in self.runs]
        return each[0] if len(each) == 1 else np.stack([scores.mean(axis=0) for scores in each])


def compared(entries: Sequence[Entry], shot: int) -> tuple[list[Scores], Strata | None]:
    """Scores [repeats, tasks] of several entries after a shot, and what to draw intervals over them from: `SEEDS` where
    any has several, or else the first strata that one has. Beside several seeds an only run is one row, as its repeats
    are no seeds."""
    scores = [entry.scores(shot) for entry in entries]
    found = [entry.strata for entry in entries if entry.strata is not None]
    if SEEDS not in found:
        return scores, next(iter(found), None)
    only = [len(entry.runs) == 1 for entry in entries]
    return [each.mean(axis=0, keepdims=True) if one else each for each, one in zip(scores, only, strict=True)], SEEDS


def load_entries(paths: Sequence[str | Path]) -> list[Entry]:
    """The runs of some folders, checked to belong in one figure and put together by method.

    Raises:
        UsageError: a folder that is no finished run or is given twice; runs that differ in protocol, rewards or tasks.
    """
    if not paths:
        raise UsageError("a report needs at least one RUN: give the folder of a finished run")
    runs = [load_run(path) for path in paths]
    twice = [str(folder) for folder, count in Counter(run.folder.resolve() for run in runs).items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0]} is given twice: give each run once")
    check_comparable([(str(run.folder), run.results) for run in runs])
    return group(runs)


def load_run(path: str | Path) -> FinishedRun:
    """A finished run from its folder or results.json; an evaluation's settings are those of the run that it is in, of
    which it shows the training up to what was measured.

    Raises:
        UsageError: it cannot be read, or it was trained further after it was measured.
    """
    results = load_results(path)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    within = Path(os.path.abspath(folder)).parent  # a path as it is given need not name it
    evaluated = within.name == EVALUATIONS
    home = within.parent if evaluated else folder
    metrics, measured = read_metrics(home), results["env_steps"]
    if metrics and not evaluated and metrics[-1]["env_steps"] != measured:
        raise UsageError(
            f"{folder} has trained {metrics[-1]['env_steps']:,.0f} steps and was measured after {measured:,}: "
            f"measure it anew with  metarl evaluate {shlex.quote(str(folder))}  and report the folder that it writes"
        )
    until_then = [row for row in metrics if row["env_steps"] <= measured]
    return FinishedRun(folder, results, _read_config(home / CONFIG_FILE), until_then)


def group(runs: Sequence[FinishedRun]) -> list[Entry]:
    """Runs put together by method where they differ in nothing but the seed, in the order in which they were given.

    A method that was trained for fewer steps is another entry.
    """
    methods: dict[Hashable, list[FinishedRun]] = {}
    for run in runs:
        settings = {name: value for name, value in run.settings.items() if name not in NOT_THE_METHOD}
        method = json.dumps([run.results["algo"], run.results["method"], run.trained, settings], sort_keys=True)
        # Without its settings a run cannot be known to be of another's method.
        methods.setdefault(method if settings else run.folder, []).append(run)
    grouped: list[tuple[FinishedRun, ...]] = []
    for members in methods.values():
        seeds = [seed for run in members for seed in run.results["seeds"]]
        alone = len(set(seeds)) < len(seeds)
        grouped += [(run,) for run in members] if alone else [tuple(members)]
    return [Entry(label, members) for label, members in zip(_labels(grouped), grouped, strict=True)]


# --- details ----------------------------------------------------------------------------------------------------------


def _scores(results: Results, shot: int, measure: str) -> Scores:
    """[repeats, tasks] of one run; success counts where any step of an episode succeeded."""
    per_task = [task["shots"][str(shot)][measure] for task in results["tasks"]]
    if measure == "success":
        per_task = [success["any_step"] for success in per_task]
    return np.array(per_task, dtype=np.float64).T


def _labels(grouped: Sequence[tuple[FinishedRun, ...]]) -> list[str]:
    """What tells entries apart, as short as can be: method, algo, up to two settings; where those fail, the folder."""
    firsts = [members[0] for members in grouped]
    one_algo = len({run.results["algo"] for run in firsts}) == 1
    labels = [run.results["method"] if one_algo else f"{run.results['algo']} {run.results['method']}" for run in firsts]
    named = [
        _with_settings(label, run, [other for other, there in zip(firsts, labels, strict=True) if there == label])
        for label, run in zip(labels, firsts, strict=True)
    ]
    names = [os.path.basename(os.path.abspath(run.folder)) for run in firsts]
    folders = [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, firsts, strict=True)]
    return [label if named.count(label) == 1 else folder for label, folder in zip(named, folders, strict=True)]


def _with_settings(label: str, run: FinishedRun, alike: Sequence[FinishedRun]) -> str:
    """The label with the settings in which the run differs from others that have the same label; where none does, with
    what was measured."""
    names = dict.fromkeys(name for other in alike for name in other.settings if name not in NOT_THE_METHOD)
    differ = [name for name in names if len({json.dumps(other.settings.get(name)) for other in alike}) > 1]
    if not differ and len({other.trained for other in alike}) > 1:
        return f"{label}, {run.trained}"
    if not 1 <= len(differ) <= LABELLED_SETTINGS:
        return label
    return ", ".join([label, *(f"{name.rpartition('.')[2]} {run.settings.get(name, 'none')}" for name in differ)])


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text())
        if not (isinstance(stored, dict) and all(isinstance(stored.get(group, {}), dict) for group in SETTINGS)):
            raise ValueError(f"{', '.join(SETTINGS)} are no groups of settings in it")
        return cast(Mapping[str, Any], stored)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}): move it away to report the run without it") from error
