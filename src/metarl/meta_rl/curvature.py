"""Products with the Hessian of a divergence after adaptation, by the inner loop's tangent.

Let φ_0 = θ and φ_{k+1} = φ_k − α ∇L_k(φ_k), and D how far a policy is from that of φ_K, whose gradient is zero there.
Then, with J the derivative of φ_K with respect to θ and α,

    H v = Jᵀ ∇²D J v,        J v = u_K,    u_0 = δθ,   u_{k+1} = u_k − α ∇²L_k(φ_k) u_k − δα ∇L_k(φ_k)

and Jᵀ goes the same steps back. A product with ∇² is a pass through the graph of a gradient, which is built once.
To differentiate D of the whole loop twice goes through three levels of derivatives, and takes 1.75 times as long.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metarl.meta_rl.inner_loop import Batch, Loss, Parameters, over_tasks
from metarl.meta_rl.meta_maml import RATE, MetaMAML


class AdaptedCurvature:
    """H of the mean over tasks of `divergence`, as a function from a vector of everything learned to another.

    Args:
        inner_loss: L, descended on all batches but the last.
        divergence: D, of the policy of its parameters from itself, on the last one.
        batches: {name: [M, ...]} for every round.
    """

    def __init__(self, maml: MetaMAML, inner_loss: Loss, divergence: Loss, batches: Sequence[Batch]) -> None:
        self.maml = maml
        self.tasks = len(next(iter(batches[0].values())))
        with torch.no_grad():
            phis = list(maml.inner_loop(inner_loss, batches[:-1]))
        losses = [inner_loss] * (len(batches) - 1) + [divergence]
        self._slopes = [
            self._slope(loss, self._by_task(phi, stacked=number > 0), batch)
            for number, (loss, phi, batch) in enumerate(zip(losses, phis, batches, strict=True))
        ]

    @torch.no_grad()
    def __call__(self, vector: Tensor) -> Tensor:
        learned = self.maml.learned_tensors()
        parts = vector.split([value.numel() for value in learned.values()])
        along = {name: part.view_as(value) for part, (name, value) in zip(parts, learned.items(), strict=True)}
        back = self._transposed(self._curved(-1, self._tangent(along)))
        return torch.cat([back[name].reshape(-1) / self.tasks for name in learned])

    def _by_task(self, phi: Parameters, *, stacked: bool) -> Parameters:
        """Every parameter with a task axis, [M, ...], as leaves of a graph."""
        own = self.maml.adapted if stacked else ()
        each = {name: value if name in own else value.expand(self.tasks, *value.shape) for name, value in phi.items()}
        return {name: value.detach().clone().requires_grad_() for name, value in each.items()}

    def _slope(self, loss: Loss, params: Parameters, batch: Batch) -> tuple[Parameters, Parameters]:
        """The parameters, and each task's gradient of its loss with its graph."""
        total = over_tasks(loss, (0, 0), params, batch, vectorize=self.maml.vectorize).sum()
        slopes = torch.autograd.grad(
            total, list(params.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        return params, dict(zip(params, slopes, strict=True))

    def _curved(self, number: int, along: Parameters) -> Parameters:
        """∇² of the loss on a round, times `along`; names that are not in it count as 0."""
        params, slopes = self._slopes[number]
        names = [name for name in along if slopes[name].requires_grad]  # the others' gradients are constants
        found = torch.autograd.grad(
            [slopes[name] for name in names],
            list(params.values()),
            [along[name] for name in names],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(params, found, strict=True))

    def _tangent(self, along: Parameters) -> Parameters:
        """J times what is learned, by task."""
        maml, rates = self.maml, self.maml.rates()
        change = maml.rate_change({name: along[RATE + name] for name in maml.adapted if RATE + name in along})
        moved = {name: along[name].expand(self.tasks, *along[name].shape) for name in maml.parameters()}
        for number, (_, slopes) in enumerate(self._slopes[:-1]):
            step = {name: value * slopes[name] for name, value in change.items()}
            if not maml.first_order:
                curved = self._curved(number, moved)
                step = {name: step.get(name, 0) + rates[name] * curved[name] for name in maml.adapted}
            moved = moved | {name: moved[name] - value for name, value in step.items()}
        return moved

    def _transposed(self, moved: Parameters) -> Parameters:
        """Jᵀ times parameters by task, summed over tasks."""
        maml, rates = self.maml, self.maml.rates()
        learned = maml.learned_tensors()
        change = {name: torch.zeros_like(learned[RATE + name]) for name in maml.adapted if RATE + name in learned}
        for number, (_, slopes) in reversed([*enumerate(self._slopes[:-1])]):
            for name, value in change.items():
                change[name] = value - (slopes[name] * moved[name]).sum_to_size(value.shape)
            if not maml.first_order:
                curved = self._curved(number, {name: rates[name] * moved[name] for name in maml.adapted})
                moved = {name: value - curved[name] for name, value in moved.items()}
        of_rates = {RATE + name: value for name, value in maml.rate_change(change).items()}
        return {name: value.sum(0) for name, value in moved.items()} | of_rates
