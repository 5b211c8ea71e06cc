"""`MAMLConfig`: the hyper-parameters of the gradient-based agents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from metarl.core.errors import UsageError, check_limits

OF_OUTER = {
    "trpo": ("max_divergence", "conjugate_iterations", "curvature_share"),
    "ppo": ("learning_rate", "update_epochs", "clip", "divergence_weight", "grad_clip_norm"),
}
"""Settings that only one of the outer steps reads."""


@dataclass(frozen=True)
class MAMLConfig:
    """Gradient-based adaptation of a policy. Values without a source were measured on halfcheetah-dir."""

    inner_lr: float = 0.1
    """Rate of an inner gradient step (Rothfuss et al. 2019)."""
    inner_steps: int = 1
    """Inner gradient steps of a training trial."""
    trial_rows: int = 10
    """Rows that share a task, and its adapted parameters: episodes that a gradient step sees."""
    outer: Literal["trpo", "ppo"] = "trpo"
    """Outer step: trpo (Finn et al. 2017), or ppo with a divergence penalty (ProMP)."""
    first_order: bool = False
    """Take inner gradients as constants (FOMAML)."""
    reptile: bool = False
    """Follow the sum of the policy gradients of all rounds, each at its own parameters (Nichol et al. 2018)."""
    window: int = 50
    """Steps over which gradients flow back through the policy's memory; windows begin with the memory held then."""
    adapt: Literal["all", "head"] = "all"
    """Parameters that adaptation changes; head: the last layer (ANIL, Raghu et al. 2020)."""
    learn_rates: bool = False
    """Meta-learn the inner rate of every parameter (Meta-SGD, Li et al. 2017)."""
    discount: float = 0.99
    """γ of the return."""
    trace: float = 0.97
    """λ of generalised advantage estimation."""
    max_divergence: float = 0.01
    """trpo: largest mean KL divergence of an outer step (Schulman et al. 2015)."""
    conjugate_iterations: int = 10
    """trpo: iterations of conjugate gradients (Schulman et al. 2015)."""
    curvature_share: float = 0.2
    """trpo: share of every task's windows on which the divergence's Hessian is taken (Schulman et al. 2015)."""
    learning_rate: float = 2e-3
    """ppo: Adam's step size at the start; it falls linearly to 5 % over the run."""
    update_epochs: int = 5
    """ppo: outer gradient steps an update."""
    clip: float = 0.2
    """ppo: largest relative change of an action's probability that still earns."""
    divergence_weight: float = 5e-4
    """ppo: weight of the divergence of the policies from those that collected the rounds before the last (ProMP)."""
    grad_clip_norm: float = 0.5
    """ppo: largest norm of a meta-gradient."""
    min_std: float = 0.2
    """Smallest standard deviation of meta-learned continuous actions: without variety nothing can be adapted from."""
    compile: bool | None = None
    """Train by machine code: ssm, transformer, mlp on a CPU. None: from 5M steps on, with g++ and Python's headers."""

    def row_steps(self, horizon: int) -> int:
        """Steps of a row in an update, where episodes last `horizon` steps at most."""
        return (self.inner_steps + 1) * horizon

    def __post_init__(self) -> None:
        check_limits(
            vars(self),
            ("inner_lr", "above 0", self.inner_lr > 0),
            ("inner_steps", "at least 1", self.inner_steps >= 1),
            ("trial_rows", "at least 1", self.trial_rows >= 1),
            ("outer", "trpo or ppo", self.outer in ("trpo", "ppo")),
            ("adapt", "all or head", self.adapt in ("all", "head")),
            ("discount", "in [0, 1]", 0 <= self.discount <= 1),
            ("trace", "in [0, 1]", 0 <= self.trace <= 1),
            # Not a cap here: a step of TRPO is as long as this allows.
            ("max_divergence", "finite and above 0", 0 < self.max_divergence < math.inf),
            ("conjugate_iterations", "at least 1", self.conjugate_iterations >= 1),
            ("curvature_share", "in (0, 1]", 0 < self.curvature_share <= 1),
            ("window", "at least 1", self.window >= 1),
            ("learning_rate", "above 0", self.learning_rate > 0),
            ("update_epochs", "at least 1", self.update_epochs >= 1),
            ("clip", "above 0", self.clip > 0),
            ("divergence_weight", "at least 0", self.divergence_weight >= 0),
            ("grad_clip_norm", "above 0", self.grad_clip_norm > 0),
            ("min_std", "above 0", self.min_std > 0),
            flags=True,
        )
        for outer, names in OF_OUTER.items():
            for name in names:
                if outer != self.outer and getattr(self, name) != getattr(MAMLConfig, name):
                    raise UsageError(
                        f"--{name.replace('_', '-')} goes with --outer {outer}, and this is {self.outer}, whose "
                        f"settings are {', '.join('--' + each.replace('_', '-') for each in OF_OUTER[self.outer])}"
                    )
