"""The files for a paper, of scores whose statistics can be computed by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from metarl.experiments.report import Entry, load_entries
from metarl.experiments.report_table import csv_table, tex_table

SCORES = {
    "0": [[0.0, 0.0, 0.0]] * 3,
    "1": [[-9000.0, 6000.0, 6000.0], [0.0, 6000.0, 6000.0], [0.0, 6000.0, 6000.0]],
}
"""After shot 1 only the first task is left to chance: of two of its three scores drawn, two are -9000 with probability
1/9 and none is with 4/9. The means of six are then 1000 and 4000; their middle four, 2250 and 4500."""


@pytest.fixture
def entries(make_run: Callable[..., Path]) -> list[Entry]:
    return load_entries([make_run("a", SCORES, "gru_50%")])


def test_csv_has_every_number_under_its_name(entries: list[Entry]) -> None:
    rows = list(csv.DictReader(csv_table(entries).splitlines()))
    assert [(row["measure"], row["agent"], row["shot"], row["episodes"]) for row in rows] == [
        ("return", "gru_50%", "0", "0"),
        ("return", "gru_50%", "1", "2"),
    ]
    names = ("mean", "low", "high", "iqm", "iqm_low", "iqm_high", "cvar05")
    assert [float(rows[1][name]) for name in names] == [3000.0, 1000.0, 4000.0, 4800.0, 2250.0, 4500.0, -3000.0]


def test_tex_has_every_number_in_its_column(entries: list[Entry]) -> None:
    mean, iqm = "$3{,}000$ [$1{,}000$, $4{,}000$]", "$4{,}800$ [$2{,}250$, $4{,}500$]"
    assert tex_table(entries).splitlines()[5] == rf"gru\_50\% & 1 & 2 & {mean} & {iqm} & $-3{{,}}000$ \\"
