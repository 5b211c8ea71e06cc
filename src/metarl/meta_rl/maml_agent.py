"""`MetaMAMLAgent`: a policy that adapts to a task by gradients of its own experience, and was meta-learned for it.

A shot is a gradient step. In training a trial has K + 1 rounds: after each of the first K every task's parameters take
a policy-gradient step (MAML, Finn et al. 2017, arXiv 1703.03400), and the last is what the meta-gradient improves. The
inner loss is the likelihood-ratio surrogate (Rothfuss et al. 2019, 1810.06784); the baseline is linear and fitted to
each task. The outer step is TRPO's (maml), or clipped PPO with a penalty on the divergence from what collected (promp,
Rothfuss et al. 2019).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from metarl.core.agent import Agent, Array, Metrics, block_size, check_rows, renewed_blocks, vector_size
from metarl.core.controller import by_row, finite_rows
from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig
from metarl.core.normalization import RunningMoments
from metarl.core.optimization import TrainingDiverged, flat_state, part_of
from metarl.core.policy import Actor
from metarl.core.policy_controller import PolicyController
from metarl.core.policy_gradient import (
    Round,
    by_task,
    in_windows,
    masked_mean,
    unbroken,
    with_advantages,
)
from metarl.core.trajectory import Trajectory
from metarl.meta_rl.compiled import Bound, Programs, worth_compiling
from metarl.meta_rl.inner_loop import Parameters
from metarl.meta_rl.maml_config import MAMLConfig
from metarl.meta_rl.meta_maml import MetaMAML
from metarl.meta_rl.meta_objective import MetaObjective
from metarl.meta_rl.supervised_tasks import even_groups

__all__ = ["MAMLConfig", "MetaMAMLAgent", "make_maml_agent"]


class MetaMAMLAgent(Agent):
    """An agent that adapts by policy gradients, its tasks in groups of one vmap each.

    Rows come in blocks of `trial_rows` with one task each; a trial of a single row is a block of its own. The memory of
    the policy, if it has one, is emptied at every episode start: what is learned of the task is in the parameters.

    Args:
        maml: a `MetaMAML` over an `Actor`.
        config: of the policy gradient and the outer step; the rate, the variant, the number of inner steps and whether
            to compile are those of `maml`. None: every row is a task of its own.
        num_updates: of the whole run, over which Adam's step size falls to 5 %; None: it stays.
        seed: of the actions that it samples.

    Raises:
        UsageError: no `MetaMAML` over an `Actor`, one with `multi_step_updates`, or a config that contradicts it.
    """

    explores_to_adapt = True
    _memory: Tensor
    _starts: Tensor
    _time: Tensor

    def __init__(
        self, maml: MetaMAML, config: MAMLConfig | None = None, *, num_updates: int | None = None, seed: int = 0
    ) -> None:
        if not isinstance(maml, MetaMAML) or not isinstance(maml.model, Actor):
            over = isinstance(maml, MetaMAML)
            got = f"one over {type(maml.model).__name__}" if over else type(maml).__name__
            raise UsageError(
                f"MetaMAMLAgent needs a MetaMAML over an Actor, got {got}: wrap the module, "
                "as in MetaMAML(Actor(observation_space, action_space, body=module))"
            )
        super().__init__(maml.model.observation_space, maml.model.action_space)
        self.maml, self.actor = maml, maml.model
        self.config = MAMLConfig(trial_rows=1) if config is None else config
        _check_agreement(maml, self.config)
        self.actor.eval()  # the gradient is that of one policy: it has no other one at every step
        self.trial_rounds = maml.inner_steps + 1
        self.trial_rows = self.config.trial_rows
        self.device = next(maml.model.parameters()).device
        self.objective = MetaObjective(maml, self.actor, self.config, num_updates)
        self.moments = RunningMoments(vector_size(self.observation_space))
        self.generator = torch.Generator().manual_seed(seed)
        self.begin_trial(0)

    # --- acting -------------------------------------------------------------------------------------------------------

    def begin_trial(self, num_rows: int, renew: Array | None = None) -> None:
        """As in `Agent`; whole blocks of `trial_rows` are renewed. Experience that no `update` has used is dropped."""
        rows = block_size(num_rows, self.trial_rows)
        self._params, self._stacked = self._renewed(num_rows, renew)
        self._rows = rows
        self._rounds: list[Round] = []
        if renew is None or bool(np.all(renew)):
            self._steps = next(self.actor.parameters()).new_zeros(num_rows // rows)
            self._begin_round(num_rows)
            return
        self._steps = self._steps.masked_fill(self._tensor(np.asarray(renew)[::rows]), 0)
        again, memory, starts, time = self._tensor(renew), self._memory, self._starts, self._time
        self._begin_round(num_rows)
        self._memory = by_row(again, self._memory, memory)
        self._starts, self._time = torch.where(again, self._starts, starts), torch.where(again, self._time, time)

    def _renewed(self, num_rows: int, renew: Array | None) -> tuple[Parameters, bool]:
        """θ for tasks that are renewed, the parameters that they have for the others."""
        fresh = self.maml.parameters()
        if renew is None or bool(np.all(renew)):
            return fresh, False
        check_rows(num_rows, len(self._starts))
        renewed = renewed_blocks(renew, self._rows)
        if not self._stacked:
            return fresh, False
        kept = ~self._tensor(renewed)
        adapted = {name: by_row(kept, self._params[name], fresh[name].detach()) for name in self.maml.adapted}
        return {**fresh, **adapted}, True

    def _begin_round(self, num_rows: int) -> None:
        """The worlds of all rows are reset."""
        self._memory = self.actor.init_state(num_rows).to(self.device)
        self._starts = torch.ones(num_rows, device=self.device)
        self._time = torch.zeros(num_rows, device=self.device)
        self._noise: Tensor | None = None
        self._acting: tuple[Hashable, Bound | None] = (), None  # parameters stand still in a round
        self._trajectory = Trajectory()
        self._windows: list[Tensor] = []

    @torch.no_grad()
    def _act(self, observation: Array) -> Array:
        check_rows(len(observation), len(self._starts))
        head = self.actor.head
        self._x = self._tensor(self.moments.normalize(observation))
        self._output, self._next_memory = self._policy(self._x, self._memory, self._starts)
        if self.explore:
            if self._noise is None:
                self._noise = head.noise(len(observation), self.generator).to(self.device)
            self._action = head.sample(self._output, self._noise)
        else:
            self._action = head.mode(self._output)
        return head.to_environment(self._action)

    def _policy(self, x: Tensor, memory: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Distribution parameters [B, output] and next memory [B, ...], each block of rows by its own parameters."""
        params = self._params if self._stacked else {}
        programs = self._programs
        if programs is None:
            return self._policy_of(params, x, memory, starts)
        key = "policy", self._rows, self.maml.frozen
        known, policy = self._acting
        if policy is None or known != key:
            policy = programs.bound(key, self._policy_of, [params], [x, memory, starts])
            self._acting = key, policy
        output, memory = policy(x, memory, starts)
        return output, memory

    def _policy_of(self, params: Parameters, x: Tensor, memory: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        if not params:
            output, memory = self.actor(x[None], memory, starts[None])
            return output[0], memory

        def one_task(params: Parameters, *given: Tensor) -> tuple[Tensor, Tensor]:
            x, memory, starts = given
            result: tuple[Tensor, Tensor] = self.maml.functional_forward(x[None], params, memory, starts[None])
            return result

        blocks = (tensor.unflatten(0, (-1, self._rows)) for tensor in (x, memory, starts))
        output, memory = self.maml.map_tasks(one_task, params, *blocks)
        return output.flatten(0, 2), memory.flatten(0, 1)

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
        if len(self._trajectory) % self.config.window == 0:
            self._windows.append(self._memory)
        mask = self._tensor(active)
        done = self._tensor(terminated | truncated)
        self._trajectory.append(
            raw=self._tensor(observation),
            x=self._x,
            next_x=self._tensor(self.moments.normalize(next_observation)),
            starts=self._starts,
            time=self._time,
            output=self._output,
            action=self._action,
            reward=self._tensor(reward.astype(np.float32)),
            terminated=self._tensor(terminated),
            truncated=self._tensor(truncated),
            active=mask,
        )
        # A number that is not finite would stay in the memory for good. A row that has one keeps what it had before the
        # step, and where an episode was to start there, it still is. That all are finite is known by their sum, in a
        # fraction of the time.
        finite = math.isfinite(float(self._next_memory.sum()))
        kept = mask if finite else mask & finite_rows({"memory": self._next_memory})
        self._memory = by_row(kept, self._next_memory, self._memory)
        self._starts = torch.where(kept | (mask & done), done.float(), self._starts)
        self._time = torch.where(mask, torch.where(done, 0.0, self._time + 1), self._time)
        self._noise = None

    @property
    def _programs(self) -> Programs | None:
        """None where the agent is measured: other numbers of rows or of steps would be other programs."""
        return self.maml.programs if self.training else None

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self.device)

    # --- adapting -----------------------------------------------------------------------------------------------------

    def adapt(self) -> Metrics:
        """One policy-gradient step of every task on the round that it just went through; then a new round begins.

        Steps beyond the K of training shrink: step k is K / k of a whole one. Normalised advantages do not vanish where
        a policy is good, so steps of one size would wander about.

        Returns: "gradient_steps", and "reward", the mean of a step of the round.

        Raises:
            TrainingDiverged: parameters are not finite afterwards; it names the task, counted by blocks of rows. The
                round is dropped, and the trial may go on with the parameters of before.
        """
        collected = self._collected()
        adapted = self._adapted(collected)
        for name in self.maml.adapted:
            broken = torch.nonzero(~finite_rows({name: adapted[name]})).flatten().tolist()
            if broken:
                self._begin_round(len(self._starts))  # kept, it would break every later step
                raise TrainingDiverged(
                    f"not finite: {name} of task {broken[0]} after adapting; try a lower inner_lr, or leave out "
                    "observations and rewards that are not finite"
                )
        if self.training:
            self._rounds.append(collected)
        self._params, self._stacked, self._steps = adapted, True, self._steps + 1
        self._begin_round(len(self._starts))
        return {"gradient_steps": 1.0, "reward": _mean_reward(collected)}

    @torch.no_grad()
    def _adapted(self, collected: Round) -> Parameters:
        """Every task's parameters after the step, in groups of tasks that stay in the cache."""
        scale = self.maml.inner_steps / (self._steps + 1).clamp(min=self.maml.inner_steps)
        by_step = {name: values for name, values in collected.items() if name != "raw"}
        programs = self._programs
        most = self.maml.samples_at_once(programs is not None) // collected["starts"][:, : self._rows].numel()
        shared, own = self.maml.split(self._params)

        def call(group: slice) -> tuple[Round, Parameters, Tensor]:
            rows = slice(group.start * self._rows, group.stop * self._rows)
            batch = self._batch({name: values[:, rows] for name, values in by_step.items()})
            start = {name: value[group] for name, value in own.items()} if self._stacked else {}
            return batch, start, scale[group]

        def step(batch: Round, start: Parameters, scale: Tensor) -> tuple[Tensor, ...]:
            params = {**self.maml.parameters(), **start}
            stepped = self.maml.inner_step(self.objective.inner_loss, params, batch, bool(start), scale)
            return tuple(stepped[name] for name in own)

        calls = map(call, even_groups(len(self._starts) // self._rows, most))
        each = (
            [step(*given) for given in calls]
            if programs is None
            else programs.run_trees(("step", self.maml.frozen), step, calls)
        )
        stepped = zip(own, zip(*each, strict=True), strict=True)
        return {**shared, **{name: torch.cat(parts) for name, parts in stepped}}

    @torch.no_grad()
    def trial_state(self, row: int = 0) -> Array:
        """By how much adapting has changed each parameter of the row's task."""
        fresh, task = self.maml.parameters(), row // self._rows
        moved = [
            (self._params[name][task] - fresh[name] if self._stacked else torch.zeros_like(fresh[name])).flatten()
            for name in self.maml.adapted
        ]
        change: Array = torch.cat(moved).cpu().numpy()
        return change

    def controller(self) -> PolicyController:
        """As in `Agent`: the policy, with the rates of its inner steps."""
        config = self.config
        controller = PolicyController(
            copy.deepcopy(self.actor),
            self.observation_space,
            self.action_space,
            copy.deepcopy(self.moments),
            discount=config.discount,
            trace=config.trace,
        )
        rates = {name: rate.detach().clone() for name, rate in self.maml.rates().items() if isinstance(rate, Tensor)}
        controller.rates = rates or None
        return controller

    def _collected(self) -> Round:
        """The running round, [T, B, ...], zeros where a row took no part."""
        if not len(self._trajectory):
            raise UsageError("there is no experience to adapt to or to learn from: act and observe first")
        steps = self._trajectory.stack()
        left_out = ~steps["active"]
        for name, values in steps.items():  # a mask alone would not do: 0 times what is not finite is not 0
            steps[name] = values.masked_fill(left_out.view(*left_out.shape, *[1] * (values.ndim - 2)), 0)
        return {**steps, "memory": torch.stack(self._windows)}

    @torch.no_grad()
    def _batch(self, collected: Round) -> Round:
        """A round by task, in windows [M, L, W E, ...], with advantages and the log-probabilities it was collected by.

        "memory" [M, W E, ...] is what the policy remembered as each window began. Where a row is left out, its returns
        are cut, and from the rest of that episode a policy with a memory does not learn.
        """
        log_prob = self.actor.head.log_prob(collected["output"], collected["action"])
        config = self.config
        by_step = {name: values for name, values in collected.items() if name not in ("raw", "memory")}
        active = by_step["active"]
        followed = torch.cat([active[1:], torch.ones_like(active[:1])])
        by_step["truncated"] = by_step["truncated"] | (active & ~followed)
        if collected["memory"].numel():
            by_step["active"] = active & unbroken(active, by_step["starts"])
        batch = with_advantages(
            {**by_step, "log_prob": log_prob}, self._rows, discount=config.discount, trace=config.trace
        )
        names = ("x", "starts", "action", "output", "log_prob", "active", "advantage")
        windows = in_windows({name: batch[name] for name in names}, config.window)
        memory = by_task(collected["memory"], self._rows).flatten(1, 2)  # [M, W E, ...]
        return {**windows, "memory": memory}

    # --- learning -----------------------------------------------------------------------------------------------------

    def _held(self) -> list[Round]:
        return [*self._rounds, self._collected()]

    def take_experience(self) -> dict[str, Tensor]:
        rounds, self._rounds = self._held(), []
        self._begin_round(len(self._starts))
        return {f"{number}.{name}": values for number, each in enumerate(rounds) for name, values in each.items()}

    def give_experience(self, experience: Mapping[str, Tensor]) -> None:
        rounds: list[Round] = []
        for key, values in experience.items():
            number, _, name = key.partition(".")
            rounds += [{} for _ in range(int(number) + 1 - len(rounds))]
            rounds[int(number)][name] = values.to(self.device)
        *earlier, last = rounds
        self.begin_trial(last["x"].shape[1])
        self._rounds = earlier
        self._windows = [*last.pop("memory")]
        self._trajectory = Trajectory.unstack(last)

    def update(self) -> Metrics:
        """One outer step on the trial held: its first K rounds are adapted to, the last is improved.

        Returns: what the outer step reports; and before it the mean reward of a step in the first and in the last
        round, and the entropy of the policies of the last.
        """
        rounds = self._held()
        if len(rounds) != self.trial_rounds:
            raise UsageError(f"an update needs a trial of {self.trial_rounds} rounds, got {len(rounds)}")
        batches = [self._batch(each) for each in rounds]
        metrics = self.objective.step(batches, self._programs)
        self.moments.update(np.concatenate([each["raw"][each["active"]].cpu().numpy() for each in rounds]))
        self.begin_trial(len(self._starts))
        before, after = _mean_reward(rounds[0]), _mean_reward(rounds[-1])
        adapted = rounds[-1]
        entropy = float(masked_mean(self.actor.head.entropy(adapted["output"]), adapted["active"]))
        return {**metrics, "entropy": entropy, "reward_before": before, "reward_after": after}

    # --- keeping ------------------------------------------------------------------------------------------------------

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        parts = {"maml": self.maml.state_dict(), "moments": self.moments.state_dict()}
        return {**flat_state(parts), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.maml.load_state_dict(part_of(state, "maml"))
        self.moments.load_state_dict(part_of(state, "moments"))
        self.generator.set_state(state["generator"].cpu())


def _check_agreement(maml: MetaMAML, config: MAMLConfig) -> None:
    """Refuse settings that the `MetaMAML` has in another way, and those of it that an agent does not go by."""
    held = {name: getattr(maml, name) for name in ("inner_lr", "inner_steps", "first_order", "reptile", "learn_rates")}
    held["adapt"] = "all" if len(maml.adapted) == len(maml.parameters()) else "head"
    held["compile"] = maml.programs is not None
    for name, value in held.items():
        if getattr(config, name) not in (value, getattr(MAMLConfig, name)):
            raise UsageError(
                f"{name} is {getattr(config, name)} in the config and {value} in the MetaMAML: give it there"
            )
    if maml.multi_step_updates:
        raise UsageError(
            "multi_step_updates is for supervised tasks: an agent improves the last round of a trial alone"
        )


def _mean_reward(collected: Round) -> float:
    return float(masked_mean(collected["reward"], collected["active"]))


def make_maml_agent(
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    config: MAMLConfig,
    memory: MemoryConfig,
    *,
    num_updates: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    env_steps: int = 0,
) -> MetaMAMLAgent:
    """A `MetaMAMLAgent` over a new `Actor`, as `--algo maml` and its variants make it.

    Args:
        env_steps: of all rows in the whole run, about: long runs are compiled, where the config leaves it open.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # initialisers take no generator, and draw on the CPU
        actor = Actor(observation_space, action_space, memory)
    maml = MetaMAML(
        actor,
        config.inner_lr,
        config.learning_rate,
        config.first_order,
        config.inner_steps,
        reptile=config.reptile,
        adapt=("output.*",) if config.adapt == "head" else ("*",),
        learn_rates=config.learn_rates,
        compile=worth_compiling(config.compile, actor, device, env_steps),
    ).to(device)
    return MetaMAMLAgent(maml, config, num_updates=num_updates, seed=seed)
