"""Run an exported policy where it is deployed, without the training code, beside a model that goes on learning.

    python examples/deploy.py                                          # trains and exports a small policy first
    python examples/deploy.py policy.onnx --change force_mag=4         # or policy.pt2
    python examples/deploy.py RUN --env Pendulum-v1 --change m=1.3     # exports the run first

The policy is a file, a state and a plain Gymnasium loop. It adapts by its memory. What goes on learning by gradients is
a model of the world beside it: it predicts each step, and its error says how far the world is from the one that was
known when it was shipped. An `Adapter` fits it to the stream, with a guard that keeps it from becoming worse than the
model as it was shipped. Half way through, the world changes.
"""

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from metarl import AdaptationConfig, Adapter

TRAINING = (
    "run --task-dist cartpole-dynamics --algo rl2 --method gru --width 32 --num-envs 64 --update-steps 64 "
    "--num-minibatches 2 --epochs 3 --zero-shot --test-tasks 100 101 --repeats 2"
)
KNOWN_STEPS = 2000
"""Steps in the world as it is known, on which the model is trained before it is shipped."""
INPUTS = ("observation", "previous_action", "previous_reward", "trial_start", "episode_start", "state")


class OnnxPolicy:
    """What `metarl export --out policy.onnx` wrote."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the network is small: threads would only wait for each other
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.metadata = self.session.get_modelmeta().custom_metadata_map

    def __call__(self, given: dict[str, Any]) -> Sequence[Any]:
        return self.session.run(None, given)


class TorchPolicy:
    """What `metarl export --out policy.pt2` wrote."""

    def __init__(self, path: Path) -> None:
        extra = {"metadata.json": ""}
        self.module = torch.export.load(path, extra_files=extra).module()
        self.metadata = json.loads(extra["metadata.json"])

    def __call__(self, given: dict[str, Any]) -> Sequence[Any]:
        return [result.numpy() for result in self.module(*(torch.from_numpy(given[name]) for name in INPUTS))]


class Loop:
    """A policy in one world, step by step, with the time that it takes to act."""

    def __init__(self, policy: OnnxPolicy | TorchPolicy, world: gymnasium.Env) -> None:
        self.policy, self.world = policy, world
        described = json.loads(policy.metadata["inputs"])
        if described["observation"]["shape"][1:] != list(world.observation_space.shape):
            raise SystemExit(f"the policy sees {described['observation']['shape'][1:]} numbers, {world} shows others")
        # A trial begins with every input 0, the state too, and both flags set.
        self.given = {name: np.zeros([1, *form["shape"][1:]], form["type"]) for name, form in described.items()}
        self.given["trial_start"][:] = self.given["episode_start"][:] = True
        self.observation, _ = world.reset()
        self.running, self.returns, self.seconds = 0.0, [], []

    def step(self) -> tuple[Tensor, Tensor]:
        """(observation and action, change of the observation), [1, ...] each."""
        before = self.observation
        self.given["observation"] = before[None].astype(np.float32)
        start = time.perf_counter()
        action, state = self.policy(self.given)
        self.seconds.append(time.perf_counter() - start)
        after, reward, terminated, truncated, _ = self.world.step(action[0])
        done = terminated or truncated
        self.running += float(reward)
        self.given |= {
            "previous_action": action,
            "previous_reward": np.array([reward], np.float32),
            "trial_start": np.array([False]),
            "episode_start": np.array([done]),
            "state": state,
        }
        self.observation = after
        if done:
            self.returns.append(self.running)
            self.running = 0.0
            self.observation, _ = self.world.reset()
        seen = np.concatenate([before, np.ravel(action[0])])
        return torch.from_numpy(seen[None]).float(), torch.from_numpy((after - before)[None]).float()


class WorldModel(nn.Module):
    """(observation, action) -> the change of the observation; trained once, on what was known."""

    def __init__(self, seen: Tensor, change: Tensor) -> None:
        super().__init__()
        self.mean, spread = seen.mean(0), seen.std(0)
        self.spread = torch.where(spread > 1e-3, spread, 1.0)  # what never varied stays in its own unit
        self.unit = change.std(0) + 1e-3  # errors are counted in it
        self.layers = nn.Sequential(nn.Linear(seen.shape[1], 64), nn.Tanh(), nn.Linear(64, change.shape[1]))
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        for _ in range(400):
            optimizer.zero_grad()
            mse_loss(self(seen), change / self.unit).backward()
            optimizer.step()

    def forward(self, seen: Tensor) -> Tensor:
        return self.layers((seen - self.mean) / self.spread)


def deploy(loop: Loop, changes: dict[str, float], steps: int) -> Iterator[tuple[str, float, float, float]]:
    """(what the world is like, mean return, mean squared error of the shipped model, of the adapted one), by half."""
    known = [loop.step() for _ in range(KNOWN_STEPS)]
    model = WorldModel(*(torch.cat(parts) for parts in zip(*known, strict=True)))
    adapter = Adapter(model, AdaptationConfig(learning_rate=0.02, update_every=4), mse_loss)
    for name, changed in (("as known", {}), ("changed", changes)):
        for attribute, value in changed.items():
            if attribute not in dir(loop.world.unwrapped):
                raise SystemExit(f"--change: {loop.world.unwrapped} has no {attribute}, and so nothing would change")
            setattr(loop.world.unwrapped, attribute, value)
        episodes, errors = len(loop.returns), []
        for _ in range(steps):
            seen, change = loop.step()
            wanted = change / model.unit
            errors.append([mse_loss(predict(seen), wanted).item() for predict in (adapter.frozen, adapter.predict)])
            adapter.observe(seen, wanted)
        finished = loop.returns[episodes:]
        yield name, float(np.mean(finished)) if finished else float("nan"), *np.mean(errors, 0)


def exported(given: Path | None, folder: Path) -> Path:
    """The file of a policy: the one given, or exported from the run given, or from one trained now."""
    if given is not None and given.is_file():
        return given
    from metarl.cli import main  # the training side: where there is a file, nothing of it is needed

    if given is None:
        main([*TRAINING.split(), "--output-dir", str(folder)])
        (given,) = folder.iterdir()
    packages = ("onnx", "onnxscript", "onnxruntime")
    suffix = ".onnx" if all(map(importlib.util.find_spec, packages)) else ".pt2"
    file = folder / f"policy{suffix}"
    if main(["export", str(given), "--out", str(file)]):
        raise SystemExit(2)
    return file


def change(text: str) -> tuple[str, float]:
    """An attribute of the environment, and what it changes to: 'gravity=14'."""
    name, value = text.split("=")
    return name, float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run an exported policy, and adapt a model of the world beside it")
    parser.add_argument("policy", type=Path, nargs="?", help="an .onnx, a .pt2, or the folder of a run")
    parser.add_argument("--env", default="CartPole-v1", help="the Gymnasium environment to run in")
    known = [change("force_mag=5"), change("gravity=14")]
    parser.add_argument("--change", nargs="*", type=change, default=known, help="what changes in it, as gravity=14")
    parser.add_argument("--steps", type=int, default=2000, help="steps before the change, and after it")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = exported(flags.policy, Path(folder))
        policy = OnnxPolicy(path) if path.suffix == ".onnx" else TorchPolicy(path)
    described = policy.metadata
    print(f"{path.name}: {described['algo']}, {described['method']}, trained on {described['task_family']}")
    table = Table(
        "world",
        *(Column(name, justify="right") for name in ("return", "error of the shipped model", "of the adapted one")),
    )
    with gymnasium.make(flags.env) as world:
        world.reset(seed=0)
        loop = Loop(policy, world)
        for name, mean_return, frozen, adapted in deploy(loop, dict(flags.change), flags.steps):
            table.add_row(name, f"{mean_return:.1f}", f"{frozen:.4f}", f"{adapted:.4f}")
    Console().print(table)
    median, late = np.percentile(loop.seconds, [50, 99]) * 1e6
    print(f"act: p50 {median:.0f} µs, p99 {late:.0f} µs over {len(loop.seconds):,} steps")


if __name__ == "__main__":
    main()
