"""The report of a suite: a page of rankings, and beside it the report of each family."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from metarl.experiments.files import atomic_write
from metarl.experiments.ranking import Families, family_ranking, overall_ranking
from metarl.experiments.report_page import number_text, write_report
from metarl.experiments.report_rows import shots_of


def write_suite_report(folder: Path, families: Families, title: str, failures: dict[str, str]) -> Path:
    """Write index.html and a page a family to `folder`; its path. No page needs a network.

    Args:
        failures: the error of each run that is missing, by its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages = {name: re.sub(r"[^\w.-]+", "_", name) + ".html" for name in families}
    for name, entries in families.items():
        write_report(folder / pages[name], entries)
    templates = Environment(
        loader=PackageLoader("metarl.experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["number"] = number_text
    page = templates.get_template("suite.html").render(
        title=title,
        overall=overall_ranking(families),
        families={
            name: {"page": pages[name], "shot": shots_of(entries)[-1], "rows": family_ranking(entries)}
            for name, entries in families.items()
        },
        failures=failures,
    )
    index = folder / "index.html"
    atomic_write(index, page.encode())
    return index
