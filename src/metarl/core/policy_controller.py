"""`PolicyController`: acts by a policy, and estimates from what followed how good another policy would have been.

**What the policy learns by.** A segment of experience by weights φ, cut where weights changed, gives advantages Â of
mean 0 and deviation 1 (`policy_gradient.with_advantages`: the baseline is fitted to the segment itself, for a critic
that was meta-learned for other worlds is wrong after a change). The loss is PPO's clipped surrogate (Schulman et al.
2017, arXiv 1707.06347), with the probabilities that the actions were sampled with. Where rewards hardly differ the
deviation stays below 1 (`QUIET`), lest the policy follows what the baseline could not fit.

**What policies are compared by.** For a step by φ, the score of weights θ is

    ℓ(θ) = 1 − min(ρ, c) Â,    ρ = π_θ(a | s) / π_φ(a | s)

E[ρ Â] over actions of φ is the advantage that θ's action would have had in that state (the first order of the
performance difference, Kakade & Langford 2002), in standard deviations of the segment's advantages; for φ itself ρ = 1.
It favours no side: the baseline cancels in ℓ(θ) − ℓ(φ), and no clip of the surrogate pulls towards φ. c bounds the
variance of ρ (Ionides 2008) and, with |Â| ≤ √n in a segment of n steps, makes the score bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from metarl.core.agent import Array, check_rows
from metarl.core.controller import Controller, Samples, Weights, by_row, finite_rows
from metarl.core.normalization import RunningMoments
from metarl.core.policy import Actor, ActorCritic
from metarl.core.policy_gradient import clipped_loss, masked_mean, unbroken, with_advantages

CLIP = 0.2
"""Largest relative change of an action's probability that still earns (Schulman et al. 2017)."""
LARGEST_RATIO = 10.0
"""c."""
SHRINKAGE = 0.1
"""Of the baseline: a segment may have fewer steps than the baseline has features, and must not be explained away."""
QUIET = 1e-3
"""Deviation of advantages, in units of the root mean square of the rewards, from which on they are brought to 1. Of a
constant reward rounding leaves 1e-7; where actions change a tenth of it there is 0.06, in segments of 4 steps 0.006."""


class PolicyController(Controller):
    """Acts by an `Actor`, whose memory is emptied at every episode start, or by the actor of an `ActorCritic`, whose
    memory lasts for the trial.

    A sample is a row's segment. Nothing is learned from a step whose action was not sampled, or where `observe` is told
    another than `act` returned: a limit or a filter has stood in between, and what followed says nothing about it. Of a
    row that is left out while others of its stream go on, the steps count again from an empty memory, or a new segment.

    Args:
        moments: what observations are standardised by; for an `ActorCritic` [observation, reward]. None: they reach the
            model as they are.
        discount, trace: γ and λ of advantages.
    """

    explores_to_adapt = True
    model: Actor | ActorCritic

    def __init__(
        self,
        model: Actor | ActorCritic,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        moments: RunningMoments | None = None,
        *,
        discount: float = 0.99,
        trace: float = 0.95,
        seed: int = 0,
    ) -> None:
        super().__init__(model, observation_space, action_space, seed)
        self._remembers_trial = isinstance(model, ActorCritic)
        self.moments = RunningMoments(0) if moments is None else moments
        self.discount, self.trace = discount, trace
        self.begin(0)

    # --- acting -------------------------------------------------------------------------------------------------------

    def begin(self, num_rows: int, renew: Array | None = None) -> None:
        empty = self.model.memory if isinstance(self.model, ActorCritic) else self.model
        fresh = {
            "memory": empty.init_state(num_rows).to(self.device),
            "previous_action": torch.zeros(num_rows, self.model.head.size, device=self.device),
            "previous_reward": torch.zeros(num_rows, device=self.device),
            "starts": torch.ones(num_rows, device=self.device),
            "time": torch.zeros(num_rows, device=self.device),
        }
        if renew is None or bool(np.all(renew)):
            self._state = fresh
        else:
            check_rows(num_rows, len(self._state["starts"]))
            self._keep(fresh, self.tensor(renew))
        self._noise: Tensor | None = None

    def _keep(self, new: Mapping[str, Tensor], rows: Tensor) -> None:
        """Take on a new state in the rows marked [B]."""
        for name, values in new.items():
            self._state[name] = by_row(rows, values, self._state[name])

    def remembered(self) -> dict[str, Tensor]:
        held = self._state if self._noise is None else {**self._state, "noise": self._noise}
        return {name: tensor.clone() for name, tensor in held.items()}

    def remember(self, held: Mapping[str, Tensor]) -> None:
        given = {name: tensor.to(self.device, copy=True) for name, tensor in held.items()}
        self._noise = given.pop("noise", None)
        self._state = given

    @property
    def acting(self) -> list[str]:
        return [name for name in super().acting if not name.startswith("critic.")]

    @torch.no_grad()
    def act(self, observation: Array, weights: Weights | None, explore: bool) -> Array:
        check_rows(len(observation), len(self._state["starts"]))
        head, state = self.model.head, self._state
        self._x = self._seen(observation, state["previous_reward"])
        self._inputs = self._joined(self._x, state)
        self._output, self._next_memory = self._policy(weights, self._inputs, state["memory"], state["starts"])
        self._sampled = explore
        if explore:
            if self._noise is None:
                self._noise = head.noise(len(observation), self.generator).to(self.device)
            self._action = head.sample(self._output, self._noise)
        else:
            self._action = head.mode(self._output)
        return head.to_environment(self._action)

    def _seen(self, observation: Array, reward: Tensor) -> Tensor:
        """The observation, with an `ActorCritic` also the reward before it, standardised if there are moments."""
        if self._remembers_trial:
            observation = np.concatenate([observation, reward.cpu().numpy()[:, None]], 1)
        if not self.moments.mean.size:
            return self.tensor(np.asarray(observation, dtype=np.float32))
        return self.tensor(self.moments.normalize(observation))

    def _joined(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        if isinstance(self.model, ActorCritic):
            return self.model.join(x[:, :-1], state["previous_action"], x[:, -1], state["starts"])
        return x

    def _policy(self, weights: Weights | None, inputs: Tensor, memory: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Distribution parameters [B, output] and the next memory, each stream of rows by its own weights; by the
        model's own in rows where those give numbers that are not finite."""
        if weights is None:
            output, memory = self._with(None, inputs[None], memory, starts[None])
            return output[0], memory

        def stream(weights: Weights, *given: Tensor) -> tuple[Tensor, Tensor]:
            inputs, memory, starts = given
            return self._with(weights, inputs[None], memory, starts[None])

        number = len(next(iter(weights.values())))
        blocks = (tensor.unflatten(0, (number, -1)) for tensor in (inputs, memory, starts))
        output, following = vmap(stream, randomness="different")(weights, *blocks)
        found = {"output": output.flatten(0, 2), "memory": following.flatten(0, 1)}
        whole = finite_rows(found)
        if not bool(whole.all()):
            own = zip(found, self._policy(None, inputs, memory, starts), strict=True)
            found = {name: by_row(whole, found[name], instead) for name, instead in own}
        return found["output"], found["memory"]

    def _with(self, weights: Weights | None, inputs: Tensor, memory: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [T, B, output] and the last memory for inputs [T, B, in], by the weights of one stream."""
        given = (inputs, memory) if self._remembers_trial else (inputs, memory, starts)
        output, *_, memory = self.call(weights, *given)
        return output, memory

    @torch.no_grad()
    def observe(
        self,
        observation: Array,
        action: Array,
        reward: Array,
        terminated: Array,
        truncated: Array,
        next_observation: Array,
        active: Array,
    ) -> tuple[Samples, Samples]:
        state = self._state
        rows, earned = self.tensor(active), self.tensor(reward).float()
        terminal, cut = self.tensor(terminated), self.tensor(truncated)
        own = np.isclose(action, self.model.head.to_environment(self._action)).reshape(len(action), -1).all(1)
        step = {
            "inputs": self._inputs,
            "x": self._x,
            "next_x": self._seen(next_observation, earned),
            "starts": state["starts"],
            "time": state["time"],
            "action": self._action,
            "log_prob": self.model.head.log_prob(self._output, self._action),
            "reward": earned,
            "terminated": terminal,
            "truncated": cut,
            "active": rows & self._sampled & self.tensor(own),
            "lived": rows,
        }
        before = {"memory": state["memory"]}
        over = terminal | cut
        following = {
            "memory": self._next_memory,
            "previous_action": self.model.head.encode(self._action),
            "previous_reward": earned,
        }
        # A number that is not finite would stay in the memory for good. A row that has one keeps what it had before the
        # step, and where an episode was to start there, it still is.
        whole = finite_rows(following)
        starts = torch.where(whole, 0.0, state["starts"]).masked_fill(over, 1.0)
        self._keep({"starts": starts, "time": torch.where(over, 0.0, state["time"] + 1)}, rows)
        self._keep(following, rows & whole)
        self._noise = None
        return step, before

    # --- learning -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def samples(self, steps: Samples, before: Samples) -> Samples:
        steps = {**steps, "active": steps["active"] & self._unbroken(steps)}
        length, _, rows = steps["active"].shape
        flat = {name: tensor.flatten(1, 2) for name, tensor in steps.items()}
        time = torch.arange(length, device=self.device)[:, None]
        last = (time == (flat["active"] * time).amax(0)) & flat["active"]  # past it the segment holds nothing
        followed = torch.cat([flat["lived"][1:], torch.zeros_like(flat["lived"][:1])])
        last = last | (flat["lived"] & ~followed)  # nor does a row hold anything where it is left out
        flat["truncated"] = flat["truncated"] | (last & ~flat["terminated"])
        flat["reward"], size = _from_level(steps, self.discount)
        estimates = {"discount": self.discount, "trace": self.trace, "shrinkage": SHRINKAGE}
        whole = with_advantages(flat, rows, **estimates, least=QUIET * size)
        names = ("inputs", "starts", "action", "log_prob", "advantage", "active")
        return {**{name: whole[name].transpose(1, 2) for name in names}, **before}

    def _unbroken(self, steps: Samples) -> Tensor:
        """[T, S, E] steps to which the memory comes from the segment's beginning, or from an empty one, without a step
        in which the row was left out: it stood still there, as it does not where the segment is gone through again."""
        if self._remembers_trial:
            return (~steps["lived"]).cumsum(0) == 0
        return unbroken(steps["lived"], steps["starts"])

    def loss(self, weights: Weights, samples: Samples) -> Tensor:
        return clipped_loss(self._log_prob(weights, samples), samples, CLIP)

    def score(self, weights: Weights, samples: Samples) -> Tensor:
        ratio = torch.exp(self._log_prob(weights, samples) - samples["log_prob"])
        return masked_mean(1 - ratio.clamp(max=LARGEST_RATIO) * samples["advantage"], samples["active"])

    def entropy(self, weights: Weights, samples: Samples) -> Tensor:
        return masked_mean(self.model.head.entropy(self._outputs(weights, samples)), samples["active"])

    def _outputs(self, weights: Weights, samples: Samples) -> Tensor:
        """Distribution parameters [N, T, output]."""
        inputs, starts = samples["inputs"].transpose(0, 1), samples["starts"].transpose(0, 1)
        return self._with(weights, inputs, samples["memory"], starts)[0].transpose(0, 1)

    def _log_prob(self, weights: Weights, samples: Samples) -> Tensor:
        return self.model.head.log_prob(self._outputs(weights, samples), samples["action"])


def _from_level(steps: Samples, discount: float) -> tuple[Tensor, Tensor]:
    """Rewards [T, B] as they differ from what keeps each stream's mean going, and the root mean square [S] of what they
    were, from steps [T, S, E].

    They are the errors r + γ v − v (r − v where the episode terminates) of the one value v whose mean error is 0. That
    changes no advantage (a shaping, Ng, Harada & Russell 1999), but nothing of a constant reward is left to the
    baseline, whose misfit at the cuts of a short segment would be followed as though it were a signal.
    """
    active, reward = steps["active"].float(), steps["reward"]
    passes = 1 - discount * (~steps["terminated"]).float()
    count, earned, passed, squared = (
        each.sum((0, 2)) for each in (active, active * reward, active * passes, active * reward.square())
    )
    value = earned / passed.clamp(min=torch.finfo(passed.dtype).eps)
    return (reward - value[:, None] * passes).flatten(1, 2), torch.sqrt(squared / count.clamp(min=1))
