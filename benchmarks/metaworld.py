"""How fast Meta-World steps: the batched worlds against the official ones and against the physics alone.

    python benchmarks/metaworld.py --out results/metaworld.json

All sides step 20 rows of ML10's train environments, two of each, with the same random actions, from the official start
of each row's task. The sides take turns, and the table holds medians.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

# Python looks first in the folder of the script, where `metaworld` is this file: the package of that name comes first.
sys.path.sort(key=str(Path(__file__).resolve().parent).__eq__)

import mujoco
import numpy as np
from common import as_it_comes, median_ratio, num_cores, take_turns, write_report
from mujoco import rollout

from metarl.core.task import Task
from metarl.env_runner.metaworld_official import reference, start
from metarl.env_runner.metaworld_room import FRAME_SKIP
from metarl.tasks.metaworld import DESCRIPTIONS
from metarl.tasks.registry import make_tasks

NOTES = (
    "Limit: MuJoCo's own C++ rollout, one thread a core: five mj_step for each step on every row's model from the same "
    "start states, with the same actions on hand and gripper; no mj_forward after them, no observations, no rewards. "
    "There and on the official sides the model is the official one, and MuJoCo's timers run; ours is without what is "
    "only looked at, and the timers are stopped.",
    "Official: its own step, which ends with mj_forward, in worker processes, one a core, and in one process. A turn "
    "has no reset on any side; an official reset simulates 500 mj_step more.",
)

CONTROLS = int(mujoco.mjtState.mjSTATE_CTRL | mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT)

Side = Callable[[], float]


def _worlds(distribution: Any, tasks: Sequence[Task], actions: np.ndarray, cleanup: ExitStack) -> Side:
    env = distribution.make_env(tasks)
    cleanup.callback(env.close)
    env.reset(seed=0)

    def run() -> float:
        env.reset()
        begin = time.perf_counter()
        for action in actions:
            env.step(action)
        return actions.shape[0] * actions.shape[1] / (time.perf_counter() - begin)

    return run


def limit(tasks: Sequence[Task], actions: np.ndarray, cleanup: ExitStack) -> Side:
    """One rollout a class: its rows have models of one size. Where the hand is pulled depends on the actions alone."""
    rows: dict[str, list[tuple[mujoco.MjModel, np.ndarray, np.ndarray]]] = {}
    for row, task in enumerate(tasks):
        name = str(task["env"])
        begin, env = start(task, DESCRIPTIONS[name]), reference(name)
        model = copy.copy(env.model)
        model.body_pos[:] = begin.body_pos
        data = mujoco.MjData(model)
        mujoco.mj_setState(model, data, begin.state, mujoco.mjtState.mjSTATE_INTEGRATION)
        state = np.zeros(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS))
        mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        hand, path = data.mocap_pos[0], []
        for displacement in env.action_scale * actions[:, row, :3]:
            hand = np.clip(hand + displacement, env.mocap_low, env.mocap_high)
            path.append(hand)
        turned = np.tile(data.mocap_quat[0], (len(actions), 1))
        controls = np.concatenate([actions[:, row, 3:] * [1.0, -1.0], path, turned], axis=1)
        rows.setdefault(name, []).append((model, state, np.repeat(controls, FRAME_SKIP, axis=0)))
    pool = cleanup.enter_context(rollout.Rollout(nthread=num_cores()))
    prepared = []
    for group in rows.values():
        models, states, controls = [list(column) for column in zip(*group, strict=True)]
        data = [mujoco.MjData(models[0]) for _ in range(num_cores())]
        history = np.empty((len(models), actions.shape[0] * FRAME_SKIP, len(states[0])))
        prepared.append((models, data, np.stack(states), np.stack(controls), history))

    def run() -> float:
        begin = time.perf_counter()
        for models, data, states, controls, history in prepared:
            pool.rollout(models, data, states, controls, control_spec=CONTROLS, state=history, chunk_size=1)
        return actions.shape[0] * actions.shape[1] / (time.perf_counter() - begin)

    return run


def measure(name: str, rows: int, steps: int, repeats: int) -> dict[str, Any]:
    """One line of the table: median environment steps a second of every side."""
    ours = make_tasks(name)
    tasks = [ours.train[(row * len(ours.train)) // rows] for row in range(rows)]
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (steps, rows, 4)).astype(np.float32)
    with ExitStack() as cleanup:
        make = partial(make_tasks, name, backend="official")
        sides = {
            "official, workers": _worlds(make(num_workers=num_cores()), tasks, actions, cleanup),
            "official, one process": as_it_comes(_worlds(make(), tasks, actions, cleanup)),
            "ours": _worlds(ours, tasks, actions, cleanup),
            "limit": as_it_comes(limit(tasks, actions, cleanup)),
        }
        take_turns(sides, 1)  # the first turn loads or makes machine code
        speeds = take_turns(sides, repeats)
    return {
        "tasks": name,
        "rows": rows,
        **{side: median(values) for side, values in speeds.items()},
        **{f"ours / {side}": median_ratio(speeds["ours"], speeds[side]) for side in speeds if side != "ours"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=["metaworld-ml10"])
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100, help="steps of one turn of a side")
    parser.add_argument("--repeats", type=int, default=9, help="turns of every side")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    lines = [measure(name, arguments.rows, arguments.steps, arguments.repeats) for name in arguments.tasks]
    write_report("Meta-World, environment steps a second", lines, arguments.out, NOTES)


if __name__ == "__main__":
    main()
