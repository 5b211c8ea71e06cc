from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metarl.cli import main
from metarl.core.errors import UsageError
from metarl.experiments.watch import seconds_left, standing, view, watch

MakeRun = Callable[..., Path]
WRITTEN = 1_000_000.0


def text_of(folder: Path, silent: float = 0.0) -> str:
    """What is shown so many seconds after the last epoch was written."""
    for file in folder.iterdir():
        os.utime(file, (WRITTEN, WRITTEN))
    stream = io.StringIO()
    Console(file=stream, width=100).print(view(standing(folder, WRITTEN + silent)))
    return stream.getvalue()


@pytest.fixture
def training(make_run: MakeRun) -> Path:
    """A run that is at epoch 4 of 10; its epochs take 30 s."""
    folder = make_run("run", epochs=4, run={"epochs": 10})
    (folder / "results.json").unlink()
    return folder


def test_time_left_goes_by_the_last_epochs() -> None:
    # Epochs 1 to 3 took 100 s each, 4 to 8 took 10 s each: 2 more at 10 s.
    times = [100.0, 200.0, 300.0, 310.0, 320.0, 330.0, 340.0, 350.0]
    rows = [{"epoch": epoch, "wall_seconds": seconds} for epoch, seconds in enumerate(times, 1)]
    assert seconds_left(rows, 10) == 20.0
    assert seconds_left(rows[:2], 10) == 800.0
    assert seconds_left(rows, 8) == 0.0
    assert seconds_left([], 10) is None
    # What is measured after each of the last five is no training, but takes its time: 1 s in the mean.
    assert seconds_left([{**row, "test_seconds": 0.5 if row["epoch"] < 8 else 3.0} for row in rows], 10) == 22.0
    # The rows of 500 epochs were moved away.
    assert seconds_left([{"epoch": 501, "wall_seconds": 50_100.0, "test_seconds": 2.0}], 511) == 1020.0


def test_a_run_in_training(training: Path) -> None:
    text = text_of(training)
    assert text.startswith("halfcheetah-vel, rl2, ssm, seed 0\n")
    assert "epoch 4/10" in text
    assert "ETA 0:03:00" in text
    assert "4 0.00M 0:02:00      33   4.0   4.5   5.5" in text
    assert f"tensorboard --logdir {training}" in text.replace("\n", "")


def test_a_run_before_its_first_epoch(training: Path) -> None:
    (training / "metrics.csv").unlink()
    text = text_of(training)
    assert "epoch 0/10" in text
    assert "in its first epoch" in text


def test_silence_is_named_once_it_is_long(training: Path) -> None:
    assert "silent" not in text_of(training, silent=149.0)
    assert f"silent for 0:02:31; if it was stopped:  metarl resume {training}" in text_of(
        training, silent=151.0
    ).replace("\n", "")


def test_a_first_epoch_and_a_measurement_may_have_been_stopped_too(training: Path, make_run: MakeRun) -> None:
    (training / "metrics.csv").unlink()
    go_on = f"silent for 2 days, 0:00:00; if it was stopped:  metarl resume {training}"
    assert "silent" not in text_of(training, silent=599.0)
    assert f"in its first epoch, {go_on}" in text_of(training, silent=172_800.0).replace("\n", "")
    measuring = make_run("measuring")
    (measuring / "results.json").unlink()
    text = text_of(measuring, silent=599.0)
    assert "measuring on test tasks" in text
    assert "silent" not in text
    go_on = f"silent for 0:10:01; if it was stopped:  metarl resume {measuring}"
    assert f"measuring on test tasks, {go_on}" in text_of(measuring, silent=601.0).replace("\n", "")


@pytest.mark.parametrize("sign", ["checkpoints/.lock", "measured_parts/1.json"])
def test_a_run_that_goes_on_is_not_silent(training: Path, sign: str) -> None:
    text_of(training)
    (training / sign).parent.mkdir()
    (training / sign).touch()
    for path in (training / sign, (training / sign).parent):
        os.utime(path, (WRITTEN + 990.0, WRITTEN + 990.0))
    assert standing(training, WRITTEN + 1000.0).silent_seconds == 10.0


@pytest.mark.parametrize("epochs", ["10", None, 0, 1.5])
def test_epochs_that_are_none_are_refused(training: Path, epochs: Any) -> None:
    config = json.loads((training / "config.json").read_text())
    config["run"]["epochs"] = epochs
    (training / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=rf"config\.json is damaged, or of another version \(epochs is {epochs!r}\)"):
        standing(training, WRITTEN)


def test_a_finished_run_shows_its_shots(make_run: MakeRun) -> None:
    run = make_run("run")
    text = text_of(run, silent=1e6)
    assert "finished after 0:01:00 of training" in text
    assert "IQM" in text
    (run / "results.json").unlink()
    assert "measuring on test tasks" in text_of(run)


def test_results_of_a_shorter_training_do_not_end_a_run(make_run: MakeRun) -> None:
    assert standing(make_run("run"), WRITTEN).finished
    assert not standing(make_run("longer", run={"epochs": 3}), WRITTEN).finished
    assert not standing(make_run("measuring", env_steps=1000), WRITTEN).finished


def test_watching_ends_with_the_run(training: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    done = make_run("done", epochs=10)
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            for name in ("metrics.csv", "results.json"):
                (done / name).rename(training / name)

    monkeypatch.setattr("time.sleep", nap)
    stream = io.StringIO()
    watch(training, False, Console(file=stream, width=100))
    assert len(naps) == 3
    assert "finished after 0:05:00" in stream.getvalue()


def test_once_prints_and_ends(training: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waited"))
    assert main(["watch", str(training), "--once"]) == 0
    assert "epoch 4/10" in capsys.readouterr().out


def test_ctrl_c_ends_the_watching(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    assert main(["watch", str(training)]) == 0


def test_what_is_no_run_is_refused(training: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not the folder of a run: it has no readable config\.json"):
        standing(tmp_path, WRITTEN)
    (training / "config.json").write_text('{"run": {}}')
    with pytest.raises(UsageError, match=r"config\.json is damaged, or of another version \('env_name'\)"):
        standing(training, WRITTEN)


def test_a_finished_run_without_its_rows(make_run: MakeRun) -> None:
    folder = make_run("run", epochs=4)
    (folder / "metrics.csv").unlink()
    text = text_of(folder)
    assert "epoch 4/4" in text
    assert "finished after" in text


def test_how_to_go_on_is_quoted(training: Path) -> None:
    spaced = training.rename(training.with_name("a run"))
    assert f"metarl resume '{spaced}'" in text_of(spaced, silent=10_000.0).replace("\n", "")


@pytest.mark.parametrize("flags", [["--once"], []])
def test_a_narrow_terminal_shows_the_whole_command(
    training: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, flags: list[str]
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    text_of(training)  # its files are of long ago from here on
    monkeypatch.setattr("time.sleep", interrupt)
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["watch", str(training), *flags]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 40
    assert "".join(f"metarl resume {training}".split()) in "".join(shown.split())
