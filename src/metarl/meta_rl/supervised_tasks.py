"""Supervised tasks as batches: stacked along a task axis, padded and masked where their sizes differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeGuard, cast

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import mse_loss

from metarl.core.errors import UsageError
from metarl.meta_rl.inner_loop import Batch, Loss, Parameters, over_tasks

SupervisedTask: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""support_x [N, ...], support_y [N, ...], query_x, query_y; for sequence models [T, B, ...]."""
Tasks: TypeAlias = Sequence[SupervisedTask] | SupervisedTask
"""A list of tasks, or one stacked batch: four tensors with a task axis before."""
PredictionLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target) -> scalar."""


def support_and_query(tasks: Tasks, *, apart: bool = False) -> list[tuple[Batch, Batch]]:
    """The support and the query batch {"x": [M, N, ...], "y": [M, N, ...]} of all tasks; `apart`: those of each task.

    Where first axes differ by task (samples, or steps of a sequence), tasks repeat their last entry up to the longest,
    and "mask" [M, N] is set on what is real.
    """
    if _is_stacked(tasks) and not apart:
        support_x, support_y, query_x, query_y = _checked_batch(tasks)
        return [({"x": support_x, "y": support_y}, {"x": query_x, "y": query_y})]
    each = [_checked(number, task) for number, task in enumerate(_listed(tasks))]
    groups = [[task] for task in each] if apart else [each]
    batches = []
    for group in groups:
        support_xs, support_ys, query_xs, query_ys = zip(*group, strict=True)
        batches.append((_batch(support_xs, support_ys), _batch(query_xs, query_ys)))
    return batches


def support_batch(support_x: Tensor | Sequence[Tensor], support_y: Tensor | Sequence[Tensor]) -> Batch:
    """The support of tasks: [M, N, ...], or a list of M tensors, padded as by `support_and_query`."""
    if len(support_x) != len(support_y) or not len(support_x):
        raise UsageError(f"got inputs of {len(support_x)} tasks and targets of {len(support_y)}: as many, at least one")
    if isinstance(support_x, Tensor) and isinstance(support_y, Tensor):
        _check_stacked(support_x, support_y)
        return {"x": support_x, "y": support_y}
    for number, (x, y) in enumerate(zip(support_x, support_y, strict=True)):
        _check_pair(number, x, y)
    return _batch([*support_x], [*support_y])


def num_tasks(batch: Batch) -> int:
    """M of a batch {name: [M, ...]}."""
    return len(batch["x"])


def groups(batches: Sequence[Batch], samples: int) -> Iterator[list[Batch]]:
    """The tasks, as part of each batch, in even groups that hold at most `samples` samples, or steps of sequences, of
    the largest batch, where one task does."""
    largest = max(_samples(batch["x"][0]) for batch in batches)
    for group in even_groups(num_tasks(batches[0]), samples // largest):
        yield [{name: value[group] for name, value in batch.items()} for batch in batches]


def even_groups(tasks: int, most: int) -> list[slice]:
    """Tasks in as few groups as hold at most `most` each, or one task; all but the last are of one size."""
    size = -(-tasks // -(-tasks // max(1, most)))
    return [slice(start, min(start + size, tasks)) for start in range(0, tasks, size)]


def _samples(x: Tensor) -> int:
    return x.numel() // (x.shape[-1] if x.ndim > 1 else 1)


def _listed(tasks: Tasks) -> Sequence[SupervisedTask]:
    if _is_stacked(tasks):
        return list(zip(*_checked_batch(tasks), strict=True))
    if not tasks:
        raise UsageError("a meta-update needs at least one task: (support_x, support_y, query_x, query_y)")
    return cast("Sequence[SupervisedTask]", tasks)


def _checked_batch(tasks: SupervisedTask) -> SupervisedTask:
    sizes = [len(part) for part in tasks]
    if len(set(sizes)) > 1 or not sizes[0]:
        raise UsageError(f"a stacked batch has at least one task, and as many in each of its four parts; got {sizes}")
    support_x, support_y, query_x, query_y = tasks
    for x, y in ((support_x, support_y), (query_x, query_y)):
        _check_stacked(x, y)
    return tasks


def _is_stacked(tasks: Tasks) -> TypeGuard[SupervisedTask]:
    return isinstance(tasks, tuple) and len(tasks) == 4 and all(isinstance(part, Tensor) for part in tasks)


def _checked(number: int, task: SupervisedTask) -> SupervisedTask:
    if not isinstance(task, Sequence) or len(task) != 4:
        got = f"{len(task)} parts" if isinstance(task, Sequence) else f"one {type(task).__name__}"
        got = "one tensor (a stacked batch is a tuple)" if isinstance(task, Tensor) else got
        raise UsageError(f"task {number} is (support_x, support_y, query_x, query_y), all tensors; got {got}")
    for x, y in (task[:2], task[2:]):
        _check_pair(number, x, y)
    return task


def _check_pair(number: int, x: Tensor, y: Tensor) -> None:
    for part in (x, y):
        if not isinstance(part, Tensor):
            raise UsageError(
                f"task {number} is made of tensors, got {type(part).__name__}: convert it by torch.as_tensor, inputs "
                "in the model's dtype"
            )
    if len(x) < len(y) or not len(y):
        raise UsageError(
            f"task {number} has {len(x)} inputs and {len(y)} targets: as many of both, and at least one (fewer targets "
            "where the loss compares them with the last predictions)"
        )


def _check_stacked(x: Tensor, y: Tensor) -> None:
    if x.ndim < 3 and x.is_floating_point():
        raise UsageError(
            f"inputs of shape {tuple(x.shape)} are no batch of tasks [M, N, ...]: put a single task in a list, and "
            "give scalar inputs an axis of their own, [M, N, 1]"
        )
    _check_pair(0, x[0], y[0])  # the others are of the same size


def _batch(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Batch:
    for number, (x, y) in enumerate(zip(xs, ys, strict=True)):
        alike = (x.shape, y.shape) == (xs[0].shape, ys[0].shape)
        if not alike and (x.shape[1:] != xs[0].shape[1:] or y.shape[1:] != ys[0].shape[1:] or len(x) != len(y)):
            got = f"{tuple(x.shape)} and {tuple(y.shape)} beside {tuple(xs[0].shape)} and {tuple(ys[0].shape)}"
            raise UsageError(f"tasks may differ in their first axis only, but task {number} has {got}")
    lengths = torch.tensor([len(x) for x in xs], device=xs[0].device)
    steps = torch.arange(int(lengths.max()), device=xs[0].device)
    if bool((lengths == len(steps)).all()):
        return {"x": torch.stack([*xs]), "y": torch.stack([*ys])}
    return {"x": _padded(xs, steps), "y": _padded(ys, steps), "mask": steps < lengths[:, None]}


def _padded(parts: Sequence[Tensor], steps: Tensor) -> Tensor:
    """Padding is real data, not zeros: a model or a loss that is finite on all samples is finite on it too."""
    return torch.stack([part[steps.clamp(max=len(part) - 1)] for part in parts])


def supervised_loss(predict: Callable[[Parameters, Tensor], Tensor], loss_fn: PredictionLoss) -> Loss:
    """`loss_fn` of what `predict` makes of a task's inputs, over what is real where the task is padded."""

    def loss(params: Parameters, batch: Batch) -> Tensor:
        prediction = predict(params, batch["x"])
        if loss_fn is mse_loss and prediction.shape != batch["y"].shape:
            raise UsageError(
                f"mse_loss compares predictions with targets of the same shape, got {tuple(prediction.shape)} and "
                f"{tuple(batch['y'].shape)}"
            )
        if "mask" in batch:
            return masked_loss(loss_fn, prediction, batch["y"], batch["mask"])
        value = loss_fn(prediction, batch["y"])
        if not isinstance(value, Tensor) or value.ndim:
            got = f"the shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"loss_fn returns a scalar tensor, the mean over samples, got {got}")
        return value

    return loss


def masked_loss(loss_fn: PredictionLoss, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The mean over what is real of a loss that is a mean over its first axis."""
    each = vmap(loss_fn)(prediction, target)
    return (each * mask).sum() / mask.sum()


@torch.no_grad()
def check_padding(predict: Callable[[Tensor], Tensor], batch: Batch, loss_fn: PredictionLoss) -> None:
    """Refuse a model or a loss that padding changes; tried on the shortest task, padded by the longest one's data."""
    lengths = batch["mask"].sum(1)
    short, long, real = int(lengths.argmin()), int(lengths.argmax()), int(lengths.min())
    x, y = (torch.cat([batch[part][short, :real], batch[part][long, real:]]) for part in ("x", "y"))
    predictions = []
    for inputs in (x, batch["x"][short]):
        # The same dropout in both calls, and none of the later ones changed; of no GPU but that of the tasks.
        with torch.random.fork_rng([x.get_device()] if x.is_cuda else []):
            predictions.append(predict(inputs))
    prediction, repeated = predictions
    if not torch.allclose(prediction[:real], repeated[:real], rtol=1e-4, atol=1e-6, equal_nan=True):
        raise UsageError(
            "the model mixes samples, so padding would change its predictions (batch normalisation in training, or a "
            "layer that looks ahead?): give tasks of one size or use vectorize=False"
        )
    whole, parts = loss_fn(prediction, y), over_tasks(loss_fn, (0, 0), prediction, y).mean()
    if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise UsageError(
            f"tasks of different sizes need a loss that is a mean over samples, got {float(whole):.6g} for a task "
            f"whose samples have mean {float(parts):.6g}: use vectorize=False"
        )
