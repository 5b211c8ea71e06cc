"""GrBAL: plan with a dynamics model that adapts, at every step, to the last few transitions.

Nagabandi et al. 2019 (arXiv 1803.11347). The model is meta-learned so that a few gradient steps on the past M
transitions make it predict the next K; the action is the first of a plan by MPPI with the adapted model. Different from
the paper: adaptation changes a factor for every action instead of all weights, its rate is learned, and many rows act
at once, each with its own parameters. With a memory in the model, which runs over the past M transitions too, it also
adapts without gradients (the paper's ReBAL; `meta` and `online_adaptation` off leave that alone).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from metarl.core.agent import Agent, Array, Metrics, vector_size
from metarl.core.controller import Weights, by_row
from metarl.core.errors import UsageError, check_limits
from metarl.core.memory import MemoryConfig
from metarl.core.normalization import RunningMoments
from metarl.core.optimization import clipped_step, decayed, flat_state, part_of
from metarl.core.trajectory import Trajectory
from metarl.meta_rl.dynamics import MODEL_MEMORY, DynamicsModel, prediction_loss
from metarl.meta_rl.inner_loop import Parameters
from metarl.meta_rl.meta_maml import MetaMAML
from metarl.meta_rl.planner import Planner
from metarl.meta_rl.replay import Replay
from metarl.tasks.reward_model import RewardModel


@dataclass(frozen=True)
class GrBALConfig:
    """A dynamics model that adapts, and a planner. Values without a source were measured on halfcheetah-cripple."""

    past: int = 16
    """M: transitions that the model adapts to, by gradient steps and by its memory (Nagabandi et al. 2019)."""
    future: int = 16
    """K: transitions after them on which the adapted model is scored in meta-learning."""
    meta: bool = True
    """Meta-learn the model; no: fit it to all transitions alike, without inner steps."""
    online_adaptation: bool = True
    """Act with parameters adapted to the last `past` transitions; no: with those that all tasks share."""
    adapt: Literal["gain", "all"] = "gain"
    """What adaptation changes: the gain of every action (`DynamicsModel`), or all weights. Adapted weights predict
    better what was just done, but plans leave that, and find what they are wrong about."""
    inner_lr: float = 0.5
    """Inner rate at the start of meta-learning, which learns one a parameter tensor."""
    inner_steps: int = 5
    """Gradient steps on the past transitions."""
    learning_rate: float = 1e-3
    """Adam's step size at the start; it falls linearly to 5 % over the run."""
    ensemble: int = 1
    """Networks of the model, each from its own random start; plans are scored by the mean of what they say (Chua et al.
    2018, arXiv 1805.12114)."""
    model_updates: int = 250
    """Steps of Adam an update."""
    batch_windows: int = 64
    """Windows of `past` + `future` transitions in one step of Adam."""
    grad_clip_norm: float = 10.0
    """Largest norm of a gradient."""
    random_updates: int = 5
    """Updates of training before which it acts at random: plans by a model of little data stay where the data is."""
    exploration: float = 0.3
    """Standard deviation of what is added to an action while it explores, in units of half the range of an action."""
    replay_size: int = 100_000
    """Latest transitions that are learned from."""
    horizon: int = 10
    """Steps of a plan."""
    candidates: int = 256
    """Plans that are compared at every step, in every row."""
    noise: float = 0.6
    """Standard deviation of the candidates' actions, in units of half the range of an action."""
    temperature: float = 0.2
    """λ: candidates whose return is less than the best one's by λ standard deviations weigh 1/e of it."""

    def __post_init__(self) -> None:
        check_limits(
            vars(self),
            ("past", "at least 1", self.past >= 1),
            ("future", "at least 1", self.future >= 1),
            ("adapt", "gain or all", self.adapt in ("gain", "all")),
            ("inner_lr", "above 0", self.inner_lr > 0),
            ("inner_steps", "at least 1", self.inner_steps >= 1),
            ("learning_rate", "above 0", self.learning_rate > 0),
            ("ensemble", "at least 1", self.ensemble >= 1),
            ("model_updates", "at least 1", self.model_updates >= 1),
            ("batch_windows", "at least 1", self.batch_windows >= 1),
            ("grad_clip_norm", "above 0", self.grad_clip_norm > 0),
            ("random_updates", "at least 0", self.random_updates >= 0),
            ("exploration", "at least 0", self.exploration >= 0),
            ("replay_size", "at least 1", self.replay_size >= 1),
            ("horizon", "at least 1", self.horizon >= 1),
            ("candidates", "at least 2", self.candidates >= 2),
            ("noise", "above 0", self.noise > 0),
            ("temperature", "above 0", self.temperature > 0),
            flags=True,
        )


class GrBALAgent(Agent):
    """An agent that plans with a dynamics model of its own for every row.

    It acts at random until its first `update`, in training until `random_updates`. What it remembers of a trial are the
    last `past` transitions of each row; `adapt` has nothing to do.

    Args:
        memory: what stands between the first and the last layer of the model; mlp, ssm, gru or lstm.
        reward_model: the reward that plans are scored by (`TaskDistribution.reward_model`).
        num_updates: of the whole run, over which Adam's step size falls to 5 %; None: it stays.
        device: where the model lives.

    Raises:
        UsageError: no reward model, a transformer, observations that are no vectors, or actions that are no vector of
            floats within bounds.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        config: GrBALConfig | None = None,
        memory: MemoryConfig | None = None,
        *,
        reward_model: RewardModel | None,
        num_updates: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(observation_space, action_space)
        memory = MODEL_MEMORY if memory is None else memory
        observation_size = vector_size(observation_space)
        _check(action_space, memory)
        if reward_model is None:
            raise UsageError(
                "grbal plans with the reward as a function of what it observes, which this task family does not offer: "
                "choose halfcheetah-gravity, halfcheetah-cripple, halfcheetah-drift, ant-mass, ant-drift or "
                "pendulum-dynamics, or give reward_model= to your TaskDistribution"
            )
        self.config = GrBALConfig() if config is None else config
        self.num_updates, self.device = num_updates, torch.device(device)
        (action_size,) = action_space.shape or ()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # initialisers take no generator, and draw on the CPU
            self.model = DynamicsModel(observation_size, action_size, memory, self.config.ensemble)
        self.maml = MetaMAML(
            self.model,
            self.config.inner_lr,
            self.config.learning_rate,
            inner_steps=self.config.inner_steps,
            adapt=("gain",) if self.config.adapt == "gain" else ("*",),
            learn_rates=True,
            rate_of="tensor",
            grad_clip_norm=self.config.grad_clip_norm,
        ).to(device)
        self.planner = Planner(
            self.model,
            observation_space,
            action_space,
            reward_model,
            past=self.config.past,
            horizon=self.config.horizon,
            candidates=self.config.candidates,
            noise=self.config.noise,
            temperature=self.config.temperature,
            exploration=self.config.exploration,
            seed=seed,
        )
        self.inputs, self.changes = RunningMoments(observation_size + action_size), RunningMoments(observation_size)
        self.replay = Replay(observation_size + action_size, observation_size, self.config.replay_size)
        self.updates = 0
        self.begin_trial(0)

    # --- acting -------------------------------------------------------------------------------------------------------

    def begin_trial(self, num_rows: int, renew: Array | None = None) -> None:
        """As in `Agent`; experience that no `update` has used is dropped."""
        self.planner.begin(num_rows, renew)
        self._trajectory = Trajectory()

    @torch.no_grad()
    def _act(self, observation: Array) -> Array:
        if self.updates < max(1, self.config.random_updates if self.training else 1):
            return self.planner.random_action(observation)
        return self.planner.act(observation, self.row_weights(), self.explore)

    @torch.no_grad()
    def row_weights(self) -> Weights | None:
        """What adapts of the model, {name: [R, ...]}, in every row after gradient steps on its last `past` transitions;
        a row that has not seen so many keeps what all share. None: all keep it."""
        window = self.planner.window
        if not self.config.online_adaptation or not bool(window.full.any()):
            return None
        adapted, shared = self._adapted(window.x, window.change), self.maml.parameters()
        return {name: by_row(window.full, value, shared[name]) for name, value in adapted.items()}

    def _adapted(self, x: Tensor, change: Tensor) -> Parameters:
        """What adapts, {name: [N, ...]}, after steps on x [N, M, obs + act] and the changes [N, M, obs]."""
        target = self.model.target(change)
        params = self.maml.adapt_tasks(x[:, :, None], target[:, :, None], loss_fn=prediction_loss)
        return self.maml.split(params)[1]

    @torch.no_grad()
    def _observe(
        self,
        observation: Array,
        action: Array,
        reward: Array,
        terminated: Array,
        truncated: Array,
        next_observation: Array,
        active: Array,
    ) -> None:
        if self.training and not active.all():
            raise UsageError("training needs every row in every step: run trials that are measured in steps")
        step, _ = self.planner.observe(observation, action, reward, terminated, truncated, next_observation, active)
        self.expected = self.planner.expected
        if self.training:
            ended = torch.from_numpy(terminated | truncated).to(self.device)
            self._trajectory.append(x=step["x"], change=step["change"], ended=ended)

    def adapt(self) -> Metrics:
        """Nothing is left to do: every action adapts."""
        return {}

    @torch.no_grad()
    def trial_state(self, row: int = 0) -> Array:
        """By how much what adapts differs in the row from what all share."""
        shared, adapted = self.maml.split(self.maml.parameters())[1], self.row_weights()
        if adapted is None:
            return np.zeros(sum(value.numel() for value in shared.values()), np.float32)
        moved = [(adapted[name][row] - value).flatten() for name, value in shared.items()]
        change: Array = torch.cat(moved).cpu().numpy()
        return change

    def controller(self) -> Planner:
        """As in `Agent`: the planner, with the inner rates that meta-learning found."""
        planner = self.planner.copy()
        planner.rates = {name: torch.as_tensor(rate).detach().clone() for name, rate in self.maml.rates().items()}
        return planner

    # --- learning -----------------------------------------------------------------------------------------------------

    def take_experience(self) -> dict[str, Tensor]:
        if not len(self._trajectory):
            raise UsageError("the agent holds no experience: run a trial with agent.training = True first")
        experience, self._trajectory = self._trajectory.stack(), Trajectory()
        return experience

    def give_experience(self, experience: Mapping[str, Tensor]) -> None:
        self._trajectory = Trajectory.unstack(experience)

    def update(self) -> Metrics:
        """Add the experience held to the replay, and take `model_updates` steps of Adam on windows from it.

        Returns: "model_loss", mean over the steps; and errors on the new experience before anything was learned from
        it, of the shared parameters ("error_frozen") and, of an agent that adapts by gradients, of those adapted to the
        transitions before ("error_adapted"). All are mean squared errors of the standardised change.
        """
        experience = self.take_experience()
        x, change, ended = (experience[name].cpu() for name in ("x", "change", "ended"))
        self.inputs.update(x.numpy())
        self.changes.update(change.numpy())
        # A memory does not look over an episode's end, neither here nor when it acts; gradient steps do.
        self.replay.append(x, change, ended if self.model.remembers else None)
        self.model.standardize_by(self.inputs, self.changes)
        errors = self._errors(x, change, ended)
        rate = decayed(self.config.learning_rate, self.updates, self.num_updates)
        self.maml.optimizer.param_groups[0]["lr"] = rate
        losses = [self._learn(*self._windows()) for _ in range(self.config.model_updates)]
        self.updates += 1
        self.planner.draw_again()
        return {"model_loss": float(np.mean(losses)), **errors}

    def _windows(self) -> tuple[Tensor, Tensor]:
        length = self.config.past + self.config.future
        x, change = self.replay.sample(self.config.batch_windows, length, self.planner.generator)
        return x.to(self.device), self.model.target(change.to(self.device))

    def _learn(self, x: Tensor, y: Tensor) -> float:
        """One step of Adam on windows x [N, M + K, obs + act], y [N, M + K, obs]; the loss before it."""
        past = self.config.past
        if self.config.meta:
            support = x[:, :past, None], y[:, :past, None]
            query = x[:, self._first :, None], y[:, past:, None]
            return self.maml.meta_update((*support, *query), prediction_loss)
        predicted, _ = self.model(x.transpose(0, 1))
        loss = prediction_loss(predicted, y.transpose(0, 1))
        clipped_step(self.maml.optimizer, self.maml.learned, {"model": loss}, self.config.grad_clip_norm)
        return loss.item()

    @property
    def _first(self) -> int:
        """Where a window that is predicted begins: a memory reads its past too."""
        return 0 if self.model.remembers else self.config.past

    @torch.no_grad()
    def _errors(self, x: Tensor, change: Tensor, ended: Tensor) -> Metrics:
        """Errors of the shared and of adapted parameters in the later part of windows of x [T, B, ...] side by side."""
        past, length = self.config.past, self.config.past + self.config.future
        whole = len(x) - len(x) % length
        windows, changes, ends = (
            values[:whole].unflatten(0, (-1, length)).transpose(1, 2).flatten(0, 1).to(self.device)
            for values in (x, change, ended)
        )
        if self.model.remembers:
            unbroken = ~ends[:, :-1].any(1)
            windows, changes = windows[unbroken], changes[unbroken]
        adapts = self.config.meta or self.config.online_adaptation
        if not len(windows):
            return dict.fromkeys(("error_frozen", "error_adapted")[: 1 + adapts], float("nan"))
        later, target = windows[:, self._first :], self.model.target(changes[:, past:])
        predicted, _ = self.model(later.transpose(0, 1))
        frozen = prediction_loss(predicted, target.transpose(0, 1)).item()
        if not adapts:
            return {"error_frozen": frozen}
        adapted = self._adapted(windows[:, :past], changes[:, :past])
        params = {**self.maml.parameters(), **adapted}
        by_own = self.maml.forward_tasks(later[:, :, None], params)[:, :, 0]  # [N, T, E, obs]
        error = prediction_loss(by_own.transpose(0, 1), target.transpose(0, 1)).item()
        return {"error_frozen": frozen, "error_adapted": error}

    # --- keeping ------------------------------------------------------------------------------------------------------

    def seed(self, seed: int) -> None:
        self.planner.seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        parts = {
            "maml": self.maml.state_dict(),
            "inputs": self.inputs.state_dict(),
            "changes": self.changes.state_dict(),
            "replay": self.replay.state_dict(),
            "counters": {"updates": torch.tensor(self.updates), "generator": self.planner.generator.get_state()},
        }
        return flat_state(parts)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.maml.load_state_dict(part_of(state, "maml"))
        self.inputs.load_state_dict(part_of(state, "inputs"))
        self.changes.load_state_dict(part_of(state, "changes"))
        self.replay.load_state_dict(part_of(state, "replay"))
        counters = part_of(state, "counters")
        self.updates = int(counters["updates"])
        self.planner.generator.set_state(counters["generator"].cpu())
        self.planner.draw_again()


def _check(action_space: gymnasium.Space[Any], memory: MemoryConfig) -> None:
    box = gymnasium.spaces.Box
    bounded = isinstance(action_space, box) and action_space.dtype.kind == "f" and action_space.is_bounded()
    if not bounded or len(action_space.shape or ()) != 1:
        raise UsageError(
            f"grbal plans actions that are a vector of floats within bounds, got {action_space}: wrap the environment, "
            "or choose rl2 or maml for a Discrete space"
        )
    if memory.method == "transformer":
        raise UsageError(
            "grbal's dynamics model is --method mlp, ssm, gru or lstm: a transformer's cache would be copied for every "
            "candidate plan"
        )
