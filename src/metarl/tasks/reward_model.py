"""`RewardModel`: what a planner may know of the reward, where tasks differ by their dynamics only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # task families import without torch
    from torch import Tensor


@dataclass(frozen=True)
class RewardModel:
    """The reward as a function of what can be observed, the same in all tasks of a family. Leading axes are free."""

    reward: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(observation [..., obs], action [..., act], next_observation [..., obs]) -> [...]."""

    ended: Callable[[Tensor], Tensor] | None = None
    """next_observation [..., obs] -> bool [...], whether the episode ends there. None: it never does."""
