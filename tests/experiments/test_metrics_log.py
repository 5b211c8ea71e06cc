from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.core.errors import UsageError
from metarl.experiments.metrics_log import MetricsLog, read_metrics

ROW = {"epoch": 1, "env_steps": 10, "wall_seconds": 2.5, "steps_per_second": 4.0}


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_rows_are_in_the_csv_and_in_tensorboard(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, 0)
    log.add({"epoch": 1, "env_steps": 123456789, "loss": 0.5})
    log.add({"epoch": 2, "env_steps": 246913578, "loss": 1 / 3})
    assert (tmp_path / "metrics.csv").read_text() == (
        "epoch,env_steps,loss\n1,123456789,0.5\n2,246913578,0.3333333\n"  # counts are whole
    )
    assert scalars(tmp_path, "loss") == [(123456789, 0.5), (246913578, pytest.approx(1 / 3))]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_csv_is_whole_after_every_row(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, 0)
    for epoch in (1, 2, 3):
        log.add({"epoch": epoch, "env_steps": 10 * epoch})
        rows = [f"{each},{10 * each}" for each in range(1, epoch + 1)]
        assert (tmp_path / "metrics.csv").read_text().split() == ["epoch,env_steps", *rows]


def test_a_resumed_run_drops_what_it_computes_again(tmp_path: Path) -> None:
    before = MetricsLog(tmp_path, 0, 0)
    for epoch in (1, 2, 3):
        before.add({"epoch": epoch, "env_steps": 10 * epoch, "loss": 1.0 * epoch})
    after = MetricsLog(tmp_path, 2, 20)
    after.add({"epoch": 3, "env_steps": 30, "loss": 30.0})
    assert (tmp_path / "metrics.csv").read_text() == "epoch,env_steps,loss\n1,10,1\n2,20,2\n3,30,30\n"
    assert scalars(tmp_path, "loss") == [(10, 1.0), (20, 2.0), (30, 30.0)]


def test_a_row_whose_checkpoint_was_never_written_goes_though_no_epoch_is_left(tmp_path: Path) -> None:
    before = MetricsLog(tmp_path, 0, 0)
    for epoch in (1, 2, 3):
        before.add({"epoch": epoch, "env_steps": 10 * epoch})
    MetricsLog(tmp_path, 2, 20)
    assert (tmp_path / "metrics.csv").read_text() == "epoch,env_steps\n1,10\n2,20\n"


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    MetricsLog(tmp_path, 0, 0).add({"epoch": 1, "env_steps": 10, "loss": 1.0})
    MetricsLog(tmp_path, 0, 0).add({"epoch": 1, "env_steps": 10, "loss": 5.0})
    assert (tmp_path / "metrics.csv").read_text() == "epoch,env_steps,loss\n1,10,5\n"
    assert scalars(tmp_path, "loss") == [(10, 5.0)]


def test_columns_may_come_and_go(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, 0)
    log.add({"epoch": 1, "env_steps": 10, "old": 2.0})
    log.add({"epoch": 2, "env_steps": 20, "new": 3.0})
    assert (tmp_path / "metrics.csv").read_text() == "epoch,env_steps,old,new\n1,10,2,\n2,20,,3\n"


@pytest.mark.parametrize(
    "content",
    [b"step,loss\n1,2\n", b"epoch,loss\none,2\n", b"loss,epoch\n1\n", b"epoch,loss\n1,2,3\n", b"\xff\xfe\n1\n", b""],
)
def test_a_damaged_csv_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UsageError, match=r"metrics\.csv cannot be read .* move it away") as error:
        MetricsLog(tmp_path, 1, 10)
    assert "\n" not in str(error.value)


def test_a_csv_that_is_gone_costs_only_its_rows(tmp_path: Path) -> None:
    MetricsLog(tmp_path, 4, 40).add({"epoch": 5, "env_steps": 50})
    assert (tmp_path / "metrics.csv").read_text() == "epoch,env_steps\n5,50\n"


def test_a_full_disk_is_one_line_and_keeps_the_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path, 0, 0)
    log.add({"epoch": 1, "env_steps": 10})
    before = (tmp_path / "metrics.csv").read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot write .*metrics\.csv: No space left on device"):
        log.add({"epoch": 2, "env_steps": 20})
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_events_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*tfevents.*: No such file or directory; free space there"):
        MetricsLog(tmp_path / "missing", 0, 0)
    log = MetricsLog(tmp_path, 0, 0)
    events = next(tmp_path.glob("*tfevents*"))
    events.unlink()
    events.mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*tfevents.*: Is a directory"):
        log.add({"epoch": 1, "env_steps": 10})


def test_metrics_are_read_back_without_empty_cells(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    log = MetricsLog(tmp_path, 0, 0)
    log.add({**ROW, "old": 2.5})
    log.add({**ROW, "epoch": 2, "new": float("nan")})
    first, second = read_metrics(tmp_path)
    assert first == {**ROW, "old": 2.5}
    assert set(second) == {*ROW, "new"}
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,much\n")
    with pytest.raises(UsageError, match=r"metrics.csv cannot be read \(could not convert.*'much'\): move it away"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("name", ROW)
@pytest.mark.parametrize("value", ["", "nan", "inf", None])
def test_what_every_row_has_is_there_and_finite(tmp_path: Path, name: str, value: str | None) -> None:
    second = {each: str(found) for each, found in ROW.items()} | ({} if value is None else {name: value})
    names = [each for each in ROW if value is not None or each != name]
    rows = [names, [str(ROW[each]) for each in names], [second[each] for each in names]]
    (tmp_path / "metrics.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    number = 1 if value is None else 2
    message = rf"metrics.csv cannot be read \(row {number}: {name} is missing or not finite\)"
    if name == "epoch" and not value:  # it is also what rows are counted by
        message = r"metrics.csv cannot be read"
    with pytest.raises(UsageError, match=message):
        read_metrics(tmp_path)
