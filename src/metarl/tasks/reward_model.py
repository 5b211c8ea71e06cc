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

    def without_last(self, number: int) -> RewardModel:
        """The same reward for observations with so many further numbers at their end, which it does not see."""
        reward, ended = self.reward, self.ended

        def seen(observation: Tensor) -> Tensor:
            return observation[..., : observation.shape[-1] - number]

        return RewardModel(
            lambda observation, action, following: reward(seen(observation), action, seen(following)),
            None if ended is None else lambda following: ended(seen(following)),
        )
