"""Which parameters of a model adapt."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from metarl.core.errors import UsageError

ALL, NORM, HEAD = "all", "norm", "head"

NORM_LAYERS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


def select_parameters(model: nn.Module, chosen: str | Sequence[str]) -> list[str]:
    """Names of the parameters that `chosen` stands for, in the model's order.

    Args:
        chosen: one or several of "all"; "norm", scale and shift of the normalisation layers (as TENT adapts, Wang et
            al. 2021, arXiv 2006.10726); "head", the last module that holds parameters itself; or a pattern of names
            such as "encoder.*".

    Raises:
        UsageError: where one of them stands for nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    selected: set[str] = set()
    for choice in [chosen] if isinstance(chosen, str) else chosen:
        found = _standing_for(model, choice, names)
        if not found:
            raise UsageError(
                f"parameters '{choice}' stands for nothing in this model: choose all, norm, head, or patterns of "
                f"{', '.join(names) or 'its names; it has none'}"
            )
        selected.update(found)
    return [name for name in names if name in selected]


def _standing_for(model: nn.Module, choice: str, names: list[str]) -> list[str]:
    if choice == ALL:
        return names
    if choice == NORM:
        return [name for name in names if isinstance(model.get_submodule(_holder(name)), NORM_LAYERS)]
    if choice == HEAD:
        return [name for name in names if _holder(name) == _holder(names[-1])]
    return [name for name in names if fnmatchcase(name, choice)]


def _holder(name: str) -> str:
    """The module that holds a parameter: 'head.0.weight' -> 'head.0'."""
    return name.rpartition(".")[0]
