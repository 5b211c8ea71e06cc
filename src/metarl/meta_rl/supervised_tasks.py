"""Supervised tasks as batches: stacked along a task axis, padded and masked where their sizes differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeGuard, cast

import torch
from torch import Tensor
from torch.func import vmap

from metarl.core.errors import UsageError
from metarl.meta_rl.inner_loop import Batch

SupervisedTask: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""support_x [N, ...], support_y [N, ...], query_x, query_y; for sequence models [T, B, ...]."""
PredictionLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target) -> scalar."""


def support_and_query(tasks: Sequence[SupervisedTask] | SupervisedTask) -> tuple[Batch, Batch]:
    """The support and the query batch {"x": [M, N, ...], "y": [M, N, ...]} of a list of tasks or of one stacked batch.

    Where first axes differ by task (samples, or steps of a sequence model, whose past cannot see the padding behind
    it), tasks are padded with zeros and "mask" [M, N] is 1 on what is real.
    """
    if _is_stacked(tasks):
        sizes = [len(part) for part in tasks]
        if len(set(sizes)) > 1 or not sizes[0]:
            raise UsageError(
                f"a stacked batch has at least one task, and as many in each of its four parts; got {sizes}"
            )
        support_x, support_y, query_x, query_y = tasks
        return _batch([*support_x], [*support_y]), _batch([*query_x], [*query_y])
    if not tasks:
        raise UsageError("a meta-update needs at least one task: (support_x, support_y, query_x, query_y)")
    each = [_four(number, task) for number, task in enumerate(cast("Sequence[SupervisedTask]", tasks))]
    support_xs, support_ys, query_xs, query_ys = zip(*each, strict=True)
    return _batch(support_xs, support_ys), _batch(query_xs, query_ys)


def _is_stacked(tasks: Sequence[SupervisedTask] | SupervisedTask) -> TypeGuard[SupervisedTask]:
    return isinstance(tasks, tuple) and bool(tasks) and isinstance(tasks[0], Tensor)


def _four(number: int, task: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(task) != 4:
        raise UsageError(f"task {number} is (support_x, support_y, query_x, query_y); got {len(task)} parts")
    return task


def _batch(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Batch:
    for number, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if len(x) != len(y) or not len(x):
            raise UsageError(
                f"task {number} has {len(x)} inputs and {len(y)} targets: as many of both, and at least one"
            )
        if x.shape[1:] != xs[0].shape[1:] or y.shape[1:] != ys[0].shape[1:]:
            got = f"{tuple(x.shape)} and {tuple(y.shape)} beside {tuple(xs[0].shape)} and {tuple(ys[0].shape)}"
            raise UsageError(f"tasks may differ in their first axis only, but task {number} has {got}")
    lengths = torch.tensor([len(x) for x in xs], device=xs[0].device)
    longest = int(lengths.max())
    if bool((lengths == longest).all()):
        return {"x": torch.stack([*xs]), "y": torch.stack([*ys])}
    mask = torch.arange(longest, device=lengths.device) < lengths[:, None]
    pad = torch.nn.utils.rnn.pad_sequence
    return {"x": pad([*xs], batch_first=True), "y": pad([*ys], batch_first=True), "mask": mask.to(xs[0].dtype)}


def masked_loss(loss_fn: PredictionLoss, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The mean over what is real of a loss that is a mean over its first axis."""
    each = vmap(loss_fn)(prediction, target)
    return (each * mask).sum() / mask.sum()


def check_mean(loss_fn: PredictionLoss, prediction: Tensor, target: Tensor) -> None:
    """Refuse a loss that is no mean over its first axis: padding would change it."""
    whole, parts = loss_fn(prediction, target), vmap(loss_fn)(prediction, target).mean()
    if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-6):
        raise UsageError(
            f"tasks of different sizes need a loss that is a mean over samples, got {float(whole):.6g} for a task "
            f"whose samples have mean {float(parts):.6g}: use vectorize=False"
        )
