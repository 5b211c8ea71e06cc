"""`AdaptationConfig`: how a deployed model adapts."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch

from metarl.core.errors import check_limits, unknown_name

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


@dataclass(frozen=True)
class AdaptationConfig:
    """How a model adapts. The defaults are cautious choices, not tuned to anything."""

    learning_rate: float = 0.01
    """Step size of the optimiser."""
    num_steps: int = 1
    """Gradient steps of one update; 0: nothing is adapted."""
    from_source: bool = False
    """Every update walks from the source (as meta-learned models are trained to); no: from where the last ended."""
    update_every: int = 16
    """Observations from one update to the next."""
    optimizer: str = "sgd"
    """sgd or adam; adam with its usual moments, which a rollback and a reset empty."""
    parameters: str | tuple[str, ...] = "all"
    """What adapts: all, norm (scale and shift of normalisation layers), head (the last layer that acts), or patterns of
    names; what is frozen (requires_grad False) by such a pattern only."""
    buffer_size: int = 256
    """Most recent rows that are kept; a row of a sequence model is a whole sequence."""
    batch_size: int = 64
    """Rows drawn from them for one gradient step, none twice."""
    grad_clip_norm: float = 1.0
    """Largest norm of a gradient."""
    trust_region: float | None = None
    """Largest distance from the source, ‖θ − θ₀‖ / ‖θ₀‖ over all that adapts; None: no limit."""
    ema_decay: float = 0.0
    """Predict with an average of the weights that keeps this fraction a gradient step; 0: with the latest weights."""
    anchor_weight: float = 0.0
    """Weight of ½ ‖θ − θ₀‖² in the loss."""
    entropy_weight: float = 0.0
    """Weight of the entropy of softmax(output) in the loss, for outputs that are logits in the last axis."""
    reset_every: int | None = None
    """Observations from one return to the source to the next (RDumb); None: never."""
    rollback: bool = True
    """Whether the guard is on."""
    rollback_window: int = 100
    """The guard's window, in observations."""
    rollback_tolerance: float = 0.05
    """τ: the fraction of the frozen model's loss by which the adapted one may be worse."""

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        check_limits(
            vars(self),
            ("learning_rate", "above 0", self.learning_rate > 0),
            ("num_steps", "a whole number, at least 0", _whole(self.num_steps, 0)),
            ("update_every", "a whole number, at least 1", _whole(self.update_every, 1)),
            ("parameters", "all, norm, head, or patterns of names", bool(self.parameters)),
            ("buffer_size", "a whole number, at least 1", _whole(self.buffer_size, 1)),
            ("batch_size", "a whole number, at least 1", _whole(self.batch_size, 1)),
            ("batch_size", f"at most buffer_size = {self.buffer_size}", self.batch_size <= self.buffer_size),
            ("grad_clip_norm", "above 0", self.grad_clip_norm > 0),
            ("trust_region", "above 0, or None", self.trust_region is None or self.trust_region > 0),
            ("ema_decay", "in [0, 1)", 0 <= self.ema_decay < 1),
            ("anchor_weight", "at least 0", self.anchor_weight >= 0),
            ("entropy_weight", "at least 0", self.entropy_weight >= 0),
            ("reset_every", "a whole number above 0, or None", self.reset_every is None or _whole(self.reset_every, 1)),
            ("rollback_window", "a whole number, at least 1", _whole(self.rollback_window, 1)),
            ("rollback_tolerance", "at least 0", self.rollback_tolerance >= 0),
        )


def _whole(value: float, least: int) -> bool:
    return isinstance(value, Integral) and value >= least
