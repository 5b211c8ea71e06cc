"""The results by shot of some runs as a file for a paper: CSV for a program, or the tabular of a LaTeX document."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from metarl.experiments.plots import number
from metarl.experiments.report import Entry
from metarl.experiments.report_rows import Row, has_success, summary_rows

HEAD = r"agent & shot & episodes & mean [95\,\% CI] & IQM [95\,\% CI] & CVaR 5\,\% \\"


def csv_table(entries: Sequence[Entry]) -> str:
    """A line a measure (return, and success where all define it), agent and shot, with all digits."""
    measures = ("return", "success") if has_success(entries) else ("return",)
    rows = [{"measure": measure, **row} for measure in measures for row in summary_rows(entries, measure)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def tex_table(entries: Sequence[Entry]) -> str:
    """The return by agent and shot; needs no package of LaTeX."""
    lines = [r"\begin{tabular}{lrrrrr}", r"\hline", HEAD, r"\hline", *map(_line, summary_rows(entries)), r"\hline"]
    return "\n".join([*lines, r"\end{tabular}", ""])


def _line(row: Row) -> str:
    agent = re.sub(r"([&%$#_{}])", r"\\\1", row["agent"])
    mean, iqm = (
        f"{_number(row[value])} [{_number(row[low])}, {_number(row[high])}]"
        for value, low, high in (("mean", "low", "high"), ("iqm", "iqm_low", "iqm_high"))
    )
    return rf"{agent} & {row['shot']} & {row['episodes']} & {mean} & {iqm} & {_number(row['cvar05'])} \\"


def _number(value: float) -> str:
    return f"${number(value).replace(',', '{,}')}$"
