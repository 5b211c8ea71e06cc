"""How fast RL² trains, worlds and learning together: against RecurrentPPO of sb3-contrib, and against physics alone.

    python benchmarks/end_to_end.py --out results/end_to_end.json
    python benchmarks/end_to_end.py --device cuda --rows 64 1024 --out results/end_to_end_cuda.json

One turn is one update: 200 steps of every row on halfcheetah-vel, then 4 epochs of 8 minibatches. Worlds run on the
CPU, acting and learning on --device. The sides take turns, and the table holds medians. RecurrentPPO takes part if an
interpreter has sb3-contrib (`pip install -e ".[benchmarks]"`, or --peer-python). Targets at 64 rows on two cores:
30,000 environment steps a second, and 3 times RecurrentPPO.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from clock import REST, PhaseClock
from common import add_device_flag, median_ratio, take_turns, wait_for, write_report
from mjbatch import Batch

from metarl.core.memory import MemoryConfig
from metarl.env_runner.mujoco_family import batch_model
from metarl.env_runner.trial import Trial, run_trial
from metarl.meta_rl.rl2_agent import RL2Agent, RL2Config
from metarl.tasks.locomotion import FAMILIES, HORIZON
from metarl.tasks.registry import make_tasks

TASKS = "halfcheetah-vel"
FAMILY = FAMILIES[TASKS][1]
OURS, LIMIT, PEER = "metarl RL2", "physics limit", "RecurrentPPO"
PHASES = ("act", "simulate", "observe", "learn", REST)
PEER_SCRIPT = Path(__file__).with_name("recurrent_ppo.py")
ROWS, WARM_UPS, TURNS = 64, 2, 9
QUICK_ROWS, QUICK_CONFIG = 8, RL2Config(update_steps=20, update_epochs=1, num_minibatches=2)
PEER_FRACTION = 4
"""RecurrentPPO is measured with as many rows as ours, and with this fraction of them."""

NOTES = (
    "physics limit: mj_step on every core through mjbatch, of the model as our worlds step it, random actions; no "
    "policy, observations, rewards or resets.",
    "Seconds are of one update. observe: everything between worlds and learning (memory, recording, bootstrap values, "
    "and on RecurrentPPO's side advantages). rest: the loop itself. Evaluation, logs and checkpoints are on no side.",
    "Ours runs a different target speed in every row, with previous action, reward and episode start as inputs, and "
    "trains the default configuration (ssm, width 64). Its worlds use all cores, acting one thread, learning all. On a "
    "CPU it runs compiled, as runs of 40 epochs or more do; compiling, half a minute once, is on no side.",
    "RecurrentPPO: MlpLstmPolicy, one LSTM of width 64 shared by actor and critic, one layer of width 64 after it in "
    "each, equal steps, epochs and number of minibatches; Gymnasium's HalfCheetah-v5 with the same reward, the same "
    "target speeds and the same horizon, in a DummyVecEnv; memory is reset at each episode. torch's default threads.",
)

Seconds = dict[str, float]
Iteration = Callable[[], Seconds]


def make_ours(rows: int, config: RL2Config, device: str, cleanup: ExitStack) -> Iteration:
    """One update of RL² as the trainer makes it: renew tasks, run the trial, learn."""
    tasks = make_tasks(TASKS)
    clock, generator = PhaseClock(), np.random.default_rng(0)
    held = [tasks.train[row % len(tasks.train)] for row in range(rows)]
    env = tasks.make_env(held)
    cleanup.callback(env.close)
    agent = RL2Agent(env.single_observation_space, env.single_action_space, config, MemoryConfig(), device=device)
    for target, method, phase in (
        (agent, "begin_trial", "act"),
        (agent, "act", "act"),
        (env, "set_tasks", "simulate"),
        (env, "reset", "simulate"),
        (env, "step", "simulate"),
        (agent, "observe", "observe"),
        (agent, "update", "learn"),
    ):
        clock.watch(target, method, phase)
    trial: Trial | None = None

    def update() -> None:
        nonlocal trial
        renew = np.ones(rows, dtype=bool) if trial is None else generator.random(rows) >= agent.continuation
        for row in np.flatnonzero(renew):
            held[row] = tasks.train[generator.integers(len(tasks.train))]
        trial = run_trial(agent, env, held, steps=agent.round_steps, renew=renew, previous=trial)
        agent.update()
        wait_for(device)

    return lambda: clock.split(update)


def make_limit(rows: int, steps: int) -> Iteration:
    """The same number of environment steps, physics alone."""
    batch = Batch(batch_model(FAMILY), rows, 0)
    controls = batch.bind("ctrl")
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (steps, *controls.shape))

    def simulate() -> Seconds:
        batch.reset()
        start = time.perf_counter()
        for action in actions:
            controls[:] = action
            batch.step(nstep=FAMILY.frame_skip)
        return {"simulate": time.perf_counter() - start}

    return simulate


class Peer:
    """RecurrentPPO in a process of its own, which sleeps while it is not asked.

    Raises:
        RuntimeError: the process ended; what it said is on stderr.
    """

    def __init__(self, python: str, all_rows: list[int], config: RL2Config, cleanup: ExitStack) -> None:
        command = [python, str(PEER_SCRIPT)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._process = cleanup.enter_context(process)  # on exit, its stdin is closed, at which it ends
        setup = {
            "rows": all_rows,
            "steps": config.update_steps,
            "epochs": config.update_epochs,
            "minibatches": config.num_minibatches,
            "width": MemoryConfig().width,
            "horizon": HORIZON,
            "control_cost": FAMILY.control_cost,
            "targets": [task["velocity"] for task in make_tasks(TASKS).train],
        }
        self.versions = self._ask(json.dumps(setup))

    def iterate(self, rows: int) -> Seconds:
        seconds: Seconds = self._ask(str(rows))
        return seconds

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{PEER_SCRIPT.name} ended with code {self._process.wait()}; its error is above")
        message: dict[str, Any] = json.loads(answer)
        return message


def has_peer(python: str) -> bool:
    """Whether the interpreter has sb3-contrib."""
    if shutil.which(python) is None:
        return False
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('sb3_contrib') is None)"
    return subprocess.run([python, "-c", probe], check=False).returncode == 0


@dataclass
class Side:
    """Something that is measured: one turn is `rows` times `steps` environment steps."""

    name: str
    rows: int
    steps: int
    iterate: Iteration
    record: list[Seconds] = field(default_factory=list)

    def turn(self) -> float:
        """Environment steps a second of one turn."""
        self.record.append(self.iterate())
        return self.rows * self.steps / sum(self.record[-1].values())

    def phases(self) -> dict[str, float | None]:
        """Median seconds of each phase, and its share of their sum in %; None for a phase that the side lacks."""
        seconds = {phase: median(turn[phase] for turn in self.record) for phase in self.record[0]}
        whole = sum(seconds.values())
        columns: dict[str, float | None] = {}
        for phase in PHASES:
            columns[f"{phase} s"] = seconds.get(phase)
            columns[f"{phase} %"] = 100 * seconds[phase] / whole if phase in seconds else None
        return columns


def measure(sides: list[Side], warm_ups: int, turns: int) -> list[dict[str, Any]]:
    """One line of the table for every side; the first is ours, the second the limit."""
    turn = {f"{side.name} {side.rows}": side.turn for side in sides}
    take_turns(turn, warm_ups)
    for side in sides:
        side.record.clear()
    speeds = list(take_turns(turn, turns).values())
    ours, limit = speeds[:2]
    return [
        {
            "side": side.name,
            "rows": side.rows,
            "env-steps/s": median(own),
            "this / limit": median_ratio(own, limit),
            "ours / this": median_ratio(ours, own),
            **side.phases(),
        }
        for side, own in zip(sides, speeds, strict=True)
    ]


def sides_of(rows: int, config: RL2Config, device: str, peer: Peer | None, cleanup: ExitStack) -> list[Side]:
    """Ours, the limit, and the peer if there is one."""
    steps = config.update_steps
    sides = [
        Side(OURS, rows, steps, make_ours(rows, config, device, cleanup)),
        Side(LIMIT, rows, steps, make_limit(rows, steps)),
    ]
    if peer is not None:
        sides += [Side(PEER, number, steps, partial(peer.iterate, number)) for number in peer_rows(rows)]
    return sides


def peer_rows(rows: int) -> tuple[int, int]:
    """How many rows the peer is measured with, beside as many of ours."""
    return rows, rows // PEER_FRACTION


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has sb3-contrib")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    add_device_flag(parser)
    parser.add_argument("--rows", type=int, nargs="+", default=[ROWS], help="worlds side by side, one after the other")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    device, all_rows, warm_ups, turns = arguments.device, arguments.rows, WARM_UPS, TURNS
    config = RL2Config(compile=device == "cpu")
    if arguments.quick:
        all_rows, config, warm_ups, turns = [QUICK_ROWS], QUICK_CONFIG, 1, 1
    lines, notes = list[dict[str, Any]](), [*NOTES]
    with ExitStack() as cleanup:
        peer = None
        if has_peer(arguments.peer_python):
            numbers = [number for rows in all_rows for number in peer_rows(rows)]
            peer = Peer(arguments.peer_python, numbers, config, cleanup)
            notes.append(f"{PEER} ran with {peer.versions}.")
        else:
            notes.append(f"{PEER} is missing: the interpreter has no sb3-contrib; install it or give --peer-python.")
        for rows in all_rows:
            lines += measure(sides_of(rows, config, device, peer, cleanup), warm_ups, turns)
    write_report("Training on halfcheetah-vel, environment steps a second", lines, arguments.out, notes, device)


if __name__ == "__main__":
    main()
