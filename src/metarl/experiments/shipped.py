"""The trained agents that ship with the package, by name and card; `pretrained` loads them.

A shipped folder holds what acting needs and no more:

    config.json           as the run wrote it, so that `Run.load` reads it; where the run was written is left out
    card.json             command, seed, steps, time, returns by shot and by task, versions, checksum of the weights
    weights.safetensors   a checkpoint without the optimiser's state
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeAlias

from metarl.core.errors import UsageError, unknown_name

Card: TypeAlias = dict[str, Any]

SHIPPED = Path(__file__).parents[1] / "pretrained"
CARD_FILE, WEIGHTS_FILE = "card.json", "weights.safetensors"


def list_pretrained() -> list[str]:
    """Names of the agents that ship with the package, sorted."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CARD_FILE}"))


def load_card(name: str) -> Card:
    """What is known of a shipped agent.

    `returns` are by task and shot, means over repeats; `shots` summarise them with 95 % intervals, as in
    `results.json`. `versions` and `hardware` are those of the measurement.
    """
    card: Card = json.loads((shipped_folder(name) / CARD_FILE).read_text())
    return card


def check_player(name: str, checkpoint: str) -> None:
    """Refuse what is neither the folder of a run nor the name of a shipped agent, or has no such checkpoint."""
    is_folder = os.path.isdir(name)  # no error either where it may not be looked at
    if not is_folder and name not in list_pretrained():
        shipped = ", ".join(list_pretrained())
        raise UsageError(f"'{name}' is neither the folder of a run nor an agent that ships with metarl: {shipped}")
    if not is_folder and checkpoint != "last":
        raise UsageError(f"--checkpoint {checkpoint} is for a run: '{name}' ships with one checkpoint; leave it out")


def shipped_folder(name: str) -> Path:
    """Where an agent lies; an unknown name raises with the known ones and the nearest."""
    if name not in list_pretrained():
        raise unknown_name("pretrained agent", name, list_pretrained())
    return SHIPPED / name
