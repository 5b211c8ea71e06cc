"""Checkpoints: one safetensors file, whole or absent, that runs no code when it is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metarl.core.agent import Agent
from metarl.core.errors import UsageError
from metarl.experiments.files import atomic_write

FORMAT = "metarl-checkpoint-1"
LAST, BEST = "last.safetensors", "best.safetensors"
ADVICE = f"copy {BEST} over it where that is whole, or start a new run"


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able `meta`, with a checksum over both, atomically.

    Raises:
        UsageError: where the disk is full or the folder cannot be written; the checkpoint before is intact.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = _described(meta)
    header = {"format": FORMAT, "meta": described, "sha256": _checksum(plain, described)}
    atomic_write(path, save(plain, metadata=header))


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta of a checkpoint.

    Raises:
        UsageError: where there is none, or where it is damaged or not a checkpoint of this project.
    """
    path = Path(path)
    if path.name == BEST and not path.is_file() and path.with_name(LAST).is_file():
        raise UsageError(f"no checkpoint at {path}: none is the best where no episode ends in an epoch; take the last")
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}: give the folder of a run that has finished an epoch")
    try:
        with safe_open(str(path), framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"checkpoint {path} is corrupt ({error}): {ADVICE}") from error
    if header.get("format") != FORMAT:
        raise UsageError(f"{path} is no {FORMAT} file, another program or version wrote it: give the folder of a run")
    described = header.get("meta", "")
    if header.get("sha256") != _checksum(tensors, described):
        raise UsageError(f"checkpoint {path} is corrupt (its checksum differs): {ADVICE}")
    meta: dict[str, Any] = json.loads(described)
    return tensors, meta


def checkpoint_sum(path: str | Path) -> str:
    """The checksum that tells a checkpoint from all others. Raises as `load_checkpoint`."""
    tensors, meta = load_checkpoint(path)
    return _checksum(tensors, _described(meta))


def restore(agent: Agent, path: str | Path, acting: bool = False) -> dict[str, Any]:
    """Load a checkpoint into `agent`; its meta.

    Args:
        acting: leave out the state of optimisers.

    Raises:
        UsageError: as `load_checkpoint`, and where the checkpoint is of an agent that was configured otherwise.
    """
    tensors, meta = load_checkpoint(path)
    if acting:
        tensors = without_optimizers(tensors)
    try:
        agent.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:  # what a state dict raises for missing tensors and for other shapes
        raise UsageError(
            f"checkpoint {path} is of an agent with other settings: config.json beside it must be as the run wrote it"
        ) from error
    return meta


def without_optimizers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An agent's state without that of its optimisers, which an agent that will not learn does without."""
    return {name: tensor for name, tensor in tensors.items() if "optimizer" not in name.split(".")}


def _described(meta: Mapping[str, Any]) -> str:
    return json.dumps(dict(meta), sort_keys=True)


def _checksum(tensors: Mapping[str, Tensor], described: str) -> str:
    """SHA-256 over `described` and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(described.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
