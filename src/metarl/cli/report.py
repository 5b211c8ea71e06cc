"""`metarl report RUN [RUN ...]`: finished runs as one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metarl.core.errors import missing_extra
from metarl.experiments.console import console
from metarl.experiments.flags import parse
from metarl.experiments.report import load_entries


@dataclass(frozen=True)
class ReportConfig:
    """Put finished runs on the same tasks into one HTML page: figures, tables, settings; it opens without a network."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of finished runs, or of their evaluations; those that differ in the seed alone become one line."""
    out: Path = Path("report.html")
    """Where to write the page."""


def main(arguments: list[str]) -> int:
    parsed = parse(ReportConfig, arguments, "report")
    entries = load_entries(parsed.runs)
    try:
        from metarl.experiments.report_page import write_report
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "report") from error
    write_report(parsed.out, entries)
    console.print(f"wrote {parsed.out}")
    return 0
