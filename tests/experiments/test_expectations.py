"""A check that can fail: what is missing, not finite, or not learned is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metarl.core.errors import UsageError
from metarl.experiments.checkpoint import save_checkpoint
from metarl.experiments.expectations import shortcoming

MakeRun = Callable[..., Path]


@pytest.fixture
def run(make_run: MakeRun) -> Path:
    """A whole run: by hand, its shot 1 above shot 0 (returns 7 and 3), a random policy at -50."""
    folder = make_run("run", {"0": [[3.0, 3.1, 3.0]] * 2, "1": [[7.0, 7.1, 7.0]] * 2})
    for name in ("best", "last"):
        write_checkpoint(folder, name)
    (folder / "adaptation_curve.png").write_bytes(b"png")
    (folder / "events.out.tfevents.1").write_bytes(b"events")
    return folder


def write_checkpoint(folder: Path, name: str, weight: float = 1.0) -> None:
    (folder / "checkpoints").mkdir(exist_ok=True)
    save_checkpoint(folder / "checkpoints" / f"{name}.safetensors", {"weight": torch.tensor([weight])}, {"epoch": 2})


@pytest.mark.parametrize("expect", ["", "adapts", "beats-random"])
def test_a_whole_run_lacks_nothing(run: Path, expect: str) -> None:
    assert shortcoming(run, expect) is None


@pytest.mark.parametrize("name", ["results.json", "metrics.csv", "adaptation_curve.png", "events.out.tfevents.1"])
def test_an_artefact_that_is_missing_or_empty_is_named(run: Path, name: str) -> None:
    (run / name).write_bytes(b"")
    assert shortcoming(run) == f"no {name.replace('.1', '.*')}"
    (run / name).unlink()
    assert shortcoming(run) == f"no {name.replace('.1', '.*')}"


def test_the_picture_of_a_drift_measurement_is_another(run: Path) -> None:
    variants = {"as trained": {}}
    drift = {"window": 20, "fraction": 0.8, "conditions": {"change": variants, "unchanged": variants}}
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "drift": drift}))
    assert shortcoming(run) == "no drift.png"
    (run / "adaptation_curve.png").rename(run / "drift.png")
    assert shortcoming(run) is None


def test_numbers_that_are_not_finite_are_named(run: Path) -> None:
    write_checkpoint(run, "last", float("nan"))
    assert shortcoming(run) == "weight is not finite"
    metrics = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(metrics.replace("33.3,1,", "33.3,nan,"))
    assert shortcoming(run) == "metrics 1 train_return is not finite"
    results = json.loads((run / "results.json").read_text())
    results["tasks"][1]["shots"]["1"]["return"][0] = float("inf")
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(UsageError, match=r"tasks.1.shots.1.return.0 is inf, not a finite number"):
        shortcoming(run)


@pytest.mark.parametrize(
    ("expect", "change", "said"),
    [
        ("adapts", {"0": [[7.0, 7.1, 7.0]] * 2}, r"not above shot 0's \[7.0, 7.0\]"),
        ("beats-random", {"1": [[-50.0] * 3, [-20.0] * 3]}, r"return in \[-50.0, -20.0\], not above a random policy's"),
    ],
)
def test_what_was_not_learned_is_named(
    run: Path, make_run: MakeRun, expect: str, change: dict[str, object], said: str
) -> None:
    scores = {"0": [[3.0, 3.1, 3.0]] * 2, "1": [[7.0, 7.1, 7.0]] * 2, **change}
    (make_run("other", scores) / "results.json").replace(run / "results.json")
    found = shortcoming(run, expect)
    assert found is not None
    assert re.search(said, found)


def test_without_a_random_policy_nothing_is_compared_with_one(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    results["references"] = {}
    (run / "results.json").write_text(json.dumps(results))
    assert shortcoming(run, "beats-random") == "no random policy to compare with: set benchmark_mode = true"
