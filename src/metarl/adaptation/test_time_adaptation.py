"""`Adapter`: a deployed model goes on learning from its stream, cheaply, and costs no more than the frozen one would.

What it puts together, and whose it is: gradient steps on normalisation layers and an entropy loss (TENT, Wang et al.
2021, arXiv 2006.10726); resetting to the source at intervals, which outlives most methods on long streams (RDumb,
Press et al. 2023, 2306.05401); predicting with an average of the weights (CoTTA, Wang et al. 2022, 2203.13591); a pull
towards the source weights (L2-SP, Li et al. 2018, 1802.01483; EATA, Niu et al. 2022, 2204.02610, weighs it by Fisher
information, which this one does not). What it adds is the guard: `metarl.adaptation.guard` states its bound and proves
it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.adaptation.config import OPTIMIZERS, AdaptationConfig
from metarl.adaptation.guard import Guard
from metarl.adaptation.parameters import select_parameters
from metarl.adaptation.rows import Rows, as_rows, check_tensor, form_of, is_finite, join, mended, output_of, target_of
from metarl.core.agent import Metrics
from metarl.core.controller import finite_rows
from metarl.core.errors import UsageError
from metarl.core.flat_parameters import FlatParameters, flat_values

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
_COUNTERS: dict[str, Callable[[float], Any]] = {
    "observations": int,
    "steps": int,
    "scored_rows": int,
    "ignored_rows": int,
    "loss_sum": float,
    "frozen_loss_sum": float,
    "_moved": bool,
    "_fresh": bool,
}


class Adapter:
    """A copy of a model that learns from the stream it runs on. The model itself is never written to.

        adapter = Adapter(model, AdaptationConfig(learning_rate=0.01), loss_fn=mse_loss)
        prediction = adapter.predict(x)         # with the adapted weights
        adapter.observe(x, y)                   # y has turned up: learn from it when an update is due

    A stateless model maps x [B, ...] to an output [B, ...]. A model with memory maps (x [T, B, ...], state [B, ...]) to
    (output [T, B, ...], next state), as those of `metarl.core.memory` do; `observe` and `update_step` then need the
    state from which x was predicted. Sequences of one stream have one length T.

    Scoring waits until an update is due (at most `rollback_window` observations) and then takes all that was observed
    since the last in one batch: the weights stood still in between, so this is the loss of what `predict` returned, at
    a fraction of the cost. Three things follow. Between updates `observe` only keeps its arguments. A segment of the
    guard's account is `update_every` observations. And a model whose rows influence each other, or that draws random
    numbers, should be in evaluation mode, so that it is scored as it predicted. With memory both sides start each
    observation from the state given, which is the adapted model's.

    Batch normalisation never writes its running statistics here. In training mode it normalises by the batch itself, as
    TENT does; with `update_every` 1 that is the batch that was predicted. Other modules that write buffers of their own
    as they run write those of the copies, and going back to the source restores them.

    Rows with a number that is not finite in x, y or state are neither scored nor learnt from. Where the adapted model's
    output is not finite and the frozen one's is, `predict` returns the frozen one's.

    Args:
        model: any differentiable model that returns a tensor, or (tensor, state); copied, in the mode that it is in.
        loss_fn: (output, y) -> mean over rows of a loss, a scalar tensor. The guard's bound holds for the sum over rows
            of this loss. The mean squared error needs y in the shape of the output.
        seed: of the draws from recent experience.

    Raises:
        UsageError: parameters that stand for nothing in the model. Where a segment is scored or learned from: an output
            or a loss of another form, or y in another shape than the output.
    """

    @torch.inference_mode(False)  # or nothing could be learned there, in any of these
    def __init__(
        self,
        model: nn.Module,
        config: AdaptationConfig | None = None,
        loss_fn: LossFunction = functional.mse_loss,
        *,
        seed: int = 0,
    ) -> None:
        self.model, self.loss_fn = model, loss_fn
        self.config = AdaptationConfig() if config is None else config
        self.names = select_parameters(model, self.config.parameters)
        self.frozen = _still_copy(model).requires_grad_(False)
        self._learner = _still_copy(model)
        self._weights = FlatParameters(self._learner, self.names)
        self.adapted = _still_copy(model) if self.config.ema_decay else self._learner
        self._average = FlatParameters(self.adapted, self.names) if self.config.ema_decay else self._weights
        self._optimizer = OPTIMIZERS[self.config.optimizer]([self._weights.values], lr=self.config.learning_rate)  # type: ignore[call-arg]
        self.guard = Guard(self.config.rollback_window, self.config.rollback_tolerance)
        self.generator = torch.Generator().manual_seed(seed)
        self.observations = self.steps = self.scored_rows = self.ignored_rows = 0
        self.loss_sum = self.frozen_loss_sum = 0.0
        self._form: dict[str, torch.Size] = {}
        self._unscored: list[Rows] = []
        self._recent: Rows = {}
        self._moved = False
        self._fresh = False  # whether rows were kept that no update has followed yet
        self._read_source()

    # --- using --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, x: Tensor, state: Tensor | None = None) -> Any:
        """What the model returns, with the adapted weights. Changes nothing."""
        check_tensor("x", x)
        arguments = (x,) if state is None else (x, state)
        if not self._moved:
            return self.frozen(*arguments)
        result = self.adapted(*arguments)
        return result if is_finite(result) else mended(result, self.frozen(*arguments))

    @torch.inference_mode(False)
    def observe(self, x: Tensor, y: Tensor | None = None, state: Tensor | None = None) -> None:
        """Take in one step of the stream; score and learn when that is due.

        Args:
            x, state: what `predict` was given.
            y: the target [B, ...], for sequences [T, B, ...]. None, where the loss is the entropy alone and the guard
                is off.
        """
        if y is None and self.config.rollback:
            raise UsageError("the guard scores predictions against targets: give y, or set rollback=False")
        rows = as_rows(x, y, state)
        form = form_of(rows)
        self._form = self._form or form
        if self._form != form:
            raise UsageError(f"a stream keeps the shapes of its rows, {self._form}, got {form}: reset() begins anew")
        self._unscored.append(_copied(rows))
        self.observations += 1
        config = self.config
        due = self.observations % config.update_every == 0
        if due or len(self._unscored) >= config.rollback_window:
            self._score()
        if config.reset_every is not None and self.observations % config.reset_every == 0:
            self.reset()
        elif due and self._fresh and not self.guard.waiting:  # else nothing would score what another update does
            self._fresh = False
            self._learn(self._draw)

    @torch.inference_mode(False)
    def update_step(self, x: Tensor, y: Tensor | None = None, state: Tensor | None = None) -> tuple[float, int]:
        """Adapt now, to this batch alone: `num_steps` gradient steps. Scores nothing.

        Returns:
            loss: on the batch before the first step (without the anchor).
            steps: how many were taken: fewer than `num_steps` where something was not finite, none while the guard
                waits.
        """
        rows = _copied(as_rows(x, y, state))
        if self._unscored:
            self._score()
        return self._learn(lambda: rows)

    @torch.inference_mode(False)
    def reset(self) -> None:
        """Return to the source, the weights that the wrapped model holds now, and forget recent experience.

        The guard's account goes on: its bound spans resets.
        """
        if self._unscored:
            self._score()
        for module in self._modules().values():
            _load(module, self.model.state_dict())
        self._recent, self._form = {}, {}
        self._read_source()
        self._go_to_source()
        self._fresh = False

    def metrics(self) -> Metrics:
        """How it went so far: mean losses a row of what was scored (NaN with the guard off), the guard's account,
        gradient steps, and the relative distance from the source."""
        rows = self.scored_rows or math.nan
        return {
            "loss": self.loss_sum / rows,
            "frozen_loss": self.frozen_loss_sum / rows,
            "excess": self.guard.excess,
            "rollbacks": float(self.guard.rollbacks),
            "waiting": float(self.guard.waiting),
            "steps": float(self.steps),
            "distance": self._distance(),
            "ignored_rows": float(self.ignored_rows),
        }

    # --- scoring ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _score(self) -> None:
        """Close the segment: score what was observed since the last, then keep it as recent experience."""
        observations = len(self._unscored)
        segment = join(self._unscored)
        self._unscored = []
        finite = finite_rows(segment)
        segment = {name: tensor[finite] for name, tensor in segment.items()}
        count = int(finite.sum())
        self.ignored_rows += len(finite) - count
        if not count:
            return
        if self.config.rollback:
            self._compare(segment, count, observations)
        kept = join([self._recent, segment]) if self._recent else segment
        self._recent = {name: tensor[-self.config.buffer_size :] for name, tensor in kept.items()}
        self._fresh = True

    def _compare(self, segment: Rows, count: int, observations: int) -> None:
        output = output_of(self.frozen, segment)
        frozen = self._loss(output, segment).item() * count
        adapted = frozen
        if self._moved:
            output = mended(output_of(self.adapted, segment), output)
            adapted = self._loss(output, segment).item() * count
        if math.isfinite(frozen):
            self.scored_rows += count
            self.loss_sum += adapted
            self.frozen_loss_sum += frozen
        if self.guard.score(adapted, frozen, observations):
            self._go_to_source()

    def _loss(self, output: Tensor, rows: Rows) -> Tensor:
        target = target_of(rows)
        if self.loss_fn is functional.mse_loss and target.shape != output.shape:
            got = f"{tuple(target.shape)} for an output {tuple(output.shape)}"
            raise UsageError(f"the mean squared error needs y in the shape of the output, got {got}: reshape y")
        loss = self.loss_fn(output, target)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"the shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UsageError(f"loss_fn returns a scalar tensor, the mean over rows, got {got}")
        return loss

    def _read_source(self) -> None:
        self._source = flat_values(self.frozen, self.names)
        self._reach = self._source.norm().item()
        if self.config.trust_region is not None and not self._reach:
            raise UsageError("trust_region is relative to the source weights, which are all 0: set it to None")

    @torch.no_grad()
    def _go_to_source(self) -> None:
        self._weights.values.copy_(self._source)
        self._average.values.copy_(self._source)
        self._optimizer.state.clear()
        held = dict(self.frozen.named_buffers())
        for module in {self._learner, self.adapted}:
            for name, buffer in module.named_buffers():
                if name in held:
                    buffer.data = held[name].clone()  # modules write their own, in whatever shape
        self._moved = False

    # --- learning -----------------------------------------------------------------------------------------------------

    @torch.enable_grad()
    def _learn(self, draw: Callable[[], Rows]) -> tuple[float, int]:
        first = math.nan
        if self.config.from_source:
            self._go_to_source()
        for step in range(self.config.num_steps):
            rows = draw()
            objective = self._objective(rows)
            loss = objective.item()
            first = loss if step == 0 else first
            if self.guard.waiting:
                return first, step
            self._weights.gradients.zero_()
            objective.backward()
            if not self._descend(loss, rows):
                return first, step
        return first, self.config.num_steps

    def _draw(self) -> Rows:
        held = len(self._recent["x"])
        if held <= self.config.batch_size:
            return self._recent
        chosen = torch.randperm(held, generator=self.generator)[: self.config.batch_size]
        return {name: tensor[chosen.to(tensor.device)] for name, tensor in self._recent.items()}

    def _objective(self, rows: Rows) -> Tensor:
        output = output_of(self._learner, rows)
        losses = [self._loss(output, rows)] if "y" in rows else []
        if self.config.entropy_weight:
            log_probability = torch.log_softmax(output, -1)
            losses.append(-self.config.entropy_weight * (log_probability.exp() * log_probability).sum(-1).mean())
        if not losses:
            raise UsageError("without y there is nothing to learn from: give y, or set entropy_weight")
        return losses[0] if len(losses) == 1 else losses[0] + losses[1]

    @torch.no_grad()
    def _descend(self, loss: float, rows: Rows) -> bool:
        """One step of the optimiser along the gradient that lies ready; False where something is not finite."""
        config, weights = self.config, self._weights
        if config.anchor_weight:
            weights.gradients.add_(weights.values - self._source, alpha=config.anchor_weight)
        norm = weights.gradients.norm().item()
        if not math.isfinite(loss + norm):
            if config.rollback and finite_rows(rows).all():
                self.guard.fail()
                self._go_to_source()
            return False
        if norm > config.grad_clip_norm:
            weights.gradients.mul_(config.grad_clip_norm / norm)
        self._optimizer.step()
        if config.trust_region is not None and (distance := self._distance()) > config.trust_region:
            weights.values.sub_(self._source).mul_(config.trust_region / distance).add_(self._source)
        if config.ema_decay:
            self._average.values.lerp_(weights.values, 1 - config.ema_decay)
        self._moved = True
        self.steps += 1
        return True

    def _distance(self) -> float:
        """‖θ − θ₀‖ / ‖θ₀‖, or ‖θ − θ₀‖ where the source is all 0."""
        distance: float = (self._weights.values - self._source).norm().item()
        return distance / (self._reach or 1.0)

    # --- keeping ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """All that going on needs beside the model itself, flat: weights, optimiser, experience, the guard's account,
        counters, randomness."""
        parts: dict[str, Mapping[str, Tensor]] = {
            **{name: module.state_dict() for name, module in self._modules().items()},
            **{f"unscored.{index:06d}": rows for index, rows in enumerate(self._unscored)},
            "optimizer": self._optimizer.state.get(self._weights.values, {}),
            "recent": self._recent,
            "guard": self.guard.state_dict(),
            "counters": {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in _COUNTERS},
            "random": {"generator": self.generator.get_state()},
        }
        return {
            f"{part}/{name}": tensor.clone(memory_format=torch.contiguous_format)
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, into an adapter of the same configuration and over a model of the same
        weights: `reset` returns to those that the model holds."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():  # from a file, it comes on another device than the model lives on
            part, _, name = key.partition("/")
            device = torch.device("cpu") if part == "random" or name == "step" else self._weights.values.device
            parts.setdefault(part, {})[name] = tensor.to(device, copy=True)
        for part, module in self._modules().items():
            _load(module, parts[part])
        self._read_source()
        self._optimizer.state.clear()
        if "optimizer" in parts:
            self._optimizer.state[self._weights.values] = parts["optimizer"]
        self._recent = parts.get("recent", {})
        self._unscored = [parts[part] for part in sorted(parts) if part.startswith("unscored.")]
        self._form = form_of((self._unscored or [self._recent])[0])
        self.guard.load_state_dict(parts["guard"])
        self._fresh = bool(self._recent)  # states of earlier versions do not say
        for name, value in parts["counters"].items():
            setattr(self, name, _COUNTERS[name](value.item()))
        self.generator.set_state(parts["random"]["generator"])

    def _modules(self) -> dict[str, nn.Module]:
        return {"frozen": self.frozen, "learner": self._learner, "adapted": self.adapted}


def _copied(rows: Rows) -> Rows:
    """Tensors of its own; those that inference mode made take no part in a gradient."""
    return {name: tensor.detach().clone() for name, tensor in rows.items()}


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict`, also where a buffer that the module writes itself has come to another shape."""
    for name, buffer in module.named_buffers():
        if name in state and buffer.shape != state[name].shape:
            buffer.data = buffer.new_empty(state[name].shape)
    module.load_state_dict(state)


def _still_copy(model: nn.Module) -> nn.Module:
    """A copy whose batch normalisations read running statistics in evaluation mode, and write none in training mode.

    Its recurrent layers are in training mode, the only one in which a GPU has their gradients; those that were in
    evaluation mode drop nothing.
    """
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
        elif isinstance(module, nn.RNNBase) and not module.training:
            module.training, module.dropout = True, 0.0
    return copied
