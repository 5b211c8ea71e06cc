"""Export: the policy of a run as one file that runs without metarl, and that was compared with the agent before it was
kept."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import torch
from torch import Tensor

from metarl.core.agent import Agent, Array
from metarl.core.errors import Failure, UsageError, missing_extra
from metarl.experiments.checkpoint import restore
from metarl.experiments.files import atomic_write, check_folder
from metarl.experiments.results import versions
from metarl.experiments.run import Run
from metarl.meta_rl.policy_step import INPUTS, OUTPUTS, PolicyStep, policy_step
from metarl.meta_rl.registry import find_algorithm

FORMAT = "metarl-policy-1"
METADATA_FILE = "metadata.json"
"""Where a .pt2 holds its metadata; an .onnx has a place for them."""
STEPS, TASKS = 1000, 4
"""What an export is compared over: so many steps, of rows in so many tasks."""
TOLERANCE = 1e-4
"""Largest difference that is accepted: of a continuous action in halves of its range; where a discrete one differs, the
logits by which the agent prefers its own."""
EPISODE_END, TRIAL_END = 0.02, 0.005
"""Probability by step, and row or task, in the comparison."""

Step: TypeAlias = Callable[[Mapping[str, Array]], tuple[Array, Array]]
"""Inputs by name to (action, next state)."""


class ExportDiffers(Failure):
    """What was exported does not act as the agent does."""


@dataclass(frozen=True)
class Export:
    """A file that was written, and how far it is from the agent."""

    path: Path
    metadata: Mapping[str, str]
    difference: float
    rows: int


def export_policy(run: Run, out: Path) -> Export:
    """Write the policy of a run, as its checkpoint has it, to `out`, an .onnx or a .pt2, if it acts as the agent does.

    The file holds the memory's step, the normalisation as it stood, and the way to the environment's actions:
    `PolicyStep` describes inputs and outputs. The number of rows is free.

    Raises:
        UsageError: another suffix, a missing extra or folder, a run without a checkpoint, or of an algorithm without a
            policy.
        ExportDiffers: an action differs by more than `TOLERANCE`; nothing is written.
    """
    check_format(out)
    check_folder(out)
    write, read = _FORMATS[out.suffix]
    if "reward_model" in find_algorithm(run.config.algo).knows:
        raise UsageError(f"{run.config.algo} plans with a model at every step and has no policy to export")
    agent = run.make_agent()
    trained = restore(agent, run.weights)
    step = policy_step(agent)
    metadata = _metadata(run, agent, step, trained["epoch"])
    data = write(_trace(step, agent), metadata)
    rows = TASKS * agent.trial_rows
    difference = largest_difference(agent, step, read(data), rows)
    if not difference <= TOLERANCE:
        raise ExportDiffers(
            f"{out.name} differs from the agent by {difference:.1e}, more than {TOLERANCE:.0e}: it was not written"
        )
    atomic_write(out, data)
    return Export(out, metadata, difference, rows)


def largest_difference(agent: Agent, step: PolicyStep, exported: Step, rows: int, seed: int = 0) -> float:
    """The largest difference between the actions of an agent and of what was exported, as `TOLERANCE` counts it.

    Both see the same `STEPS` observations and rewards, drawn as far spread as those of training, and each keeps a
    memory of its own. Episodes end and trials begin at random, by row and by task.

    Args:
        agent: left in evaluation mode. `step` is its own, and gives the logits where discrete actions differ.
    """
    random = np.random.default_rng(seed)
    agent.explore = agent.training = False
    agent.begin_trial(rows)
    given = _first_inputs(agent, step, rows)
    observation, _ = _drawn(agent, step, rows, random)
    differences = []
    for _ in range(STEPS):
        given["observation"] = observation
        action = agent.act(observation)
        got, next_state = exported(given)
        differences.append(_difference(agent.action_space, step, given, action, got))
        following, reward = _drawn(agent, step, rows, random)
        terminated, truncated = random.random((2, rows)) < EPISODE_END / 2
        agent.observe(observation, action, reward, terminated, truncated, following)
        renew: Array = np.repeat(random.random(rows // agent.trial_rows) < TRIAL_END, agent.trial_rows)
        if renew.any():
            agent.begin_trial(rows, renew)
        given = {
            "previous_action": action.astype(given["previous_action"].dtype),
            "previous_reward": reward,
            "trial_start": renew,
            "episode_start": terminated | truncated,
            "state": next_state,
        }
        observation = following
    return float(np.max(differences))


def _difference(
    space: gymnasium.Space[Any], step: PolicyStep, given: Mapping[str, Array], expected: Array, got: Array
) -> float:
    if isinstance(space, gymnasium.spaces.Box):
        # Of halves: bounds may be as large as floats are.
        return float(np.max(np.abs(got / 2 - expected / 2) / (space.high / 4 - space.low / 4)))
    assert isinstance(space, gymnasium.spaces.Discrete)
    rows = np.flatnonzero(got != expected)
    if not len(rows):
        return 0.0
    logits = step.distribution(**_tensors(given))[0].numpy()
    return float(np.max(np.abs(logits[rows, expected[rows] - space.start] - logits[rows, got[rows] - space.start])))


def _drawn(agent: Agent, step: PolicyStep, rows: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Observations [B, obs] and rewards [B] (only a policy that sees rewards has statistics of them)."""
    (size,) = agent.observation_space.shape or (0,)
    normal = step.normalize
    drawn = random.normal(size=(rows, len(normal.mean))) / normal.inverse_std.numpy() + normal.mean.numpy()
    drawn = drawn.astype(np.float32)
    return drawn[:, :size], drawn[:, -1]


def _first_inputs(agent: Agent, step: PolicyStep, rows: int) -> dict[str, Array]:
    """Inputs of the first step, by name."""
    space = agent.action_space
    action_type = np.float32 if isinstance(space, gymnasium.spaces.Box) else np.int64
    begins = np.ones(rows, dtype=bool)
    return {
        "observation": np.zeros((rows, *(agent.observation_space.shape or ())), np.float32),
        "previous_action": np.zeros((rows, *(space.shape or ())), action_type),
        "previous_reward": np.zeros(rows, np.float32),
        "trial_start": begins,
        "episode_start": begins,
        "state": step.memory.init_state(rows).numpy(),
    }


def _tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


def _metadata(run: Run, agent: Agent, step: PolicyStep, epoch: int) -> dict[str, str]:
    """What a file says about itself: text by name; shapes and spaces as JSON."""
    adapts = "by its memory" if step.sees_past else "not: the meta-learned policy before gradient steps"
    first = _first_inputs(agent, step, 1)
    action = first["previous_action"]
    outputs = dict(zip(OUTPUTS, (action, first["state"]), strict=True))
    signature = {
        kind: {name: {"type": str(array.dtype), "shape": ["batch", *array.shape[1:]]} for name, array in arrays.items()}
        for kind, arrays in (("inputs", first), ("outputs", outputs))
    }
    return {
        "format": FORMAT,
        "metarl_version": versions()["metarl"],
        "task_family": run.distribution.name,
        "algo": run.config.algo,
        "method": run.memory.method,
        "epoch": str(epoch),
        "adapts": adapts,
        "action_space": json.dumps(_described(agent.action_space)),
        **{kind: json.dumps(described) for kind, described in signature.items()},
    }


def _described(space: gymnasium.Space[Any]) -> dict[str, Any]:
    if isinstance(space, gymnasium.spaces.Box):
        return {"kind": "Box", "low": space.low.tolist(), "high": space.high.tolist()}
    assert isinstance(space, gymnasium.spaces.Discrete)
    return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}


# --- formats ----------------------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing talks about its own workings (weights that recurrent layers cache, an absent torchvision); whether it
    worked is measured afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _trace(step: PolicyStep, agent: Agent) -> torch.export.ExportedProgram:
    """The step as a graph with a free number of rows."""
    batch = torch.export.Dim("batch")
    with _quiet(), torch.no_grad():
        given = _tensors(_first_inputs(agent, step, 2))
        arguments = tuple(given[name] for name in INPUTS)
        return torch.export.export(step, arguments, dynamic_shapes=tuple({0: batch} for _ in arguments))


def _write_onnx(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    with _quiet():
        exported = torch.onnx.export(
            program,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes={name: {0: "batch"} for name in INPUTS},
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    exported.model.metadata_props.update(metadata)
    data: bytes = exported.model_proto.SerializeToString()
    return data


def _read_onnx(data: bytes) -> Step:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda given: tuple(session.run(OUTPUTS, dict(given)))


def _write_pt2(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
    return buffer.getvalue()


def _read_pt2(data: bytes) -> Step:
    module = torch.export.load(io.BytesIO(data)).module()

    def run(given: Mapping[str, Array]) -> tuple[Array, Array]:
        action, state = module(*(torch.from_numpy(given[name]) for name in INPUTS))
        return action.numpy(), state.numpy()

    return run


_FORMATS = {".onnx": (_write_onnx, _read_onnx), ".pt2": (_write_pt2, _read_pt2)}


def check_format(out: Path) -> None:
    """Refuse a suffix that is not known, and a format whose extra is not installed."""
    if out.suffix not in _FORMATS:
        raise UsageError(f"--out is an .onnx (for onnxruntime) or a .pt2 (for torch.export.load), got {out.name}")
    if out.suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            if find_spec(package) is None:
                raise missing_extra(package, "export")
