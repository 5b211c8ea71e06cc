from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from metarl.core.errors import UsageError
from metarl.experiments import plots
from metarl.experiments.plots import adaptation_curve, adaptation_table
from metarl.experiments.statistics import SEEDS, summary

BACKGROUND = 1.0
BLUE, VERMILION = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def result(
    method: str = "ssm", gain: float = 12.0, shots: tuple[int, ...] = (0, 1, 5), success: bool = False, **changes: Any
) -> dict[str, Any]:
    """Results of 3 tasks and 4 repeats, with returns around -60 + gain * shot / (shot + 1)."""
    noise = np.random.default_rng(len(method)).normal(0.0, 4.0, (len(shots), 4, 3))
    scores = {
        shot: np.array([-70.0, -60.0, -50.0]) + gain * shot / (shot + 1) + noise[index]
        for index, shot in enumerate(shots)
    }
    succeeded = {kind: summary([[1.0, 1.0, 0.0]] * 4) for kind in ("any_step", "final_step")} if success else None
    return {
        "task_dist": "halfcheetah-vel",
        "algo": "rl2",
        "method": method,
        "seeds": [0],
        "protocol": "few-shot",
        "shots": {
            str(shot): {"return": summary(matrix), "success": succeeded, "episodes": 2 * shot, "gradient_steps": 0}
            for shot, matrix in scores.items()
        },
        "tasks": [
            {
                "id": 100 + column,
                "params": {},
                "shots": {str(shot): {"return": list(m[:, column])} for shot, m in scores.items()},
            }
            for column in range(3)
        ],
        "references": {"random": summary([[-310.0] * 3] * 4), "task_conditioned": summary([[-25.0] * 3] * 4)},
        "task_split": {"train": [0, 1], "test": [100, 101, 102], "same_as_train": [], "distribution_seed": 0},
        **changes,
    }


def text_of(results: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    Console(file=stream, width=140).print(adaptation_table(results))
    return stream.getvalue()


def share_of(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Share of the pixels that have exactly this colour."""
    return float((np.round(picture[..., :3] * 255) == colour).all(axis=-1).mean())


def test_curve_is_a_picture_with_a_line_a_result(tmp_path: Path) -> None:
    adaptation_curve(tmp_path / "one.png", [result()])
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG\r\n")
    one = imread(tmp_path / "one.png")
    assert one.shape[0] > 600
    assert one.shape[1] > 1000
    assert share_of(one, BLUE) > 1e-3
    assert share_of(one, VERMILION) == 0
    adaptation_curve(tmp_path / "two.png", [result(), result("gru", gain=4.0)])
    two = imread(tmp_path / "two.png")
    assert share_of(two, BLUE) > 1e-3
    assert share_of(two, VERMILION) > 1e-3
    assert not list(tmp_path.glob(".*"))


def test_curve_shows_the_interval_and_the_tasks(tmp_path: Path) -> None:
    def ink(name: str, drawn: dict[str, Any]) -> float:
        adaptation_curve(tmp_path / name, [drawn])
        return float((imread(tmp_path / name)[..., :3] != BACKGROUND).any(axis=-1).mean())

    plain = result()
    wide = result()
    for scores in wide["shots"].values():
        scores["return"]["ci95"] = [-69.0, -45.0]
    assert ink("wide.png", wide) > ink("plain.png", plain) + 0.05
    without_middle = {**plain, "tasks": plain["tasks"][::2]}
    assert ink("without.png", without_middle) < ink("plain.png", plain)


@pytest.mark.parametrize(
    "drawn",
    [
        result(shots=(0,)),
        result(references={}),
        result(references={"random": None, "task_conditioned": None}),
        result(references={"random": summary([[-60.0] * 3] * 4), "task_conditioned": summary([[-60.01] * 3] * 4)}),
        result(references={"random": summary([[900.0] * 3] * 4), "task_conditioned": summary([[950.0] * 3] * 4)}),
    ],
    ids=["one shot", "no references", "null references", "references at one height", "references far above"],
)
def test_curve_of_odd_results(tmp_path: Path, drawn: dict[str, Any]) -> None:
    adaptation_curve(tmp_path / "curve.png", [drawn])
    assert share_of(imread(tmp_path / "curve.png"), BLUE) > 1e-4


def test_curve_of_scores_without_spread(tmp_path: Path) -> None:
    flat = result(references={"random": summary([[0.0]] * 4)})
    for scores in flat["shots"].values():
        scores["return"] = {"mean": 0.0, "iqm": 0.0, "ci95": [0.0, 0.0], "cvar05": 0.0}
    flat["tasks"] = [{"id": 100, "params": {}, "shots": {shot: {"return": [0.0] * 4} for shot in flat["shots"]}}]
    adaptation_curve(tmp_path / "curve.png", [flat])
    assert share_of(imread(tmp_path / "curve.png"), BLUE) > 1e-4


@pytest.fixture
def figure_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Figure]:
    """Draws an adaptation curve; the figure, laid out."""

    def draw(results: list[dict[str, Any]], labels: list[str] | None = None) -> Figure:
        figures: list[Figure] = []
        monkeypatch.setattr(plots, "save_figure", lambda path, figure: figures.append(figure))
        adaptation_curve("curve.png", results, labels or [])
        figures[0].canvas.draw()
        return figures[0]

    return draw


def test_the_curve_is_that_of_means_with_their_intervals(figure_of) -> None:
    run = result()
    for level, scores in zip((0.0, 1.0, 5.0), run["shots"].values(), strict=True):
        scores["return"] = {"mean": level, "iqm": 100.0, "ci95": [level - 1.0, level + 2.0], "cvar05": -100.0}
    axes = figure_of([run]).axes[0]
    line, _, (bars,) = axes.containers[0]
    assert line.get_xydata().tolist() == [[0, 0], [1, 1], [2, 5]]
    assert [bar.tolist() for bar in bars.get_segments()] == [[[0, -1], [0, 2]], [[1, 0], [1, 3]], [[2, 4], [2, 7]]]
    assert [of_task.get_ydata().tolist() for of_task in axes.lines[:3]] == [
        [np.mean(scores["return"]) for scores in task["shots"].values()] for task in run["tasks"]
    ]


@pytest.mark.parametrize(
    "labels", [[f"rl2 transformer, learning_rate 0.{k:03}, past 16" for k in range(12)], ["x" * 130]]
)
def test_every_label_is_in_the_picture_and_no_two_lines_are_alike(figure_of, labels: list[str]) -> None:
    figure = figure_of([result() for _ in labels], labels)
    box, (legend,) = figure.bbox, figure.legends
    for text in legend.get_texts():
        extent = text.get_window_extent()
        assert box.x0 <= extent.x0
        assert extent.x1 <= box.x1
        assert box.y0 <= extent.y0
    lines = figure.axes[0].containers  # of means, with their intervals
    assert len({line[0].get_color() for line in lines}) == len(labels)
    assert figure.axes[0].get_window_extent().height > 0.5 * 4.8 * figure.dpi


def test_names_are_shown_as_they_are(figure_of) -> None:
    """matplotlib reads what stands between two $ as a formula, and leaves labels that begin with _ out of legends."""
    name = r"$\A and $\B"
    figure = figure_of([result(task_dist=name), result("gru", task_dist=name)], ["_old", name])
    (legend,) = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_old", r"\$\A and \$\B", "single tasks"]


@pytest.mark.parametrize("scale", [1e9, 1e-6])
def test_no_factor_above_the_axis_covers_the_subtitle(figure_of, scale: float) -> None:
    large = result(references={})
    for scores in [*large["shots"].values()]:
        scores["return"] = {name: np.multiply(value, scale).tolist() for name, value in scores["return"].items()}
    for task in large["tasks"]:
        for scores in task["shots"].values():
            scores["return"] = [scale * value for value in scores["return"]]
    assert figure_of([large]).axes[0].yaxis.get_offset_text().get_text() == ""


def test_numbers_of_many_shots_stand_apart_and_the_last_one_has_its_own(figure_of) -> None:
    figure = figure_of([result(shots=tuple(range(31)), task_dist="an-own-family-with-a-long-name-" * 3)])
    axes = figure.axes[0]
    extents = [label.get_window_extent() for label in axes.get_xticklabels()]
    ordered = sorted(extents, key=lambda extent: extent.x0)
    assert all(one.x1 + 3 < other.x0 for one, other in pairwise(ordered))
    assert "30" in [label.get_text() for label in axes.get_xticklabels()]
    assert axes._left_title.get_window_extent().x1 <= figure.bbox.x1


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    adaptation_curve(tmp_path / "curve.png", [result()])
    assert plt.get_fignums() == []


def test_table_has_the_numbers() -> None:
    run = result(success=True)
    run["shots"]["5"]["return"] = {"mean": -49.46, "iqm": -48.0, "ci95": [-51.25, -9.876], "cvar05": -1234.5}
    run["shots"]["5"]["success"]["final_step"] = summary([[0.0] * 3] * 4)
    text = text_of([run])
    assert "halfcheetah-vel · rl2 · ssm" in text
    assert "3 held-out tasks, 4 repeats each" in text
    (row,) = [line for line in text.splitlines() if line.startswith(" 5 ")]
    assert row.split() == ["5", "10", "ep.", "-49.5", "[-51.2,", "-9.88]", "-48.0", "-1,234", "67%"]
    lines = [line for line in text.splitlines() if "policy" in line]
    assert "-310.0" in lines[0]
    assert "-25.0" in lines[1]


def test_table_of_several_results_names_them() -> None:
    text = text_of([result("ssm"), result("gru")])
    assert "halfcheetah-vel · rl2 " in text
    assert text.count("\n ssm ") == text.count("\n gru ") == 3
    assert "success" not in text


def test_labels_tell_results_apart_and_each_reference_is_drawn_once() -> None:
    stream = io.StringIO()
    without = result(seeds=[1], references={})
    Console(file=stream, width=140).print(adaptation_table([without, result()], ["first", "second"]))
    assert all(stream.getvalue().count(f"\n {label} ") == 3 for label in ("first", "second"))
    assert stream.getvalue().count("random policy") == 1


def test_results_of_several_seeds_say_so() -> None:
    alone, beside = ([result(interval=SEEDS), *others] for others in ([], [result("gru")]))
    for results, said in (
        (alone, "3 held-out tasks, 4 seeds each; mean with 95 % CI over training seeds"),
        (beside, "3 held-out tasks, 4 seeds or 4 repeats each; mean with 95 % CI over training seeds or over repeats"),
    ):
        assert said in " ".join(text_of(results).split())


def test_intervals_over_tasks_name_the_environment_only_where_there_is_one() -> None:
    for environment, said in ((None, "with 95 % CI over tasks\n"), ("env", "over tasks of an environment")):
        caption = str(adaptation_table([result(interval="tasks", environment=environment)]).caption)
        assert said in f"{caption}\n"


@pytest.mark.parametrize(
    ("seen", "said"),
    [([], "3 held-out tasks,"), ([101], "3 test tasks (1 also trained on),"), ([100, 101, 102], "(also trained on),")],
)
def test_tasks_that_were_trained_on_are_not_called_held_out(seen: list[int], said: str) -> None:
    run = result()
    run["task_split"]["same_as_train"] = seen
    assert said in text_of([run])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task_dist": "ant-dir"}, "differ in task_dist .* ssm has halfcheetah-vel, gru has ant-dir"),
        ({"details": {"reward_version": "v2"}}, "differ in reward_version .* ssm has None, gru has v2"),
        ({"protocol": "standard"}, "differ in protocol"),
        ({"shots": (0, 1)}, "differ in shots do not .* ssm has 0 1 5, gru has 0 1;"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    both = [result(), result("gru", **changes)]
    with pytest.raises(UsageError, match=said):
        adaptation_curve(tmp_path / "curve.png", both)
    with pytest.raises(UsageError, match=said):
        adaptation_table(both)
    assert not list(tmp_path.iterdir())
