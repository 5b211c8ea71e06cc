"""How fast MuJoCo worlds step: ours, a different task in every row, against Gymnasium, EnvPool and mj_step itself.

    python benchmarks/worlds.py --out results/worlds.json

All sides step 64 rows of the same model with the same random actions. A turn is one episode of all rows, which nothing
but the time limit ends. The sides take turns, and the table holds medians. EnvPool takes part if it is installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium
import mujoco
import numpy as np
from common import as_it_comes, median_ratio, num_cores, take_turns, write_report
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from mujoco import rollout

from metarl.core.task import Task
from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.env_runner.mujoco_family import MujocoFamily
from metarl.tasks.locomotion import FAMILIES
from metarl.tasks.registry import make_tasks

# Our family, and what its peers call the same body.
WORLDS = {
    "halfcheetah-vel": "HalfCheetah-v5",
    "halfcheetah-gravity": "HalfCheetah-v5",
    "ant-vel": "Ant-v5",
    "ant-mass": "Ant-v5",
    "walker2d-vel": "Walker2d-v5",
}

NOTES = (
    "Limit: MuJoCo's own C++ rollout, one thread a core: mj_step on every row's model from the same start states with "
    "the same actions; no observations, rewards or resets. It is MuJoCo as it comes, as the peers are; ours may pass "
    "it: ours stops MuJoCo's timers, and lists the pairs that can meet where bodies can touch the floor alone.",
    "Ours runs a different task in every row. The peers run one task in all rows: the bodies as they are, whatever the "
    "family. Health ends no episode on any side.",
    "Gymnasium and EnvPool compute contact forces after every step (mj_rnePostConstraint), and Ant-v5 observes and "
    "charges for them (105 numbers); ours and the limit do not (27 numbers).",
    "Observations are float32 here and float64 there. Gymnasium's async side runs one process a row, its sync side one "
    "core. EnvPool brings its own build of MuJoCo and resets in a step of its own.",
)

Side = Callable[[], float]


def _timed(step: Callable[[np.ndarray], Any], actions: np.ndarray) -> float:
    """Environment steps a second over one pass through actions [T, B, act]."""
    start = time.perf_counter()
    for action in actions:
        step(action)
    return actions.shape[0] * actions.shape[1] / (time.perf_counter() - start)


def ours(family: MujocoFamily, tasks: Sequence[Task], actions: np.ndarray) -> Side:
    env = MujocoBatch(family, tasks, max_episode_steps=len(actions))
    env.reset()
    return partial(_timed, env.step, actions)


def gymnasium_side(kind: str, name: str, actions: np.ndarray, cleanup: ExitStack) -> Side:
    options: dict[str, Any] = {} if name.startswith("HalfCheetah") else {"terminate_when_unhealthy": False}
    constructors = [partial(gymnasium.make, name, max_episode_steps=len(actions), **options)] * actions.shape[1]
    vector = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}[kind]
    mujoco.set_mjcb_time(None)  # processes are forked from this one, where the family before stopped the timers
    env = vector(constructors, autoreset_mode=AutoresetMode.SAME_STEP)
    cleanup.callback(env.close)
    env.reset(seed=0)
    return partial(_timed, env.step, actions)


def envpool_side(name: str, actions: np.ndarray, cleanup: ExitStack) -> Side:
    import envpool

    options: dict[str, Any] = {} if name.startswith("HalfCheetah") else {"terminate_when_unhealthy": False}
    env = envpool.make_gymnasium(
        name, num_envs=actions.shape[1], num_threads=num_cores(), max_episode_steps=len(actions), **options
    )
    cleanup.callback(env.close)
    env.reset()
    return partial(_timed, env.step, actions.astype(np.float64))


def limit(family: MujocoFamily, tasks: Sequence[Task], actions: np.ndarray, cleanup: ExitStack) -> Side:
    starts = MujocoBatch(family, tasks, max_episode_steps=len(actions))
    starts.reset()
    template = family.load_model()
    models = [family.task_model(template, task) for task in tasks]
    states = np.zeros((len(tasks), mujoco.mj_stateSize(template, mujoco.mjtState.mjSTATE_FULLPHYSICS)))
    states[:, 1 : 1 + template.nq + template.nv] = np.concatenate([starts.qpos, starts.qvel], axis=1)
    controls = np.repeat(actions.swapaxes(0, 1).astype(np.float64), family.frame_skip, axis=1)
    data = [mujoco.MjData(template) for _ in range(num_cores())]
    history = np.empty((len(tasks), controls.shape[1], states.shape[1]))
    pool = cleanup.enter_context(rollout.Rollout(nthread=len(data)))

    def run() -> float:
        start = time.perf_counter()
        pool.rollout(models, data, states, controls, state=history, chunk_size=1)
        return actions.shape[0] * actions.shape[1] / (time.perf_counter() - start)

    return run


def measure(name: str, rows: int, steps: int, repeats: int) -> dict[str, Any]:
    """One line of the table: median environment steps a second of every side."""
    family = replace(FAMILIES[name][1], healthy=None)
    tasks = make_tasks(name, num_train=rows).train
    actuators = family.load_model().nu
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (steps, rows, actuators)).astype(np.float32)
    with ExitStack() as cleanup:
        # The side that forks comes first, before any other has started threads.
        sides = {
            "Gymnasium async": gymnasium_side("async", WORLDS[name], actions, cleanup),
            "Gymnasium sync": as_it_comes(gymnasium_side("sync", WORLDS[name], actions, cleanup)),
            "ours": ours(family, tasks, actions),
            "limit": as_it_comes(limit(family, tasks, actions, cleanup)),
        }
        if find_spec("envpool") is not None:
            sides["EnvPool"] = envpool_side(WORLDS[name], actions, cleanup)
        speeds = take_turns(sides, repeats)
    ratios = {
        f"ours / {peer}": median_ratio(speeds["ours"], speeds[peer]) if peer in speeds else None
        for peer in ("limit", "EnvPool", "Gymnasium sync", "Gymnasium async")
    }
    columns = ("ours", "limit", "EnvPool", "Gymnasium sync", "Gymnasium async")
    return {
        "worlds": name,
        "rows": rows,
        **{column: median(speeds[column]) if column in speeds else None for column in columns},
        **ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--worlds", nargs="+", choices=sorted(WORLDS), default=list(WORLDS))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100, help="steps of one turn of a side")
    parser.add_argument("--repeats", type=int, default=3, help="turns of every side")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    lines = [measure(name, arguments.rows, arguments.steps, arguments.repeats) for name in arguments.worlds]
    write_report("MuJoCo worlds, environment steps a second", lines, arguments.out, NOTES)


if __name__ == "__main__":
    main()
