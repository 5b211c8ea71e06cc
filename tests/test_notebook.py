"""demo.ipynb runs from its first cell to its last, and is stored without what it printed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from metarl.experiments.protocol import Protocol, reference_lines
from metarl.tasks.registry import make_tasks

DEMO = Path(__file__).parents[1] / "demo.ipynb"


def read() -> Any:
    return nbformat.read(DEMO, as_version=4)


def test_it_is_stored_without_outputs() -> None:
    for cell in read().cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
        assert cell.metadata == {}


def test_it_ends_with_links_that_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", read().cells[-1].source)
    assert len(links) > 3
    assert [link for link in links if not (DEMO.parent / link).exists()] == []


@pytest.mark.parametrize(
    "quick", [pytest.param("1", id="quick"), pytest.param("", id="full", marks=pytest.mark.nightly)]
)
def test_it_runs(quick: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(__file__).parents[1] / "src"  # the kernel is a process of its own: it is to import this very code
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("METARL_DEMO_QUICK", quick)
    notebook = read()
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    kinds = [kind for output in outputs if output.output_type == "display_data" for kind in output.data]
    assert kinds.count("image/png") == 3  # a curve a training, and that of the gradient step
    assert kinds.count("image/gif") + printed.count("no video: ") == 2  # half-cheetah, and the points, which need no GL
    assert "image/gif" in kinds
    family = make_tasks("halfcheetah-vel")
    random = reference_lines(family, family.test[:6], Protocol(repeats=2))["random"]
    assert random is not None
    assert f"a random policy: {random['mean']:.1f}\n" in printed  # on the tasks that the agent is shown on
    assert "all checks hold" in printed
    assert printed.count("wrote runs/") >= 8
    assert {path.name for path in tmp_path.iterdir()} - {"before_after.gif"} == {"runs", "thermostat.py"}
