"""`MetaObjective`: what a gradient-based agent minimises, within a task and over tasks, and its outer step.

A trial is a list of batches, one a round, each {name: [M, ...]} by task: its first K are adapted to, the last is what
the meta-gradient improves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from metarl.core.agent import Metrics
from metarl.core.optimization import step_along_gradients
from metarl.core.policy import Actor
from metarl.core.policy_gradient import Round, clipped_loss, masked_mean, ratio_loss
from metarl.meta_rl.curvature import AdaptedCurvature
from metarl.meta_rl.inner_loop import Loss, Parameters
from metarl.meta_rl.maml_config import MAMLConfig
from metarl.meta_rl.meta_maml import MetaMAML
from metarl.meta_rl.supervised_tasks import groups, num_tasks
from metarl.meta_rl.trust_region import Parts, trust_region_step

FINAL_RATE = 0.05
"""Adam's step size falls to this fraction of its start."""


class MetaObjective:
    """Policy-gradient losses of an `Actor` whose parameters are given, and the steps that TRPO or PPO take on them.

    Args:
        maml: over the actor.
        num_updates: of the whole run, over which Adam's step size falls to 5 %; None: it stays.
    """

    def __init__(self, maml: MetaMAML, actor: Actor, config: MAMLConfig, num_updates: int | None) -> None:
        self.maml, self.actor, self.config, self.num_updates = maml, actor, config, num_updates

    def step(self, batches: Sequence[Round]) -> Metrics:
        """One outer step on a trial."""
        metrics = self.trust_region(batches) if self.config.outer == "trpo" else self.clipped(batches)
        self._keep_variety()
        self.maml.updates += 1
        return metrics

    # --- of one task --------------------------------------------------------------------------------------------------

    def output_of(self, params: Parameters, batch: Round) -> Tensor:
        """Distribution parameters [L, W E, output]."""
        output: Tensor = self.maml.functional_forward(batch["x"], params, batch["memory"], batch["starts"])[0]
        return output

    def inner_loss(self, params: Parameters, batch: Round) -> Tensor:
        """The likelihood-ratio surrogate: what adaptation descends."""
        return ratio_loss(self.actor.head.log_prob(self.output_of(params, batch), batch["action"]), batch)

    def divergence(self, params: Parameters, batch: Round) -> Tensor:
        """Mean KL(policy that collected ‖ policy of `params`) over a round."""
        divergence = self.actor.head.divergence(batch["output"], self.output_of(params, batch))
        return masked_mean(divergence, batch["active"])

    # --- over tasks ---------------------------------------------------------------------------------------------------

    def outer_loss(self, batches: Sequence[Round], loss: Loss, params: Sequence[Parameters] | None = None) -> Tensor:
        """Mean over tasks of `loss` on the last round, by the parameters adapted to it; reptile: summed over rounds."""
        params = list(self.maml.inner_loop(self.inner_loss, batches[:-1])) if params is None else params
        measured = range(len(batches)) if self.maml.reptile else [len(batches) - 1]
        losses = [self.maml.task_losses(loss, params[k], batches[k], stacked=k > 0).mean() for k in measured]
        return torch.stack(losses).sum()

    def trust_region(self, batches: Sequence[Round]) -> Metrics:
        """A step of TRPO."""

        def outcome(batches: Sequence[Round]) -> tuple[Tensor, Tensor]:
            params = list(self.maml.inner_loop(self.inner_loss, batches[:-1]))
            moved = self.maml.task_losses(self.divergence, params[-1], batches[-1]).mean()
            return self.outer_loss(batches, self.inner_loss, params), moved

        sample = self._sample(batches)
        curvatures = [
            (num_tasks(group[0]) / num_tasks(sample[0]), self.curvature(group))
            for group in groups(sample, self.maml.samples_at_once)
        ]
        return trust_region_step(
            list(self.maml.learned_tensors().values()),
            self._in_groups(outcome, batches),
            lambda vector: torch.stack([share * product(vector) for share, product in curvatures]).sum(0),
            max_divergence=self.config.max_divergence,
            iterations=self.config.conjugate_iterations,
        )

    def curvature(self, batches: Sequence[Round]) -> AdaptedCurvature:
        """The Hessian of the divergence after adaptation, where no parameter has moved yet."""
        return AdaptedCurvature(self.maml, self.inner_loss, self.divergence, batches)

    def clipped(self, batches: Sequence[Round]) -> Metrics:
        """Steps of Adam on PPO's clipped loss, with ProMP's penalty on how far the policies of earlier rounds move."""
        config = self.config
        if self.num_updates is not None:
            remaining = max(FINAL_RATE, 1 - self.maml.updates / self.num_updates)
            self.maml.optimizer.param_groups[0]["lr"] = config.learning_rate * remaining
        weights = torch.tensor([1.0, config.divergence_weight], device=batches[0]["x"].device)
        history: list[Metrics] = []
        for _ in range(config.update_epochs):
            self.maml.optimizer.zero_grad(set_to_none=True)
            parts = []
            for part in self._in_groups(self._clipped_losses, batches):
                losses = torch.stack(part())
                (weights * losses).sum().backward()
                parts.append(losses.detach())
            policy, divergence = torch.stack(parts).sum(0).tolist()
            found = {"policy": policy, "divergence": divergence}
            norm = step_along_gradients(self.maml.optimizer, self.maml.learned, found, config.grad_clip_norm)
            history.append({"policy_loss": policy, "kl": divergence, "grad_norm": norm})
        return {name: float(np.mean([each[name] for each in history])) for name in history[0]}

    def _clipped_losses(self, batches: Sequence[Round]) -> tuple[Tensor, Tensor]:
        """PPO's clipped loss on the last round, and how far the policies of earlier rounds are from what collected."""

        def clipped(params: Parameters, batch: Round) -> Tensor:
            log_prob = self.actor.head.log_prob(self.output_of(params, batch), batch["action"])
            return clipped_loss(log_prob, batch, self.config.clip)

        params = list(self.maml.inner_loop(self.inner_loss, batches[:-1]))
        moved = [
            self.maml.task_losses(self.divergence, each, batch, stacked=number > 0).mean()
            for number, (each, batch) in enumerate(zip(params, batches[:-1], strict=False))
        ]
        return self.outer_loss(batches, clipped, params), torch.stack(moved).mean()

    # --- of the data --------------------------------------------------------------------------------------------------

    def _in_groups(self, means: Callable[[Sequence[Round]], tuple[Tensor, ...]], batches: Sequence[Round]) -> Parts:
        """Means over tasks as sums over groups of them."""
        number = num_tasks(batches[0])

        def part(group: Sequence[Round]) -> tuple[Tensor, ...]:
            share = num_tasks(group[0]) / number
            return tuple(share * mean for mean in means(group))

        return [partial(part, group) for group in groups(batches, self.maml.samples_at_once)]

    def _sample(self, batches: Sequence[Round]) -> list[Round]:
        """What the curvature is taken on: the first tasks, and every so many of their windows."""
        config = self.config
        tasks = math.ceil(config.curvature_tasks * num_tasks(batches[0]))
        sample = []
        for batch in batches:
            length, windows = batch["starts"].shape[1:]
            every = -(-length * windows // config.curvature_steps)
            part = {name: values[:tasks, :, ::every] for name, values in batch.items() if name != "memory"}
            sample.append({**part, "memory": batch["memory"][:tasks, ::every]})
        return sample

    @torch.no_grad()
    def _keep_variety(self) -> None:
        for name, parameter in self.actor.named_parameters():
            if name.endswith("log_std"):
                parameter.clamp_(min=math.log(self.config.min_std))
