"""`MetaObjective`: what a gradient-based agent minimises, within a task and over tasks, and its outer step.

A trial is a list of batches, one a round, each {name: [M, ...]} by task: its first K are adapted to, the last is what
the meta-gradient improves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from metarl.core.agent import Metrics
from metarl.core.optimization import decayed, step_along_gradients
from metarl.core.policy import Actor
from metarl.core.policy_gradient import Round, clipped_loss, masked_mean, ratio_loss
from metarl.meta_rl.compiled import Programs
from metarl.meta_rl.curvature import AdaptedCurvature
from metarl.meta_rl.inner_loop import Loss, Parameters
from metarl.meta_rl.maml_config import MAMLConfig
from metarl.meta_rl.meta_maml import MetaMAML
from metarl.meta_rl.supervised_tasks import groups
from metarl.meta_rl.trial_parts import Rounds, TrialParts
from metarl.meta_rl.trust_region import trust_region_step


class MetaObjective:
    """Policy-gradient losses of an `Actor` whose parameters are given, and the steps that TRPO or PPO take on them.

    Args:
        maml: over the actor.
        num_updates: of the whole run, over which Adam's step size falls to 5 %; None: it stays.
    """

    def __init__(self, maml: MetaMAML, actor: Actor, config: MAMLConfig, num_updates: int | None) -> None:
        self.maml, self.actor, self.config, self.num_updates = maml, actor, config, num_updates

    def step(self, batches: Rounds, programs: Programs | None = None) -> Metrics:
        """One outer step on a trial; `programs`: by machine code."""
        outer = self.trust_region if self.config.outer == "trpo" else self.clipped
        metrics = outer(batches, programs)
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

    def outer_loss(self, batches: Rounds, loss: Loss, params: Sequence[Parameters] | None = None) -> Tensor:
        """Mean over tasks of `loss` on the last round, by the parameters adapted to it; reptile: summed over rounds."""
        params = list(self.maml.inner_loop(self.inner_loss, batches[:-1])) if params is None else params
        measured = range(len(batches)) if self.maml.reptile else [len(batches) - 1]
        losses = [self.maml.task_losses(loss, params[k], batches[k], stacked=k > 0).mean() for k in measured]
        return torch.stack(losses).sum()

    def trust_region(self, batches: Rounds, programs: Programs | None = None) -> Metrics:
        """A step of TRPO."""
        learned = list(self.maml.learned_tensors().values())
        parts, sample = self._parts(batches, programs), self._parts(self._sample(batches), programs)
        return trust_region_step(
            learned,
            partial(parts.mean, self._outcome),
            partial(parts.mean, self._slope),
            sample.mean_map(self.curvature, sum(value.numel() for value in learned)),
            max_divergence=self.config.max_divergence,
            iterations=self.config.conjugate_iterations,
        )

    def _outcome(self, batches: Rounds) -> tuple[Tensor, Tensor]:
        """The loss, and how far the adapted policies are from those that collected."""
        params = list(self.maml.inner_loop(self.inner_loss, batches[:-1]))
        moved = self.maml.task_losses(self.divergence, params[-1], batches[-1]).mean()
        return self.outer_loss(batches, self.inner_loss, params), moved

    def _slope(self, batches: Rounds) -> tuple[Tensor, Tensor]:
        """The loss and its gradient."""
        loss = self.outer_loss(batches, self.inner_loss)
        return loss.detach(), self._gradient(loss)

    def curvature(self, batches: Rounds) -> AdaptedCurvature:
        """The Hessian of the divergence after adaptation, where no parameter has moved yet."""

        def from_itself(params: Parameters, batch: Round) -> Tensor:
            # Not from what collected: some of the data adapt to other parameters than all do, and only from where it is
            # measured is a divergence convex in all directions.
            output = self.output_of(params, batch)
            return masked_mean(self.actor.head.divergence(output.detach(), output), batch["active"])

        return AdaptedCurvature(self.maml, self.inner_loss, from_itself, batches)

    def clipped(self, batches: Rounds, programs: Programs | None = None) -> Metrics:
        """Steps of Adam on PPO's clipped loss, with ProMP's penalty on how far the policies of earlier rounds move."""
        config = self.config
        rate = decayed(config.learning_rate, self.maml.updates, self.num_updates)
        self.maml.optimizer.param_groups[0]["lr"] = rate
        learned = self.maml.learned_tensors().values()
        parts = self._parts(batches, programs)
        history: list[Metrics] = []
        for _ in range(config.update_epochs):
            policy, divergence, gradient = parts.mean(self._clipped_slope)
            for parameter, part in zip(learned, gradient.split([each.numel() for each in learned]), strict=True):
                parameter.grad = part.view_as(parameter)
            found = {"policy": float(policy), "divergence": float(divergence)}
            norm = step_along_gradients(self.maml.optimizer, self.maml.learned, found, config.grad_clip_norm)
            history.append({"policy_loss": found["policy"], "kl": found["divergence"], "grad_norm": norm})
        return {name: float(np.mean([each[name] for each in history])) for name in history[0]} | {"learning_rate": rate}

    def _clipped_slope(self, batches: Rounds) -> tuple[Tensor, Tensor, Tensor]:
        """PPO's clipped loss on the last round, how far the policies of earlier rounds are from what collected, and the
        gradient of both together."""

        def clipped(params: Parameters, batch: Round) -> Tensor:
            log_prob = self.actor.head.log_prob(self.output_of(params, batch), batch["action"])
            return clipped_loss(log_prob, batch, self.config.clip)

        params = list(self.maml.inner_loop(self.inner_loss, batches[:-1]))
        moved = [
            self.maml.task_losses(self.divergence, each, batch, stacked=number > 0).mean()
            for number, (each, batch) in enumerate(zip(params, batches[:-1], strict=False))
        ]
        policy, divergence = self.outer_loss(batches, clipped, params), torch.stack(moved).mean()
        gradient = self._gradient(policy + self.config.divergence_weight * divergence)
        return policy.detach(), divergence.detach(), gradient

    def _gradient(self, loss: Tensor) -> Tensor:
        """Of everything learned, as one vector."""
        learned = list(self.maml.learned_tensors().values())
        parts = torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])

    # --- of the data --------------------------------------------------------------------------------------------------

    def _parts(self, batches: Rounds, programs: Programs | None) -> TrialParts:
        samples = self.maml.samples_at_once(programs is not None)
        return TrialParts(groups(batches, samples), programs, (self.config, self.maml.frozen))

    def _sample(self, batches: Rounds) -> list[Round]:
        """What the curvature is taken on: some windows of every task, spread evenly. A task that is left out may move
        by any amount: where tasks are of many kinds, few of them give steps that have to be cut to a tenth."""
        sample = []
        for batch in batches:
            windows = batch["starts"].shape[2]
            count = math.ceil(self.config.curvature_share * windows)
            chosen = torch.arange(count, device=batch["starts"].device) * windows // count
            sample.append(
                {name: values.index_select(1 if name == "memory" else 2, chosen) for name, values in batch.items()}
            )
        return sample

    @torch.no_grad()
    def _keep_variety(self) -> None:
        for name, parameter in self.actor.named_parameters():
            if name.endswith("log_std"):
                parameter.clamp_(min=math.log(self.config.min_std))
