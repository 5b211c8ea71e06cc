"""Which finished runs belong in one report, and which of them are one method: the lines of its figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from metarl.core.agent import Metrics
from metarl.core.errors import UsageError
from metarl.experiments.metrics_log import read_metrics
from metarl.experiments.results import RESULTS_FILE, Results, load_results
from metarl.experiments.run import CONFIG_FILE, EVALUATIONS, LABELLED_SETTINGS
from metarl.experiments.statistics import Scores

NEEDED = {
    *("algo", "method", "seeds", "protocol", "shots", "tasks", "references", "task_split"),
    *("env_steps", "wall_seconds", "versions", "command"),
}
SETTINGS = ("run", "algorithm", "memory")
"""The groups of settings in config.json."""
NOT_THE_METHOD = {"run.seed", "run.output_dir", "run.device", "run.reference", "run.benchmark_mode", "run.beside"}
"""Settings in which two runs of one method may differ: all others make it another method."""

MEASURE_AGAIN = "measure one again with  metarl evaluate, or report them apart"
APART = "report them apart"


@dataclass(frozen=True)
class FinishedRun:
    """A folder with results.json; config.json and metrics.csv are empty where they are not beside it."""

    folder: Path
    results: Results
    config: Mapping[str, Any]
    metrics: Sequence[Metrics]

    @property
    def settings(self) -> dict[str, Any]:
        """All hyper-parameters, as 'group.name': those of training, but for what the measurement changed."""
        groups = {group: self.config.get(group, {}) for group in SETTINGS}
        settings = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
        return settings | {f"algorithm.{name}": value for name, value in self.results.get("measured_with", {}).items()}

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
    def strata(self) -> list[str] | None:
        """The environment of each task, where the intervals of a single run are over tasks; a seed is a repeat."""
        results = self.runs[0].results
        if len(self.runs) > 1 or results.get("interval") != "tasks":
            return None
        environment = results["environment"]
        return [str(task["params"][environment]) if environment else results["task_dist"] for task in results["tasks"]]

    def scores(self, shot: int, measure: str = "return") -> Scores:
        """Matrix [repeats, tasks]. Of one run: its rows. Of several: a repeat a seed, the mean of that seed's rows."""
        each = [_scores(run.results, shot, measure) for run in self.runs]
        return each[0] if len(each) == 1 else np.stack([scores.mean(axis=0) for scores in each])


def load_entries(paths: Sequence[str | Path]) -> list[Entry]:
    """The runs of some folders, checked to belong in one figure and put together by method.

    Raises:
        UsageError: a folder that is no finished run or is given twice; runs that differ in protocol, rewards or tasks.
    """
    if not paths:
        raise UsageError("a report needs at least one RUN: give the folder of a finished run")
    runs = [load_run(path) for path in paths]
    twice = [str(folder) for folder, count in Counter(run.folder for run in runs).items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0]} is given twice: give each run once")
    check_comparable(runs)
    return group(runs)


def load_run(path: str | Path) -> FinishedRun:
    """A finished run from its folder or results.json; an evaluation's settings are those of the run that it is in."""
    results = load_results(path)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if lacking := sorted(NEEDED - results.keys()):
        raise UsageError(f"{folder / RESULTS_FILE} lacks {', '.join(lacking)}: {MEASURE_AGAIN}")
    home = folder.parent.parent if folder.parent.name == EVALUATIONS else folder
    return FinishedRun(folder, results, _read_config(home / CONFIG_FILE), read_metrics(home))


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs that do not belong in one figure, naming the field in which they differ."""
    first, others = runs[0], runs[1:]
    for other in others:
        for field, advice in (
            ("task_dist", APART),
            ("protocol", MEASURE_AGAIN),
            ("shots", MEASURE_AGAIN),
            ("adaptation episodes", MEASURE_AGAIN),
            ("evaluation episodes", MEASURE_AGAIN),
            *((name, APART) for name in sorted({*_details(first), *_details(other)})),
            ("distribution_seed", APART),
            ("train tasks", APART),
            ("test tasks", MEASURE_AGAIN),
            ("parameters of the test tasks", APART),
        ):
            here, there = (_identity(run).get(field) for run in (first, other))
            if here != there:
                raise UsageError(
                    f"runs that differ in {field} do not go into one figure: {first.folder} has {_short(here)}, "
                    f"{other.folder} has {_short(there)}; {advice}"
                )


def group(runs: Sequence[FinishedRun]) -> list[Entry]:
    """Runs put together by method where they differ in nothing but the seed, in the order in which they were given."""
    methods: dict[Hashable, list[FinishedRun]] = {}
    for run in runs:
        settings = {name: value for name, value in run.settings.items() if name not in NOT_THE_METHOD}
        method = json.dumps([run.results["algo"], run.results["method"], settings], sort_keys=True)
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


def _identity(run: FinishedRun) -> dict[str, Any]:
    """What has to be equal for scores to be comparable, by the name under which it is refused."""
    results, split = run.results, run.results["task_split"]
    return {
        "task_dist": results["task_dist"],
        "protocol": results["protocol"],
        "shots": sorted(map(int, results["shots"])),
        # Results from before these could be chosen had one of each.
        "adaptation episodes": results.get("adaptation_episodes", 1),
        "evaluation episodes": results.get("evaluation_episodes", 1),
        **_details(run),
        "distribution_seed": split["distribution_seed"],
        "train tasks": split["train"],
        "test tasks": split["test"],
        "parameters of the test tasks": [task["params"] for task in results["tasks"]],
    }


def _details(run: FinishedRun) -> dict[str, Any]:
    """What else decides the numbers of a family, such as `reward_version`."""
    return dict(run.results.get("details", {}))


def _short(value: Any) -> str:
    """A value in one line of an error: a long list by its first items and its length."""
    if not isinstance(value, list):
        return str(value)
    text = " ".join(map(str, value[:4]))
    return text if len(value) <= 4 else f"{text} ... ({len(value)})"


def _labels(grouped: Sequence[tuple[FinishedRun, ...]]) -> list[str]:
    """What tells entries apart, as short as can be: method, algo, up to two settings; where those fail, the folder."""
    firsts = [members[0] for members in grouped]
    one_algo = len({run.results["algo"] for run in firsts}) == 1
    labels = [run.results["method"] if one_algo else f"{run.results['algo']} {run.results['method']}" for run in firsts]
    named = [
        _with_settings(label, run, [other for other, there in zip(firsts, labels, strict=True) if there == label])
        for label, run in zip(labels, firsts, strict=True)
    ]
    names = Counter(run.folder.name for run in firsts)
    folders = [run.folder.name if names[run.folder.name] == 1 else str(run.folder) for run in firsts]
    return [label if named.count(label) == 1 else folder for label, folder in zip(named, folders, strict=True)]


def _with_settings(label: str, run: FinishedRun, alike: Sequence[FinishedRun]) -> str:
    """The label with the settings in which the run differs from others that have the same label."""
    names = dict.fromkeys(name for other in alike for name in other.settings if name not in NOT_THE_METHOD)
    differ = [name for name in names if len({json.dumps(other.settings.get(name)) for other in alike}) > 1]
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
