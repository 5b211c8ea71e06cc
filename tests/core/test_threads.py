"""The number of torch's threads is scoped to a block; others follow what is open to the process."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from metarl.core.threads import cores, torch_threads


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
