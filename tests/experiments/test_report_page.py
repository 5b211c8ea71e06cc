"""The page: what is in it, and what a real browser makes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarl.cli import main
from metarl.experiments.report import load_entries
from metarl.experiments.report_page import render, write_report, write_suite_report

MakeRun = Callable[..., Path]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "</script><b>gru & co"
FIGURES = ("adaptation", "success", "learning-by-steps", "learning-by-time", "profile", "improvement")


def data_of(page: str, name: str = "data") -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def cells(table: str) -> list[list[str]]:
    """The texts of a table's cells, by row."""
    rows = re.findall("<tr>(.*?)</tr>", table, re.DOTALL)
    return [[unescape(cell.strip()) for cell in re.findall("<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


@pytest.fixture
def entries(make_run: MakeRun) -> list[Any]:
    generator = np.random.default_rng(0)

    def scores(level: float) -> dict[str, Any]:
        return {shot: level + float(shot) + generator.normal(size=(4, 3)) for shot in ("0", "1", "5")}

    success = [[1.0, 0.0, 1.0]] * 4
    return load_entries(
        [
            make_run("a", scores(2.0), success=success),
            make_run("b", scores(2.5), seed=1, success=success),
            make_run("c", scores(1.0), HOSTILE, success=success),
        ]
    )


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode there")
def test_a_folder_whose_name_is_no_unicode_is_reported(make_run: MakeRun, tmp_path: Path) -> None:
    write_report(tmp_path / "page.html", load_entries([make_run(os.fsdecode(b"caf\xe9"))]))
    assert "caf?" in (tmp_path / "page.html").read_text()


def test_agents_are_told_apart_also_where_there_are_a_dozen(make_run: MakeRun) -> None:
    runs = [make_run(f"{index}", run={"epochs": index + 1}) for index in range(12)]
    colour = next(iter(data_of(render(load_entries(runs)), "specs")["adaptation"]["layer"]))["encoding"]["color"]
    assert len(set(colour["scale"]["range"])) == 12


def test_the_page_holds_the_rows_of_every_figure_and_table(entries: list[Any]) -> None:
    page = render(entries)
    data, specs = data_of(page), data_of(page, "specs")
    assert set(specs) == set(FIGURES)
    assert set(data) == {*FIGURES, "results", "tasks"}
    assert len(data["tasks"]) == 3 * 3 * 2
    assert data["tasks"][0] == {
        **{"task": 100, "velocity": 0.0, "agent": "ssm", "shot": 0},
        "mean": pytest.approx(entries[0].scores(0)[:, 0].mean()),
    }
    assert all("rows" in json.dumps(spec) for spec in specs.values())
    assert "ssm has the highest IQM after shot 5" in page
    assert "reward_version v2" in page
    assert page.count("<tbody data-shot=") == 6
    assert render(entries) == page


def test_the_table_of_results_has_every_number_in_its_column(make_run: MakeRun) -> None:
    # Only the first task is left to chance: of two of its three scores drawn, two are -9000 with probability 1/9 and
    # none is with 4/9. The means of six are then 1000 and 4000; their middle four, 2250 and 4500.
    scores = [[-9000.0, 6000.0, 6000.0], [0.0, 6000.0, 6000.0], [0.0, 6000.0, 6000.0]]
    page = render(load_entries([make_run("a", {"0": [[0.0] * 3] * 3, "1": scores})]))
    table = re.search(r'<table id="results".*?<tbody data-shot="1"[^>]*>(.*?)</tbody>', page, re.DOTALL)
    assert table is not None
    (row,) = cells(table[1])
    assert row == ["ssm", "3,000", "[1,000, 4,000]", "4,800", "[2,250, 4,500]", "\N{MINUS SIGN}3,000", "2"]


def test_the_tables_of_a_suite_have_every_number_in_its_column(make_run: MakeRun, tmp_path: Path) -> None:
    # By task 5 7, 6 8 and 7 9 against 6 6, 6 6 and 6 3: a half, three quarters and all of the pairs are won, and one
    # draw of each wins from 0 + 1/2 + 1 to 3 of the three tasks.
    entries = load_entries(
        [make_run("a"), make_run("b", {"0": [[0.0] * 3] * 2, "1": [[6.0, 6.0, 6.0], [6.0, 6.0, 3.0]]}, "gru")]
    )
    page = write_suite_report(tmp_path / "report", {"one": entries, "other": entries}, "title", {}).read_text()
    overall, *families = (cells(table)[1:] for table in re.findall("<table.*?</table>", page, re.DOTALL))
    assert overall == [["1", "ssm", "0.75", "[0.50, 1.00]"], ["2", "gru", "0.25", "[0.00, 0.50]"]]
    of_each = [
        ["1", "ssm", "1", "0.75", "[0.50, 1.00]", "7.00", "[6.00, 8.00]"],
        ["2", "gru", "1", "0.25", "[0.00, 0.50]", "6.00", "[5.00, 6.00]"],
    ]
    assert families == [of_each, of_each]


def test_every_figure_draws_the_columns_that_it_speaks_of(entries: list[Any]) -> None:
    drawn = {
        name: [
            {channel: each["field"] for channel, each in layer["encoding"].items() if "field" in each}
            for layer in spec.get("layer", [spec])
        ]
        for name, spec in data_of(render(entries), "specs").items()
    }
    agent, interval = {"color": "agent"}, {"y": "low", "y2": "high"}
    by_shot = {**agent, "x": "position"}
    mean = {**by_shot, "y": "mean"}
    for name in ("adaptation", "success"):
        assert drawn[name][:4] == [{**by_shot, **interval}, mean, {**by_shot, **interval}, {**mean, "shape": "agent"}]
    for name, x in (("learning-by-steps", "env_steps"), ("learning-by-time", "wall_minutes")):
        assert drawn[name] == [{**agent, "x": x, "y": "return", "strokeDash": "shot", "detail": "run"}]
    profile = {**agent, "x": "threshold"}
    assert drawn["profile"] == [{**profile, **interval}, {**profile, "y": "fraction"}]
    assert drawn["improvement"] == [{}, {"y": "pair", "x": "low", "x2": "high"}, {"y": "pair", "x": "probability"}]


def test_the_page_says_which_intervals_it_has(entries: list[Any], make_run: MakeRun, tmp_path: Path) -> None:
    over_goals = load_entries([make_run("goals", interval="tasks", environment=None)])
    student, goals = "an interval is Student's t,", "the tasks of each environment"
    for those, said in ((entries, (True, False)), (over_goals, (False, True)), (entries[1:], (False, False))):
        page = render(those)
        assert (student in page, goals in page) == said
    again = "if the same agent were measured again on the same tasks"
    assert [again in render(those) for those in (entries[1:], over_goals)] == [True, False]
    assert "over seeds by Student's t" in write_suite_report(tmp_path, {"a": entries}, "title", {}).read_text()


def test_names_are_text_never_markup(entries: list[Any]) -> None:
    page = render(entries)
    assert HOSTILE not in page
    assert "&lt;/script&gt;&lt;b&gt;gru &amp; co" in page


def test_nothing_is_loaded_from_elsewhere(entries: list[Any]) -> None:
    before, _, after = render(entries).partition('<script type="application/json"')
    own = before + after.rpartition("<script>")[2]
    assert re.findall(r'(?:src|href)="([^"]*)"', own) == ["data:,"]
    assert not re.search(r"@import|url\(|fetch\(|https?:", own)


def test_one_run_without_metrics_and_success(make_run: MakeRun) -> None:
    run = make_run("a")
    (run / "metrics.csv").unlink()
    page = render(load_entries([run]))
    assert set(data_of(page, "specs")) == {"adaptation", "profile"}
    assert "Learning</h2>" not in page
    assert "IQM 7.00 [" in page


def test_tasks_may_have_parameters_of_different_names(make_run: MakeRun) -> None:
    run = make_run("a")
    results = json.loads((run / "results.json").read_text())
    results["tasks"][0]["params"] = {"wind": 0.25}
    (run / "results.json").write_text(json.dumps(results))
    page = render(load_entries([run]))
    assert all(f">{name}<" in page for name in ("wind", *results["tasks"][1]["params"]))


def test_what_a_change_costs_has_a_table(make_run: MakeRun) -> None:
    after = {
        "summary": {"mean": -3.5, "iqm": -3.25, "ci95": [-4.0, -3.0], "cvar05": -5.0},
        "scores": [[-3.0, -4.0]] * 3,
    }
    variants = {"frozen": {"return": after, "curves": {}}, "adapted": {"return": after, "after": after, "curves": {}}}
    drift = {"window": 20, "fraction": 0.8, "conditions": {"change": variants, "unchanged": variants}}
    page = render(load_entries([make_run("a", drift=drift), make_run("b", method="gru")]))
    rows = data_of(page)["drift"]
    assert [(row["measure"], row["variant"], row["condition"]) for row in rows] == [
        ("return", "frozen", "held-out tasks"),
        ("return", "adapted", "held-out tasks"),
        ("return", "frozen", "nothing changes"),
        ("return", "adapted", "nothing changes"),
        ("reward a step, after", "adapted", "held-out tasks"),
        ("reward a step, after", "adapted", "nothing changes"),
    ]
    assert rows[0].items() >= {"agent": "ssm", "mean": -3.5, "iqm": -3.25, "low": -4.0, "high": -3.0}.items()
    assert "<h2>Drift</h2>" in page
    assert "<h2>Drift</h2>" not in render(load_entries([make_run("c")]))
    assert "<td>0 1</td>" not in page
    seeds = render(load_entries([make_run("d", drift=drift), make_run("e", seed=1, drift=drift)]))
    assert seeds.count("<td>0 1</td><td>return</td><td>frozen</td>") == 2


def test_the_command_writes_the_page(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, out = [str(make_run("a")), str(make_run("b", method="gru"))], tmp_path / "page.html"
    assert main(["report", *runs, "--out", str(out)]) == 0
    *table, wrote = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote {out}"
    assert [line.split()[:2] for line in table if line.strip().startswith(("ssm", "gru"))] == [
        [label, shot] for label in ("ssm", "gru") for shot in "01"
    ]
    assert out.read_text().startswith("<!doctype html>")
    other = str(make_run("c", protocol="standard"))
    assert main(["report", runs[0], other, "--out", str(tmp_path / "no.html")]) == 2
    assert re.fullmatch(r"metarl: runs that differ in protocol .*\n", capsys.readouterr().err)
    assert not (tmp_path / "no.html").exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "metarl.experiments.report_page")
    monkeypatch.setitem(sys.modules, "altair", None)
    assert main(["report", *runs]) == 2
    assert "pip install 'metarl-agent-framework[report]'" in capsys.readouterr().err
    assert main(["report", *runs, "--png", "shots.png"]) == 0  # which needs no extra
    assert "wrote shots.png\n" in capsys.readouterr().out
    assert (tmp_path / "shots.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "report.html").exists()


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def page(entries: list[Any], tmp_path: Path) -> Iterator[Any]:
    """The report opened in headless Chromium; what it complains of or asks the network for fails the test."""
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip("no Chromium here: on Debian and Ubuntu,  apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="without playwright:  pip install -e '.[dev]'")
    (tmp_path / "report.html").write_text(render(entries))
    complaints: list[str] = []
    with playwright.sync_playwright() as running:
        # Chromium refuses to sandbox for root, as which containers run.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = running.chromium.launch(executable_path=browser_path, args=arguments)
        opened = browser.new_page()
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("request", lambda request: complaints.append(request.url) if "file:" not in request.url else None)
        opened.goto((tmp_path / "report.html").as_uri())
        opened.wait_for_selector("html[data-drawn]", timeout=120_000)
        yield opened
        browser.close()
    assert not [text for text in complaints if not text.startswith(("data:", "blob:"))]


def test_in_a_browser(page: Any, tmp_path: Path) -> None:
    """One page for all: a browser takes longer to start than to do any of this."""
    # Every figure has marks: what Vega draws of rows.
    for name in FIGURES:
        kinds = (".mark-line path", ".mark-symbol path", ".mark-rule line")
        marks = page.locator(", ".join(f"#{name} svg {kind}" for kind in kinds))
        assert marks.count() >= 2, name
        assert page.locator(f"#{name} svg").bounding_box()["height"] > 50
    # The table of tasks sorts by what is clicked, down and then up, whatever shot is shown.
    column = page.locator("#tasks tbody:not([hidden]) td:nth-child(3)")
    page.select_option("[data-shots=tasks]", "0")
    header = page.locator("#tasks thead th:nth-child(3)")
    for order, sign in (("descending", -1), ("ascending", 1)):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == order
        values = [float(cell.get_attribute("data-value")) for cell in column.all()]
        assert len(values) == 3
        assert values == sorted(values, key=lambda value: sign * value)
    # Figures are saved as SVG, and data as CSV.
    saved = {}
    for kind in ("svg", "csv"):
        with page.expect_download() as download:
            page.click(f"[data-of=adaptation][data-save={kind}]")
        assert download.value.suggested_filename == f"adaptation.{kind}"
        saved[kind] = Path(download.value.path()).read_text()
    assert saved["svg"].startswith("<svg")
    assert 'xmlns="http://www.w3.org/2000/svg"' in saved["svg"]
    lines = saved["csv"].splitlines()
    assert lines[0].startswith("agent,shot,mean,low,high,iqm,")
    assert len(lines) == 1 + 2 * 3
    # It prints: a PDF with more than one page, on A4.
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type /Page\b", pdf)) >= 2
    assert re.search(rb"/MediaBox \[0 0 59[45][.\d]* 84[12]", pdf)


def test_environments_have_a_table_where_all_runs_have_them(make_run: MakeRun) -> None:
    def environments(success: float | None) -> list[dict[str, Any]]:
        shots = {shot: {"return": 7.0, "success": success, "final_success": 0.25} for shot in ("0", "1")}
        return [{"environment": "reach", "split": split, "tasks": 2, "shots": shots} for split in ("train", "test")]

    runs = [
        make_run("a", environments=environments(0.5)),
        make_run("b", seed=1, environments=environments(1.0)),
        make_run("c", method="gru", environments=environments(0.0)),
    ]
    page = render(load_entries(runs))
    assert data_of(page)["environments"][1] == {
        **{"environment": "reach", "split": "train", "tasks": 2, "agent": "ssm", "shot": 1},
        **{"return": 7.0, "success": 0.75, "final_success": 0.25},
    }
    table = re.search(r'<table id="environments".*?</table>', page, re.DOTALL)
    assert table is not None
    assert [table[0].count(text) for text in ("75 %", "25 %", ">7.00<")] == [2, 4, 4]
    assert "environments" not in data_of(render(load_entries([*runs[:2], make_run("d", method="mlp")])))
    unheard = make_run("e", seed=2, environments=environments(None))
    assert data_of(render(load_entries([runs[0], unheard])))["environments"][1]["success"] is None
