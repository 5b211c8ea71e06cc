"""The bar that a terminal shows while a run trains."""

from __future__ import annotations

import io
import math
from datetime import timedelta

import pytest
from rich.console import Console

from metarl.experiments.display import Display, MeasuringDisplay
from metarl.experiments.trainer import UPDATES_PER_EPOCH, Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("metarl.experiments.display.time.monotonic", lambda: now[0])
    return now


def shown(display: Display) -> str:
    return str(display.bar.tasks[0].fields["latest"])


def test_the_time_left_is_known_after_one_update_however_long_it_took(clock: list[float]) -> None:
    display = Display(epochs=100)
    clock[0] += 900.0
    display.report(Progress(1, 1, 1000, 1300.0, math.nan))
    assert shown(display) == "ETA 10 days, 9:45:00  1.3k steps/s  train ...  test ..."  # 999 updates of 15 minutes


def test_what_the_first_update_compiles_is_not_counted_once_there_is_another(clock: list[float]) -> None:
    display = Display(epochs=10)
    for update, seconds in ((1, 60.0), (2, 2.0), (3, 4.0)):
        clock[0] += seconds
        display.report(Progress(1, update, 1, 1.0, 0.0))
    assert shown(display).startswith("ETA 0:04:51 ")  # 97 updates of 3 seconds


def test_a_resumed_run_counts_what_it_does_itself(clock: list[float]) -> None:
    display = Display(epochs=10)
    clock[0] += 30.0
    display.report(Progress(6, 1, 1000, 2e4, -12.34))
    assert shown(display) == "ETA 0:24:30  20.0k steps/s  train -12.3  test ..."


def test_the_time_left_goes_by_the_last_two_epochs(clock: list[float]) -> None:
    display = Display(epochs=10)
    for update in range(4 * UPDATES_PER_EPOCH):
        clock[0] += 1.0 if update < UPDATES_PER_EPOCH else 10.0
        display.report(Progress(1 + update // UPDATES_PER_EPOCH, 1 + update % UPDATES_PER_EPOCH, 1, 1.0, 0.0))
    assert shown(display).startswith("ETA 0:10:00 ")


def test_the_time_left_counts_every_evaluation_once(clock: list[float]) -> None:
    """Wherever in an epoch it is looked at: updates take a second, the evaluation after ten of them 20."""
    display = Display(epochs=10)
    row = dict.fromkeys(("env_steps", "wall_seconds", "steps_per_second", "train_return"), 1.0)
    row |= {"epoch": 1.0, "unstable_rows": 0.0, "test_unstable_rows": 0.0}
    for epoch in (1, 2, 3, 4):
        for update in range(1, UPDATES_PER_EPOCH + 1):
            clock[0] += 1.0
            display.report(Progress(epoch, update, 1, 1.0, 0.0))
            if epoch == 4:
                left = 3 * (10 * UPDATES_PER_EPOCH - 30 - update)
                assert shown(display).startswith(f"ETA {timedelta(seconds=left)} ")
        clock[0] += 20.0
        display.report(Progress(epoch, UPDATES_PER_EPOCH, 1, 1.0, 0.0, row))


def test_a_narrow_terminal_shows_the_epoch_and_the_time_left(clock: list[float]) -> None:
    display = Display(epochs=100)
    clock[0] += 900.0
    display.report(Progress(1, 1, 1000, 1300.0, math.nan))
    for width, last in ((100, "test ..."), (50, "…")):
        stream = io.StringIO()
        Console(file=stream, width=width).print(display.bar.get_renderable())
        (line,) = stream.getvalue().splitlines()
        assert "epoch 1/100  ETA 10 days, 9:45:00  1.3k" in line
        assert line.rstrip().endswith(last)


def test_a_log_gets_a_line_a_minute_while_an_agent_is_measured(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with MeasuringDisplay() as display:
        for begun in range(1, 9):
            display.report(begun, 12)
            clock[0] += 25.0
    assert capsys.readouterr().out.splitlines() == [
        "measuring on test tasks: round 4/12, ETA 0:03:45",
        "measuring on test tasks: round 7/12, ETA 0:02:30",
    ]


def test_a_terminal_that_cannot_draw_again_gets_lines_too(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("metarl.experiments.display.console", Console(file=stream, force_terminal=True))
    with MeasuringDisplay() as display:
        clock[0] += 61.0
        display.report(1, 2)
    assert stream.getvalue().split("\n")[0] == "measuring on test tasks: round 1/2"


def test_a_measurement_that_goes_on_counts_what_it_does_itself(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with MeasuringDisplay() as display:
        for begun, tasks in ((7, "test tasks"), (8, "test tasks"), (1, "train tasks"), (2, "train tasks")):
            display.report(begun, 8, tasks=tasks)
            clock[0] += 100.0
    assert capsys.readouterr().out.splitlines() == [
        "measuring on test tasks: round 8/8, ETA 0:01:40",
        "measuring on train tasks: round 1/8",
        "measuring on train tasks: round 2/8, ETA 0:11:40",
    ]
