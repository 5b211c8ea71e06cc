"""The own environment of README.md trains, and its table names every family; test_pages.py runs the rest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from metarl.tasks import list_tasks

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(arguments, cwd):
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_own_environment_passes_its_checks_and_trains(tmp_path):
    own = next(snippet for snippet in SNIPPETS if "TaskDistribution(" in snippet)
    needed = own[own.index("def tasks") : own.index("if __name__")].strip().splitlines()
    assert len(needed) < 20
    (tmp_path / "thermostat.py").write_text(own)
    assert "all checks hold" in run(["thermostat.py"], tmp_path).stdout
    small = ["--epochs", "1", "--num-envs", "4", "--trial-rows", "2", "--repeats", "2", "--test-tasks", "100", "101"]
    done = run(["-m", "metarl.cli", "run", "--task-dist", "thermostat.py:tasks", *small], tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs").glob("*thermostat*/results.json"))


def test_every_family_is_in_the_table():
    assert [name for name in list_tasks() if f"`{name}`" not in README] == []
