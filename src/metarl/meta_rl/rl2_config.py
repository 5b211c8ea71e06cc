"""`RL2Config`: the hyper-parameters of RL²."""

from __future__ import annotations

from dataclasses import dataclass

from metarl.core.errors import check_limits

CONTINUATION, LONG_CONTINUATION = 0.75, {"gru": 0.95, "lstm": 0.95}
"""What a gru believes of its task drifts with age unless old memories are common in training; an ssm holds it, and
learned its first episode faster with more new ones."""


@dataclass(frozen=True)
class RL2Config:
    """RL² with PPO. Values without a source were measured on halfcheetah-vel."""

    learning_rate: float = 1.5e-3
    """Adam's step size at the start; it falls linearly to 5 % over the run."""
    discount: float = 0.99
    """γ of the return."""
    trace: float = 0.95
    """λ of generalised advantage estimation (Schulman et al. 2016)."""
    clip: float = 0.2
    """Largest relative change of an action's probability that still earns (Schulman et al. 2017)."""
    max_divergence: float = 0.1
    """An update ends once the policy has moved so far (mean KL on a minibatch), and goes back to where it had: one step
    could otherwise undo all learning."""
    update_epochs: int = 4
    """Passes over the data of one update."""
    num_minibatches: int = 8
    """Groups of rows that a pass is split into; every group is whole sequences."""
    entropy_weight: float = 1e-3
    """Weight of the policy's entropy."""
    value_weight: float = 0.1
    """Weight of the critic's squared error. Heavier, it rules the memory that critic and policy share: at 0.5 a run
    could stand still for five epochs."""
    grad_clip_norm: float = 0.5
    """Largest norm of a gradient."""
    reward_scale: float | None = None
    """Rewards are multiplied by this before returns are formed; none: by what the task family says (0.1 in most). The
    critic shares the memory with the policy, whose gradient returns in the hundreds would drown."""
    update_steps: int = 200
    """Steps of every row in one update's data; a row that goes on keeps its world as it stands."""
    continuation: float | None = None
    """Probability that a row keeps its task and memory past an update. None: 0.95 for gru and lstm, 0.75 for others."""
    discount_across_episodes: bool = False
    """Let the return flow over episode ends: exploring in one episode pays in the next (Duan et al. 2016). Only over
    those within an update's data: needs `update_steps` above an episode's length."""
    compile: bool | None = None
    """Act and learn by machine code, made in the first update: half a minute, a few seconds where it was made before;
    on a CPU, and not for gru and lstm. None: in runs of 5M steps or more, where there are a C++ compiler and Python's
    headers."""

    def row_steps(self, horizon: int) -> int:
        """Steps of a row in an update, however long episodes are."""
        return self.update_steps

    def __post_init__(self) -> None:
        check_limits(
            vars(self),
            ("learning_rate", "above 0", self.learning_rate > 0),
            ("discount", "in [0, 1]", 0 <= self.discount <= 1),
            ("trace", "in [0, 1]", 0 <= self.trace <= 1),
            ("clip", "above 0", self.clip > 0),
            ("max_divergence", "above 0", self.max_divergence > 0),
            ("update_epochs", "at least 1", self.update_epochs >= 1),
            ("num_minibatches", "at least 1", self.num_minibatches >= 1),
            ("entropy_weight", "at least 0", self.entropy_weight >= 0),
            ("value_weight", "at least 0", self.value_weight >= 0),
            ("grad_clip_norm", "above 0", self.grad_clip_norm > 0),
            ("reward_scale", "above 0", self.reward_scale is None or self.reward_scale > 0),
            ("update_steps", "at least 1", self.update_steps >= 1),
            ("continuation", "in [0, 1)", self.continuation is None or 0 <= self.continuation < 1),
            flags=True,
        )

    def continuation_of(self, method: str) -> float:
        """`continuation`, or what a memory of this method has where none is given."""
        return LONG_CONTINUATION.get(method, CONTINUATION) if self.continuation is None else self.continuation
