"""`MetaMAML`: meta-learning of any PyTorch model by gradients through its own adaptation, all tasks at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from itertools import chain
from operator import add
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from metarl.core.differentiable import call_twin, differentiable_twin
from metarl.core.errors import UsageError, check_limits
from metarl.core.optimization import (
    TrainingDiverged,
    flat_state,
    load_optimizer_tensors,
    optimizer_tensors,
    part_of,
    step_along_gradients,
)
from metarl.meta_rl.compiled import Programs, identity
from metarl.meta_rl.diagnosis import diverged
from metarl.meta_rl.inner_loop import Batch, Loss, Parameters, inner_step, over_tasks
from metarl.meta_rl.inner_rates import learnable_rates, matching, named_rates
from metarl.meta_rl.outer_objective import outer_objective, step_weights
from metarl.meta_rl.supervised_tasks import (
    PredictionLoss,
    Tasks,
    check_padding,
    groups,
    num_tasks,
    supervised_loss,
    support_and_query,
    support_batch,
)

logger = logging.getLogger(__name__)

CPU_SAMPLES, CORE_SAMPLES, GPU_SAMPLES = 8192, 2048, 262_144
"""What stays in a processor's cache; in that of one core; what keeps a GPU busy, within a few gigabytes."""


RATE = "inner_lr."
"""Before the name of a parameter: its learned rate."""


class MetaGradient(NamedTuple):
    """The mean query loss after adaptation, and its gradient by parameter name.

    Rates are "inner_lr.<name>"; that of a rate which is learned by its logarithm is with respect to that.
    """

    loss: Tensor
    gradients: dict[str, Tensor]


class MetaMAML:
    """Learns an initialisation θ from which a few gradient steps solve a task (Finn et al. 2017, arXiv 1703.03400).

        φ_0 = θ,   φ_{k+1} = φ_k − α ∇L(φ_k; support),   minimise over θ the mean over tasks of L(φ_K; query)

    The tasks of a batch run in groups (`samples_at_once`), each in one `torch.func.vmap`; the meta-gradient is exact,
    also through recurrent layers, attention and normalisation, which run by elementary operations here (see
    `core/differentiable.py`).

    A plain module maps x [N, ...] to predictions [N, ...]; a sequence model, such as those of `core/memory.py`, maps
    x [T, B, d] and a state to ([T, B, p], state). In training mode batch normalisation uses the statistics of the batch
    at hand and never writes its running ones, and dropout draws another mask for every task and step from torch's
    global generator; in eval mode both are what they always are.

    Args:
        model: any module; parameters that require no gradient are neither adapted nor meta-learned.
        inner_lr: α, the rate of adaptation.
        outer_lr: Adam's step size for θ.
        first_order: take inner gradients as constants (FOMAML).
        inner_steps: K.
        reptile: the meta-gradient is the sum of all gradients met on the way, the one on the query set included, each a
            constant (Nichol et al. 2018, arXiv 1803.02999, section 5: the query set is the last minibatch). Implies
            `first_order`.
        adapt: patterns of the parameters that adaptation changes, such as ("head.*",): ANIL (Raghu et al. 2020,
            1909.09157). The others are meta-learned only.
        learn_rates: α is learned too.
        rate_of: what has a learned rate of its own: every "element" of every parameter (Meta-SGD, Li et al. 2017,
            1707.09835), which may become negative; or every parameter as one "tensor" (as in MAML++), whose rate is
            learned by its logarithm. Rates of elements learn where adaptation is to happen, and fade where no training
            task had a use for it; those of tensors learn only how much.
        multi_step_updates: over so many updates the query loss counts after every inner step, with weights that go
            linearly from equal to the last step alone (MAML++, Antoniou et al. 2019, 1810.09502).
        recompute: store no activations of inner steps; compute them again in the backward pass.
        vectorize: all tasks in one vmap; False: one after the other, for losses that cannot be vmapped.
        samples_at_once: a meta-gradient is summed over groups of tasks that hold about so many samples together, so
            that memory does not grow with the number of tasks. None: as many as stay in a processor's cache, or in that
            of one core with `compile`, or keep a GPU busy.
        compile: the meta-gradient runs as machine code, on a CPU a group of tasks on every core. The first call with
            tensors of a new form, or with another loss function, takes seconds, later ones a fraction of the time. What
            is no tensor must not change between calls; dropout draws other masks than without. The process keeps the
            memory that it frees. A `MetaMAMLAgent` over it trains by such code as a whole.
        grad_clip_norm: largest norm of a meta-gradient.

    Raises:
        UsageError: a number out of bounds, `reptile` with learned rates or `multi_step_updates`, `compile` with
            `recompute`, or an `adapt` that stands for no parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float = 0.01,
        outer_lr: float = 0.001,
        first_order: bool = False,
        inner_steps: int = 1,
        *,
        reptile: bool = False,
        adapt: Sequence[str] = ("*",),
        learn_rates: bool = False,
        rate_of: Literal["element", "tensor"] = "element",
        multi_step_updates: int = 0,
        recompute: bool = False,
        vectorize: bool = True,
        samples_at_once: int | None = None,
        compile: bool = False,
        grad_clip_norm: float = 10.0,
    ) -> None:
        check_limits(
            locals(),
            ("inner_lr", "above 0", inner_lr > 0),
            ("outer_lr", "above 0", outer_lr > 0),
            ("inner_steps", "at least 1", inner_steps >= 1),
            ("rate_of", "element or tensor", rate_of in ("element", "tensor")),
            ("multi_step_updates", "at least 0", multi_step_updates >= 0),
            ("samples_at_once", "at least 1", samples_at_once is None or samples_at_once >= 1),
            ("grad_clip_norm", "above 0", grad_clip_norm > 0),
        )
        if reptile and (learn_rates or multi_step_updates):
            raise UsageError(
                "reptile takes inner gradients as constants: it goes without learn_rates and multi_step_updates"
            )
        if compile and recompute:
            raise UsageError("recompute and compile exclude each other: a trace holds all that it computes")
        self.model, self.inner_lr, self.inner_steps, self.learn_rates = model, inner_lr, inner_steps, learn_rates
        self.first_order, self.reptile = first_order or reptile, reptile
        self.multi_step_updates, self.recompute, self.vectorize = multi_step_updates, recompute, vectorize
        self._samples_at_once, self.grad_clip_norm = samples_at_once, grad_clip_norm
        self.updates = 0
        self.programs = Programs() if compile else None  # None: nothing is compiled
        self._twin, replaced = differentiable_twin(model)
        if replaced:
            logger.info("meta-gradients go through plain operations in place of %s", ", ".join(replaced))
        self.adapted = matching(self.parameters(), adapt)
        self._log_rates = rate_of == "tensor"
        to_learn = {name: self.parameters()[name] for name in self.adapted} if learn_rates else {}
        self._rates = learnable_rates(to_learn, inner_lr, logarithmic=self._log_rates)
        self.learned = nn.ModuleDict({"model": model, "inner_lr": self._rates})
        trained = [parameter for parameter in self.learned.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=outer_lr, fused=True)

    # --- what is learned ----------------------------------------------------------------------------------------------

    def learned_tensors(self) -> dict[str, Tensor]:
        """Everything that is meta-learned, by name."""
        rates = {RATE + name: value for name, value in named_rates(self._rates, self.adapted).items()}
        return {**self.parameters(), **rates}

    # --- the model as a function --------------------------------------------------------------------------------------

    def parameters(self) -> Parameters:
        """θ by name: the parameters that require a gradient."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def rates(self) -> dict[str, Tensor | float]:
        """α by name of an adapted parameter."""
        learned = named_rates(self._rates, self.adapted)
        if not learned:
            return dict.fromkeys(self.adapted, self.inner_lr)
        return {name: value.exp() if self._log_rates else value for name, value in learned.items()}

    def rate_change(self, change: Parameters) -> Parameters:
        """The change of α with a small one of what is learned of it, by name of an adapted parameter."""
        rates = self.rates()
        return {name: rates[name] * value if self._log_rates else value for name, value in change.items()}

    def functional_forward(
        self, x: Tensor, params: Parameters, initial_state: Any = None, starts: Tensor | None = None
    ) -> Any:
        """What the model returns for x, with `params` in place of its own parameters.

        A sequence model is also given its initial state and, if it is one of `core/memory.py`, the starts [T, B].
        """
        arguments = (x, initial_state, starts)[: 3 if starts is not None else 2 if initial_state is not None else 1]
        return call_twin(self._twin, self.model, params, arguments)

    def forward_tasks(self, x: Tensor, params: Parameters) -> Tensor:
        """Predictions [M, N, ...] for x [M, N, ...], each task by its own parameters, as `adapt_tasks` returns them."""
        predictions: Tensor = self.map_tasks(self._predict, params, x)
        return predictions

    def _predict(self, params: Parameters, x: Tensor, initial_state: Any = None) -> Tensor:
        output = self.functional_forward(x, params, initial_state)
        prediction: Tensor = output[0] if isinstance(output, tuple) else output
        return prediction

    def split(self, params: Parameters) -> tuple[Parameters, Parameters]:
        """Parameters that no task changes, and those that adaptation changes."""
        shared = {name: value for name, value in params.items() if name not in self.adapted}
        return shared, {name: params[name] for name in self.adapted}

    def map_tasks(self, function: Callable[..., Any], params: Parameters, *data: Any, stacked: bool = True) -> Any:
        """`function(params, *data)` of every task, by its own parameters, on its slice of data [M, ...]; stacked.

        stacked: whether adapted parameters come stacked [M, ...]; False: all tasks have the same.
        """
        shared, adapted = self.split(params)

        def one_task(shared: Parameters, adapted: Parameters, *own: Any) -> Any:
            return function({**shared, **adapted}, *own)

        axes: tuple[int | None, ...] = (None, 0 if stacked else None, *[0] * len(data))
        return over_tasks(one_task, axes, shared, adapted, *data, vectorize=self.vectorize)

    # --- adapting -----------------------------------------------------------------------------------------------------

    def inner_step(
        self, loss: Loss, params: Parameters, batch: Batch, stacked: bool, scale: Tensor | None = None
    ) -> Parameters:
        """`params` after a gradient step of every task on its part of `batch` {name: [M, ...]}.

        Adapted parameters come stacked [M, ...], the others carry no task axis; `stacked`: whether they do already. The
        step is that of the inner rates, times `scale` [M].
        """
        shared, adapted = self.split(params)
        adapted = inner_step(
            loss,
            shared,
            adapted,
            self.rates(),
            batch,
            scale,
            stacked=stacked,
            first_order=self.first_order,
            recompute=self.recompute,
            vectorize=self.vectorize,
        )
        return {**shared, **adapted}

    def inner_loop(self, loss: Loss, batches: Sequence[Batch]) -> Iterator[Parameters]:
        """θ, then the parameters after an `inner_step` on each of `batches`."""
        params = self.parameters()
        yield params
        for number, batch in enumerate(batches):
            params = self.inner_step(loss, params, batch, stacked=number > 0)
            yield params

    def task_losses(self, loss: Loss, params: Parameters, batch: Batch, *, stacked: bool = True) -> Tensor:
        """The loss [M] of every task on its part of `batch`, by what `inner_loop` yielded: stacked but for θ itself."""
        losses: Tensor = self.map_tasks(loss, params, batch, stacked=stacked)
        return losses

    def adapt_task(
        self,
        support_x: Tensor,
        support_y: Tensor,
        num_steps: int | None = None,
        loss_fn: PredictionLoss = mse_loss,
        initial_state: Any = None,
    ) -> Parameters:
        """Parameters adapted to one task, copies all; the model itself is untouched, and no graph is built.

        Args:
            support_x, support_y: [N, ...], or [T, B, ...] for a sequence model.
            num_steps: gradient steps; None: as many as in training.
            loss_fn: (prediction, target) -> scalar.
            initial_state: of a sequence model; None: its own.

        Raises:
            TrainingDiverged: a parameter is not finite afterwards; it names the task and the inner step.
            UsageError: no step, no samples or not as many targets, or a `loss_fn` that gives no scalar.
        """
        loss = supervised_loss(partial(self._predict, initial_state=initial_state), loss_fn)
        stacked = self._adapted(loss, [support_batch([support_x], [support_y])], num_steps)
        return {name: value[0] if name in self.adapted else value for name, value in stacked.items()}

    def adapt_tasks(
        self,
        support_x: Tensor | Sequence[Tensor],
        support_y: Tensor | Sequence[Tensor],
        num_steps: int | None = None,
        loss_fn: PredictionLoss = mse_loss,
    ) -> Parameters:
        """`adapt_task` for tasks [M, N, ...] at once, or a list of M whose sizes N differ, in groups as in training.

        Adapted parameters come stacked [M, ...], for `forward_tasks`.

        Raises:
            TrainingDiverged, UsageError: as `adapt_task` does; UsageError also where sizes differ and the model or the
                loss mixes samples, unless `vectorize` is False.
        """
        supports = [support_batch(support_x, support_y)]
        if "mask" in supports[0] and not self.vectorize:  # one after the other, tasks need no padding
            supports = [support_batch([x], [y]) for x, y in zip(support_x, support_y, strict=True)]
        self._check_padded(supports[0], loss_fn)
        return self._adapted(supervised_loss(self._predict, loss_fn), supports, num_steps)

    @torch.no_grad()
    def _adapted(self, loss: Loss, supports: Sequence[Batch], num_steps: int | None) -> Parameters:
        steps = self.inner_steps if num_steps is None else num_steps
        if steps < 1:
            raise UsageError(f"num_steps is at least 1, got {steps}")
        each: list[Parameters] = []
        samples = self.samples_at_once(compiled=False)
        for (group,) in chain.from_iterable(groups([support], samples) for support in supports):
            *_, last = self.inner_loop(loss, [group] * steps)
            for name, value in last.items():
                if not bool(torch.isfinite(value).all()):
                    first = sum(len(params[name]) for params in each)
                    raise self._diverged(loss, group, steps, f"parameter {name}", first)
            each.append(last)
        shared = {name: value.clone() for name, value in self.split(each[0])[0].items()}
        return {**shared, **{name: torch.cat([params[name] for params in each]) for name in self.adapted}}

    def _diverged(self, loss: Loss, support: Batch, steps: int, seen: str, first: int = 0) -> TrainingDiverged:
        return diverged(
            self.inner_loop(loss, [support] * steps),
            lambda params, stacked: self.task_losses(loss, params, support, stacked=stacked),
            self.adapted,
            seen,
            first,
        )

    # --- learning -----------------------------------------------------------------------------------------------------

    def meta_gradient(self, tasks: Tasks, loss_fn: PredictionLoss = mse_loss) -> MetaGradient:
        """The mean query loss over tasks after adaptation, and its gradient.

        Args:
            tasks: a list of (support_x, support_y, query_x, query_y), each [N, ...] (sequence models: [T, B, ...]);
                first axes may differ by task. Or one such tuple with a task axis before.

        Raises:
            TrainingDiverged: a query loss is not finite; it names the task, and the inner step where one broke it.
            UsageError: no task, one that is no such tuple, or sizes that differ where the model or the loss mixes
                samples, unless `vectorize` is False.
        """
        _, query, gradients = self._gradients(tasks, loss_fn)
        return MetaGradient(query, gradients)

    def meta_update(self, tasks: Tasks, loss_fn: PredictionLoss = mse_loss) -> float:
        """One step of Adam along the meta-gradient; the mean query loss before it.

        Raises:
            TrainingDiverged: as `meta_gradient` does, or a gradient is not finite; it names the parameter. Nothing has
                changed then.
            UsageError: as `meta_gradient` does.
        """
        objective, query, gradients = self._gradients(tasks, loss_fn)
        for name, value in self.learned_tensors().items():
            value.grad = gradients[name]
        step_along_gradients(self.optimizer, self.learned, {"query": float(objective)}, self.grad_clip_norm)
        self.updates += 1
        return float(query)

    def _gradients(self, tasks: Tasks, loss_fn: PredictionLoss) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What is minimised, the mean query loss after the last inner step, and the gradient of the former by name."""
        batches = support_and_query(tasks, apart=not self.vectorize)
        for batch in chain.from_iterable(batches):
            self._check_padded(batch, loss_fn)
        parts = [part for pair in batches for part in groups(pair, self.samples_at_once(self.programs is not None))]
        objectives, losses, *gradients = zip(*self._differentiated_each(parts, loss_fn), strict=True)
        self._check_losses(parts, losses, loss_fn)
        objective, *summed = (reduce(add, each) for each in (objectives, *gradients))
        last = torch.cat(losses).detach().mean()
        return objective.detach(), last, dict(zip(self.learned_tensors(), summed, strict=True))

    def _check_padded(self, batch: Batch, loss_fn: PredictionLoss) -> None:
        if "mask" in batch:
            check_padding(partial(self._predict, self.parameters()), batch, loss_fn)

    def _differentiated_each(self, parts: Sequence[Sequence[Batch]], loss_fn: PredictionLoss) -> list[Sequence[Tensor]]:
        """`_differentiated` of each part, a support and a query batch; a task weighs the same in all."""
        like = next(iter(self.parameters().values()))
        weights = step_weights(self.inner_steps, self.updates, self.multi_step_updates).to(like)
        number = sum(num_tasks(support) for support, _ in parts)
        calls = [(support, query, weights, like.new_tensor(num_tasks(support) / number)) for support, query in parts]
        work = partial(self._differentiated, loss_fn)
        if self.programs is None:
            return [work(*call) for call in calls]
        return self.programs.run_trees((identity(loss_fn), self._anneals, self.frozen), work, calls)

    def _differentiated(
        self, loss_fn: PredictionLoss, support: Batch, query: Batch, weights: Tensor, share: Tensor
    ) -> tuple[Tensor, ...]:
        """The objective times `share`, the query losses [M] after the last inner step, and the former's gradients."""
        loss = supervised_loss(self._predict, loss_fn)
        phis = list(self.inner_loop(loss, [support] * self.inner_steps))

        def losses(batch: Batch, step: int) -> Tensor:
            return self.task_losses(loss, phis[step], batch, stacked=step > 0)

        objective, last = outer_objective(
            partial(losses, support), partial(losses, query), weights, every_step=self._anneals, reptile=self.reptile
        )
        objective = share * objective
        learned = list(self.learned_tensors().values())
        gradients = torch.autograd.grad(objective, learned, allow_unused=True, materialize_grads=True)
        return objective, last, *gradients

    def _check_losses(
        self, parts: Sequence[Sequence[Batch]], losses: Sequence[Tensor], loss_fn: PredictionLoss
    ) -> None:
        """Name the first task, and its inner step, where a query loss is not finite."""
        if bool(torch.isfinite(torch.cat([*losses])).all()):
            return
        first = 0
        for (support, _), each in zip(parts, losses, strict=True):
            broken = torch.nonzero(~torch.isfinite(each)).flatten().tolist()
            if broken:
                seen = f"the query loss of task {first + broken[0]}"
                raise self._diverged(supervised_loss(self._predict, loss_fn), support, self.inner_steps, seen, first)
            first += num_tasks(support)

    @property
    def frozen(self) -> tuple[Any, ...]:
        """What a program of an inner loop depends on beside tensors."""
        modes = tuple(module.training for module in self.model.modules())
        return modes, self.inner_lr, self.inner_steps, self.first_order, self.reptile, self.vectorize

    def samples_at_once(self, compiled: bool) -> int:
        """About so many samples are computed as one, by programs or by torch's own kernels."""
        if self._samples_at_once is not None:
            return self._samples_at_once
        if next(self.learned.parameters()).device.type != "cpu":
            return GPU_SAMPLES
        return CORE_SAMPLES if compiled else CPU_SAMPLES

    @property
    def _anneals(self) -> bool:
        """Whether query losses before the last inner step count."""
        return self.updates < self.multi_step_updates

    # --- keeping ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Model, learned rates, optimiser and counter, as flat tensors."""
        learned = {name: tensor.clone() for name, tensor in self.learned.state_dict().items()}
        parts = {"learned": learned, "optimizer": optimizer_tensors(self.optimizer, self.learned)}
        return {**flat_state(parts), "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.learned.load_state_dict(part_of(state, "learned"))
        load_optimizer_tensors(self.optimizer, self.learned, part_of(state, "optimizer"))
        self.updates = int(state["updates"])

    def to(self, device: torch.device | str) -> MetaMAML:
        """Move the model, the rates and the optimiser's state."""
        state = self.state_dict()
        self.learned.to(device)
        self._twin.to(device)
        self.load_state_dict(state)
        return self
