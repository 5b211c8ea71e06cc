"""A suite runs, is skipped where it is done, and survives what breaks, Ctrl-C and a kill of its process."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from rich.console import Console

from metarl.core.errors import UsageError
from metarl.experiments import jobs, suite_display
from metarl.experiments.expectations import shortcoming
from metarl.experiments.files import LOCK_FILE
from metarl.experiments.forecast import Forecast, evaluations, forecast, total_seconds
from metarl.experiments.jobs import LOG_FILE, execute
from metarl.experiments.metrics_log import read_metrics
from metarl.experiments.run_flags import plan_run
from metarl.experiments.suite import Planned, Suite, epochs_done, load_suite
from metarl.experiments.suite_display import failures_of, plan_table, run_with_progress
from metarl.experiments.watch import standing

TEXT = """
[settings]
epochs = {epochs}
width = 8
num_envs = 2
update_steps = {steps}
num_minibatches = 1
update_epochs = 1
repeats = 2
test_tasks = [100, 101]

[[grid]]
families = ["point-goal"]
algos = ["rl2"]
methods = ["mlp"]
seeds = [0, 1]
"""
KILLED = """
import sys
from metarl.experiments.jobs import execute
from metarl.experiments.suite import load_suite
if __name__ == "__main__":
    execute(load_suite(sys.argv[1], sys.argv[2]), 1)
"""

ASKED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from metarl.experiments import jobs

def train(report, stop):
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop()
    return True

jobs._end_with_parent = lambda: None
jobs.Run = SimpleNamespace(load=lambda folder, device: SimpleNamespace(train=train))
jobs._work(Path(sys.argv[1]), "cpu")
"""


def suite(folder: Path, epochs: int = 1, steps: int = 50) -> Suite:
    (folder / "suite.toml").write_text(TEXT.format(epochs=epochs, steps=steps))
    return load_suite(folder / "suite.toml", folder / "out")


def test_runs_are_made_once_and_one_that_breaks_costs_no_other(tmp_path: Path) -> None:
    planned = suite(tmp_path)
    broken = planned.runs[0].run
    broken.checkpoints.mkdir(parents=True)
    (broken.checkpoints / "last.safetensors").write_bytes(b"no checkpoint")
    (left,) = forecast(planned, jobs=1)
    assert (left.epochs_left, left.source) == (2, "two updates")
    assert 0 < total_seconds([left], jobs=2) < left.seconds
    first, second = execute(planned, jobs=2)
    assert first.error is not None
    assert first.error.startswith("UsageError: checkpoint")
    assert "\n" not in first.error
    assert (second.finished, shortcoming(second.planned.run.folder)) == (True, None)
    assert "epoch   1/1" in (second.planned.run.folder / LOG_FILE).read_text()

    results = second.planned.run.folder / "results.json"
    written = results.stat().st_mtime_ns
    (broken.checkpoints / "last.safetensors").unlink()
    assert [outcome.finished for outcome in execute(planned, jobs=1)] == [True, True]
    assert results.stat().st_mtime_ns == written
    (nothing,) = forecast(planned, jobs=1)
    assert (nothing.epochs_left, nothing.seconds, nothing.source) == (0, 0.0, "")
    assert plan_table([nothing], 1).title == "2 runs, about 0:00:00 with 1 job"

    # As where the disk was full, or the run was killed, once its results were written.
    for name in ("adaptation_curve.png", "learning_curve.png"):
        (results.parent / name).unlink()
        assert [outcome.finished for outcome in execute(planned, jobs=1)] == [True, True]
        assert (results.parent / name).exists()
    assert results.stat().st_mtime_ns == written


def test_finished_runs_come_first_also_where_the_suite_is_stopped_again(tmp_path: Path) -> None:
    planned = suite(tmp_path)
    assert all(outcome.finished for outcome in execute(planned, jobs=2))
    (planned.runs[0].run.folder / "results.json").unlink()
    ended: list[str] = []
    asked = []

    def interrupt(running: object) -> None:
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    first, second = execute(planned, 1, lambda outcome: ended.append(outcome.planned.name), interrupt)
    assert asked
    assert (first.error, second.finished) == (None, True)
    assert ended == [planned.runs[1].name, planned.runs[0].name]


def test_a_damaged_file_is_the_outcome_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = suite(tmp_path)
    assert all(outcome.finished for outcome in execute(planned, jobs=2))
    first, second = (each.run.folder for each in planned.runs)
    whole = (first / "results.json").read_text()
    monkeypatch.setattr(suite_display, "console", Console(force_terminal=True, file=io.StringIO()))  # with a bar
    for name, damaged in (("metrics.csv", "epoch\none\n"), ("results.json", "{")):
        (first / name).write_text(damaged)
        broken, healthy = outcomes = run_with_progress(planned, 1)
        assert broken.error is not None
        assert f"{first / name}" in broken.error
        assert (broken.finished, healthy.finished) == (False, True)
        assert failures_of(outcomes) == {broken.planned.name: broken.error}
        (first / "metrics.csv").write_bytes((second / "metrics.csv").read_bytes())
    (first / "results.json").write_text(whole)
    (first / "config.json").write_text(json.dumps({**json.loads((first / "config.json").read_text()), "memory": 3}))
    assert [outcome.finished for outcome in execute(planned, jobs=1)] == [False, True]


def test_a_narrow_terminal_shows_how_far_a_suite_is_and_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = suite(tmp_path, epochs=4)
    begun = planned.runs[0].run.folder
    begun.mkdir(parents=True)
    rows = ("epoch,env_steps,wall_seconds,steps_per_second", "1,100,40,3", "2,200,60,3")
    (begun / "metrics.csv").write_text("\n".join(rows) + "\n")
    stream = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    console = Console(force_terminal=True, color_system=None, file=stream, width=80)
    monkeypatch.setattr(suite_display, "console", console)
    monkeypatch.setattr(suite_display, "execute", lambda suite, jobs, ended, moved: moved(suite.runs))
    run_with_progress(planned, 2)
    # Epochs take 30 s; the second run, of which nothing is done, still takes four.
    assert "0/2 runs  2/8 epochs  0:00:00  training ETA 0:02:00  p" in stream.getvalue()


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, a run goes on there as well")
def test_a_suite_goes_on_where_there_is_no_gpu(tmp_path: Path) -> None:
    planned = suite(tmp_path)
    begun = planned.runs[0].run
    begun.folder.mkdir(parents=True)
    begun.write_config()
    config = begun.folder / "config.json"
    config.write_text(config.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    assert [outcome.error for outcome in execute(planned, jobs=1)] == [None, None]


def test_the_longest_open_run_bounds_the_forecast(tmp_path: Path) -> None:
    runs = suite(tmp_path).runs
    assert total_seconds([Forecast(runs, 5, 60.0, 60.0, "its own epochs")], jobs=2) == 60.0
    assert total_seconds([Forecast(runs, 10, 60.0, 30.0, ""), Forecast(runs, 0, 0.0, 0.0, "")], jobs=2) == 30.0


def test_of_two_runs_the_one_that_has_just_begun_takes_longest(tmp_path: Path) -> None:
    planned = suite(tmp_path, epochs=100)
    for each, epochs in zip(planned.runs, (99, 1), strict=True):
        each.run.folder.mkdir(parents=True)
        each.run.write_config()
        rows = ("epoch,env_steps,wall_seconds,steps_per_second", f"{epochs},{1000 * epochs},{30.0 * epochs},33")
        (each.run.folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    (left,) = forecast(planned, jobs=2)
    assert left.epochs_left == 100
    assert total_seconds([left], jobs=2) == left.longest >= 99 * 30.0


def test_a_forecast_counts_all_that_is_measured() -> None:
    asked = {
        "--task-dist point-goal --algo rl2": 1,
        "--task-dist halfcheetah-cripple --algo grbal --drift": 2 * 5,
        "--task-dist halfcheetah-cripple --algo rl2 --drift": 2 * 4,
    }
    assert {flags: evaluations(plan_run(flags.split())) for flags in asked} == asked


@pytest.mark.parametrize(("environment", "repeats"), [(None, 2), ("goal", 1)])
def test_a_forecast_counts_what_is_measured_after_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: str | None, repeats: int
) -> None:
    """Two rounds of an episode of each of the two tasks; goals of environments are measured once each."""
    planned = suite(tmp_path, epochs=2)
    run = planned.runs[0].run
    run.folder.mkdir(parents=True)
    run.write_config()
    (run.folder / "metrics.csv").write_text("epoch,env_steps,wall_seconds,steps_per_second\n1,1000,10,100\n")
    monkeypatch.setattr("metarl.experiments.forecast.evaluations", lambda run: 0)
    monkeypatch.setattr(run.distribution, "environment", environment)
    (left,) = forecast(planned, jobs=1)
    measured = 2 * 2 * repeats * run.distribution.max_episode_steps
    assert (left.epochs_left, left.seconds) == (3, pytest.approx(3 * (1000 + measured) / 100))


def test_ctrl_c_ends_with_a_whole_epoch_from_which_the_suite_goes_on(tmp_path: Path) -> None:
    planned = suite(tmp_path, epochs=3)
    asked = []

    def interrupt(running: object) -> None:
        if epochs_done(planned.runs[0].run)[0] and not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    stopped, later = execute(planned, 1, moved=interrupt)
    if not stopped.finished:  # a fast machine may be done before it is asked
        assert stopped.error is None
        (left,) = forecast(planned, jobs=1)
        assert left.source == "its own epochs"
    assert asked
    assert (later.finished, later.error) == (False, None)
    assert all(outcome.finished for outcome in execute(planned, 2))
    assert [row["epoch"] for row in read_metrics(planned.runs[0].run.folder)] == [1, 2, 3]


def test_a_suite_that_nobody_reads_ends_as_by_ctrl_c(tmp_path: Path) -> None:
    def gone(outcome: object) -> None:
        raise SystemExit(1)  # as rich does where a pipe is broken

    outcomes = execute(suite(tmp_path), 1, ended=gone)
    assert [(outcome.finished, outcome.error) for outcome in outcomes] == [(True, None), (False, None)]


def test_a_run_that_was_asked_to_stop_before_it_could_listen_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(planned: Planned) -> BaseProcess:
        process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60.0,))
        process.start()
        return process

    asked = []

    def interrupt(running: object) -> None:
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(jobs, "_start", start)
    outcomes = execute(suite(tmp_path), 1, moved=interrupt)
    assert [(outcome.finished, outcome.error) for outcome in outcomes] == [(False, None)] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_forks_the_runs_hears_of_no_signal_that_is_sent_to_all(tmp_path: Path) -> None:
    process = jobs._start(suite(tmp_path).runs[0])
    try:
        (server,) = re.findall(r"^PPid:\s*(\d+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        state = Path(f"/proc/{server}/status").read_text()
    finally:
        process.kill()
        process.join()
    (blocked,) = re.findall(r"^SigBlk:\s*(\w+)$", state, re.MULTILINE)
    for number in (signal.SIGINT, signal.SIGTERM):
        assert int(blocked, 16) >> (number - 1) & 1
        assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_run_that_was_asked_to_stop_in_its_last_epoch_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ASKED)
    assert subprocess.call([sys.executable, "script.py", str(tmp_path)], cwd=tmp_path) == jobs.STOPPED


def test_a_kill_costs_no_whole_epoch_and_leaves_nobody_behind(tmp_path: Path) -> None:
    planned = suite(tmp_path, epochs=500)
    run = planned.runs[0].run
    (tmp_path / "script.py").write_text(KILLED)
    command = [sys.executable, "script.py", "suite.toml", str(planned.folder)]
    process = subprocess.Popen(command, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 300
        while not (run.checkpoints / "last.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    done, before = standing(run.folder, time.time()).epoch, -1
    while done != before:  # the run's own process ends as soon as it is scheduled
        time.sleep(2.0)
        done, before = standing(run.folder, time.time()).epoch, done
    assert 1 <= done < 500
    assert epochs_done(suite(tmp_path, epochs=500).runs[0].run) == (done, False)


def test_two_suites_do_not_share_a_folder(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    planned = suite(tmp_path)
    planned.folder.mkdir()
    with (planned.folder / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=r"another process works on .*out: wait for it"):
            execute(planned, 1)
    with pytest.raises(UsageError, match="--jobs is at least 1, got 0"):
        execute(planned, 0)
