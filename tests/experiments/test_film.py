"""Films of a run show the trials that its results were measured in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig
from metarl.env_runner.recording import Recorder
from metarl.experiments import film as film_module
from metarl.experiments import protocol as protocol_module
from metarl.experiments.checkpoint import LAST, save_checkpoint
from metarl.experiments.film import BEFORE_AFTER_FILE, before_after_recorder, film, write_before_after
from metarl.experiments.protocol import evaluate
from metarl.experiments.results import Results
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.experiments.video import GAP, HEADER, PICTURE, TITLE, Caption, Video
from metarl.meta_rl.maml_agent import MAMLConfig
from metarl.meta_rl.rl2_agent import RL2Config

MEMORY = MemoryConfig("gru", width=8)
MAKERS = {
    "rl2": RL2Config(update_steps=20, num_minibatches=2, update_epochs=1),
    "maml": MAMLConfig(trial_rows=3),
}


def begun(folder: Path, algo: str, **config: Any) -> Run:
    """A run with the checkpoint of an agent that has learned nothing yet."""
    asked = RunConfig(**{"algo": algo, "epochs": 1, "repeats": 2, "num_envs": 6, "output_dir": str(folder), **config})
    run = Run.plan(asked, MAKERS[algo], MEMORY, "metarl run").prepare_folder()
    run.checkpoints.mkdir()
    meta = {"epoch": 1, "env_steps": 0, "wall_seconds": 0.0, "best_return": None}
    save_checkpoint(run.checkpoints / LAST, run.make_agent().state_dict(), meta)
    return run


@pytest.fixture(scope="module", params=["rl2", "maml"])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Results]:
    asked = {"task_dist": "point-goal", "few_shot": (1, 2), "test_tasks": (100, 101, 102), "seed": 3}
    run = begun(tmp_path_factory.mktemp("runs"), request.param, **asked)
    return run, run.measure()


class Watched:
    """What was made into a video, in place of drawing it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(film_module, "make_video", self.make)

    def make(self, recorder: Recorder, task: object, shots: tuple[int, ...], caption: Caption) -> Video:
        self.recorder, self.task, self.shots, self.caption = recorder, task, shots, caption
        return Video([Image.new("RGB", (8, 8))], [0.1])


def test_a_film_shows_the_measured_trial(measured: tuple[Run, Results], monkeypatch: pytest.MonkeyPatch) -> None:
    run, results = measured
    beside = before_after_recorder(run)
    agent_rows = run.make_agent().trial_rows
    assert run.measure(recorder=beside)["tasks"] == results["tasks"]
    seen = Watched(monkeypatch)
    path = film(run, 101, (0, 2))
    assert path == run.folder / "task101.gif"
    assert (seen.task.id, seen.shots) == (101, (0, 2))
    assert set(seen.recorder.episodes) == {(101, 0), (101, 2)}
    (task,) = (task for task in results["tasks"] if task["id"] == 101)
    for shot in (0, 2):
        filmed = seen.recorder.episodes[101, shot]
        assert filmed.returns[-1] == beside.episodes[101, shot].returns[-1]
        if agent_rows == 1:
            assert filmed.returns[-1] == task["shots"][str(shot)]["return"][0]
    after = {"1": "after 2 episodes", "3": "after 6 episodes"}[str(agent_rows)]
    assert seen.caption == Caption(
        f"point-goal · {run.config.algo} · gru", "held-out task", {0: "before any experience", 2: after}
    )


def test_a_film_of_a_drift_measurement_runs_all_tasks_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path, "rl2", task_dist="halfcheetah-cripple", drift=True, test_tasks=(100, 101))
    monkeypatch.setattr(protocol_module, "ROUND_STEPS", 1)
    beside, on_step = Recorder((0,)), lambda *step: None  # who watches all steps has all tasks measured at once
    evaluate(run.trained_agent(), run.distribution, run.test_tasks, run.protocol, None, beside, on_step)
    seen = Watched(monkeypatch)
    film(run, 101)
    np.testing.assert_array_equal(seen.recorder.episodes[101, 0].rewards, beside.episodes[101, 0].rewards)


def test_no_more_is_run_than_a_film_needs(measured: tuple[Run, Results], monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = measured
    seen = Watched(monkeypatch)
    counts: list[tuple[int, int]] = []
    film(run, 100, (1, 0, 1), progress=lambda done, rounds: counts.append((done, rounds)))
    assert seen.shots == (1, 0)
    assert counts == [(1, 2), (2, 2)]


def test_before_after_shows_the_first_and_the_last_shot(
    measured: tuple[Run, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = measured
    recorder = before_after_recorder(run)
    results = run.measure(recorder=recorder)
    path = write_before_after(run, recorder, results)
    assert path == run.folder / BEFORE_AFTER_FILE
    with Image.open(path) as opened:
        assert opened.n_frames == 51
        assert opened.size == (664, 358)
    assert path.stat().st_size < 3e6
    seen = Watched(monkeypatch)
    film(run)
    again = Watched(monkeypatch)
    write_before_after(run, recorder, results)
    assert (seen.task, seen.shots, seen.caption) == (again.task, again.shots, again.caption)
    assert again.shots == (0, 2)


def test_without_adaptation_there_is_one_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path, "rl2", task_dist="point-goal", test_tasks=(100,), zero_shot=True)
    seen = Watched(monkeypatch)
    film(run)
    assert seen.shots == before_after_recorder(run).shots == (0,)


@pytest.mark.parametrize(
    ("task", "shots", "out", "message"),
    [
        (7, (0,), None, r"task 7 was not measured in .*: choose from 100\.\.102"),
        (None, (0, 5), None, "shot 5 was not measured in .*: choose from 0, 1, 2"),
        (None, (), Path("x.avi"), "a video is a .gif or a .mp4 file, got x.avi"),
    ],
)
def test_what_was_not_measured_is_refused(measured, monkeypatch, task, shots, out, message: str) -> None:
    monkeypatch.setattr(film_module, "evaluate", lambda *arguments: pytest.fail("it ran the trials"))
    with pytest.raises(UsageError, match=message) as error:
        film(measured[0], task, shots, out)
    assert "\n" not in str(error.value)


def test_tasks_that_were_trained_on_are_not_called_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = RunConfig(task_dist="halfcheetah-dir", algo="rl2", output_dir=str(tmp_path))
    run = Run.plan(asked, MAKERS["rl2"], MEMORY, "metarl run")
    assert film_module._caption(run, run.test_tasks[0], {0: 0}).kind == "test task"


def test_a_robot_is_filmed_where_a_graphics_library_is_found(graphics_backend, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("metarl.experiments.video.MAX_FRAMES", 3)
    run = begun(tmp_path, "rl2", task_dist="halfcheetah-vel", test_tasks=(100,))
    with Image.open(film(run, 100, (0, 1), tmp_path / "x.gif")) as opened:
        assert opened.n_frames == 4
        assert opened.size == (664, 358)
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    picture = pixels[TITLE + HEADER : TITLE + HEADER + PICTURE[1], GAP : GAP + PICTURE[0]]
    gold = (picture[..., 0] > 180) & (picture[..., 2] < 90)
    assert gold.sum() > 50, "the flag begins beside the robot"
