"""The picture of a training: what it draws of metrics.csv."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from metarl.core.agent import Metrics
from metarl.experiments import learning_curve as module
from metarl.experiments.learning_curve import learning_curve
from metarl.experiments.plots import save_figure

EPOCHS: list[Metrics] = [
    {"env_steps": 1e6, "wall_seconds": 60.0, "test_return_shot0": 1.0, "test_return_shot1": 2.0},
    {"env_steps": 2e6, "wall_seconds": 119.6, "train_return": 9.0, "test_return_shot0": 3.0, "test_return_shot1": 4.0},
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []

    def save(path: str | Path, figure: Figure) -> None:
        figures.append(figure)
        save_figure(path, figure)

    monkeypatch.setattr(module, "save_figure", save)
    return figures


def test_returns_are_drawn_by_steps_with_a_gap_where_there_is_none(tmp_path: Path, drawn: list[Figure]) -> None:
    learning_curve(tmp_path / "curve.png", EPOCHS, "point-goal")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    (first, train), (last, trained) = lines.pop("in training")
    assert (first, last, trained) == (1, 2, 9)
    assert math.isnan(train)
    assert lines == {"test tasks, shot 0": [[1, 1], [2, 3]], "test tasks, shot 1": [[1, 2], [2, 4]]}
    assert axes.get_xlabel() == "million environment steps, in 0:02:00 of training"


def test_success_has_its_own_axes_in_percent(tmp_path: Path, drawn: list[Figure]) -> None:
    successes = {"train_success": 0.5, "test_success_shot0": 0.0, "test_success_shot1": 0.25}
    learning_curve(tmp_path / "curve.png", [row | successes for row in EPOCHS], "metaworld-ml10")
    returns, success = drawn[0].axes
    assert [axes.get_ylabel() for axes in (returns, success)] == ["return per episode", "episodes with success (%)"]
    assert [line.get_ydata().tolist() for line in success.lines] == [[50, 50], [0, 0], [25, 25]]
