"""The drift protocol on worlds whose rewards are known beforehand, so that every number can be computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from metarl.core.agent import Agent, Array
from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.experiments import drift_views
from metarl.experiments.drift import (
    BIN,
    CHANGE,
    FRACTION,
    UNCHANGED,
    WINDOW,
    Course,
    StepLog,
    drift_results,
    measure_drift,
    steps_to_recover,
)
from metarl.experiments.drift_views import _draw, drift_picture, drift_table
from metarl.experiments.plots import new_figure
from metarl.experiments.protocol import Protocol
from metarl.tasks.distribution import Drift, TaskDistribution

HORIZON = 100
PROTOCOL = Protocol("drift", repeats=2, seed=4)
TASKS = ({"lame": 0, "change_at": 30}, {"lame": 35, "change_at": 40}, {"lame": 100, "change_at": 50})
"""It never falls; falls and recovers; never recovers."""


class Treadmill(gymnasium.Env[Array, Array]):
    """Pays 2 a step, and nothing for `lame` steps from step `change_at` on; shows the number of the step. An episode
    ends at step `falls_at`, where the task has one."""

    observation_space = gymnasium.spaces.Box(0.0, 200.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(0.0, 10.0, (1,), np.float32)
    task: Task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        since = self._step - int(self.task["change_at"]) if "change_at" in self.task else self._step
        lame = 0 <= since < int(self.task["lame"])
        self._step += 1
        fallen = "falls_at" in self.task and self._step >= int(self.task["falls_at"])
        return np.full(1, self._step**2, np.float32), 0.0 if lame else 2.0, fallen, False, {}


def family(*params: dict[str, Any], drift: Drift | None = Drift({"lame": 0}, "change_at")) -> TaskDistribution:  # noqa: B008
    return TaskDistribution(
        Treadmill,
        train=[{"lame": 1, "change_at": 60}],
        test=params,
        apply=lambda env, task: setattr(env.unwrapped, "task", task),
        max_episode_steps=HORIZON,
        name="treadmill",
        drift=drift,
    )


def measured(distribution: TaskDistribution, **variants: Agent) -> dict[str, dict[str, Course]]:
    return measure_drift(variants, distribution, distribution.test, PROTOCOL)


def test_steps_to_recover_by_hand() -> None:
    assert (WINDOW, FRACTION) == (20, 0.8)
    up, down = [1.0] * 40, [0.0] * 30
    # Below once 5 of the last 20 steps are lame; back once 16 of them are not.
    assert steps_to_recover(np.array(up + down + up), 40) == (30 + 16, True)
    assert steps_to_recover(np.array(up + down), 40) == (30, False)
    assert steps_to_recover(np.array(up + down[:4] + up), 40) == (0, True)
    assert steps_to_recover(np.array(up + down[:5] + up), 40) == (5 + 1 + 15, True)
    # A late fall counts from the change on: 30 steps unharmed, 30 lame.
    assert steps_to_recover(np.array(up + up[:30] + down + up), 40) == (30 + 30 + 16, True)


def test_of_a_negative_level_it_may_lose_as_large_a_part() -> None:
    up = [-1.0] * 40
    assert steps_to_recover(np.array([*up, *[-1.19] * 40]), 40) == (0, True)
    assert steps_to_recover(np.array([*up, *[-1.21] * 40]), 40) == (40, False)


def test_measures_by_hand(scripted_agent) -> None:
    distribution = family(*TASKS)
    course = measured(distribution, one=scripted_agent)[CHANGE]["one"]
    expected = {
        "return": [200.0, 130.0, 100.0],
        "before": [2.0, 2.0, 2.0],
        "after": [2.0, 2 * 25 / 60, 0.0],
        "steps_to_recover": [0.0, 35 + 16, 50.0],
        "recovered": [1.0, 1.0, 0.0],
    }
    measures = course.measures()
    assert list(measures) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(measures[name], [values] * 2)


def test_where_nothing_changes_every_variant_lives_in_the_same_worlds(scripted_agent) -> None:
    courses = measured(family(*TASKS), one=scripted_agent, other=scripted_agent)
    assert list(courses) == [CHANGE, UNCHANGED]
    for course in courses[UNCHANGED].values():
        assert [task.id for task in course.evaluation.tasks] == [100, 101, 102]
        measures = course.measures()
        np.testing.assert_array_equal(measures["return"], np.full((2, 3), 200.0))
        np.testing.assert_array_equal(measures["after"], np.full((2, 3), 2.0))
        np.testing.assert_array_equal(measures["steps_to_recover"], np.zeros((2, 3)))
    np.testing.assert_array_equal(courses[CHANGE]["one"].rewards, courses[CHANGE]["other"].rewards)


def test_without_a_time_of_change_there_is_a_return_alone(scripted_agent) -> None:
    evaluation = measured(family({"lame": 30}, {"lame": 0}, drift=Drift({"lame": 0})), one=scripted_agent)
    (course,) = evaluation[CHANGE].values()
    measures = course.measures()
    assert list(measures) == ["return"]
    np.testing.assert_array_equal(measures["return"], [[140.0, 200.0]] * 2)
    curve = drift_results(evaluation)["conditions"][CHANGE]["one"]["curves"]["reward"]
    assert curve["step"] == [bin * BIN + BIN / 2 for bin in range(HORIZON // BIN)]
    assert curve["mean"] == [1.0] * (30 // BIN) + [2.0] * (70 // BIN)


def test_rewards_after_the_end_of_an_episode_count_as_nothing(scripted_agent) -> None:
    tasks = [{"lame": 0, "change_at": 50, "falls_at": at} for at in (25, 40, 75)]
    (course,) = measured(family(*tasks), one=scripted_agent)[CHANGE].values()
    measures = course.measures()
    np.testing.assert_allclose(measures["return"], [[50.0, 80.0, 150.0]] * 2)
    np.testing.assert_allclose(measures["before"], [[50 / 50, 80 / 50, 2.0]] * 2)
    np.testing.assert_allclose(measures["after"], [[0.0, 0.0, 1.0]] * 2)
    # Who lay on the floor all the while before the change has not recovered from it either.
    np.testing.assert_allclose(measures["steps_to_recover"], [[50.0] * 3] * 2)
    np.testing.assert_allclose(measures["recovered"], [[0.0] * 3] * 2)
    assert course.rewards.shape == (HORIZON, 6)


def test_curves_are_aligned_at_the_change(scripted_agent) -> None:
    found = drift_results(measured(family(*TASKS[1:]), one=scripted_agent))["conditions"][CHANGE]["one"]
    curve = found["curves"]["reward"]
    # Both tasks have 40 steps before the change and 50 after it; one recovers after 35.
    assert curve["step"] == [step + BIN / 2 for step in range(-40, 50, BIN)]
    assert curve["mean"] == [2.0] * (40 // BIN) + [0.0] * (35 // BIN) + [1.0] * (15 // BIN)
    # Repeats are copies here, so what could have come out otherwise is which tasks there are.
    lame = slice(40 // BIN + 35 // BIN, None)
    assert (set(curve["low"][lame]), set(curve["high"][lame])) == ({0.0}, {2.0})
    assert found["after"]["summary"]["ci95"] == [0.0, 2 * 25 / 60]
    assert found["after"]["scores"] == [[2 * 25 / 60] * 2, [0.0] * 2]
    assert found["after"]["summary"]["mean"] == pytest.approx(25 / 60)


def test_errors_are_in_percent_of_what_there_was_to_predict(scripted_agent) -> None:
    """The observation is t², so the change after t steps is 2 t + 1; one agent expects a change of 3 each time."""

    class Predicting(type(scripted_agent)):  # type: ignore[misc]
        def _observe(self, *transition_and_active: Array) -> None:
            self.expected = transition_and_active[0] + 3.0

    course = measured(family(*TASKS), one=Predicting())[CHANGE]["one"]
    changes = 2.0 * np.arange(HORIZON) + 1
    errors = 100 * (changes - 3) ** 2 / changes.var()
    assert course.errors is not None
    np.testing.assert_allclose(course.errors, np.repeat(errors[:, None], 6, 1), rtol=1e-5)
    for column, at in enumerate((30, 40, 50)):
        np.testing.assert_allclose(course.measures()["error_before"][:, column], errors[:at].mean(), rtol=1e-5)
        np.testing.assert_allclose(course.measures()["error_after"][:, column], errors[at:].mean(), rtol=1e-5)
    # Where an episode ends before its change, no error after it can be told.
    gone = measured(family(TASKS[0], {"lame": 0, "change_at": 50, "falls_at": 40}), one=Predicting())
    assert "error_before" in gone[CHANGE]["one"].measures()
    assert "error_after" not in gone[CHANGE]["one"].measures()


def test_what_never_changes_leaves_nothing_to_predict(scripted_agent) -> None:
    """A task that is shown stands in every observation, and no model expects it to the last digit."""
    steps = np.random.default_rng(0).normal(size=(4, 2, 3, 1)).astype(np.float32)  # [T, before and after, rows, 1]
    still = np.zeros(3, dtype=bool)
    errors = []
    for shown in (0, 2):
        log = StepLog(scripted_agent, len(steps))
        for before, after in np.pad(steps, [(0, 0)] * 3 + [(0, shown)], constant_values=7.0):
            scripted_agent.expected = before + np.float32(1e-3)
            log.add(before, still, still, still, still, after, ~still)
        errors.append(log.errors())
    assert (errors[0] > 1.0).any()
    np.testing.assert_array_equal(errors[1], errors[0])


def test_rows_of_a_trial_are_one_score(scripted_agent) -> None:
    scripted_agent.trial_rows = 2
    course = measured(family(*TASKS), one=scripted_agent)[CHANGE]["one"]
    assert course.rewards.shape == (HORIZON, 12)
    np.testing.assert_allclose(course.measures()["after"], [[2.0, 2 * 25 / 60, 0.0]] * 2)


def test_progress_counts_courses(scripted_agent) -> None:
    distribution, told = family(*TASKS), []
    variants = {"one": scripted_agent, "other": scripted_agent}
    measure_drift(variants, distribution, distribution.test, PROTOCOL, lambda *where: told.append(where))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("drift", "at", "message"),
    [
        (None, 50, "nothing breaks or changes in 'treadmill': choose halfcheetah-cripple, .* or give drift="),
        (Drift({"lame": 0}, "change_at"), 19, "takes changes from step 20 on and before step 100.* changes at 19"),
        (Drift({"lame": 0}, "change_at"), 100, "takes changes from step 20 on and before step 100"),
    ],
)
def test_what_cannot_be_measured_is_refused(scripted_agent, drift: Drift | None, at: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measured(family({"lame": 0, "change_at": at}, drift=drift), one=scripted_agent)


def results_of(distribution: TaskDistribution, **variants: Agent) -> dict[str, Any]:
    """What the table and the picture read."""
    return {
        "task_dist": "treadmill",
        "tasks": [{"shots": {"0": {"return": [0.0, 0.0]}}} for _ in distribution.test],
        "task_split": {"same_as_train": []},
        "drift": drift_results(measured(distribution, **variants)),
    }


@pytest.mark.parametrize("timed", [True, False])
def test_the_table_and_the_picture(scripted_agent, tmp_path: Path, timed: bool) -> None:
    distribution = family(*TASKS) if timed else family({"lame": 30}, {"lame": 0}, drift=Drift({"lame": 0}))
    results = results_of(distribution, first=scripted_agent, second=scripted_agent)
    text = _printed(drift_table(results))
    assert text.count("first") == text.count("second") == (5 if timed else 1)
    assert ("steps to recover" in text, "Recovered: back at 80%" in text) == (timed, timed)
    drift_picture(tmp_path / "drift.png", results)
    with Image.open(tmp_path / "drift.png") as image:
        assert image.size[0] > 1000


def test_a_long_title_is_in_the_picture(scripted_agent, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(drift_views, "save_figure", lambda path, figure: figures.append(figure))
    name = "an-own-family-with-a-long-name-" * 2
    drift_picture("drift.png", {**results_of(family(*TASKS), one=scripted_agent), "task_dist": name})
    (figure,) = figures
    figure.canvas.draw()
    (shown,) = (text for text in figure.findobj(Text) if name in text.get_text())
    assert shown.get_window_extent().x1 <= figure.bbox.x1


def test_a_line_under_one_that_is_the_same_shows_through() -> None:
    adapted, frozen = (
        {"curves": {"reward": {"step": [-1.0, 1.0], "mean": [mean, 2.0], "low": [0.0, 0.0], "high": [3.0, 3.0]}}}
        for mean in (1.0, 1.5)
    )
    axes = new_figure(4, 3).subplots()
    _draw(axes, {"adapted": adapted, "frozen": frozen, "without guard": adapted}, "reward")
    assert [line.is_dashed() for line in axes.lines] == [False, False, True]


def test_the_table_and_the_picture_have_the_numbers_of_both_conditions(
    scripted_agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = results_of(family(TASKS[1], TASKS[0], TASKS[2]), one=scripted_agent)
    text = _printed(drift_table(results))
    # With the change the tasks return 130, 200 and 100, and of 27 draws of three one is all of the best, one of the
    # worst; after it they pay 5/6, 2 and 0 a step.
    assert "return one 143.3 [100.0, 200.0] 140.0 200.0 [200.0, 200.0] 200.0" in text
    assert "reward a step, after one 0.94 [0.00, 2.00] 0.92 2.00 [2.00, 2.00] 2.00" in text
    figures: list[Figure] = []
    monkeypatch.setattr(drift_views, "save_figure", lambda path, figure: figures.append(figure))
    drift_picture("drift.png", results)
    drawn = [axes.lines[0].get_xydata().tolist() for axes in figures[0].axes]
    found = [results["drift"]["conditions"][condition]["one"] for condition in (CHANGE, UNCHANGED)]
    curves = [each["curves"]["reward"] for each in found]
    assert drawn == [np.transpose([curve["step"], curve["mean"]]).tolist() for curve in curves]
    assert drawn[0] != drawn[1]
    assert [axes.get_title("left") for axes in figures[0].axes] == ["held-out tasks", "nothing changes"]


def _printed(table: Any) -> str:
    console = Console(width=110)
    with console.capture() as captured:
        console.print(table)
    return " ".join(captured.get().split())  # however it was broken into lines
