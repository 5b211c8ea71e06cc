"""RL²: a memory that learns to learn. The inner loop is the memory's dynamics; the outer loop is PPO over whole trials.

Duan et al. 2016 (arXiv 1611.02779) and Wang et al. 2016 (1611.05763), with PPO (Schulman et al. 2017, 1707.06347) in
place of their policy gradients. Different from both:

- a trial's length is random: after each update a row keeps its task and its memory with probability `continuation`.
  Every update sees memories of many ages, so experience beyond the length of one update does not drift out of what
  was trained;
- an episode's end cuts the return (`discount_across_episodes` lets it flow on through the trial, as published).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from metarl.core.agent import Agent, Array, Metrics, check_rows, vector_size
from metarl.core.controller import by_row, finite_rows
from metarl.core.errors import UsageError
from metarl.core.flat_parameters import FlatParameters
from metarl.core.memory import MemoryConfig
from metarl.core.normalization import RunningMoments, normalized
from metarl.core.optimization import decayed, flat_state, part_of, step_along_gradients
from metarl.core.policy import ActorCritic
from metarl.core.policy_controller import PolicyController
from metarl.core.returns import generalized_advantage
from metarl.core.trajectory import Trajectory
from metarl.meta_rl.compiled import Function, Programs, worth_compiling
from metarl.meta_rl.recorded import Recordings
from metarl.meta_rl.rl2_config import RL2Config

__all__ = ["RL2Agent", "RL2Config"]

REWARD_SCALE = 0.1

LEARNED_FROM = ("first_memory", "inputs", "action", "log_prob", "advantage", "target")
LOSSES, MEASURES = ("policy", "value", "entropy"), ("value_loss", "entropy", "kl", "clip_fraction")


class _Step(NamedTuple):
    """What acting found, each [B, ...]; `encoded` is the action as the next input has it."""

    inputs: Tensor
    output: Tensor
    features: Tensor
    action: Tensor
    encoded: Tensor
    memory: Tensor


class RL2Agent(Agent):
    """An agent whose memory adapts: RL² (Duan et al. 2016, arXiv 1611.02779) with PPO.

    Args:
        observation_space, action_space: of one world.
        memory: the network; its default is an ssm.
        num_updates: updates of the whole run, over which the learning rate falls to 5 %; None: it stays.
        seed: of the first weights, of the actions that it samples and of its minibatches.
        reward_scale: the family's, which holds where the config has none.
        device: where the network lives.
        env_steps: of all rows in the whole run, about: long runs are compiled, where the config leaves it open.

    Raises:
        UsageError: observations that are not vectors, actions that are neither a flat Box of floats with finite bounds
            nor Discrete, or a memory that cannot be made.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        config: RL2Config | None = None,
        memory: MemoryConfig | None = None,
        *,
        num_updates: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        reward_scale: float = REWARD_SCALE,
        env_steps: int = 0,
    ) -> None:
        super().__init__(observation_space, action_space)
        observation_size = vector_size(observation_space)
        self.config = RL2Config() if config is None else config
        self.device = torch.device(device)
        self.num_updates = num_updates
        self.reward_scale = reward_scale if self.config.reward_scale is None else self.config.reward_scale
        memory = MemoryConfig() if memory is None else memory
        self.continuation = self.config.continuation_of(memory.method)
        self.round_steps = self.config.update_steps
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # initialisers take no generator, and draw on the CPU
            self.policy = ActorCritic(observation_size, action_space, memory).to(self.device)
        self._parameters = FlatParameters(self.policy, [name for name, _ in self.policy.named_parameters()])
        self.moments = RunningMoments(observation_size + 1)  # observation and reward
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0
        self._given: dict[str, Tensor] | None = None
        self.compiles = worth_compiling(self.config.compile, self.policy, self.device, env_steps)
        recorded = Recordings() if self.device.type == "cuda" else None
        self._programs = Programs() if self.compiles else recorded
        self.begin_trial(0)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Made when learning first asks for it: torch loads its compiler for one, which takes seconds."""
        # One vector, and fused: a loop over the parameters takes 12 % of an update.
        return torch.optim.Adam([self._parameters.values], lr=self.config.learning_rate, eps=1e-5, fused=True)

    # --- acting -------------------------------------------------------------------------------------------------------

    def begin_trial(self, num_rows: int, renew: Array | None = None) -> None:
        """As in `Agent`; experience that no `update` has used is dropped."""
        if renew is None or bool(np.all(renew)):
            self._memory = self.policy.memory.init_state(num_rows).to(self.device)
            self._previous_action = torch.zeros(num_rows, self.policy.head.size, device=self.device)
            self._previous_reward = np.zeros(num_rows, dtype=np.float32)
            self._episode_starts = np.ones(num_rows, dtype=np.float32)
        else:
            check_rows(num_rows, len(self._episode_starts))
            forget = torch.from_numpy(np.asarray(renew)).to(self.device)
            for kept in (self._memory, self._previous_action):
                kept[forget] = 0
            self._previous_reward[renew] = 0
            self._episode_starts[renew] = 1
        self._noise: Tensor | None = None
        self._prepared = self._prepare()
        self._no_value = torch.zeros(num_rows, device=self.device)
        self._trajectory, self._given = Trajectory(), None

    @torch.no_grad()
    def _prepare(self) -> tuple[Tensor, ...]:
        """What stands still between updates."""
        moments = self.moments.frozen().to(self.device)
        return moments.mean, moments.inverse_std, *self.policy.memory.prepare()

    @torch.no_grad()
    def _act(self, observation: Array) -> Array:
        check_rows(len(observation), len(self._episode_starts))
        head = self.policy.head
        seen = self._seen(observation, self._previous_reward, self._episode_starts)
        before = *seen, self._previous_action, self._memory, *self._prepared
        if self.explore:
            if self._noise is None:
                self._noise = head.noise(len(observation), self.generator).to(self.device)
            self._step = _Step(*self._run("sample", self._sampled, self._noise, *before))
        else:
            self._step = _Step(*self._run("mode", self._most_likely, *before))
        return head.to_environment(self._step.action)

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
        reward = reward.astype(np.float32)
        done = terminated | truncated
        step = self._step
        self._next_observation = next_observation.copy()  # worlds may reuse their arrays
        if self.training:
            if not active.all():
                raise UsageError("training needs every row in every step: run trials that are measured in steps")
            final = self._no_value
            if truncated.any():
                final = self._value(next_observation, reward, step.encoded, step.memory)
            if not len(self._trajectory):  # in a trial that begins, or one that goes on after an update
                self._first_memory = self._memory.clone()
            self._trajectory.append(
                inputs=step.inputs,
                output=step.output,
                features=step.features,
                action=step.action,
                observation=observation,
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                final_value=final,
            )
        kept = active
        if not self.training:  # a number that is not finite would stay in the memory for good; training stops at one
            found = {"memory": step.memory, "output": step.output, "reward": torch.from_numpy(reward).to(self.device)}
            kept = active & finite_rows(found).cpu().numpy()
        if kept.all():
            self._memory, self._previous_action, self._previous_reward = step.memory, step.encoded, reward
            self._episode_starts = done.astype(np.float32)
        else:
            rows = torch.from_numpy(kept).to(self.device)
            self._memory = by_row(rows, step.memory, self._memory)
            self._previous_action = by_row(rows, step.encoded, self._previous_action)
            self._previous_reward = np.where(kept, reward, self._previous_reward)
            starts = done | (~kept & (self._episode_starts > 0))
            self._episode_starts = np.where(active, starts, self._episode_starts).astype(np.float32)
        self._noise = None

    def _seen(self, *arrays: Array) -> tuple[Tensor, ...]:
        """As float32 where the network lives."""
        return tuple(torch.from_numpy(np.asarray(array, dtype=np.float32)).to(self.device) for array in arrays)

    def _sampled(self, noise: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        """A `_Step`; beside the noise it takes what `_passed` takes."""
        inputs, output, features, memory = self._passed(*before)
        action = self.policy.head.sample(output, noise)
        return inputs, output, features, action, self.policy.head.encode(action), memory

    def _most_likely(self, *before: Tensor) -> tuple[Tensor, ...]:
        """A `_Step`."""
        inputs, output, features, memory = self._passed(*before)
        action = self.policy.head.mode(output)
        return inputs, output, features, action, self.policy.head.encode(action), memory

    def _passed(
        self,
        observation: Tensor,
        previous_reward: Tensor,
        starts: Tensor,
        previous_action: Tensor,
        memory: Tensor,
        mean: Tensor,
        inverse_std: Tensor,
        *prepared: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The policy's inputs, its output, its features and its next memory."""
        normal = normalized(torch.cat([observation, previous_reward[:, None]], 1), mean, inverse_std)
        inputs = self.policy.join(normal[:, :-1], previous_action, normal[:, -1], starts)
        return inputs, *self.policy.step(inputs, memory, prepared)

    def _run(self, name: str, function: Function, *tensors: Tensor) -> Sequence[Tensor]:
        """A function of tensors; in training by compiled code where the agent has it, on a GPU by a recorded graph."""
        if self._programs is None or not self.training:
            return function(*tensors)
        return self._programs.run(name, function, *tensors)

    def _value(self, observation: Array, previous_reward: Array, previous_action: Tensor, memory: Tensor) -> Tensor:
        """V [B] of observations that follow a step, by a step of the memory that is not kept."""
        seen = self._seen(observation, previous_reward, np.zeros(len(observation)))
        (value,) = self._run("value", self._valued, *seen, previous_action, memory, *self._prepared)
        return value

    def _valued(self, *before: Tensor) -> tuple[Tensor]:
        _, _, features, _ = self._passed(*before)
        return (self.policy.value(features),)

    def adapt(self) -> Metrics:
        """Nothing is left to do: the memory moved with every observation."""
        return {}

    def trial_state(self, row: int = 0) -> Array:
        """The row's memory."""
        memory: Array = self._memory[row].cpu().numpy().copy()
        return memory

    def controller(self) -> PolicyController:
        """As in `Agent`: the policy with its memory."""
        config = self.config
        return PolicyController(
            copy.deepcopy(self.policy),
            self.observation_space,
            self.action_space,
            copy.deepcopy(self.moments),
            discount=config.discount,
            trace=config.trace,
        )

    # --- learning -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def take_experience(self) -> dict[str, Tensor]:
        if self._given is not None:
            experience, self._given = self._given, None
            return experience
        if not len(self._trajectory):
            raise UsageError("the agent holds no experience: run a trial with agent.training = True first")
        last_value = self._value(self._next_observation, self._previous_reward, self._previous_action, self._memory)
        kept = {"first_memory": self._first_memory, "last_value": last_value}
        experience = {name: tensor.to(self.device) for name, tensor in self._trajectory.stack().items()} | kept
        self._trajectory = Trajectory()
        return experience

    def give_experience(self, experience: Mapping[str, Tensor]) -> None:
        self._trajectory = Trajectory()
        self._given = {name: tensor.to(self.device) for name, tensor in experience.items()}

    def update(self) -> Metrics:
        """PPO on the experience held: up to `update_epochs` passes over minibatches of rows, each a whole sequence.

        Returns: means over the steps taken, "value_loss" the critic's squared error without its weight; "kl" is that of
        the last minibatch, be it the one at which the update ended early.
        """
        config = self.config
        batch = self._with_targets(self.take_experience())
        rate = decayed(config.learning_rate, self.updates, self.num_updates)
        self.optimizer.param_groups[0]["lr"] = rate
        history: list[Metrics] = []
        learned_from = [batch[name] for name in LEARNED_FROM]
        values, before = self._parameters.values, self._parameters.values.clone()
        for rows in self._minibatches(batch["reward"].shape[1]):
            gradient, found = self._run("learn", self._gradient, rows.to(self.device), *learned_from)
            numbers = found.tolist()
            losses = dict(zip(LOSSES, numbers[: len(LOSSES)], strict=True))
            metrics = {"policy_loss": losses["policy"], **dict(zip(MEASURES, numbers[len(LOSSES) :], strict=True))}
            divergence = metrics["kl"]
            if history and divergence > config.max_divergence:
                if history[0]["kl"] < config.max_divergence:  # not experience of another policy
                    # The last step may have gone far too far. Divergence grows with the square of the way, so this
                    # goes back to the limit.
                    values.copy_(before.lerp(values, math.sqrt(config.max_divergence / divergence)))
                break
            self._parameters.gradients.copy_(gradient)
            metrics["grad_norm"] = step_along_gradients(self.optimizer, self.policy, losses, config.grad_clip_norm)
            history.append(metrics)
        seen = torch.cat([batch["observation"], batch["reward"][..., None]], -1)
        self.moments.update(seen.cpu().numpy())
        self.updates += 1
        self._prepared = self._prepare()
        means = {name: float(np.mean([metrics[name] for metrics in history])) for name in history[0]}
        explained = _explained(batch["value"], batch["target"])
        taken = {"kl": divergence, "minibatches": float(len(history)), "learning_rate": rate}
        return means | taken | {"explained_variance": explained}

    def _minibatches(self, num_rows: int) -> Iterator[Tensor]:
        """Groups of rows, all of them once in every pass."""
        size = -(-num_rows // self.config.num_minibatches)
        for _ in range(self.config.update_epochs):
            yield from torch.randperm(num_rows, generator=self.generator).split(size)

    @torch.no_grad()
    def _with_targets(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds log-probabilities, values, advantages (normalised over what is not left out, and 0 where it is) and the
        critic's targets, all [T, B]."""
        config = self.config
        value = self.policy.value(batch["features"])
        reward, last_value = batch["reward"] * self.reward_scale, batch["last_value"]
        terminated, truncated = batch["terminated"], batch["truncated"]
        left_out = torch.zeros_like(terminated)
        if config.discount_across_episodes:
            # What follows an episode that ends with the data is not in it: its last step is left out, its error 0.
            ended = left_out[-1] = terminated[-1] | truncated[-1]
            reward[-1], last_value = torch.where(ended, value[-1], reward[-1]), last_value.masked_fill(ended, 0.0)
            terminated = truncated = torch.zeros_like(terminated)
        advantage = generalized_advantage(
            reward,
            value,
            last_value,
            terminated,
            truncated,
            batch["final_value"],
            discount=config.discount,
            trace=config.trace,
        )
        counted = advantage[~left_out] if config.discount_across_episodes else advantage
        normal = (advantage - counted.mean()) / (counted.std(correction=0) + 1e-8)
        return batch | {
            "log_prob": self.policy.head.log_prob(batch["output"], batch["action"]),
            "value": value,
            "target": advantage + value,
            "advantage": normal.masked_fill(left_out, 0.0),
        }

    def _gradient(self, rows: Tensor, first_memory: Tensor, *sequences: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient [P] of the losses' sum on some rows, and the LOSSES and the MEASURES in one vector."""
        losses, measures = self._losses(first_memory[rows], *(sequence.index_select(1, rows) for sequence in sequences))
        learned = list(self.policy.parameters())
        gradients = torch.autograd.grad(torch.stack(losses).sum(), learned, allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in gradients]), torch.stack([*losses, *measures]).detach()

    def _losses(
        self, memory: Tensor, inputs: Tensor, action: Tensor, log_prob: Tensor, advantage: Tensor, target: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """PPO's LOSSES, −min(r A, clip(r, 1 ± ε) A), squared error of the critic and −entropy, and the MEASURES."""
        config, head = self.config, self.policy.head
        output, value, _ = self.policy(inputs, memory)
        log_ratio = head.log_prob(output, action) - log_prob
        ratio = log_ratio.exp()
        surrogate = torch.min(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage)
        entropy, error = head.entropy(output).mean(), (value - target).square().mean()
        losses = [-surrogate.mean(), config.value_weight * error, -config.entropy_weight * entropy]
        divergence, clipped = (ratio - 1 - log_ratio).mean(), ((ratio - 1).abs() > config.clip).float().mean()
        return losses, [error, entropy, divergence, clipped]

    # --- keeping ------------------------------------------------------------------------------------------------------

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        parts = {
            "policy": {name: tensor.clone() for name, tensor in self.policy.state_dict().items()},
            "optimizer": self._parameters.optimizer_tensors(self.optimizer),
            "moments": self.moments.state_dict(),
            "counters": {"updates": torch.tensor(self.updates), "generator": self.generator.get_state()},
        }
        return flat_state(parts)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.policy.load_state_dict(part_of(state, "policy"))
        slots = part_of(state, "optimizer")
        if slots or "optimizer" in vars(self):
            self._parameters.load_optimizer_tensors(self.optimizer, slots)
        self.moments.load_state_dict(part_of(state, "moments"))
        counters = part_of(state, "counters")
        self.updates = int(counters["updates"])
        self.generator.set_state(counters["generator"].cpu())
        self._prepared = self._prepare()


def _explained(value: Tensor, target: Tensor) -> float:
    """1 − Var(target − value) / Var(target): 1 where the critic predicts the returns, 0 where it knows only their
    mean."""
    return float(1 - (target - value).var(correction=0) / (target.var(correction=0) + 1e-8))
