"""The image's default command is the main job, and only what the image needs reaches its builder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions(name: str) -> list[str]:
    """The values of all instructions of a kind, their continued lines joined."""
    return re.findall(rf"^{name} (.+)$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)


def test_the_default_command_is_the_main_job_of_the_readme() -> None:
    (entry,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    run = " ".join([*json.loads(entry), *json.loads(command)])
    assert f"python main.py {run.removeprefix('metarl run ')}" in (ROOT / "README.md").read_text()


def test_it_ends_without_root_on_a_pinned_base() -> None:
    assert instructions("USER") == ["1000:1000"]
    assert instructions("FROM") == ["${BASE} AS build", "${BASE}"]
    assert re.search(r"^ARG BASE=python:\d+\.\d+\.\d+-slim-[a-z]+$", DOCKERFILE, re.MULTILINE)


def test_it_brings_what_the_advice_on_rendering_names() -> None:
    line = re.search(r"apt-get install (.+)", (ROOT / "src/metarl/experiments/graphics.py").read_text())
    assert line is not None
    packages = line[1].rstrip('"')
    assert f"--no-install-recommends {packages} " in DOCKERFILE


def test_it_brings_the_compiler_that_runs_call() -> None:
    (packages,) = re.findall(r"--no-install-recommends (.+?) && ", DOCKERFILE.replace("\\\n", ""))
    assert "g++" in packages.split()
    caches = {value.partition("=")[0] for value in instructions("ENV")[-1].split()}
    assert {"NUMBA_CACHE_DIR", "TRITON_CACHE_DIR"} <= caches


def test_a_container_that_is_stopped_lets_the_run_save_its_epoch() -> None:
    services = (ROOT / "compose.yaml").read_text().partition("services:")[2]
    train = services.partition("  train-cuda:")[0]
    assert re.search(r"^    init: true$", train, re.MULTILINE)
    assert re.search(r"^    stop_grace_period: \d+m$", train, re.MULTILINE)
    assert "    extends: train\n" in services


def test_what_it_copies_is_what_the_builder_is_given() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    copied = {source for value in instructions("COPY") if "--from" not in value for source in value.split()[:-1]}
    assert copied == {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert all((ROOT / source).exists() for source in copied)


def test_what_the_suite_leaves_out_runs_every_night() -> None:
    assert "-m nightly" in (ROOT / "Makefile").read_text().partition("\nnightly:")[2].partition("\n\n")[0]
    workflow = (ROOT / ".github/workflows/nightly.yml").read_text()
    assert "schedule:" in workflow
    assert "run: make nightly" in workflow


@pytest.mark.parametrize("workflow", sorted(path.name for path in (ROOT / ".github/workflows").glob("*.yml")))
def test_actions_are_pinned_to_a_commit_whose_version_is_told(workflow: str) -> None:
    used = re.findall(r"uses: (.+)", (ROOT / ".github/workflows" / workflow).read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
