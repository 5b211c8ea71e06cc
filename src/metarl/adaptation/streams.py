"""`Streams`: what `Adapter` does, for many streams at once, each with weights of its own. One gradient step of all
streams is one vmapped call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from metarl.adaptation.config import AdaptationConfig
from metarl.adaptation.guard import Guard
from metarl.core.agent import Metrics
from metarl.core.controller import Controller, Samples, Weights
from metarl.core.flat_parameters import flat_values
from metarl.core.optimization import flat_state, part_of

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam (Kingma & Ba 2015, arXiv 1412.6980)."""
_BY_STREAM = ("values", "_average", "_moments", "_steps", "moved", "seen", "fresh", "losses", "steps")
"""Tensors that hold a slice a stream."""


class Streams:
    """Weights, guard, recent experience and optimiser of every stream; what happens to one leaves the others alone, but
    for chance: they draw from one generator.

    Args:
        names: the parameters that adapt.
        number: S.
        generator: of the draws from recent experience.
    """

    def __init__(
        self,
        controller: Controller,
        names: list[str],
        config: AdaptationConfig,
        number: int,
        generator: torch.Generator,
    ) -> None:
        self.controller, self.names, self.config, self.generator = controller, names, config, generator
        model = controller.model
        self.source = flat_values(model, names)  # [P]
        self._shapes = [model.get_parameter(name).shape for name in names]
        self._rates = torch.ones_like(self.source)
        if controller.rates is not None:  # what meta-learning gave no rate, it kept
            kept = self.source.new_zeros(())
            pairs = zip(names, self._shapes, strict=True)
            each = [controller.rates.get(name, kept).expand(shape).flatten() for name, shape in pairs]
            self._rates = torch.cat(each).to(self.source)
        self.values = self.source.repeat(number, 1)  # [S, P]
        self._average = self.values.clone() if config.ema_decay else self.values
        self._moments = self.values.new_zeros(2, number, len(self.source) if config.optimizer == "adam" else 0)
        self._steps = torch.zeros(number, dtype=torch.int64)  # of Adam, since it was emptied
        self.moved = torch.zeros(number, dtype=torch.bool)
        self.seen = torch.zeros(number, dtype=torch.int64)  # samples
        self.fresh = torch.zeros(number, dtype=torch.bool)  # whether there are samples that no update has followed yet
        self._recent: Samples = {}
        self.guards = [self._guard() for _ in range(number)]
        self.losses = torch.zeros(3, number, dtype=torch.float64)  # adapted, frozen; samples scored
        self.steps = torch.zeros(number, dtype=torch.int64)

    def _guard(self) -> Guard:
        return Guard(self.config.rollback_window, self.config.rollback_tolerance)

    def renew(self, streams: Tensor) -> None:
        """Begin anew in the streams marked [S]."""
        self.reset(streams)
        for stream in torch.nonzero(streams).flatten().tolist():
            self.guards[stream] = self._guard()
        self.losses[:, streams] = 0.0
        self.steps[streams] = 0

    def reset(self, streams: Tensor) -> None:
        """Back to the source, recent experience forgotten, in the streams marked [S]; the guards' accounts go on."""
        self._go_to_source(streams)
        self.seen[streams] = 0
        self.fresh[streams] = False

    def _go_to_source(self, streams: Tensor) -> None:
        self.values[streams] = self.source
        self._average[streams] = self.source
        self._moments[:, streams] = 0.0
        self._steps[streams] = 0
        self.moved[streams] = False

    @torch.no_grad()
    def write_source(self, source: Tensor) -> None:
        """Write [P] into the model."""
        for name, value in self._by_name(source).items():
            self.controller.model.get_parameter(name).copy_(value)

    @property
    def waiting(self) -> Tensor:
        """[S] whose guard waits."""
        return torch.tensor([guard.waiting for guard in self.guards], dtype=torch.bool)

    @property
    def weights(self) -> Weights | None:
        """What is acted with, stacked {name: [S, ...]}; None: the model's own, by all."""
        return self._by_name(self._average) if bool(self.moved.any()) else None

    def _by_name(self, flat: Tensor) -> Weights:
        """Of [..., P] the parameters by name; no copies."""
        pieces = flat.split([shape.numel() for shape in self._shapes], -1)
        named = zip(self.names, pieces, self._shapes, strict=True)
        return {name: piece.view((*piece.shape[:-1], *shape)) for name, piece, shape in named}

    # --- scoring ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def take_in(self, samples: Samples, streams: Tensor, observations: list[int]) -> None:
        """Close a segment of some streams: score it, then keep it.

        Args:
            samples: [D, N, ...].
            streams: [D] which.
            observations: D, steps in the segment of each.
        """
        if self.config.rollback:
            self._compare(samples, streams, observations)
        self._keep(samples, streams)

    def _compare(self, samples: Samples, streams: Tensor, observations: list[int]) -> None:
        counts = samples["active"].flatten(1).sum(1).cpu()
        score = self.controller.score
        frozen = vmap(score, (None, 0), randomness="different")(self._by_name(self.source), samples).cpu() * counts
        adapted = frozen
        if bool(self.moved[streams].any()):
            adapted = vmap(score, randomness="different")(self._by_name(self._average[streams]), samples).cpu() * counts
            adapted = torch.where(self.moved[streams], adapted, frozen)  # of the source both calls differ by rounding
        broken = torch.zeros_like(self.moved)
        for index, stream in enumerate(streams.tolist()):
            if not counts[index]:
                continue
            ours, theirs = adapted[index].item(), frozen[index].item()
            if math.isfinite(theirs):
                acted = theirs if math.isnan(ours) else ours  # where weights give no number, those of the source act
                self.losses[:, stream] += torch.tensor([acted, theirs, counts[index].item()])
            broken[stream] = self.guards[stream].score(ours, theirs, observations[index])
        self._go_to_source(broken)

    def _keep(self, samples: Samples, streams: Tensor) -> None:
        """Write what is active of samples [D, N, ...] over the oldest of each stream."""
        size = self.config.buffer_size
        there = samples["active"].flatten(2).any(2).cpu() if samples["active"].ndim > 2 else samples["active"].cpu() > 0
        rank = there.cumsum(1) - 1
        number = there.sum(1)
        there &= rank >= (number - size)[:, None]
        slots = (self.seen[streams, None] + rank) % size
        self.seen[streams] += number
        self.fresh[streams] |= number > 0
        held = min(size, int(self.seen.max()))
        who = streams[:, None].expand_as(slots)[there]
        for name, tensor in samples.items():
            recent = self._recent.get(name, tensor.new_zeros(len(self.seen), 0, *tensor.shape[2:]))
            if recent.shape[1] < held:
                room = recent.new_zeros(len(recent), min(size, 2 * held) - recent.shape[1], *recent.shape[2:])
                recent = torch.cat([recent, room], 1)
            recent[who, slots[there]] = tensor[there]
            self._recent[name] = recent

    # --- learning -----------------------------------------------------------------------------------------------------

    def learn(self, streams: Tensor) -> None:
        """One update of the streams [D]: `num_steps` gradient steps."""
        self.fresh[streams] = False
        if self.config.from_source:
            marked = torch.zeros_like(self.moved)
            marked[streams] = True
            self._go_to_source(marked)
        going = torch.ones(len(streams), dtype=torch.bool)
        for _ in range(self.config.num_steps):
            batch = self._draw(streams)
            objective = grad_and_value(partial(_objective, self.controller, self.config.entropy_weight))
            gradients, losses = vmap(objective, randomness="different")(self._by_name(self.values[streams]), batch)
            flat = torch.cat([gradients[name].reshape(len(streams), -1) for name in self.names], 1)
            going &= self._descend(streams, flat, losses, going)

    @torch.no_grad()
    def _draw(self, streams: Tensor) -> Samples:
        """`batch_size` recent samples of each stream [D, n, ...]; all where there are no more."""
        capacity = self._recent["active"].shape[1]
        there = torch.arange(capacity) < self.seen[streams, None]
        chosen = torch.arange(capacity).expand(len(streams), -1)
        if int(there.sum(1).max()) > self.config.batch_size:
            keys = torch.rand(there.shape, generator=self.generator) - 2.0 * ~there
            chosen = keys.topk(self.config.batch_size, 1).indices
        batch = {name: tensor[streams[:, None], chosen] for name, tensor in self._recent.items()}
        held = there.gather(1, chosen).to(batch["active"].device)
        batch["active"] = batch["active"] * held.view(*held.shape, *[1] * (batch["active"].ndim - 2))
        return batch

    @torch.no_grad()
    def _descend(self, streams: Tensor, gradients: Tensor, losses: Tensor, going: Tensor) -> Tensor:
        """One step of the streams [D] that are `going`, along gradients [D, P]; [D] where nothing was broken."""
        config, values = self.config, self.values[streams]
        if config.anchor_weight:
            gradients = gradients + config.anchor_weight * (values - self.source)
        norm = gradients.norm(dim=1, keepdim=True)
        finite = torch.isfinite(losses + norm[:, 0]).cpu()
        if config.rollback:
            broken = torch.zeros_like(self.moved)
            for stream in streams[going & ~finite].tolist():
                self.guards[stream].fail()
                broken[stream] = True
            self._go_to_source(broken)
        stepping = going & finite
        streams, values, gradients, norm = (each[stepping] for each in (streams, values, gradients, norm))
        gradients = gradients * (config.grad_clip_norm / norm).clamp(max=1.0)
        values = values - config.learning_rate * self._rates * self._direction(streams, gradients)
        if config.trust_region is not None:
            away = values - self.source
            distance = away.norm(dim=1, keepdim=True) / self.source.norm()
            values = self.source + away * (config.trust_region / distance).clamp(max=1.0)
        self.values[streams] = values
        if config.ema_decay:
            self._average[streams] = torch.lerp(self._average[streams], values, 1 - config.ema_decay)
        self.moved[streams] = True
        self.steps[streams] += 1
        return finite

    def _direction(self, streams: Tensor, gradients: Tensor) -> Tensor:
        if self.config.optimizer == "sgd":
            return gradients
        self._steps[streams] += 1
        steps = self._steps[streams, None].to(gradients)
        corrected = []
        for number, (beta, values) in enumerate(zip(BETAS, (gradients, gradients.square()), strict=True)):
            self._moments[number, streams] = torch.lerp(values, self._moments[number, streams], beta)
            corrected.append(self._moments[number, streams] / (1 - beta**steps))
        return corrected[0] / (corrected[1].sqrt() + EPSILON)

    def metrics(self) -> Metrics:
        """As `Adapter.metrics`: means over streams, sums of "rollbacks" and "steps"."""
        adapted, frozen, samples = self.losses.sum(1).tolist()
        samples = samples or math.nan
        distance = (self.values - self.source).norm(dim=1) / (self.source.norm() or 1.0)  # as in `Adapter`
        return {
            "loss": adapted / samples,
            "frozen_loss": frozen / samples,
            "rollbacks": float(sum(guard.rollbacks for guard in self.guards)),
            "waiting": float(self.waiting.float().mean()),
            "steps": float(self.steps.sum()),
            "distance": float(distance.mean()),
        }

    # --- keeping ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """All that going on needs beside the source and the generator, flat."""
        parts = {
            **{f"guard.{index}": guard.state_dict() for index, guard in enumerate(self.guards)},
            "recent": self._recent,
            "stream": {name: getattr(self, name) for name in _BY_STREAM},
        }
        return flat_state(parts)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, into as many streams of the same model and configuration."""
        for name, tensor in part_of(state, "stream").items():
            getattr(self, name).copy_(tensor)
        self._recent = {
            name: tensor.to(self.values.device, copy=True) for name, tensor in part_of(state, "recent").items()
        }
        for index, guard in enumerate(self.guards):
            guard.load_state_dict(part_of(state, f"guard.{index}"))


def _objective(controller: Controller, entropy_weight: float, weights: Weights, samples: Samples) -> Tensor:
    loss = controller.loss(weights, samples)
    return loss + entropy_weight * controller.entropy(weights, samples) if entropy_weight else loss
