"""Every figure and table of a report as plain rows: what is drawn, printed and saved as CSV."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from metarl.experiments.display import TEST_RETURN
from metarl.experiments.drift_variants import ADAPTED, AS_TRAINED, FROZEN, RESETS, UNGUARDED
from metarl.experiments.drift_views import CONDITIONS, MEASURES
from metarl.experiments.plots import FAR, REFERENCES, references_of
from metarl.experiments.report import NOT_THE_METHOD, Entry, FinishedRun, compared
from metarl.experiments.statistics import (
    SEEDS,
    Summary,
    iqm,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap_ci,
    summary,
)

Row: TypeAlias = dict[str, Any]

THRESHOLDS = 161
"""Points of a performance profile, evenly spaced over all scores."""

RETURN_OF_SHOT = f"{TEST_RETURN}shot"
OWN_VARIANTS = {AS_TRAINED, FROZEN, ADAPTED, UNGUARDED, RESETS}
"""Of a drift measurement: agents of the run itself, where others are of the runs beside it."""


def shots_of(entries: Sequence[Entry]) -> list[int]:
    """The shots that were measured, ascending; all entries have the same."""
    return sorted(int(shot) for shot in entries[0].runs[0].results["shots"])


def has_success(entries: Sequence[Entry]) -> bool:
    """Whether success is defined for all entries."""
    return all(shot["success"] for entry in entries for run in entry.runs for shot in run.results["shots"].values())


def summary_rows(entries: Sequence[Entry], measure: str = "return") -> list[Row]:
    """Mean and IQM with 95 % intervals and CVaR 5 %, by entry and shot, with what had been used by then."""
    rows = []
    for entry in entries:
        for shot in shots_of(entries):
            scores = entry.scores(shot, measure)
            first, found = entry.runs[0].results, summary(scores, entry.strata)
            of_shot, repeats = first["shots"][str(shot)], first["tasks"][0]["shots"][str(shot)]["return"]
            (low, high), (iqm_low, iqm_high) = found["ci95"], stratified_bootstrap_ci(scores, iqm, strata=entry.strata)
            rows.append(
                {"agent": entry.label, "shot": shot, "mean": found["mean"], "low": low, "high": high}
                | {"iqm": found["iqm"], "iqm_low": iqm_low, "iqm_high": iqm_high, "cvar05": found["cvar05"]}
                | {"episodes": of_shot["episodes"], "gradient_steps": of_shot["gradient_steps"]}
                | {"seeds": len(entry.seeds), "repeats": len(repeats), "tasks": scores.shape[1]}
            )
    return rows


def learning_rows(entries: Sequence[Entry]) -> list[Row]:
    """Return on held-out tasks by epoch: a row for each run, epoch and shot in metrics.csv."""
    return [
        {"agent": entry.label, "seed": run.results["seeds"][0], "run": str(run.folder), "epoch": int(row["epoch"])}
        | {"env_steps": int(row["env_steps"]), "wall_minutes": row["wall_seconds"] / 60}
        | {"shot": int(name.removeprefix(RETURN_OF_SHOT)), "return": value}
        for entry in entries
        for run in entry.runs
        for row in run.metrics
        for name, value in row.items()
        if name.startswith(RETURN_OF_SHOT)
    ]


def profile_rows(entries: Sequence[Entry], shot: int) -> list[Row]:
    """Fraction of scores (repeats and tasks) above each threshold, with its 95 % interval."""
    scores = {entry.label: (entry.scores(shot), entry.strata) for entry in entries}
    values = np.concatenate([matrix.ravel() for matrix, _ in scores.values()])
    thresholds = np.linspace(values.min(), values.max(), THRESHOLDS)
    return [
        {"agent": label, "threshold": float(tau), "fraction": float(f), "low": float(low), "high": float(high)}
        for label, (matrix, strata) in scores.items()
        for tau, f, low, high in zip(thresholds, *performance_profile(matrix, thresholds, strata=strata), strict=True)
    ]


def improvement_rows(entries: Sequence[Entry], shot: int) -> list[Row]:
    """P(first > second) of every pair, the better one first, with its 95 % interval; the clearest pair at the top."""
    rows = []
    for index, one in enumerate(entries):
        for other in entries[index + 1 :]:
            (x, y), strata = compared([one, other], shot)
            p, low, high = probability_of_improvement(x, y, strata=strata)
            first, second = one.label, other.label
            if p < 0.5:
                first, second, p, low, high = second, first, 1 - p, 1 - high, 1 - low
            rows.append({"first": first, "second": second, "probability": p, "low": low, "high": high})
    return sorted(rows, key=lambda row: -row["probability"])


def task_rows(entries: Sequence[Entry]) -> list[Row]:
    """Mean of each entry on each task, by shot."""
    tasks = entries[0].runs[0].results["tasks"]
    return [
        {"task": task["id"], "params": task["params"], "agent": entry.label, "shot": shot, "mean": float(mean)}
        for entry in entries
        for shot in shots_of(entries)
        for task, mean in zip(tasks, entry.scores(shot).mean(axis=0), strict=True)
    ]


def environment_rows(entries: Sequence[Entry]) -> list[Row]:
    """Success and return of each entry in each environment, by shot, means over its runs; none where a run has none."""
    if not all(run.results.get("environments") for entry in entries for run in entry.runs):
        return []
    rows = []
    for entry in entries:
        for same in zip(*(run.results["environments"] for run in entry.runs), strict=True):
            named = {name: same[0][name] for name in ("environment", "split", "tasks")}
            for shot in same[0]["shots"]:
                scores = {measure: [row["shots"][shot][measure] for row in same] for measure in same[0]["shots"][shot]}
                means = {
                    measure: None if None in values else float(np.mean(values)) for measure, values in scores.items()
                }
                rows.append({**named, "agent": entry.label, "shot": int(shot), **means})
    return rows


def drift_rows(entries: Sequence[Entry]) -> list[Row]:
    """What the drift protocol measured: a row an entry, measure, condition and variant, of several seeds their mean
    with its interval over seeds. An agent of a run beside them has a row a seed: it may be the same one each time."""
    return [
        {"agent": entry.label, "seeds": seeds, "measure": label, "variant": variant, "condition": CONDITIONS[condition]}
        | {"mean": found["mean"], "iqm": found["iqm"], "low": found["ci95"][0], "high": found["ci95"][1]}
        for entry in entries
        if "drift" in entry.runs[0].results
        for measure, label in MEASURES.items()
        for condition in CONDITIONS
        for variant, found_by_seed in _by_variant(entry, condition, measure).items()
        for seeds, found in _over_seeds(variant, found_by_seed).items()
    ]


def _by_variant(entry: Entry, condition: str, measure: str) -> dict[str, dict[str, Any]]:
    """For every variant what the drift protocol found of a measure, by training seed."""
    variants: dict[str, dict[str, Any]] = {}
    for run in entry.runs:
        seed = " ".join(map(str, run.results["seeds"]))
        for variant, found in run.results["drift"]["conditions"][condition].items():
            if measure in found:
                variants.setdefault(variant, {})[seed] = found[measure]
    return variants


def _over_seeds(variant: str, found: Mapping[str, Any]) -> dict[str, Summary]:
    """Summaries by the seeds that they are of."""
    if len(found) > 1 and variant in OWN_VARIANTS:
        means = np.stack([np.mean(each["scores"], axis=1) for each in found.values()])  # [seeds, tasks]
        return {" ".join(found): summary(means, SEEDS)}
    return {seed: each["summary"] for seed, each in found.items()}


def reference_rows(entries: Sequence[Entry]) -> list[Row]:
    """Reference lines, each from the first run that has it."""
    found = references_of([run.results for entry in entries for run in entry.runs])
    return [{"agent": REFERENCES[name][0], **reference} for name, reference in found.items()]


def is_near(value: float, rows: Sequence[Row]) -> bool:
    """Whether a reference lies so near to what is drawn that drawing it to scale leaves the curves their resolution."""
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    reach = FAR * (high - low)
    return bool(low - reach <= value <= high + reach or low == high)


def setting_rows(entries: Sequence[Entry]) -> tuple[list[Row], dict[str, Any]]:
    """Settings that differ between entries, a row each with a column an entry; and those that all share."""
    settings = {entry.label: entry.runs[0].settings for entry in entries}
    names = dict.fromkeys(name for each in settings.values() for name in each if name not in NOT_THE_METHOD)
    rows = [{"setting": name} | {label: each.get(name, "–") for label, each in settings.items()} for name in names]
    differ = [row for row in rows if len({json.dumps(row[label]) for label in settings}) > 1]
    shared = {row["setting"]: row[entries[0].label] for row in rows if row not in differ}
    return differ, shared


def origin_rows(entries: Sequence[Entry], what: Callable[[FinishedRun], Mapping[str, str]]) -> list[Row]:
    """Versions or hardware: a row a name, what was found, and in how many runs where they do not agree."""
    runs = [run for entry in entries for run in entry.runs]
    names = dict.fromkeys(name for run in runs for name in what(run))
    rows = []
    for name in names:
        found = Counter(what(run).get(name, "not recorded") for run in runs)
        several = len(found) > 1
        value = "; ".join(
            f"{value} ({count} of {len(runs)} runs)" if several else value for value, count in found.items()
        )
        rows.append({"name": name, "value": value})
    return rows
