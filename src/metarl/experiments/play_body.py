"""Whether a run has a body to play with. It is asked before its page is named, and so without what imports torch."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.env_runner.mujoco_family import MujocoFamily
from metarl.tasks import make_tasks
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.single import single_environment


def check_body(config: Path) -> None:
    """Refuse the run of a config.json whose worlds have nothing to show. What else is wrong with it `Run.load` says."""
    try:
        run = json.loads(config.read_text())["run"]
        family, single, told = run["task_dist"], run["env_name"], run["show_task"]
        steps = run["max_episode_steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    distribution = make_tasks(family) if single is None else single_environment(single, max_episode_steps=steps)
    distribution = distribution.showing_tasks() if told else distribution
    body_of(distribution, distribution.test[0])


def body_of(distribution: TaskDistribution, task: Task) -> tuple[MujocoFamily, int]:
    """What the worlds of a distribution simulate, and their horizon.

    Raises:
        UsageError: worlds without a MuJoCo body, or whose observation tells the task.
    """
    with closing(distribution.make_env([task])) as env:
        if not isinstance(env, MujocoBatch):
            raise UsageError(
                f"'{distribution.name}' has no MuJoCo body to show: play with a run of a MuJoCo family that is not "
                "told its task, such as halfcheetah-vel"
            )
        return env.family, env.max_episode_steps
