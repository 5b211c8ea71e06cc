"""The own environment of README.md trains, and its table names every family; test_pages.py runs the rest."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from metarl.cli import main
from metarl.tasks import list_tasks

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_own_environment_passes_its_checks_and_trains(tmp_path, monkeypatch, capsys):
    own = next(snippet for snippet in SNIPPETS if "TaskDistribution(" in snippet)
    needed = own[own.index("def tasks") : own.index("if __name__")].strip().splitlines()
    assert len(needed) < 20
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thermostat.py").write_text(own)
    runpy.run_path("thermostat.py", run_name="__main__")
    assert "all checks hold" in capsys.readouterr().out
    small = "--algo rl2 --width 8 --epochs 1 --num-envs 4 --num-minibatches 1 --repeats 2 --test-tasks 100 101"
    assert main(["run", "--task-dist", "thermostat.py:tasks", "--update-steps", "50", *small.split()]) == 0
    assert list((tmp_path / "runs").glob("*thermostat*/results.json"))


def test_every_family_is_in_the_table():
    assert [name for name in list_tasks() if f"`{name}`" not in README] == []
