"""`TrialParts`: a trial of many tasks in groups, over which means are taken."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from metarl.core.policy_gradient import Round
from metarl.meta_rl.compiled import Programs
from metarl.meta_rl.supervised_tasks import num_tasks

Rounds: TypeAlias = Sequence[Round]
"""Those of a trial, of some tasks or of all."""


class TrialParts:
    """Means over all tasks of a trial, from those over the tasks of each part.

    With `programs` the parts are computed side by side, by machine code; without, one after the other, and what one
    keeps for its gradient is gone before the next begins.

    Args:
        frozen: what the functions depend on beside tensors.
    """

    def __init__(self, parts: Iterable[Rounds], programs: Programs | None, frozen: Hashable) -> None:
        self.parts, self.programs, self.frozen = list(parts), programs, frozen

    def mean(self, function: Callable[[Rounds], tuple[Tensor, ...]]) -> Any:
        """Of what `function` gives for a part."""
        if self.programs is None:
            return self._mean([function(part) for part in self.parts])
        key = function.__name__, self.frozen
        return self._mean(self.programs.run_trees(key, function, [(part,) for part in self.parts]))

    def mean_map(
        self, function: Callable[[Rounds], Callable[[Tensor], Tensor]], size: int
    ) -> Callable[[Tensor], Tensor]:
        """The mean of the linear maps that `function` gives for a part, of vectors of `size` numbers.

        What a map needs beside its argument is computed once: parameters stand still until the last vector.
        """
        if self.programs is None:
            maps = [function(part) for part in self.parts]
            return lambda vector: self._mean([(each(vector),) for each in maps])[0]

        def image(part: Rounds, vector: Tensor) -> tuple[Tensor]:
            return (function(part)(vector),)

        key, calls = (function.__name__, self.frozen), [(part,) for part in self.parts]
        images = self.programs.held(key, image, calls, self.parts[0][0]["x"].new_zeros(size))
        return lambda vector: self._mean(images(vector))[0]

    def _mean(self, results: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        tasks = [num_tasks(part[0]) for part in self.parts]
        return [
            torch.stack([number / sum(tasks) * mean for number, mean in zip(tasks, means, strict=True)]).sum(0)
            for means in zip(*results, strict=True)
        ]
