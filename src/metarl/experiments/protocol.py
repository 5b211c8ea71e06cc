"""One evaluator for every agent: shots on tasks it was not trained on, run by the same `run_trial` as training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from metarl.core.agent import Agent
from metarl.core.errors import UsageError, unknown_name
from metarl.core.task import Task
from metarl.env_runner.recording import Recorder
from metarl.env_runner.task_env import TaskVectorEnv
from metarl.env_runner.trial import Trial, run_trial
from metarl.experiments.reference import OracleAgent, RandomAgent
from metarl.experiments.statistics import Scores, Strata, Summary, summary
from metarl.tasks.distribution import TaskDistribution

if TYPE_CHECKING:
    from metarl.experiments.kept_parts import KeptParts

PROTOCOLS = ("few-shot", "zero-shot", "standard", "drift")
"""All but "standard", which stands for none of them, are flags of `RunConfig` and of `metarl evaluate`."""
INTERVALS = ("repeats", "tasks")
OnRound: TypeAlias = Callable[[int, int], None]
"""(rounds begun, rounds in all)."""
ROUND_STEPS = 500_000
"""So many steps, over all rows, are in the round of an evaluation where its episodes last to the end; more tasks are
measured in turn. It bounds what is held, 2 to 3 kB a step of a gradient agent, and what is lost where it is stopped."""

References: TypeAlias = Mapping[str, Summary | None]


@dataclass(frozen=True)
class Protocol:
    """What is measured: after which shots, in how many episodes, how often.

    A query is the beginning of the round that the next adaptation learns from, so that all shots are measured in one
    trial. Rows that share a trial share its episodes: counts are rounded up to whole episodes of each row.

    Args:
        name: "few-shot" (the shots asked for, and shot 0 beside them), "zero-shot" (shot 0), "standard" (0 and 1), or
            "drift" (shot 0, step by step: `experiments/drift.py`).
        few_shot: the shots of "few-shot", each at least 1; empty for the others.
        adaptation_episodes: episodes of a task before each `adapt()`.
        evaluation_episodes: episodes of a task that a query measures; no more than those where anything is adapted.
        repeats: trials a task.
        seed: of the worlds. Equal seeds measure equal worlds, those of agents with as many `trial_rows`.
        interval: what confidence intervals are drawn from: the spread over a task's "repeats", at least 2, or over the
            "tasks" of an environment.
    """

    name: str = "standard"
    few_shot: tuple[int, ...] = ()
    adaptation_episodes: int = 1
    evaluation_episodes: int = 1
    repeats: int = 4
    seed: int = 0
    interval: Literal["repeats", "tasks"] = "repeats"

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise unknown_name("protocol", self.name, PROTOCOLS)
        if self.interval not in INTERVALS:
            raise unknown_name("interval", self.interval, INTERVALS)
        if not isinstance(self.few_shot, tuple | list):
            raise UsageError(f"few_shot is a tuple of shots, such as (1, 5, 10), got {self.few_shot!r}")
        positive = all(_is_whole(shot) and shot >= 1 for shot in self.few_shot)
        if self.name == "few-shot" and not (self.few_shot and positive):
            given = " ".join(map(str, self.few_shot)) or "nothing"
            raise UsageError(f"--few-shot takes integers >= 1, such as --few-shot 1 5 10; got {given}")
        if self.name != "few-shot" and self.few_shot:
            raise UsageError(f"only the few-shot protocol takes shots; got {list(self.few_shot)} for '{self.name}'")
        for field, value, least in (
            ("adaptation episodes", self.adaptation_episodes, 1),
            ("evaluation episodes", self.evaluation_episodes, 1),
            ("repeats", self.repeats, 2 if self.interval == "repeats" else 1),
            ("seed", self.seed, 0),
        ):
            if not _is_whole(value):
                raise UsageError(f"{field} of an evaluation is a whole number, got {value!r}")
            if value < least:
                raise UsageError(f"{field} of an evaluation is at least {least}, got {value}")
        if self.seed >= 2**63:
            raise UsageError(f"seed of an evaluation is below 2**63, got {self.seed}")
        if self.name == "drift" and self.evaluation_episodes > 1:
            raise UsageError(
                "--drift follows one episode step by step, so --evaluation-episodes is 1, got "
                f"{self.evaluation_episodes}; --repeats measures more of them"
            )
        if max(self.shots) and self.evaluation_episodes > self.adaptation_episodes:
            raise UsageError(
                "a query is the beginning of the next round, so --evaluation-episodes is at most "
                f"--adaptation-episodes ({self.adaptation_episodes}), got {self.evaluation_episodes}"
            )

    @property
    def shots(self) -> tuple[int, ...]:
        """The shots that are reported, ascending."""
        if self.name == "few-shot":
            return tuple(sorted({0, *self.few_shot}))
        return (0, 1) if self.name == "standard" else (0,)

    def episodes_by_row(self, trial_rows: int) -> tuple[int, int]:
        """Episodes of every row before an adaptation, and those that a query measures."""
        return -(-self.adaptation_episodes // trial_rows), -(-self.evaluation_episodes // trial_rows)


SCORES = ("returns", "success", "final_success")
"""The matrices of a `ShotScores`, by the names that a `Trial` has for what they are means of."""


@dataclass(frozen=True)
class ShotScores:
    """The query round after `shot` adaptations; matrices are [repeats, tasks], an entry the mean of a trial's episodes.

    `success`: fraction of episodes in which any step succeeded; `final_success`: the last step. None: not defined.
    `episodes`, `gradient_steps`: what the agent had used on each task before this round.
    """

    shot: int
    returns: Scores
    success: Scores | None
    final_success: Scores | None
    episodes: int
    gradient_steps: int


@dataclass(frozen=True)
class Evaluation:
    """The scores of one agent by shot. `env_steps` and `unstable_rows` (worlds given up) count the evaluation.

    `strata` [tasks]: the environment of each task, where intervals are drawn from the spread of tasks within
    environments; None where they are drawn from the spread of repeats.
    """

    protocol: Protocol
    tasks: tuple[Task, ...]
    shots: tuple[ShotScores, ...]
    env_steps: int
    unstable_rows: int
    strata: tuple[str, ...] | None = None

    def summary(self, scores: Scores) -> Summary:
        """Mean, IQM, interval and CVaR of a matrix of this evaluation."""
        return summary(scores, self.strata)


def evaluate(
    agent: Agent,
    distribution: TaskDistribution,
    tasks: Sequence[Task],
    protocol: Protocol,
    progress: OnRound | None = None,
    recorder: Recorder | None = None,
    on_step: Callable[..., None] | None = None,
    kept: KeptParts | None = None,
    only: int | None = None,
) -> Evaluation:
    """Measure how `agent` adapts to `tasks`: trials of max(protocol.shots) adaptations, `repeats` a task.

    Many tasks are measured in `parts`, each in worlds with a seed of its own, whose numbers are the same whether the
    others are measured with them or not.

    The agent acts by the mode of its policy (`explore` False), unless it `explores_to_adapt`, and collects nothing for
    training (`training` False). Its flags and everything in its `state_dict` are put back afterwards, so that a run
    does not depend on when it was evaluated. The trial that it was in is over: begin a new one.

    Args:
        progress: called with (rounds begun, rounds in all).
        recorder: keeps the first row of every task, except of those whose part was `kept`.
        on_step: called after each step with the arguments of `agent.observe`, all tasks being measured at once.
        kept: parts that were measured before are found there and left out, every other one is added. Not used with
            `on_step`, which is to see all steps.
        only: id of one of the tasks: parts without it are left out. None: all are measured.

    Raises:
        UsageError: no task, or a task twice.
    """
    check_unique(tasks)
    split = [tasks] if on_step is not None else parts(distribution, tasks, protocol, agent.trial_rows)
    kept = None if on_step is not None else kept
    wanted = [(number, part) for number, part in enumerate(split) if only is None or only in {task.id for task in part}]
    evaluations = []
    for place, (number, part) in enumerate(wanted):
        agent_seed, world_seed = map(int, np.random.SeedSequence((protocol.seed, part[0].id)).generate_state(2))
        # Were the worlds of all parts those of the protocol's seed, tasks in the same place would share their luck.
        # The first number is that of the worlds in the training epoch that has the task's id for its number.
        own = replace(protocol, seed=world_seed) if number else protocol
        done = None if kept is None else kept.find(own, part)
        if done is None:
            report = None if progress is None else partial(_in_part, progress, place, len(wanted))
            rows = {task: index * agent.trial_rows for index, task in enumerate(part)}
            with (
                _measuring(agent),
                closing(distribution.make_env(row_tasks(part, own, agent.trial_rows), seed=own.seed)) as env,
            ):
                agent.seed(agent_seed)
                worlds = env if recorder is None else recorder.wrap(env, rows)
                done = _evaluate_in(worlds, agent, part, own, report, on_step)
            if kept is not None:
                kept.keep(done)
        evaluations.append(done)
    return _with_strata(replace(_joined(evaluations), protocol=protocol), distribution)


def parts(
    distribution: TaskDistribution, tasks: Sequence[Task], protocol: Protocol, trial_rows: int
) -> list[Sequence[Task]]:
    """The tasks as they are measured: so many at once that no round has more than about ROUND_STEPS."""
    # Whatever the shots: a film of the first one alone has to run it in the parts in which all were measured.
    row_steps = max(protocol.episodes_by_row(trial_rows)) * distribution.max_episode_steps
    size = max(ROUND_STEPS // (protocol.repeats * trial_rows * row_steps), 1)
    return [tasks[first : first + size] for first in range(0, len(tasks), size)]


def reference_lines(
    distribution: TaskDistribution,
    tasks: Sequence[Task],
    protocol: Protocol,
    strata: Strata | None = None,
    progress: OnRound | None = None,
) -> dict[str, Summary | None]:
    """Returns without adaptation of a policy that acts at random, and of one that knows the task.

    "task_conditioned" is None where the family has no scripted oracle.

    Args:
        strata: of the evaluation that they stand beside, so that intervals are over the same.
        progress: called with (policies begun, policies in all).
    """
    check_unique(tasks)
    protocol = replace(protocol, name="zero-shot", few_shot=())
    rows = row_tasks(tasks, protocol)
    with closing(distribution.make_env(rows, seed=protocol.seed)) as env:
        spaces = env.single_observation_space, env.single_action_space
        agents: dict[str, Agent] = {"random": RandomAgent(*spaces, seed=protocol.seed)}
        if distribution.oracle is not None:
            agents["task_conditioned"] = OracleAgent(*spaces, distribution.oracle, rows)
        lines: dict[str, Summary | None] = {"random": None, "task_conditioned": None}
        for number, (name, agent) in enumerate(agents.items(), 1):
            if progress is not None:
                progress(number, len(agents))
            with _measuring(agent):
                evaluation = _evaluate_in(env, agent, tasks, protocol)
            lines[name] = summary(evaluation.shots[0].returns, strata)
    return lines


def row_tasks(tasks: Sequence[Task], protocol: Protocol, trial_rows: int = 1) -> tuple[Task, ...]:
    """The task of each row: all tasks, `repeats` times over, so that rows reshape to [repeats, tasks, trial_rows]."""
    return tuple(task for task in tasks for _ in range(trial_rows)) * protocol.repeats


def check_unique(tasks: Sequence[Task]) -> None:
    """Refuse an empty set of tasks, and one that would count a task twice."""
    ids = [task.id for task in tasks]
    if not ids:
        raise UsageError("an evaluation needs at least one test task")
    if len(set(ids)) < len(ids):
        twice = sorted({id for id in ids if ids.count(id) > 1})
        raise UsageError(f"an evaluation takes each test task once, got ids {twice} more than once")


def _evaluate_in(
    env: TaskVectorEnv,
    agent: Agent,
    tasks: Sequence[Task],
    protocol: Protocol,
    progress: OnRound | None = None,
    on_step: Callable[..., None] | None = None,
) -> Evaluation:
    last = max(protocol.shots)
    before, measured = protocol.episodes_by_row(agent.trial_rows)
    trial = run_trial(
        agent,
        env,
        row_tasks(tasks, protocol, agent.trial_rows),
        shots=last,
        episodes=before,
        query_episodes=measured,
        seed=protocol.seed,
        on_round=None if progress is None else lambda shot: progress(shot + 1, last + 1),
        on_step=on_step,
    )
    shots = tuple(_shot_scores(trial, shot, protocol, agent.trial_rows) for shot in protocol.shots)
    return Evaluation(protocol, tuple(tasks), shots, trial.env_steps, trial.unstable_rows)


def _in_part(progress: OnRound, part: int, parts: int, begun: int, rounds: int) -> None:
    progress(part * rounds + begun, parts * rounds)


def _joined(evaluations: Sequence[Evaluation]) -> Evaluation:
    """One evaluation of all the tasks of several."""
    first = evaluations[0]

    def beside(same: Sequence[ShotScores], name: str) -> Scores | None:
        matrices = [getattr(shot, name) for shot in same]
        if all(matrix is None for matrix in matrices):
            return None
        # A part in which no world spoke of success had none.
        known = [
            np.zeros_like(shot.returns) if matrix is None else matrix
            for shot, matrix in zip(same, matrices, strict=True)
        ]
        return np.concatenate(known, axis=1)

    shots = []
    for same in zip(*(evaluation.shots for evaluation in evaluations), strict=True):
        matrices: dict[str, Any] = {name: beside(same, name) for name in SCORES}
        shots.append(replace(same[0], **matrices))
    return replace(
        first,
        tasks=tuple(task for evaluation in evaluations for task in evaluation.tasks),
        shots=tuple(shots),
        env_steps=sum(evaluation.env_steps for evaluation in evaluations),
        unstable_rows=sum(evaluation.unstable_rows for evaluation in evaluations),
    )


def _with_strata(evaluation: Evaluation, distribution: TaskDistribution) -> Evaluation:
    """With the tasks' environments, where the protocol draws intervals from tasks, or where repeats are copies.

    In a world without chance an agent that acts by its mode does the same in every repeat. What could have come out
    otherwise are then the tasks that were drawn, where there are several of each environment.
    """
    environments = tuple(distribution.environments(evaluation.tasks))
    copies = all((shot.returns == shot.returns[0]).all() for shot in evaluation.shots)
    if evaluation.protocol.interval == "tasks" or (copies and min(Counter(environments).values()) > 1):
        return replace(evaluation, strata=environments)
    return evaluation


@contextmanager
def _measuring(agent: Agent) -> Iterator[None]:
    """The agent not training, in policy mode unless it adapts by exploring; flags and state are put back afterwards."""
    flags = agent.explore, agent.training
    state = {name: tensor.detach().clone() for name, tensor in agent.state_dict().items()}
    agent.explore, agent.training = agent.explores_to_adapt, False
    try:
        yield
    finally:
        agent.explore, agent.training = flags
        agent.load_state_dict(state)


def _shot_scores(trial: Trial, shot: int, protocol: Protocol, trial_rows: int) -> ShotScores:
    before, measured = protocol.episodes_by_row(trial_rows)

    def matrix(rounds: Sequence[Sequence[Sequence[float]]] | None) -> Scores | None:
        if rounds is None:
            return None
        # A sum, not a mean: an episode that ended before its world first spoke of success has not succeeded.
        means = np.array([sum(episodes[:measured]) / measured for episodes in rounds[shot]])
        scores: Scores = means.reshape(protocol.repeats, -1, trial_rows).mean(-1)
        return scores

    matrices: dict[str, Any] = {name: matrix(getattr(trial, name)) for name in SCORES}
    steps = sum(metrics.get("gradient_steps", 0.0) for metrics in trial.adapt_metrics[:shot])
    return ShotScores(shot=shot, **matrices, episodes=shot * before * trial_rows, gradient_steps=round(steps))


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer)
