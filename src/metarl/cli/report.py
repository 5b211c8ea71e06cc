"""`metarl report RUN [RUN ...]`: finished runs as one table, and as one page or picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metarl.core.errors import UsageError, missing_extra
from metarl.experiments.console import console
from metarl.experiments.files import atomic_write
from metarl.experiments.flags import parse
from metarl.experiments.plots import adaptation_curve, adaptation_table
from metarl.experiments.report import load_entries
from metarl.experiments.report_table import csv_table, tex_table

PAGES, TABLES, PICTURES = (".html", ".htm"), (".csv", ".tex"), (".pdf", ".svg")


@dataclass(frozen=True)
class ReportConfig:
    """Put finished runs on the same tasks into one table and one HTML page, which opens without a network."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of finished runs, or of their evaluations; those that differ in the seed alone become one line."""
    out: Path | None = None
    """Where to write: .html, the page of figures, tables and settings; for a paper, .csv or .tex, the table by shot, or
    .pdf or .svg, the picture of the return by shot. None: report.html, or no page where --png is given."""
    png: Path | None = None
    """A .png: where to draw the return by shot of all of them as one picture."""


def main(arguments: list[str]) -> int:
    parsed = parse(ReportConfig, arguments, "report")
    if parsed.png is not None and parsed.png.suffix.lower() != ".png":
        raise UsageError(f"--png is a .png file, got {parsed.png}; the page of --out saves every figure as SVG too")
    kind = ".html" if parsed.out is None else parsed.out.suffix.lower()
    if kind not in (*PAGES, *TABLES, *PICTURES):
        raise UsageError(
            f"--out is a page (.html), a table (.csv, .tex) or a picture (.pdf, .svg), got {parsed.out}; "
            "--png draws a .png"
        )
    entries = load_entries(parsed.runs)
    results, labels = [entry.results for entry in entries], [entry.label for entry in entries]
    console.print(adaptation_table(results, labels))
    if parsed.png is not None:
        adaptation_curve(parsed.png, results, labels)
        console.print(f"wrote {parsed.png}")
        if parsed.out is None:
            return 0
    out = parsed.out or Path("report.html")
    if kind in PICTURES:
        adaptation_curve(out, results, labels)
    elif kind in TABLES:
        atomic_write(out, (csv_table if kind == ".csv" else tex_table)(entries).encode())
    else:
        try:
            from metarl.experiments.report_page import write_report
        except ModuleNotFoundError as error:
            raise missing_extra(str(error.name), "report") from error
        write_report(out, entries)
    console.print(f"wrote {out}")
    return 0
