"""`AdaptationAgent`: an agent that goes on learning where it runs, in every task by itself, guarded.

What it acts with is a `Controller`: a planner with a dynamics model, or a policy. What adapts, by which steps, and when
to go back is the `AdaptationConfig` of its `Adapter`; the guard's bound (`metarl.adaptation.guard`) holds in each
stream for the sum of the controller's `score`: a planner's error of prediction, a policy's estimated loss of return.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from metarl.adaptation.config import AdaptationConfig
from metarl.adaptation.parameters import select_parameters
from metarl.adaptation.streams import Streams
from metarl.adaptation.test_time_adaptation import Adapter
from metarl.core.agent import Agent, Array, Metrics, block_size, check_rows, renewed_blocks
from metarl.core.controller import Controller, Samples, by_row, finite_rows
from metarl.core.errors import UsageError
from metarl.core.optimization import TrainingDiverged, flat_state, part_of
from metarl.core.policy import Actor
from metarl.core.policy_controller import PolicyController


class AdaptationAgent(Agent):
    """An agent whose model or policy adapts online to what it observes.

    ::

        agent = AdaptationAgent.from_agent(trained, AdaptationConfig(learning_rate=0.05))
        agent = AdaptationAgent(Adapter(Actor(observation_space, action_space)))

    Rows come in streams of `trial_rows` neighbours in one task, with weights, recent experience and a guard of their
    own; a trial of a single row is a stream of its own. A trial begins with the source weights. An observation of the
    `AdaptationConfig` is a step of a stream. Steps since the last update make a segment: it is scored, then kept as
    recent experience (by a planner as transitions, by a policy as whole sequences, a row each), then learned from.
    Where something between agent and machine has replaced an action, give `observe` what was done instead: a planner
    learns from it, a policy learns nothing from that step.

    Nothing but `update` changes what tasks share: it moves the source weights towards the mean of those that streams
    have adapted to (Reptile, Nichol et al. 2018, arXiv 1803.02999), by `meta_rate`.

    Args:
        adapter: its model is the controller's; the model itself, the configuration and the seed are used.
        controller: how the model acts, by what it learns, and which parameters matter to that; None: the model is an
            `Actor`.
        trial_rows: rows of a stream.
        meta_rate: of `update`, in [0, 1]; 0: deployed agents share nothing.
        seed: of draws from recent experience, and of a policy's noise if no controller is given; None: the adapter's.

    Raises:
        UsageError: an adapter with a loss of its own, or `parameters` of which none acts, or none has one of the
            meta-learned rates that there are; segments of a single step for a policy.
    """

    def __init__(
        self,
        adapter: Adapter,
        controller: Controller | None = None,
        *,
        trial_rows: int = 1,
        meta_rate: float = 0.0,
        seed: int | None = None,
    ) -> None:
        if adapter.loss_fn is not functional.mse_loss:
            raise UsageError("an AdaptationAgent learns by its controller's loss: give its Adapter no loss_fn")
        seed = adapter.generator.initial_seed() if seed is None else seed
        if controller is None:
            if not isinstance(adapter.model, Actor):
                raise UsageError(
                    f"AdaptationAgent needs a controller for a {type(adapter.model).__name__}: give one over the same "
                    "model, or make the agent by AdaptationAgent.from_agent(trained_agent)"
                )
            controller = PolicyController(
                adapter.model, adapter.model.observation_space, adapter.model.action_space, seed=seed
            )
        if controller.model is not adapter.model:
            raise UsageError("the adapter and the controller need the same model object")
        if trial_rows < 1 or not 0 <= meta_rate <= 1:
            raise UsageError(f"trial_rows is at least 1 and meta_rate in [0, 1], got {trial_rows} and {meta_rate}")
        super().__init__(controller.observation_space, controller.action_space)
        self.adapter, self.config, self._controller = adapter, adapter.config, controller
        self.names = select_parameters(controller.model, self.config.parameters, controller.acting)
        if controller.rates is not None and not set(self.names) & set(controller.rates):
            raise UsageError(
                f"meta-learning found rates for {', '.join(controller.rates)} alone, and parameters names none of "
                "them: choose all, or patterns of those"
            )
        self.explores_to_adapt = controller.explores_to_adapt
        self.trial_rows, self.meta_rate = trial_rows, meta_rate
        self.generator = torch.Generator().manual_seed(seed)
        self._segment_steps = min(self.config.update_every, self.config.rollback_window)
        self.begin_trial(0)

    @classmethod
    def from_agent(
        cls, agent: Agent, config: AdaptationConfig | None = None, *, meta_rate: float = 0.0, seed: int = 0
    ) -> AdaptationAgent:
        """A copy of a trained agent that adapts online; the agent itself is left alone.

        It explores where the agent does, and where it must in order to adapt. An agent with meta-learned inner rates
        takes steps of `learning_rate` times those. `seed` is that of all draws.
        """
        controller = agent.controller()
        controller.seed(seed)
        adapter = Adapter(controller.model, config, seed=seed)
        adapting = cls(adapter, controller, trial_rows=agent.trial_rows, meta_rate=meta_rate)
        adapting.explore = agent.explore or adapting.explores_to_adapt
        return adapting

    # --- acting -------------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)  # or what it keeps could be written to there alone
    def begin_trial(self, num_rows: int, renew: Array | None = None) -> None:
        """As in `Agent`; all rows of a stream are renewed or none. Given experience that was not used is dropped."""
        rows = block_size(num_rows, self.trial_rows)
        if self._segment_steps * rows == 1 and isinstance(self._controller, PolicyController) and self.config.num_steps:
            raise UsageError(
                "a policy learns from how rewards differ within a segment, and one of a single step teaches it "
                "nothing: set update_every and rollback_window to at least 2"
            )
        self._given: dict[str, Tensor] | None = None
        if renew is None or bool(np.all(renew)):
            self._controller.begin(num_rows)
            self._rows, number = rows, num_rows // rows
            self.streams = Streams(self._controller, self.names, self.config, number, self.generator)
            self._segment: Samples = {}
            self._before: Samples = {}
            self._filled = torch.zeros(number, dtype=torch.int64)  # steps in the segment of each stream
            self._observed = torch.zeros(number, dtype=torch.int64)  # steps of the trial
            return
        check_rows(num_rows, len(self._filled) * self._rows)
        again = torch.from_numpy(renewed_blocks(renew, rows))
        self._controller.begin(num_rows, renew)
        self.streams.renew(again)
        self._filled[again] = self._observed[again] = 0

    def _act(self, observation: Array) -> Array:
        return self._controller.act(observation, self.streams.weights, self.explore)

    @torch.inference_mode(False)
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
        step, before = self._controller.observe(
            observation, action, reward, terminated, truncated, next_observation, active
        )
        self.expected = self._controller.expected
        finite = finite_rows(step)
        step["active"] = step["active"] & finite
        self._append({name: by_row(finite, given, torch.zeros_like(given)) for name, given in step.items()}, before)
        went_on = self._any_row(torch.from_numpy(active))
        self._filled += went_on
        self._observed += went_on
        due = went_on & (self._observed % self.config.update_every == 0)
        to_reset = torch.zeros_like(due)
        if self.config.reset_every is not None:
            to_reset = went_on & (self._observed % self.config.reset_every == 0)
        # A memory that a step left alone is not what the segment would bring it to: the segment ends there.
        broken = self._any_row(torch.from_numpy(active) & ~finite.cpu())
        self._close(due | to_reset | broken | (self._filled == self._segment_steps))
        self.streams.reset(to_reset)
        # Without a new sample nothing would score what another update from the old ones does.
        self._learn(due & ~to_reset & self.streams.fresh)

    def _any_row(self, rows: Tensor) -> Tensor:
        """[S] streams with one of the rows marked [B]."""
        streams: Tensor = rows.unflatten(0, (-1, self._rows)).any(1)
        return streams

    def _append(self, step: Samples, before: Samples) -> None:
        """Put a step into the running segments, at the place that each has come to."""
        number = len(self._filled)
        streams = torch.arange(number)
        for name, tensor in step.items():
            values = tensor.unflatten(0, (number, -1))
            if name not in self._segment:
                self._segment[name] = values.new_zeros(self._segment_steps, *values.shape)
            self._segment[name][self._filled, streams] = values
        begins = self._filled == 0
        for name, tensor in before.items():
            values = tensor.unflatten(0, (number, -1))
            self._before.setdefault(name, torch.zeros_like(values))[begins] = values[begins]

    def _close(self, streams: Tensor) -> None:
        """Score and keep the segments of the streams marked [S]."""
        chosen = torch.nonzero(streams & (self._filled > 0)).flatten()
        if not len(chosen):
            return
        filled = self._filled[chosen]
        steps = {name: tensor[:, chosen] for name, tensor in self._segment.items()}
        there = torch.arange(self._segment_steps)[:, None] < filled  # [T, D]
        steps["active"] = steps["active"] & there[..., None].to(steps["active"].device)
        before = {name: tensor[chosen] for name, tensor in self._before.items()}
        self.streams.take_in(self._controller.samples(steps, before), chosen, filled.tolist())
        self._filled[chosen] = 0

    def _learn(self, streams: Tensor) -> None:
        """An update of those streams marked [S] that have experience and whose guard does not wait."""
        able = streams & (self.streams.seen > 0) & ~self.streams.waiting
        if bool(able.any()):
            self.streams.learn(torch.nonzero(able).flatten())

    @torch.inference_mode(False)
    @torch.no_grad()
    def adapt(self) -> Metrics:
        """An update of every stream now, whether it is due or not.

        Returns: "gradient_steps", a stream; "loss" and "frozen_loss", means of what was scored in this trial (NaN with
        the guard off); "rollbacks" and "steps", sums over streams; "waiting" and "distance", means over streams.

        Raises:
            UsageError: nothing was observed in this trial.
        """
        if not bool(self._observed.any()):
            raise UsageError("there is no experience to adapt to: act and observe first")
        everyone = torch.ones_like(self._filled, dtype=torch.bool)
        self._close(everyone)
        before = self.streams.steps.clone()
        self._learn(everyone)
        taken = (self.streams.steps - before).float().mean().item()
        return {"gradient_steps": taken, **self.streams.metrics()}

    def metrics(self) -> Metrics:
        """How this trial went so far, as `adapt` reports it, without an update."""
        return self.streams.metrics()

    @torch.inference_mode(False)
    @torch.no_grad()
    def reset(self) -> None:
        """Undo all adaptation now: every stream returns to the source and forgets recent experience.

        The trial goes on: what is remembered and the guards' accounts stay.
        """
        everyone = torch.ones_like(self._filled, dtype=torch.bool)
        self._close(everyone)
        self.streams.reset(everyone)

    # --- learning -----------------------------------------------------------------------------------------------------

    def take_experience(self) -> dict[str, Tensor]:
        """The weights [S, P] that the streams of this trial have adapted to."""
        if self._given is not None:
            experience, self._given = self._given, None
            return experience
        if not (self.training and bool(self._observed.any())):
            raise UsageError("the agent holds no experience: run a trial with agent.training = True first")
        experience = {"weights": self.streams.values.clone()}
        self.begin_trial(len(self._filled) * self._rows)
        return experience

    def give_experience(self, experience: Mapping[str, Tensor]) -> None:
        self._given = {name: tensor.to(self._controller.device) for name, tensor in experience.items()}

    @torch.no_grad()
    def update(self) -> Metrics:
        """θ ← θ + meta_rate · (mean of what streams have adapted to − θ). Returns "distance", ‖mean − θ‖ / ‖θ‖.

        Raises:
            TrainingDiverged: the weights of a stream are not finite; the source is as it was.
        """
        weights = self.take_experience()["weights"]
        broken = torch.nonzero(~finite_rows({"weights": weights})).flatten().tolist()
        if broken:  # in the mean they would be those of all, even times a meta_rate of 0
            raise TrainingDiverged(f"not finite: the weights of stream {broken[0]}; try a lower learning_rate")
        source = self.streams.source
        step = weights.mean(0) - source
        self.streams.write_source(source + self.meta_rate * step)
        self.begin_trial(len(self._filled) * self._rows)
        return {"distance": float(step.norm() / (source.norm() or 1.0))}

    # --- keeping ------------------------------------------------------------------------------------------------------

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)
        self._controller.seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        """As in `Agent`, with the trial that runs: weights, guards, recent experience and segment of every stream, and
        what the controller remembers."""
        parts = {
            "model": self.adapter.model.state_dict(),
            "moments": self._controller.moments.state_dict(),
            "rates": self._controller.rates or {},
            "random": {"draws": self.generator.get_state(), "noise": self._controller.generator.get_state()},
            "trial": {"rows": torch.tensor(self._rows), "filled": self._filled, "observed": self._observed},
            "remembered": self._controller.remembered(),
            "streams": self.streams.state_dict(),
            "segment": self._segment,
            "before": self._before,
        }
        return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in flat_state(parts).items()}

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As in `Agent`; it goes on in the trial that the other was in.

        Raises:
            UsageError: that one was configured otherwise; nothing has changed.
        """
        self._check_alike(state)
        self.adapter.model.load_state_dict(part_of(state, "model"))
        self._controller.moments.load_state_dict(part_of(state, "moments"))
        if rates := part_of(state, "rates"):
            self._controller.rates = {name: rate.to(self._controller.device, copy=True) for name, rate in rates.items()}
        random = part_of(state, "random")
        self.generator.set_state(random["draws"].cpu())
        self._controller.generator.set_state(random["noise"].cpu())
        trial = part_of(state, "trial")
        self.begin_trial(len(trial["filled"]) * int(trial["rows"]))
        self._controller.remember(part_of(state, "remembered"))
        self.streams.load_state_dict(part_of(state, "streams"))
        device = self._controller.device
        self._segment, self._before = (
            {name: tensor.to(device, copy=True) for name, tensor in part_of(state, part).items()}
            for part in ("segment", "before")
        )
        self._filled, self._observed = (trial[name].to("cpu", copy=True) for name in ("filled", "observed"))

    def _check_alike(self, state: Mapping[str, Tensor]) -> None:
        """Refuse the state of an agent whose configuration gives what is kept another form."""
        segments, recent = (part_of(state, part).values() for part in ("segment", "streams.recent"))
        values, moments = (state[f"streams.stream.{name}"].shape[-1] for name in ("values", "_moments"))
        block, streams = int(state["trial.rows"]), len(state["trial.filled"])
        for name, alike in (
            ("update_every or rollback_window", all(len(steps) == self._segment_steps for steps in segments)),
            ("buffer_size", all(rows.shape[1] <= self.config.buffer_size for rows in recent)),
            ("parameters", values == len(self.streams.source)),
            ("optimizer", moments == self.streams._moments.shape[-1]),
            ("trial_rows", block == (1 if block * streams == 1 else self.trial_rows)),
        ):
            if not alike:
                raise UsageError(f"the state is of an agent with another {name}: make this one as that one was made")
