"""Videos of a run: the trials that its results were measured in, seen."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.recording import Recorder
from metarl.experiments.files import check_folder
from metarl.experiments.protocol import evaluate
from metarl.experiments.results import Results
from metarl.experiments.run import Run
from metarl.experiments.video import (
    Caption,
    check_format,
    check_panels,
    make_video,
    median_gain,
    median_task,
    write_video,
)
from metarl.tasks.distribution import id_ranges

BEFORE_AFTER_FILE = "before_after.gif"


def before_after_recorder(run: Run) -> Recorder:
    """What `run.measure` is given so that `write_before_after` has something to show: the first shot and the last."""
    shots = run.protocol.shots
    return Recorder((shots[0], shots[-1]))


def write_before_after(run: Run, recorder: Recorder, measured: Results) -> Path:
    """Write before_after.gif: the first shot beside the last, on the test task with the median gain; its path.

    Raises:
        UsageError: as `make_video` and `write_video`.
    """
    path = run.folder / BEFORE_AFTER_FILE
    task = median_task(recorder, recorder.shots[0], recorder.shots[-1])
    episodes = {shot: measured["shots"][str(shot)]["episodes"] for shot in recorder.shots}
    write_video(path, make_video(recorder, task, recorder.shots, _caption(run, task, episodes)))
    return path


def film_command(run: Run, measured: Results) -> str:
    """The line that draws before_after.gif of a run whose measurement was stopped in between. It names the task by what
    was measured, so that only the part of it that has this task is run again."""
    first, last = str(run.protocol.shots[0]), str(run.protocol.shots[-1])
    gains = {}
    for task in measured["tasks"]:
        by_shot = task["shots"]
        gains[task["id"]] = np.mean(by_shot[last]["return"]) - np.mean(by_shot[first]["return"])
    folder = run.folder
    words = "metarl", "video", str(folder), "--task", str(median_gain(gains)), "--out", str(folder / BEFORE_AFTER_FILE)
    return shlex.join(words)


def film(
    run: Run,
    task_id: int | None = None,
    shots: Sequence[int] = (),
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Run the trials of the run's measurement once more, as far as needed, and write a video of one task; its path.

    All rows that were measured beside the task's run as they did there, because a row's actions and start states depend
    on its place among them.

    Args:
        task_id: a task that the run was measured on; None: the one with the median gain.
        shots: shots that the run was measured at; empty: the first and the last.
        out: a .gif or .mp4; None: <run>/task<id>.gif.
        progress: called with (rounds begun, rounds in all).
    """
    if out is not None:
        check_format(out)
        check_folder(out)
    protocol = run.protocol
    shots = tuple(dict.fromkeys(shots or (protocol.shots[0], protocol.shots[-1])))
    check_panels(shots)
    for shot in shots:
        if shot not in protocol.shots:
            measured = ", ".join(map(str, protocol.shots))
            raise UsageError(f"shot {shot} was not measured in {run.folder}: choose from {measured}")
    known = [task.id for task in run.test_tasks]
    if task_id is not None and task_id not in known:
        raise UsageError(f"task {task_id} was not measured in {run.folder}: choose from {id_ranges(known)}")
    agent = run.trained_agent()
    last = max(shots)
    shorter = replace(protocol, name="few-shot" if last else "zero-shot", few_shot=(last,) if last else ())
    recorder = Recorder(shots, task_id)
    # A drift measurement watches every step, and so measures all tasks at once.
    on_step: Callable[..., None] | None = (lambda *step: None) if run.config.drift else None
    evaluate(agent, run.distribution, run.test_tasks, shorter, progress, recorder, on_step, only=task_id)
    task = median_task(recorder, shots[0], shots[-1]) if task_id is None else recorder.tasks[task_id]
    before, _ = protocol.episodes_by_row(agent.trial_rows)
    episodes = {shot: shot * before * agent.trial_rows for shot in shots}
    path = run.folder / f"task{task.id}.gif" if out is None else out
    write_video(path, make_video(recorder, task, shots, _caption(run, task, episodes)))
    return path


def _caption(run: Run, task: Task, episodes: Mapping[int, int]) -> Caption:
    """What the video says; `episodes`: by shot, how many the agent had in the task before."""
    trained_on = task.items_ in {each.items_ for each in run.train_tasks}
    after = {
        shot: f"after {count} episode{'s' if count > 1 else ''}" if count else "before any experience"
        for shot, count in episodes.items()
    }
    title = " · ".join((run.distribution.name, run.config.algo, run.memory.method))
    return Caption(title, "test task" if trained_on else "held-out task", after)
