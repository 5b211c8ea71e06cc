"""What adaptation changes of a model, and the rates that are learned for it."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence

import torch
from torch import nn

from metarl.core.errors import UsageError
from metarl.meta_rl.inner_loop import Parameters


def matching(parameters: Parameters, patterns: Sequence[str]) -> list[str]:
    """Names that match the pattern, or one of several; a pattern that matches none is refused."""
    if not patterns or not parameters:
        raise UsageError(
            "there is nothing to adapt: adapt needs a pattern, and the model a parameter that requires a gradient"
        )
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        if not fnmatch.filter(parameters, pattern):
            raise UsageError(f"adapt: no parameter is called '{pattern}'; there are {', '.join(parameters)}")
    return [name for name in parameters if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def learnable_rates(adapted: Parameters, inner_lr: float, *, logarithmic: bool) -> nn.ParameterDict:
    """A rate for every element of every adapted parameter; `logarithmic`: the logarithm of one for each parameter."""
    rates = nn.ParameterDict()
    for name, value in adapted.items():
        first = value.new_tensor(math.log(inner_lr)) if logarithmic else torch.full_like(value, inner_lr)
        rates[_key(name)] = nn.Parameter(first)
    return rates


def named_rates(rates: nn.ParameterDict, adapted: Sequence[str]) -> Parameters:
    """What `learnable_rates` made, by name of the adapted parameter; empty where no rate is learned."""
    return {name: rates[_key(name)] for name in adapted} if len(rates) else {}


def _key(name: str) -> str:
    """A parameter's name as a key of nn.ParameterDict, which takes no dots and no name of its methods."""
    return "/" + name.replace(".", "/")
