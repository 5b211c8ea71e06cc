from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from metarl.core.task import Task
from metarl.experiments import environments
from metarl.experiments.environments import (
    MEASURES,
    draw_environments,
    environment_rows,
    environment_table,
    with_means,
    write_environments,
)
from metarl.experiments.plots import adaptation_table
from metarl.experiments.protocol import Protocol, evaluate
from metarl.experiments.results import results
from metarl.experiments.run_folder import write_results

GOALS = [("short", 1.0, 1), ("long", 3.0, 2), ("long", 5.0, 3), ("short", 3.0, 1)]
"""Environment, bonus and length: episodes succeed at their second step, which of two is the last."""


@pytest.fixture
def family(bonus_family) -> Any:
    made = bonus_family()
    made.environment = "world"
    params = [{"world": world, "bonus": bonus, "length": length} for world, bonus, length in GOALS]
    made.train = tuple(Task(id, each) for id, each in enumerate(params))
    made.test = tuple(Task(100 + id, each) for id, each in enumerate(params))
    return made


@pytest.fixture
def evaluation(family, scripted_agent) -> Any:
    protocol = Protocol("few-shot", (2,), repeats=1, interval="tasks")
    return evaluate(scripted_agent, family, family.test, protocol)


def test_rows_by_hand(family, evaluation) -> None:
    short, long = environment_rows(family, evaluation, "test")
    # Returns are bonus * length * number of adaptations.
    assert short == {
        "environment": "short",
        "split": "test",
        "tasks": 2,
        "shots": {
            "0": {"return": 0.0, "success": 0.0, "final_success": 0.0},
            "2": {"return": 4.0, "success": 0.0, "final_success": 0.0},
        },
    }
    assert long["shots"]["2"] == {"return": 21.0, "success": 1.0, "final_success": 0.5}
    *_, mean = with_means([short, long])
    assert (mean["environment"], mean["tasks"]) == ("mean", 4)
    assert mean["shots"]["2"] == {"return": 12.5, "success": 0.5, "final_success": 0.25}
    assert list(with_means([short])) == [short]


def test_table_csv_and_picture(family, evaluation, tmp_path: Path) -> None:
    rows = [row for split in ("train", "test") for row in environment_rows(family, evaluation, split)]
    console = Console(width=80, record=True)
    console.print(environment_table(rows))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert ["long", "train", "2", "100%", "100%", "50%", "21.0"] in lines
    assert [line[:2] for line in lines if line[0] == "mean"] == [["mean", "train"], ["mean", "test"]]
    write_environments(tmp_path / "table.csv", rows)
    with (tmp_path / "table.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 2 * 2 * 2
    assert written[1] == {
        "environment": "short",
        "split": "train",
        "tasks": "2",
        "shot": "2",
        "return": "4",
        "success": "0",
        "final_success": "0",
    }
    draw_environments(tmp_path / "picture.png", rows, "bonus")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_every_number_is_in_its_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {
        "reach": {"0": (1.0, 0.25, 0.125), "2": (8.0, 0.75, 0.5)},
        "push": {"0": (2.0, 0.0, 0.0), "2": (4.0, 0.5, 0.25)},
    }
    rows = [
        {
            **{"environment": name, "split": "test", "tasks": 2},
            "shots": {shot: dict(zip(MEASURES, each, strict=True)) for shot, each in shots.items()},
        }
        for name, shots in scores.items()
    ]
    console = Console(width=80, record=True)
    console.print(environment_table(rows))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["reach", "test", "2", "25%", "75%", "50%", "8.00"] in lines
    assert ["push", "test", "2", "0%", "50%", "25%", "4.00"] in lines
    write_environments(tmp_path / "table.csv", rows)
    assert (tmp_path / "table.csv").read_text().splitlines() == [
        "environment,split,tasks,shot,return,success,final_success",
        "reach,test,2,0,1,0.25,0.125",
        "reach,test,2,2,8,0.75,0.5",
        "push,test,2,0,2,0,0",
        "push,test,2,2,4,0.5,0.25",
    ]
    figures: list[Figure] = []
    monkeypatch.setattr(environments, "save_figure", lambda path, figure: figures.append(figure))
    draw_environments("picture.png", rows, "title")
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["reach (test)", "push (test)", "mean (test)"]
    assert {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers} == {
        "shot 0": [25.0, 0.0, 12.5],
        "shot 2": [75.0, 50.0, 62.5],
    }


def test_a_long_title_is_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(environments, "save_figure", lambda path, figure: figures.append(figure))
    shots = {"0": dict.fromkeys(MEASURES, 0.5)}
    row = {"environment": "button-press-topdown-wall-v3", "split": "train", "tasks": 50, "shots": shots}
    title = "metaworld-ml1-button-press-topdown-wall · maml · transformer"
    draw_environments("picture.png", [row, {**row, "split": "test"}], title)
    (figure,) = figures
    figure.canvas.draw()
    (shown,) = (text for text in figure.findobj(Text) if "transformer" in text.get_text())
    assert shown.get_window_extent().x1 <= figure.bbox.x1


def test_a_results_folder_holds_them_and_intervals_are_over_tasks(family, evaluation, tmp_path: Path) -> None:
    measured = results(
        evaluation,
        distribution=family,
        train_tasks=family.train,
        algo="scripted",
        method="none",
        seeds=[0],
        references={},
        env_steps=1,
        wall_seconds=1.0,
        epoch=1,
        checkpoint="last",
        command="metarl run",
    )
    measured["environments"] = environment_rows(family, evaluation, "test")
    assert (measured["interval"], measured["environment"]) == ("tasks", "world")
    # Two goals of each environment, mean returns 2, 6 and 12, 30: one draw of sixteen has the lower one of both twice.
    assert measured["shots"]["2"]["return"]["ci95"] == [2 * (1 + 6) / 2, 2 * (3 + 15) / 2]
    assert "over tasks of an environment" in str(adaptation_table([measured]).caption)
    names = [path.name for path in write_results(tmp_path, measured)]
    assert names == ["results.json", "adaptation_curve.png", "environments.csv", "environments.png"]
