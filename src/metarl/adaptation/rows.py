"""What an observation consists of: named tensors, rows first, so that all kinds are joined and drawn alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from metarl.core.errors import UsageError

Rows: TypeAlias = dict[str, Tensor]
"""x and, where there are, y and state: all [N, ...]. With a state, x and y are sequences [N, T, ...]."""


def as_rows(x: Tensor, y: Tensor | None, state: Tensor | None) -> Rows:
    """The arguments by name, rows first: with a state, [T, B, ...] becomes [B, T, ...]."""
    axes = 1 if state is None else 2
    check_tensor("x", x, axes)
    if y is not None:
        check_tensor("y", y, axes)
    if state is None:
        rows = {"x": x} if y is None else {"x": x, "y": y}
    else:
        check_tensor("state", state)
        rows = {"x": x.transpose(0, 1), "state": state} | ({} if y is None else {"y": y.transpose(0, 1)})
    if len({len(tensor) for tensor in rows.values()}) != 1:
        given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in rows.items())
        raise UsageError(f"x, y and state need the same rows, got (rows first) {given}")
    if not len(rows["x"]):
        raise UsageError("x has no rows, so there is nothing to observe or to learn from: leave such a call out")
    return rows


def check_tensor(name: str, given: Any, axes: int = 1) -> None:
    """Refuse what is no tensor [B, ...], or with two axes no [T, B, ...]."""
    if not isinstance(given, Tensor) or given.ndim < axes:
        form = "[T, B, ...]" if axes == 2 else "[B, ...]"
        got = f"the shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise UsageError(f"{name} is a tensor {form}, got {got}: convert it by torch.as_tensor and give it that shape")


def form_of(rows: Rows) -> dict[str, torch.Size]:
    """The shapes of one row, by name."""
    return {name: tensor.shape[1:] for name, tensor in rows.items()}


def join(parts: Sequence[Rows]) -> Rows:
    """All rows of several observations, in their order."""
    return {name: torch.cat([rows[name] for rows in parts]) for name in parts[0]}


def output_of(module: nn.Module, rows: Rows) -> Tensor:
    """The module's output without its next state: [N, ...], for sequences [T, N, ...]."""
    if "state" in rows:
        output: Tensor = module(rows["x"].transpose(0, 1), rows["state"])[0]
        return output
    output = module(rows["x"])
    if isinstance(output, tuple):
        raise UsageError("a model with memory learns from (x, y, state): give the state that x was predicted from")
    if not isinstance(output, Tensor):
        raise UsageError(f"a model returns a tensor, or (tensor, state), got {type(output).__name__}: wrap the model")
    return output


def target_of(rows: Rows) -> Tensor:
    """y in the shape of `output_of`."""
    return rows["y"].transpose(0, 1) if "state" in rows else rows["y"]


def is_finite(result: Any) -> bool:
    """Whether a module's result, a tensor or a tuple of tensors, holds finite numbers only (False also where their sum
    overflows)."""
    parts: Sequence[Tensor] = result if isinstance(result, tuple) else (result,)
    return math.isfinite(sum(part.sum().item() for part in parts))


def mended(result: Any, other: Any) -> Any:
    """`result`, with the numbers of `other` where its own are not finite."""
    if isinstance(result, tuple):
        return tuple(mended(part, counterpart) for part, counterpart in zip(result, other, strict=True))
    return torch.where(torch.isfinite(result), result, other)
