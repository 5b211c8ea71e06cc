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
    if state is None:
        rows = {"x": x} if y is None else {"x": x, "y": y}
    else:
        rows = {"x": x.transpose(0, 1), "state": state} | ({} if y is None else {"y": y.transpose(0, 1)})
    if len({len(tensor) for tensor in rows.values()}) != 1:
        given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in rows.items())
        raise UsageError(f"x, y and state need the same rows, got (rows first) {given}")
    return rows


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
    return output


def target_of(rows: Rows) -> Tensor:
    """y in the shape of `output_of`."""
    return rows["y"].transpose(0, 1) if "state" in rows else rows["y"]


def finite_rows(rows: Rows) -> Tensor:
    """[N] bool: the rows that hold finite numbers only."""
    flags = [torch.isfinite(tensor).reshape(len(tensor), -1).all(1) for tensor in rows.values()]
    return torch.stack(flags).all(0)


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
