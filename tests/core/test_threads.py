"""The number of torch's threads is scoped to a block; others follow what is open to the process."""

from __future__ import annotations

import os
import sys
import threading

import pytest
import torch

from metarl.core import threads
from metarl.core.threads import cores, side_by_side, torch_threads


def test_the_number_holds_inside_the_block_and_comes_back_after():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with torch_threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_number_comes_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stop"), torch_threads(before + 1):
        raise RuntimeError("stop")
    assert torch.get_num_threads() == before


@pytest.fixture(autouse=True)
def no_quota(monkeypatch, tmp_path):
    """Whatever holds where the tests run."""
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which cores are open to a process")
@pytest.mark.parametrize(
    ("asked", "open_cores", "expected"),
    [(None, {0, 1, 2}, 3), ("2", {0, 1, 2}, 2), ("8", {1}, 1), ("0", {0, 1}, 1), ("", {0, 1}, 2), ("4,2", {0, 1}, 2)],
)
def test_cores_are_those_open_to_the_process_and_asked_for(asked, open_cores, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: open_cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert cores() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "900000 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "250000\n"}, 4),
        ({}, 4),
    ],
)
def test_cores_are_no_more_than_the_quota_of_a_container(files, expected, monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores() == expected


def test_items_run_side_by_side_on_one_thread_each_and_come_in_order():
    meeting = threading.Barrier(2, timeout=60)

    def work(item):
        if item < 2:
            meeting.wait()  # returns only if two items run at once
        return item, torch.get_num_threads()

    with torch_threads(2):
        assert side_by_side(work, range(5)) == [(item, 1) for item in range(5)]
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            side_by_side(lambda item: 1 / item, [1, 0])
        assert torch.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_gets_threads_of_its_own():
    with torch_threads(2):
        side_by_side(abs, [-1, -2])
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, bytes(side_by_side(abs, [-1, -2])))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 8) == bytes([1, 2])
