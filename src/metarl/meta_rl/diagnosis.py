"""Where adaptation left the finite numbers. Looked for only once something did: it runs the inner loop again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from metarl.core.optimization import TrainingDiverged
from metarl.meta_rl.inner_loop import Parameters


@torch.no_grad()
def diverged(
    phis: Iterable[Parameters],
    support_losses: Callable[[Parameters, bool], Tensor],
    adapted: Sequence[str],
    seen: str,
    first: int = 0,
) -> TrainingDiverged:
    """The error that names the task and the inner step at which something broke, or else what was `seen`.

    Args:
        phis: θ, then the parameters after each inner step; taken one by one until something is not finite.
        support_losses: [M] by parameters, and whether the adapted ones of them are stacked.
        adapted: names of the parameters that a task changes.
        first: number of the first of the M tasks.
    """
    culprit = next(_broken(phis, support_losses, adapted, first), seen)
    return TrainingDiverged(f"not finite: {culprit}; try a lower inner_lr")


def _broken(
    phis: Iterable[Parameters],
    support_losses: Callable[[Parameters, bool], Tensor],
    adapted: Sequence[str],
    first: int,
) -> Iterator[str]:
    for step, phi in enumerate(phis):
        losses = support_losses(phi, step > 0)
        for task in range(len(losses)):
            where = f"of task {first + task} after {step} inner steps"
            if not bool(torch.isfinite(losses[task])):
                yield f"the support loss {where}"
            for name in adapted:
                value = phi[name][task] if step else phi[name]
                if not bool(torch.isfinite(value).all()):
                    yield f"parameter {name} {where}"
