"""Which agent of a suite is ahead, in each family and over all of them, as plain rows with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from metarl.experiments.comparable import check_comparable
from metarl.experiments.report import Entry, compared, load_run
from metarl.experiments.report_rows import Row, shots_of
from metarl.experiments.statistics import Scores, Strata, iqm, mean_improvement, stratified_bootstrap_ci
from metarl.experiments.suite import Planned

Families: TypeAlias = Mapping[str, Sequence[Entry]]


def families_of(finished: Sequence[Planned]) -> dict[str, list[Entry]]:
    """The finished runs by family, those of one agent, which differ in the seed alone, as one entry."""
    families: dict[str, list[Entry]] = {}
    for name in dict.fromkeys(planned.run.distribution.name for planned in finished):
        agents: dict[str, list[Planned]] = {}
        for planned in finished:
            if planned.run.distribution.name == name:
                agents.setdefault(planned.agent, []).append(planned)
        entries = [
            Entry(agent, tuple(load_run(planned.run.folder) for planned in runs)) for agent, runs in agents.items()
        ]
        check_comparable([(str(run.folder), run.results) for entry in entries for run in entry.runs])
        families[name] = entries
    return families


def family_ranking(entries: Sequence[Entry]) -> list[Row]:
    """The agents of one family after the last shot, the best first: IQM over seeds and tasks, and P(better than another
    agent), both with 95 % intervals. An only agent has no probability."""
    shot = shots_of(entries)[-1]
    rows = []
    for entry in entries:
        matrix = entry.scores(shot)
        low, high = stratified_bootstrap_ci(matrix, iqm, strata=entry.strata)
        rows.append(
            {"agent": entry.label, "seeds": len(entry.seeds), "iqm": float(iqm(matrix)), "low": low, "high": high}
        )
    scores, strata = compared(entries, shot)
    return _ranked(rows, [scores], [strata])


def overall_ranking(families: Families) -> list[Row]:
    """The agents that every family has, the best first: P(better than another of them), over the tasks of all families.
    Scores are compared within a task alone, so families need no common scale. Empty where fewer than two families or
    agents allow no such comparison."""
    everywhere = [
        entry.label
        for entry in next(iter(families.values()), [])
        if all(entry.label in {other.label for other in entries} for entries in families.values())
    ]
    if len(families) < 2 or len(everywhere) < 2:
        return []
    scores, strata = [], []
    for entries in families.values():
        shot, by_label = shots_of(entries)[-1], {entry.label: entry for entry in entries}
        matrices, over = compared([by_label[label] for label in everywhere], shot)
        scores.append(matrices)
        strata.append(over)
    return _ranked([{"agent": label} for label in everywhere], scores, strata)


def _ranked(rows: list[Row], scores: Sequence[Sequence[Scores]], strata: Sequence[Strata | None]) -> list[Row]:
    """Rows with P(better than another agent) and their place."""
    if len(rows) < 2:
        return [{**row, "rank": 1} for row in rows]
    for row, p, low, high in zip(rows, *mean_improvement(scores, strata=strata), strict=True):
        row |= {"better": float(p), "better_low": float(low), "better_high": float(high)}
    ordered = sorted(rows, key=lambda row: -row["better"])
    return [{**row, "rank": place} for place, row in enumerate(ordered, 1)]
