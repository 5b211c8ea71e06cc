from __future__ import annotations

from contextlib import closing
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.recording import Recorder
from metarl.env_runner.task_env import Array, Infos
from metarl.env_runner.trial import Trial, run_trial
from metarl.experiments.protocol import (
    SCORES,
    Protocol,
    ShotScores,
    evaluate,
    parts,
    reference_lines,
    row_tasks,
)
from metarl.experiments.statistics import summary
from metarl.tasks import make_tasks
from metarl.tasks.distribution import check_disjoint


@pytest.mark.parametrize(
    ("protocol", "shots"),
    [
        (Protocol("few-shot", (10, 1, 5)), (0, 1, 5, 10)),
        (Protocol("few-shot", (2, 2)), (0, 2)),
        (Protocol("zero-shot"), (0,)),
        (Protocol("standard"), (0, 1)),
        (replace(Protocol("few-shot", (3,)), repeats=9), (0, 3)),
    ],
)
def test_shots_of_each_protocol(protocol: Protocol, shots: tuple[int, ...]) -> None:
    assert protocol.shots == shots


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "fewshot"}, "unknown protocol 'fewshot': choose from drift, few-shot, .*did you mean 'few-shot'"),
        ({"name": "few-shot", "few_shot": (1, -1)}, "--few-shot takes integers >= 1.*got 1 -1"),
        ({"name": "few-shot", "few_shot": (0,)}, "--few-shot takes integers >= 1.*got 0"),
        ({"name": "few-shot"}, "--few-shot takes integers >= 1.*got nothing"),
        ({"name": "few-shot", "few_shot": 5}, r"few_shot is a tuple of shots, such as \(1, 5, 10\), got 5"),
        ({"name": "few-shot", "few_shot": (1.5,)}, "--few-shot takes integers >= 1.*got 1.5"),
        ({"name": "zero-shot", "few_shot": (1,)}, "only the few-shot protocol takes shots"),
        ({"adaptation_episodes": 0}, "adaptation episodes of an evaluation is at least 1, got 0"),
        ({"evaluation_episodes": 0}, "evaluation episodes of an evaluation is at least 1, got 0"),
        ({"evaluation_episodes": 3}, r"--evaluation-episodes is at most --adaptation-episodes \(1\), got 3"),
        ({"name": "drift", "evaluation_episodes": 2}, "--drift follows one episode .* got 2; --repeats measures more"),
        ({"repeats": 1}, "repeats of an evaluation is at least 2, got 1"),
        ({"repeats": 0, "interval": "tasks"}, "repeats of an evaluation is at least 1, got 0"),
        ({"seed": -1}, "seed of an evaluation is at least 0, got -1"),
        ({"repeats": "4"}, "repeats of an evaluation is a whole number, got '4'"),
        ({"interval": "task"}, "unknown interval 'task': choose from repeats, tasks; did you mean 'tasks'"),
    ],
)
def test_bad_protocols_are_one_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        Protocol(**arguments)
    assert "\n" not in str(error.value)


def test_scores_by_hand(bonus_family, scripted_agent) -> None:
    family = bonus_family()
    evaluation = evaluate(scripted_agent, family, family.test, Protocol("few-shot", (3,), repeats=2))
    assert [shot.shot for shot in evaluation.shots] == [0, 3]
    # bonus * length * number of adaptations: 1 * 3 * k, -2 * 1 * k, 5 * 2 * k.
    np.testing.assert_array_equal(evaluation.shots[0].returns, [[0.0, 0.0, 0.0]] * 2)
    np.testing.assert_array_equal(evaluation.shots[1].returns, [[9.0, -6.0, 30.0]] * 2)
    # The second step succeeds; it is there in the tasks of 3 and 2 steps, and the last one in the task of 2.
    np.testing.assert_array_equal(evaluation.shots[1].success, [[1.0, 0.0, 1.0]] * 2)
    np.testing.assert_array_equal(evaluation.shots[1].final_success, [[0.0, 0.0, 1.0]] * 2)
    assert [(shot.episodes, shot.gradient_steps) for shot in evaluation.shots] == [(0, 0), (3, 6)]
    # 4 rounds, 2 repeats, 3 + 1 + 2 steps.
    assert evaluation.env_steps == 4 * 2 * 6
    assert evaluation.unstable_rows == 0


def test_whatever_is_measured_by_episode_is_joined_and_kept() -> None:
    assert {each.name for each in fields(ShotScores)} == {*SCORES, "shot", "episodes", "gradient_steps"}
    assert {*SCORES} <= {each.name for each in fields(Trial)}


def test_a_score_is_the_mean_of_a_rounds_episodes(bonus_family, scripted_agent) -> None:
    family = bonus_family(luck=1.0)
    protocol = Protocol("zero-shot", evaluation_episodes=3, repeats=2, seed=6)
    (shot,) = evaluate(scripted_agent, family, family.test, protocol).shots
    rows = row_tasks(family.test, protocol)
    with closing(family.make_env(rows, seed=6)) as env:
        episodes = np.array(run_trial(scripted_agent, env, rows, episodes=3, seed=6).returns[0])
    assert episodes.shape == (6, 3)
    np.testing.assert_allclose(shot.returns, [episodes[:3].mean(axis=1), episodes[3:].mean(axis=1)])
    np.testing.assert_array_equal(shot.success, [[1.0, 0.0, 1.0]] * 2)


def test_experience_before_a_shot_counts_episodes(bonus_family, scripted_agent) -> None:
    family = bonus_family()
    protocol = Protocol("few-shot", (2,), adaptation_episodes=3, repeats=2)
    evaluation = evaluate(scripted_agent, family, family.test, protocol)
    assert [shot.episodes for shot in evaluation.shots] == [0, 6]
    # 2 repeats of 2 rounds of 3 episodes and a query of 1, 3 + 1 + 2 steps.
    assert evaluation.env_steps == 2 * (2 * 3 + 1) * 6
    np.testing.assert_array_equal(evaluation.shots[1].returns, [[6.0, -4.0, 20.0]] * 2)


def test_repeats_differ_by_their_worlds_and_equal_seeds_measure_the_same(bonus_family, scripted_agent) -> None:
    family = bonus_family(luck=1.0)
    protocol = Protocol("few-shot", (1,), repeats=3, seed=4)
    first, again = (evaluate(scripted_agent, family, family.test, protocol) for _ in range(2))
    for one, other in zip(first.shots, again.shots, strict=True):
        np.testing.assert_array_equal(one.returns, other.returns)
    assert len(np.unique(first.shots[0].returns)) == 9
    other_seed = evaluate(scripted_agent, family, family.test, replace(protocol, seed=5))
    assert not np.array_equal(other_seed.shots[0].returns, first.shots[0].returns)


def test_evaluation_leaves_the_agent_untouched(bonus_family, scripted_agent) -> None:
    family = bonus_family()
    scripted_agent.explore, scripted_agent.training = True, False
    before = {name: tensor.clone() for name, tensor in scripted_agent.state_dict().items()}
    evaluate(scripted_agent, family, family.test, Protocol("standard", repeats=2))
    assert scripted_agent.flags_seen == {(False, False)}
    assert (scripted_agent.explore, scripted_agent.training) == (True, False)
    after = scripted_agent.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert all(world.closed for world in family.opened)


def test_an_interrupted_evaluation_leaves_the_agent_untouched(bonus_family, scripted_agent) -> None:
    family = bonus_family()

    def interrupt(begun: int, rounds: int) -> None:
        if begun == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(scripted_agent, family, family.test, Protocol("standard", repeats=2), interrupt)
    assert scripted_agent.flags_seen
    assert (scripted_agent.explore, scripted_agent.training) == (True, True)
    assert scripted_agent.state_dict()["noise"] == 0
    assert all(world.closed for world in family.opened)


def test_progress_counts_rounds_and_changes_nothing(bonus_family, scripted_agent) -> None:
    family = bonus_family(luck=1.0)
    protocol = Protocol("few-shot", (2,), repeats=2)
    reported: list[tuple[int, int]] = []
    watched = evaluate(
        scripted_agent, family, family.test, protocol, lambda begun, rounds: reported.append((begun, rounds))
    )
    assert reported == [(1, 3), (2, 3), (3, 3)]
    plain = evaluate(scripted_agent, family, family.test, protocol)
    for one, other in zip(watched.shots, plain.shots, strict=True):
        np.testing.assert_array_equal(one.returns, other.returns)


def test_rows_are_all_tasks_repeated() -> None:
    tasks = [Task(5, {}), Task(9, {})]
    assert [task.id for task in row_tasks(tasks, Protocol(repeats=3))] == [5, 9, 5, 9, 5, 9]


def test_rows_of_a_trial_are_neighbours() -> None:
    tasks = [Task(5, {}), Task(9, {})]
    ids = [task.id for task in row_tasks(tasks, Protocol(repeats=2), trial_rows=3)]
    assert ids == [5, 5, 5, 9, 9, 9, 5, 5, 5, 9, 9, 9]


def test_scores_are_means_over_the_rows_of_a_trial(bonus_family, scripted_agent) -> None:
    """Every row draws its own luck; a score is the mean of the rows that share a trial."""
    family = bonus_family(luck=1.0)
    protocol = Protocol("few-shot", (2,), adaptation_episodes=5, evaluation_episodes=3, repeats=2, seed=6)
    scripted_agent.trial_rows = 2
    evaluation = evaluate(scripted_agent, family, family.test, protocol)
    rows = row_tasks(family.test, protocol, 2)
    with closing(family.make_env(rows, seed=6)) as env:
        returns = run_trial(scripted_agent, env, rows, shots=2, episodes=3, query_episodes=2, seed=6).returns
    for shot in evaluation.shots:
        # Five episodes of two rows are three of each, and three are two: the first two of every round.
        assert {len(row) for row in returns[shot.shot]} == ({3} if shot.shot < 2 else {2})
        episodes = np.array([row[:2] for row in returns[shot.shot]])
        expected = [[episodes[row : row + 2].mean() for row in range(first, first + 6, 2)] for first in (0, 6)]
        np.testing.assert_allclose(shot.returns, expected)
        np.testing.assert_array_equal(shot.success, [[1.0, 0.0, 1.0]] * 2)
        np.testing.assert_array_equal(shot.final_success, [[0.0, 0.0, 1.0]] * 2)
    assert [shot.episodes for shot in evaluation.shots] == [0, 2 * 3 * 2]
    assert [shot.gradient_steps for shot in evaluation.shots] == [0, 4]
    # 2 rounds of 3 episodes and one of 2, 2 repeats of 2 rows, 3 + 1 + 2 steps.
    assert evaluation.env_steps == (2 * 3 + 2) * 2 * 2 * 6


@pytest.mark.parametrize("explores", [True, False])
def test_an_agent_that_explores_to_adapt_explores_while_it_is_measured(
    bonus_family, scripted_agent, explores: bool
) -> None:
    family = bonus_family()
    scripted_agent.explores_to_adapt = explores
    scripted_agent.explore = not explores
    evaluate(scripted_agent, family, family.test, Protocol("standard", repeats=2))
    assert scripted_agent.flags_seen == {(explores, False)}
    assert (scripted_agent.explore, scripted_agent.training) == (not explores, True)


def test_overlapping_tasks_are_refused() -> None:
    tasks = [Task(id, {}) for id in range(5)]
    check_disjoint(tasks[:3], tasks[3:])
    with pytest.raises(UsageError, match=r"overlap in ids \[1, 2\]"):
        check_disjoint(tasks[:3], tasks[1:])


def test_no_task_and_a_task_twice_are_refused(bonus_family, scripted_agent) -> None:
    family = bonus_family()
    with pytest.raises(UsageError, match="at least one test task"):
        evaluate(scripted_agent, family, [], Protocol())
    with pytest.raises(UsageError, match=r"got ids \[101\] more than once"):
        evaluate(scripted_agent, family, [family.test[1], family.test[0], family.test[1]], Protocol())
    with pytest.raises(UsageError, match="at least one test task"):
        reference_lines(family, [], Protocol())


def test_reference_lines_by_hand(bonus_family) -> None:
    family = bonus_family()
    lines = reference_lines(family, family.test, Protocol("few-shot", (5,), repeats=4), ["bonus"] * 3)
    # The oracle takes action 7: returns 1 * 3 * 7, -2 * 1 * 7, 5 * 2 * 7.
    assert lines["task_conditioned"] == summary([[21.0, -14.0, 70.0]] * 4, ["bonus"] * 3)
    # Random actions are uniform on [0, 10]: the expected returns are 15, -10 and 50. A task of n steps has the standard
    # deviation bonus * sqrt(n / 12) * 10, so the mean over tasks of 4 repeats one of 3.6; six of them are allowed.
    assert lines["random"] is not None
    assert lines["random"]["mean"] == pytest.approx(55 / 3, abs=6 * 3.6)
    assert lines["random"]["ci95"][0] < lines["random"]["ci95"][1]
    assert all(world.closed for world in family.opened)


def test_reference_lines_of_point_goal_are_its_optimum() -> None:
    family = make_tasks("point-goal", num_test=5)
    lines = reference_lines(family, family.test, Protocol(repeats=2))
    # Each axis closes in by 0.1 a step and then stays: the best return is the sum of the distances left.
    steps = 0.1 * np.arange(1, family.max_episode_steps + 1)[:, None]
    best = [-np.hypot(*np.maximum(np.abs(task["goal"]) - steps, 0).T).sum() for task in family.test]
    assert lines["task_conditioned"]["mean"] == pytest.approx(np.mean(best), abs=1e-4)
    assert lines["random"]["mean"] < 2 * lines["task_conditioned"]["mean"]


def test_reference_lines_of_the_bandit_are_its_means() -> None:
    family = make_tasks("bandit", num_test=20)
    lines = reference_lines(family, family.test, Protocol(repeats=10))
    means = np.array([task["means"] for task in family.test])
    # 100 pulls; a pull's deviation is at most 0.5, so that of the mean over 20 tasks and 10 repeats at most 0.36.
    assert lines["random"]["mean"] == pytest.approx(100 * means.mean(), abs=5 * 0.36)
    assert lines["task_conditioned"]["mean"] == pytest.approx(100 * means.max(axis=1).mean(), abs=5 * 0.36)


def test_reference_lines_repeat_and_follow_the_seed(bonus_family) -> None:
    family = bonus_family(oracle=False)
    lines, again, other = (reference_lines(family, family.test, Protocol(seed=seed)) for seed in (1, 1, 2))
    assert lines == again
    assert lines["random"] != other["random"]
    assert lines["task_conditioned"] is None


def test_intervals_are_over_tasks_where_repeats_are_copies(bonus_family, scripted_agent) -> None:
    """Nothing in the family is left to luck: the repeats agree, and only other tasks could have scored otherwise."""
    family = bonus_family()
    evaluation = evaluate(scripted_agent, family, family.test, Protocol("standard", repeats=2))
    assert evaluation.strata == ("bonus",) * 3
    low, high = evaluation.summary(evaluation.shots[1].returns)["ci95"]
    assert low < high
    lucky = bonus_family(luck=1.0)
    assert evaluate(scripted_agent, lucky, family.test, Protocol("standard", repeats=2)).strata is None


def test_copies_of_the_only_task_of_an_environment_are_measured_all_the_same(bonus_family, scripted_agent) -> None:
    family = bonus_family()
    family.environment = "length"
    evaluation = evaluate(scripted_agent, family, family.test, Protocol("standard", repeats=2))
    assert evaluation.strata is None
    found = evaluation.summary(evaluation.shots[1].returns)
    assert found["ci95"] == [found["mean"]] * 2


def test_reference_lines_have_intervals_over_what_the_agent_has_them_over(bonus_family) -> None:
    family = bonus_family(luck=1.0)
    by_task, by_repeat = (
        reference_lines(family, family.test, Protocol(), strata)["task_conditioned"] for strata in (["bonus"] * 3, None)
    )
    assert by_task["mean"] == by_repeat["mean"]
    assert by_task["ci95"][1] - by_task["ci95"][0] > 10 > by_repeat["ci95"][1] - by_repeat["ci95"][0]


def test_intervals_over_tasks_are_within_their_environments(bonus_family, scripted_agent) -> None:
    family = bonus_family(luck=1.0)
    family.environment = "length"
    protocol = Protocol("standard", repeats=1, interval="tasks")
    assert evaluate(scripted_agent, family, family.test, protocol).strata == ("3", "1", "2")


def test_many_tasks_are_measured_in_parts(bonus_family, scripted_agent, monkeypatch) -> None:
    family = bonus_family(luck=1.0)
    protocol = Protocol("few-shot", (2,), repeats=2, seed=6)
    together = evaluate(scripted_agent, family, family.test, protocol)
    recorder = Recorder((0, 2))
    reported: list[tuple[int, int]] = []
    # 2 repeats of 10 steps at most: two tasks, then one.
    monkeypatch.setattr("metarl.experiments.protocol.ROUND_STEPS", 40)
    parts = evaluate(
        scripted_agent, family, family.test, protocol, lambda begun, rounds: reported.append((begun, rounds)), recorder
    )
    assert reported == [(number, 6) for number in range(1, 7)]
    assert [task.id for task in parts.tasks] == list(recorder.tasks) == [100, 101, 102]
    assert set(recorder.episodes) == {(id, shot) for id in (100, 101, 102) for shot in (0, 2)}
    assert (parts.env_steps, parts.unstable_rows) == (together.env_steps, 0)
    assert scripted_agent.state_dict()["noise"] == 0
    for shot, whole in zip(parts.shots, together.shots, strict=True):
        assert shot.returns.shape == (2, 3)
        np.testing.assert_array_equal(shot.success, whole.success)
        np.testing.assert_array_equal(shot.final_success, whole.final_success)
        # The worlds of a row are those of its place: the first task's, and luck of deviation 1 apart for the others.
        np.testing.assert_array_equal(shot.returns[0, :2], whole.returns[0, :2])
        np.testing.assert_allclose(shot.returns, whole.returns, atol=8.0)


def test_a_part_has_the_fewer_tasks_the_more_episodes_are_in_a_round(bonus_family, monkeypatch) -> None:
    """Two repeats of ten steps at most are 20 steps a task, row and episode."""
    monkeypatch.setattr("metarl.experiments.protocol.ROUND_STEPS", 80)
    family = bonus_family()

    def sizes(trial_rows: int, name: str = "standard", **episodes: int) -> list[int]:
        protocol = Protocol(name, repeats=2, **episodes)
        return [len(part) for part in parts(family, family.test, protocol, trial_rows)]

    assert sizes(1) == [3]
    assert sizes(1, adaptation_episodes=2) == sizes(1, "zero-shot", adaptation_episodes=2) == [2, 1]
    assert sizes(2, adaptation_episodes=2) == [2, 1]  # an episode in each of twice as many rows
    assert sizes(1, "zero-shot", evaluation_episodes=4) == [1, 1, 1]


def test_parts_share_no_luck_and_one_can_be_measured_alone(bonus_family, scripted_agent, monkeypatch) -> None:
    """Before it has adapted the agent earns the luck of its worlds, and nothing else."""
    monkeypatch.setattr("metarl.experiments.protocol.ROUND_STEPS", 1)  # a part a task
    family, protocol = bonus_family(luck=1.0), Protocol("zero-shot", repeats=2, seed=6)
    whole = evaluate(scripted_agent, family, family.test, protocol)
    assert len(np.unique(whole.shots[0].returns)) == 2 * 3
    alone = evaluate(scripted_agent, family, family.test, protocol, only=102)
    np.testing.assert_array_equal(alone.shots[0].returns, whole.shots[0].returns[:, 2:])
    assert (alone.protocol, [task.id for task in alone.tasks]) == (protocol, [102])


def test_the_worlds_of_a_part_are_those_of_no_epoch_of_training(bonus_family, scripted_agent, monkeypatch) -> None:
    """Where an epoch has the number that the part's first task has for its id; so they begin in a `Trainer`."""
    monkeypatch.setattr("metarl.experiments.protocol.ROUND_STEPS", 1)  # a part a task
    family, seeds = bonus_family(), list[int]()
    make_env = family.make_env

    def noted(tasks: list[Task], seed: int = 0) -> Any:
        seeds.append(seed)
        return make_env(tasks, seed)

    monkeypatch.setattr(family, "make_env", noted)
    evaluate(scripted_agent, family, family.test, Protocol("zero-shot", repeats=2, seed=6))
    trained = {int(np.random.SeedSequence((6, epoch)).generate_state(1)[0]) for epoch in range(103)}
    assert len(set(seeds)) == 3
    assert trained.isdisjoint(seeds)


def test_a_part_in_which_no_world_spoke_of_success_had_none(
    bonus_family, scripted_agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with worlds that speak of it where they succeed alone; measured together, those tasks have not succeeded."""

    class Quiet(GymWorkers):
        """Nothing is said of success where no row ever has it."""

        def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Infos]:
            *step, infos = super().step(actions)
            self.spoke = getattr(self, "spoke", False) or bool(infos["success"].any())
            return *step, infos if self.spoke else {name: value for name, value in infos.items() if name != "success"}

    monkeypatch.setattr("metarl.tasks.distribution.GymWorkers", Quiet)
    family, protocol = bonus_family(), Protocol("zero-shot", repeats=2)
    (together,) = evaluate(scripted_agent, family, family.test, protocol).shots
    monkeypatch.setattr("metarl.experiments.protocol.ROUND_STEPS", 1)  # a part a task
    (apart,) = evaluate(scripted_agent, family, family.test, protocol).shots
    np.testing.assert_array_equal(together.success, [[1.0, 0.0, 1.0]] * 2)
    np.testing.assert_array_equal(apart.success, together.success)
    np.testing.assert_array_equal(apart.final_success, together.final_success)


def test_worlds_that_were_given_up_are_counted_in_every_part(
    bonus_family, scripted_agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unstable(*arguments: Any, **options: Any) -> Trial:
        return replace(run_trial(*arguments, **options), unstable_rows=3)

    monkeypatch.setattr("metarl.experiments.protocol.run_trial", unstable)
    monkeypatch.setattr("metarl.experiments.protocol.ROUND_STEPS", 1)  # a part a task
    family = bonus_family()
    assert evaluate(scripted_agent, family, family.test, Protocol("zero-shot", repeats=2)).unstable_rows == 3 * 3
