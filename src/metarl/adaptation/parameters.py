"""Which parameters of a model adapt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


def select_parameters(model: nn.Module, chosen: str | Sequence[str], among: Collection[str] | None = None) -> list[str]:
    """Names of the parameters that `chosen` stands for, in the model's order.

    Args:
        chosen: one or several of "all"; "norm", scale and shift of the normalisation layers (as TENT adapts, Wang et
            al. 2021, arXiv 2006.10726); "head", the last module that holds parameters itself; or a pattern of names
            such as "encoder.*". Only a pattern stands for parameters that are frozen (`requires_grad` False), too.
        among: names of the parameters that matter; None: all.

    Raises:
        UsageError: where one of them stands for nothing.
    """
    names = [name for name, _ in model.named_parameters() if among is None or name in among]
    selected: set[str] = set()
    for choice in [chosen] if isinstance(chosen, str) else chosen:
        found = _standing_for(model, choice, names)
        if not found:
            raise UsageError(
                f"parameters '{choice}' stands for nothing that may adapt in this model: choose all, norm, head (those "
                f"not frozen), or patterns of {', '.join(names) or 'its names; it has none'}"
            )
        selected.update(found)
    return [name for name in names if name in selected]


def _standing_for(model: nn.Module, choice: str, names: list[str]) -> list[str]:
    if choice not in (ALL, NORM, HEAD):
        return [name for name in names if fnmatchcase(name, choice)]
    free = [name for name in names if model.get_parameter(name).requires_grad]
    if choice == NORM:
        return [name for name in free if isinstance(model.get_submodule(_holder(name)), NORM_LAYERS)]
    if choice == HEAD:
        return [name for name in free if _holder(name) == _holder(names[-1])]
    return free


def _holder(name: str) -> str:
    """The module that holds a parameter: 'head.0.weight' -> 'head.0'."""
    return name.rpartition(".")[0]
