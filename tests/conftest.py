"""What holds for every test: plots need no display, and nothing is left behind in the working folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["MPLBACKEND"] = "Agg"

LITTER = ("MUJOCO_LOG.TXT", "runs")


@pytest.fixture(scope="session", autouse=True)
def working_folder_stays_clean() -> Iterator[None]:
    """MuJoCo logs its warnings into the working folder, and runs are written there, unless told otherwise."""
    before = {name for name in LITTER if Path(name).exists()}
    yield
    left = {name for name in LITTER if Path(name).exists()} - before
    assert not left, f"tests left {sorted(left)} in {Path.cwd()}: give the run another folder, or silence the log"
