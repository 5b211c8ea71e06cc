"""`AgentCoordinator`: a population of agents, each with its own rows.

What it coordinates is who sees what and who acts where; the agents share no parameters and no experience.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np

from metarl.core.agent import Agent, Array, Metrics, rows_of
from metarl.core.errors import UsageError, unknown_name
from metarl.core.population import AgentResult, AgentRun, OnEpisode, in_pool, in_turn, play
from metarl.core.shared_worlds import share
from metarl.core.task import Task
from metarl.core.threads import torch_threads

T = TypeVar("T")
Mode: TypeAlias = Literal["parallel", "sequential"]
Grouped: TypeAlias = "Array | list[Any] | tuple[Any, ...] | Mapping[str, Any]"
"""Values of several agents: a list in their order, a mapping by id, or one batch whose rows they share in order."""


class AgentFailed(RuntimeError):
    """An agent raised. The message names it; the cause is what it raised."""


class AgentCoordinator:
    """A population of agents, each with its own rows, and a seed of its own: those of one seed explore by equal draws.

    coordinator = AgentCoordinator()
    coordinator.register_agent(memory_agent, "memory")
    coordinator.register_agent(maml_agent, "MAML")
    actions = coordinator.run_step_all(env.reset())                    # step by step, by hand

    tasks = coordinator.distribute(distribution.test)
    results = coordinator.run_episodes(distribution.make_env, 3, 200, tasks=tasks)    # whole episodes
    print(results_table(results))
    """

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self._rows: dict[str, int] = {}

    def register_agent(self, agent: Agent, agent_id: str) -> None:
        """Add an agent under a name that no other has.

        Raises:
            UsageError: no `Agent`, or the name or the agent itself is registered already.
        """
        if not isinstance(agent, Agent):
            raise UsageError(f"agent '{agent_id}' must be a metarl.core.agent.Agent, got {type(agent).__name__}")
        if agent_id in self.agents:
            raise UsageError(f"an agent '{agent_id}' is registered already; choose another id")
        for other_id, other in self.agents.items():
            if other is agent:
                raise UsageError(
                    f"agent '{agent_id}' is registered already as '{other_id}', and has one memory: register a "
                    "copy.deepcopy of it, and seed() that, or both draw the same"
                )
        self.agents[agent_id] = agent

    def unregister_agent(self, agent_id: str) -> Agent:
        """Take an agent out of the population, and return it.

        Raises:
            UsageError: no agent has this name.
        """
        self._check_some_agents()
        if agent_id not in self.agents:
            raise unknown_name("agent", agent_id, self.agents)
        self._rows.pop(agent_id, None)
        return self.agents.pop(agent_id)

    # --- step by step -------------------------------------------------------------------------------------------------

    def begin_trial_all(self) -> None:
        """Every agent begins a new trial at its next `run_step_all`."""
        self._rows = {}

    @overload
    def run_step_all(self, observations: Mapping[str, Any]) -> dict[str, Array]: ...
    @overload
    def run_step_all(self, observations: list[Any] | tuple[Any, ...]) -> list[Array]: ...
    @overload
    def run_step_all(self, observations: Array) -> Array: ...
    def run_step_all(self, observations: Grouped) -> Any:
        """Actions of the agents for their observations, in the form that the observations came in.

        An agent whose number of rows is not what it was before begins a trial. A mapping may leave agents out.

        Raises:
            UsageError: no agent is registered, an unknown id, or observations that do not split into one part an agent
                or are not of its space.
        """
        parts = self._split(observations, "observations")
        actions: dict[str, Array] = {}
        for agent_id, part in parts.items():
            agent, observation = self.agents[agent_id], np.asarray(part)
            with _named(agent_id):
                num_rows = rows_of(observation, agent.observation_space)
                if self._rows.get(agent_id) != num_rows:
                    agent.begin_trial(num_rows)
                    self._rows[agent_id] = num_rows
                actions[agent_id] = agent.act(observation)
        if isinstance(observations, Mapping):
            return actions
        if isinstance(observations, list | tuple):
            return list(actions.values())
        return np.concatenate(list(actions.values()))

    def observe_all(
        self,
        observations: Grouped,
        actions: Grouped,
        rewards: Grouped,
        terminated: Grouped,
        truncated: Grouped,
        next_observations: Grouped,
    ) -> None:
        """Every agent takes in its part of one step: the arguments of `Agent.observe`, each in a form that
        `run_step_all` takes.

        Raises:
            UsageError: something is missing for an agent that has observations, or is not what `Agent.observe` takes.
        """
        given = {
            "observations": observations,
            "actions": actions,
            "rewards": rewards,
            "terminated": terminated,
            "truncated": truncated,
            "next_observations": next_observations,
        }
        parts = {name: self._split(values, name) for name, values in given.items()}
        for agent_id in parts["observations"]:
            for name, part in parts.items():
                if agent_id not in part:
                    raise UsageError(f"{name}: there are none for agent '{agent_id}', which has observations; add them")
        for agent_id in parts["observations"]:
            with _named(agent_id):
                self.agents[agent_id].observe(*(part[agent_id] for part in parts.values()))

    def adapt_all(self, mode: Mode = "parallel") -> dict[str, Metrics]:
        """`adapt` of every agent. Where one raises, the others still finish, and `AgentFailed` names it."""
        return self._all({agent_id: agent.adapt for agent_id, agent in self.agents.items()}, mode)

    def update_all(self, mode: Mode = "parallel") -> dict[str, Metrics]:
        """`update` of every agent. Where one raises, the others still finish, and `AgentFailed` names it."""
        return self._all({agent_id: agent.update for agent_id, agent in self.agents.items()}, mode)

    # --- whole episodes -----------------------------------------------------------------------------------------------

    def distribute(
        self, tasks: Sequence[Task], mode: Literal["everyone", "deal"] = "everyone"
    ) -> dict[str, tuple[Task, ...]]:
        """Tasks by agent: every agent meets every task, or the tasks are dealt out in turn.

        Raises:
            UsageError: no agent is registered, an unknown mode, or fewer tasks to deal out than agents.
        """
        self._check_some_agents()
        if mode not in ("everyone", "deal"):
            raise unknown_name("mode", mode, ("everyone", "deal"))
        if mode == "everyone":
            return dict.fromkeys(self.agents, tuple(tasks))
        if len(tasks) < len(self.agents):
            raise UsageError(f"{len(tasks)} tasks cannot be dealt out to {len(self.agents)} agents: give one each")
        return {agent_id: tuple(tasks[first :: len(self.agents)]) for first, agent_id in enumerate(self.agents)}

    def run_episodes(
        self,
        env: Any,
        num_episodes: int,
        max_steps: int,
        mode: Mode = "parallel",
        *,
        tasks: Mapping[str, Sequence[Task]] | None = None,
        adapt: bool = True,
        seed: int | None = None,
        on_episode: OnEpisode | None = None,
    ) -> dict[str, AgentResult]:
        """A trial of every agent: `num_episodes` episodes in every row, with `adapt` between one and the next.

        With `tasks`, every agent has worlds of its own, and a thread that runs all of its trial. Without, they share
        `env`, and meet after each step: rows of a batch are split between them in their order, players of a game go by
        name. Both modes give the same results, as long as the agents draw from generators of their own: all runs with
        one torch thread an agent.

        Agents act and collect as their flags say. `load_agent` gives an agent as it is measured; one that was just made
        or trained explores, and keeps what it sees for `update`, unless it is told not to, as an evaluation does:
        `agent.training, agent.explore = False, agent.explores_to_adapt`. An agent in training takes in every step of
        its rows; another one ignores rows that wait for the others to finish the episode.

        Args:
            env: what the agents share: a `metarl.Environment`, a `gymnasium.vector.VectorEnv` with same-step autoreset,
                or a PettingZoo parallel environment. With `tasks`: a function that makes worlds for a sequence of
                tasks, such as `TaskDistribution.make_env`; they are closed afterwards.
            max_steps: an episode is truncated after so many steps.
            mode: "parallel" gives every agent a thread, "sequential" takes one after the other.
            tasks: by agent, as `distribute` returns them; each is given `agent.trial_rows` neighbouring rows.
            adapt: whether agents adapt between episodes.
            seed: of the worlds, at the first reset.
            on_episode: called with an agent's id and its results so far when it has finished an episode; with `tasks`
                in the thread of that agent.

        Returns:
            results by agent. One that raised has its `failure` there (and a warning says so); what it had finished
            before, and the results of the others, are kept. What worlds or `on_episode` raise, and Ctrl-C, ends the run
            of all: they stop at their next step, and then their worlds are closed.

        Raises:
            UsageError: no agent is registered, no episode or step, an unknown mode, tasks that are not given by agent,
                or an `env` that the agents cannot share or do not fit.
        """
        self._check_some_agents()
        if min(num_episodes, max_steps) < 1:
            raise UsageError(f"num_episodes and max_steps are at least 1, got {num_episodes} and {max_steps}")
        how = {
            "num_episodes": num_episodes,
            "max_steps": max_steps,
            "adapt": adapt,
            "seed": seed,
            "on_episode": on_episode,
            "stop": threading.Event(),
        }
        with torch_threads(1), self._pool(mode) as pool:
            runs = self._run_shared(env, pool, how) if tasks is None else self._run_apart(env, tasks, pool, how)
        for agent_id, run in runs.items():
            if run.failure:
                warnings.warn(f"agent '{agent_id}' failed {run.failure}", RuntimeWarning, stacklevel=2)
        return {agent_id: run.result() for agent_id, run in runs.items()}

    def _run_shared(self, env: Any, pool: ThreadPoolExecutor, how: Mapping[str, Any]) -> dict[str, AgentRun]:
        worlds = share(env, list(self.agents))
        worlds.check(self.agents)
        runs = {agent_id: AgentRun(agent, worlds.rows[agent_id]) for agent_id, agent in self.agents.items()}
        self._rows = {}  # agents are in another trial from now on, also where the run is broken off
        play(worlds, runs, partial(in_pool, pool), **how)
        return runs

    def _run_apart(
        self,
        make_env: Callable[[Sequence[Task]], Any],
        tasks: Mapping[str, Sequence[Task]],
        pool: ThreadPoolExecutor,
        how: Mapping[str, Any],
    ) -> dict[str, AgentRun]:
        if not isinstance(tasks, Mapping) or set(tasks) != set(self.agents):
            given = ", ".join(tasks) if isinstance(tasks, Mapping) else f"a {type(tasks).__name__}"
            raise UsageError(
                f"tasks are given by agent, as distribute(tasks) returns them: got {given}, the agents are "
                f"{', '.join(self.agents)}"
            )
        if not callable(make_env):
            raise UsageError(f"with tasks, env is a function that makes worlds for them, got {type(make_env).__name__}")
        runs, jobs = {}, []
        with ExitStack() as to_close:
            for agent_id, agent in self.agents.items():
                row_tasks = tuple(task for task in tasks[agent_id] for _ in range(agent.trial_rows))
                env = make_env(row_tasks)
                to_close.callback(env.close)
                worlds = share(env, [agent_id])
                worlds.check({agent_id: agent})
                runs[agent_id] = AgentRun(agent, worlds.rows[agent_id], row_tasks)
                jobs.append(partial(play, worlds, {agent_id: runs[agent_id]}, in_turn, **how))
            # These run before the worlds are closed, in which no thread may step then.
            to_close.callback(pool.shutdown, cancel_futures=True)
            to_close.callback(how["stop"].set)
            self._rows = {}  # as above
            for future in wait([pool.submit(job) for job in jobs], return_when=FIRST_EXCEPTION).done:
                future.result()
        return runs

    # --- the parts ----------------------------------------------------------------------------------------------------

    def _check_some_agents(self) -> None:
        if not self.agents:
            raise UsageError("no agent is registered: call register_agent(agent, agent_id) first")

    def _pool(self, mode: str) -> ThreadPoolExecutor:
        if mode not in ("parallel", "sequential"):
            raise unknown_name("mode", mode, ("parallel", "sequential"))
        return ThreadPoolExecutor(len(self.agents) if mode == "parallel" else 1)

    def _all(self, jobs: Mapping[str, Callable[[], T]], mode: str) -> dict[str, T]:
        self._check_some_agents()
        with self._pool(mode) as pool:
            futures = {agent_id: pool.submit(job) for agent_id, job in jobs.items()}
        for agent_id, future in futures.items():
            if (error := future.exception()) is not None:
                raise AgentFailed(f"agent '{agent_id}': {type(error).__name__}: {error}") from error
        return {agent_id: future.result() for agent_id, future in futures.items()}

    def _split(self, values: Grouped, name: str) -> dict[str, Any]:
        """Values by agent, in the agents' order."""
        self._check_some_agents()
        if isinstance(values, Mapping):
            for agent_id in values:
                if agent_id not in self.agents:
                    raise unknown_name("agent", agent_id, self.agents)
            return {agent_id: values[agent_id] for agent_id in self.agents if agent_id in values}
        count = len(self.agents)
        if isinstance(values, list | tuple):
            if len(values) != count:
                raise UsageError(f"{name}: got a list of {len(values)} for {count} agents; give one each, or a mapping")
            return dict(zip(self.agents, values, strict=True))
        batch = np.asarray(values)
        if batch.ndim == 0 or len(batch) % count or not len(batch):
            shape = list(batch.shape)
            raise UsageError(f"{name}: a batch {shape} cannot be split between {count} agents: give a multiple of rows")
        return dict(zip(self.agents, np.split(batch, count), strict=True))


@contextmanager
def _named(agent_id: str) -> Iterator[None]:
    """What is refused inside says which agent it is about."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"agent '{agent_id}': {error}") from error


def results_table(results: Mapping[str, AgentResult]) -> str:
    """Results as a markdown table: mean return with its 95 % interval over all episodes, and of the first and last."""
    lines = ["| agent | rows | episodes | return | first episode | last episode |", "|---|---|---|---|---|---|"]
    for agent_id, result in results.items():
        episodes = max((len(row) for row in result.returns), default=0)
        cells = [_cell(result.mean_interval(which)) for which in (None, 0, max(0, episodes - 1))]
        lines.append(f"| {agent_id} | {len(result.returns)} | {episodes} | {' | '.join(cells)} |")
        if result.failure:
            lines.append(f"| {agent_id} | failed {result.failure} | | | | |")
    return "\n".join(lines)


def _cell(interval: tuple[float, float, float]) -> str:
    mean, low, high = interval
    return f"{mean:.1f}" if math.isnan(low) else f"{mean:.1f} [{low:.1f}, {high:.1f}]"
