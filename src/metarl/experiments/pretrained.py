"""Trained agents, ready to act: of a run, or one that ships with the package (`shipped`).

`python scripts/ship_agent.py RUN` makes a shipped one out of a finished run.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from metarl.core.agent import Agent
from metarl.core.errors import UsageError, unknown_name
from metarl.experiments.checkpoint import LAST, load_checkpoint, restore, save_checkpoint, without_optimizers
from metarl.experiments.files import write_json
from metarl.experiments.flags import Checkpoint, without
from metarl.experiments.results import Results, load_results
from metarl.experiments.run import RESUMED, Run
from metarl.experiments.run_config import RunConfig
from metarl.experiments.run_folder import CONFIG_FILE, UNLIMITED
from metarl.experiments.shipped import CARD_FILE, SHIPPED, WEIGHTS_FILE, Card, load_card, shipped_folder
from metarl.tasks.distribution import id_ranges

MAX_BYTES = 1_000_000
"""Weights are smaller than this: an install must stay light."""


def load_pretrained(name: str, device: str = "cpu") -> Agent:
    """An agent that ships with the package, ready to act in a world of its own: a trial of one row has begun.

        agent = metarl.load_pretrained("halfcheetah-vel")
        action = agent.act(observation)
        agent.observe(observation, action, reward, terminated, truncated, next_observation)
        agent.adapt()  # after each episode; an agent with memory has adapted by then

    For several worlds at once, call `agent.begin_trial(num_rows)`. It acts by the mode of its policy, unless it needs
    samples to adapt, and keeps no experience for `update`; `agent.explore = agent.training = True` changes both, and
    its optimiser then starts afresh.

    Args:
        name: one of `list_pretrained()`; an agent is named after the family that it was trained on.
        device: cpu or cuda.

    Raises:
        UsageError: an unknown name, or weights that are not those of the card.
    """
    weights = shipped_folder(name) / WEIGHTS_FILE
    if _checksum(weights) != load_card(name)["sha256"]:
        raise UsageError(f"{weights} is damaged (its checksum is not that of {CARD_FILE}): install metarl again")
    agent = pretrained_run(name, device).make_agent()
    restore(agent, weights)
    return _ready(agent)


def load_agent(folder: str | Path, device: str = "cpu", checkpoint: Checkpoint = "last") -> Agent:
    """The agent of a run's checkpoint, ready to act as `load_pretrained` says.

        agent = metarl.load_agent("runs/20260102-030405-halfcheetah-vel-rl2-ssm-s0")

    Args:
        folder: of a run, finished or not.
        device: cpu or cuda.
        checkpoint: the last one, or the best by return on train tasks.

    Raises:
        UsageError: no folder of a run, no such checkpoint in it, or a damaged one.
    """
    if checkpoint not in get_args(Checkpoint):
        raise unknown_name("checkpoint", checkpoint, get_args(Checkpoint))
    return acting_agent(replace(Run.load(folder, reference=None, beside=(), device=device), checkpoint=checkpoint))


def acting_agent(run: Run) -> Agent:
    """The agent of a run's checkpoint, without the state of its optimiser."""
    agent = run.make_agent()
    restore(agent, run.weights, acting=True)
    return _ready(agent)


def _ready(agent: Agent) -> Agent:
    agent.explore, agent.training = agent.explores_to_adapt, False
    agent.begin_trial(1)
    return agent


def pretrained_run(name: str, device: str = "cpu") -> Run:
    """The run that made a shipped agent, with its task distribution and its split. It has no checkpoints."""
    return Run.load(shipped_folder(name), device=device)


def ship(folder: str | Path, name: str | None = None, into: Path = SHIPPED) -> Path:
    """Make the shipped folder of a finished run's agent, in place of the one that was there; its path.

    Args:
        folder: of a run that was measured in benchmark mode, whose reference lines the card needs.
        name: of the agent; None: that of the family it was trained on.
        into: folder of all shipped agents.

    Raises:
        UsageError: the run is not finished, has no reference lines, or its weights are 1 MB or more.
    """
    run, measured = Run.load(folder, reference=None), load_results(folder)
    if measured["references"].get("random") is None:
        raise UsageError(f"{folder} was measured without reference lines: metarl run ... --benchmark-mode has them")
    tensors, meta = load_checkpoint(run.checkpoints / LAST)
    if meta["env_steps"] != measured["env_steps"]:
        raise UsageError(f"{folder} has trained on since it was measured: metarl resume it to its end first")
    needed = without_optimizers(tensors)
    size = sum(tensor.nbytes for tensor in needed.values())
    if size >= MAX_BYTES:
        raise UsageError(f"the agent of {folder} takes {size:,} bytes, a shipped one less than {MAX_BYTES:,}")
    target = into / (name or run.distribution.name)
    target.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target / WEIGHTS_FILE, needed, meta)
    config = json.loads((run.folder / CONFIG_FILE).read_text())
    config["run"] |= {"output_dir": RunConfig.output_dir, "reference": None}
    write_json(target / CONFIG_FILE, config | {"command": _portable(config["command"])}, UNLIMITED)
    write_json(target / CARD_FILE, _card(target, measured))
    restore(run.make_agent(), target / WEIGHTS_FILE)  # or this code has another network than the run had
    return target


def _card(target: Path, measured: Results) -> Card:
    split = measured["task_split"]
    kept = ("task_dist", "details", "algo", "method", "seeds", "protocol", "shots", "references")
    told = ("env_steps", "wall_seconds", "versions", "hardware")
    return {
        "name": target.name,
        "command": _portable(measured["command"]),
        **{key: measured[key] for key in (*kept, *told)},
        "train_tasks": id_ranges(split["train"]),
        "test_tasks": id_ranges(split["test"]),
        "returns": {
            str(task["id"]): {shot: float(np.mean(scores["return"])) for shot, scores in task["shots"].items()}
            for task in measured["tasks"]
        },
        "sha256": _checksum(target / WEIGHTS_FILE),
    }


def _portable(command: str) -> str:
    """The command without the paths of the machine that it ran on; they change no number."""
    started, *resumed = command.split(RESUMED)
    arguments = shlex.split(started)
    for flag in ("output-dir", "reference"):
        arguments = without(arguments, flag)
    return RESUMED.join([shlex.join(arguments), *resumed])


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
