"""The own environment of README.md trains, and its tables name all that there is; test_pages.py runs the rest."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path

from metarl.cli import main
from metarl.core.memory import METHODS, MemoryConfig
from metarl.experiments.run_config import RunConfig
from metarl.meta_rl.registry import ALGOS
from metarl.tasks import list_tasks

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
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


def test_every_algorithm_and_method_is_in_its_table_and_in_the_help():
    for names, config in ((ALGOS, RunConfig), (METHODS, MemoryConfig)):
        said = inspect.getsource(config)
        assert [name for name in names if f"`{name}`" not in README or not re.search(rf"\b{name}\b", said)] == []


def test_every_algorithm_has_a_page_that_the_index_and_the_site_list():
    index, site = (ROOT / "docs/algorithms/index.md").read_text(), (ROOT / "zensical.toml").read_text()
    for name in ALGOS:
        assert (ROOT / f"docs/algorithms/{name}.md").is_file()
        assert f"[`{name}`]({name}.md)" in index
        assert f'"algorithms/{name}.md"' in site
