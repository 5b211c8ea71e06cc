from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from metarl.core.errors import UsageError
from metarl.experiments.statistics import (
    SEEDS,
    cvar,
    iqm,
    mean,
    mean_improvement,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap_ci,
    summary,
)


def test_mean_averages_repeats_and_tasks_and_keeps_leading_axes() -> None:
    scores = np.array([[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, 4.0]]])
    assert mean(scores).tolist() == [3.0, 1.0]


def test_iqm_drops_a_quarter_of_all_scores_at_each_end() -> None:
    scores = np.array([[100.0, 1.0, 2.0, 3.0], [4.0, -50.0, 5.0, 6.0]])
    # Sorted: -50 1 | 2 3 4 5 | 6 100.
    assert iqm(scores) == 3.5


def test_iqm_cuts_whole_scores_only() -> None:
    # 5 scores: floor(1.25) = 1 is cut at each end.
    assert iqm(np.array([[-9.0, 1.0, 2.0, 6.0, 99.0]])) == 3.0
    assert iqm(np.array([[1.0, 2.0, 9.0]])) == 4.0


def test_iqm_keeps_leading_axes() -> None:
    scores = np.stack([np.arange(8.0).reshape(2, 4), np.arange(8.0, 16.0).reshape(2, 4)])
    assert iqm(scores).tolist() == [3.5, 11.5]


@pytest.mark.parametrize(
    ("num_tasks", "alpha", "expected"),
    [
        (30, 0.05, 0.5),  # ceil(1.5) = 2 tasks: (0 + 1) / 2
        (20, 0.05, 0.0),  # exactly 1 task
        (3, 0.05, 0.0),  # never fewer than 1
        (100, 0.07, 3.0),  # 7 tasks, although 0.07 * 100 = 7.000000000000001
        (4, 1.0, 1.5),  # all
    ],
)
def test_cvar_is_the_mean_of_the_worst_tasks(num_tasks: int, alpha: float, expected: float) -> None:
    means = np.random.default_rng(0).permutation(num_tasks).astype(float)
    assert cvar(means, alpha) == expected


@pytest.mark.parametrize(("means", "alpha"), [([], 0.05), ([[1.0]], 0.05), ([1.0], 0.0), ([1.0], 1.5)])
def test_cvar_refuses_what_has_no_worst_tasks(means: list[float], alpha: float) -> None:
    with pytest.raises(UsageError, match="cvar"):
        cvar(means, alpha)


def test_two_repeats_give_the_interval_that_can_be_enumerated() -> None:
    # One draw a task from {0, 1}, from {0, 10} and from {0, 100}: the resampled means are (0, 1, 10, 11, 100, 101, 110,
    # 111) / 3, equally likely; both 2.5 % quantiles fall on an extreme.
    low, high = stratified_bootstrap_ci([[0.0, 10.0, 0.0], [1.0, 0.0, 100.0]])
    assert (low, high) == pytest.approx((0.0, 37.0))
    # A quarter of them lies below 10 / 3, and a quarter above 101 / 3: 50 % end between two neighbouring values.
    low, high = stratified_bootstrap_ci([[0.0, 10.0, 0.0], [1.0, 0.0, 100.0]], level=0.5)
    assert low * 3 in (pytest.approx(1.0), pytest.approx(10.0))
    assert high * 3 in (pytest.approx(101.0), pytest.approx(110.0))


def test_only_repeats_are_resampled_not_tasks() -> None:
    # The tasks are worlds apart, yet each always scores the same: measured again, the mean would be the same.
    assert stratified_bootstrap_ci([[-1000.0, 0.0, 1000.0]] * 4) == (0.0, 0.0)


def test_bootstrap_variance_of_the_mean_is_that_of_the_standard_error() -> None:
    scores = np.random.default_rng(1).normal(size=(4, 30))
    seen = []

    def spy(resampled: np.ndarray) -> np.ndarray:
        seen.append(mean(resampled))
        return seen[-1]

    stratified_bootstrap_ci(scores, spy, resamples=20_000)
    # Var(mean) = sum over tasks of s^2 / (repeats * tasks^2) with the unbiased s^2.
    expected = (scores.var(axis=0, ddof=1) / 4).sum() / 30**2
    assert seen[0].var() == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("repeats", [4, 10])
def test_interval_covers_the_true_mean_as_often_as_it_says(repeats: int) -> None:
    generator = np.random.default_rng(2)
    task_means = generator.normal(0.0, 5.0, 30)
    experiments = 400
    covered = 0
    for _ in range(experiments):
        scores = task_means + generator.normal(size=(repeats, 30))
        low, high = stratified_bootstrap_ci(scores, resamples=500)
        covered += low <= task_means.mean() <= high
    # Standard error of the measured coverage: sqrt(0.95 * 0.05 / 400) = 1.1 %. Drawing R of R = 4 would cover 91 %.
    assert 0.92 <= covered / experiments <= 0.98


def test_interval_depends_on_the_seed_alone() -> None:
    scores = np.random.default_rng(3).normal(size=(4, 5))
    np.random.seed(0)  # noqa: NPY002
    first = stratified_bootstrap_ci(scores, iqm, seed=7)
    np.random.seed(1)  # noqa: NPY002
    assert stratified_bootstrap_ci(scores, iqm, seed=7) == first
    assert stratified_bootstrap_ci(scores, iqm, seed=8) != first


def test_wider_level_gives_a_wider_interval() -> None:
    scores = np.random.default_rng(4).normal(size=(4, 5))
    narrow, wide = (stratified_bootstrap_ci(scores, level=level) for level in (0.5, 0.95))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        ([[1.0, 2.0]], {}, "at least 2 repeats a task, got 1"),
        ([1.0, 2.0], {}, r"\[repeats, tasks\].*got shape \(2,\)"),
        (np.empty((2, 0)), {}, "not empty"),
        ([[1.0, 2.0], [1.0, np.nan]], {}, "got nan in repeat 1 of task column 1"),
        ([[1.0], [2.0]], {"level": 1.0}, "between 0 and 1"),
        ([[1.0], [2.0]], {"resamples": 0}, "at least 1 resample"),
        ([[1.0], [2.0]], {"statistic": np.mean}, r"\[resamples, repeats, tasks\] to \[2000\]"),
    ],
)
def test_interval_refuses_what_it_would_lie_about(scores: object, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stratified_bootstrap_ci(scores, **arguments)


def test_summary_by_hand() -> None:
    scores = np.array([[0.0, 8.0], [2.0, 8.0]])
    result = summary(scores)
    # Task means 1 and 8; the four scores sorted 0 | 2 8 | 8; one draw a task gives (0 or 2 + 8) / 2.
    assert result == {"mean": 4.5, "iqm": 5.0, "ci95": [4.0, 5.0], "cvar05": 1.0}
    assert [type(value) for value in result.values()] == [float, float, list, float]
    # Of 30 tasks that score 0 to 29 the worst two count.
    assert summary([np.arange(30.0)] * 2)["cvar05"] == 0.5


def test_performance_profile_counts_the_scores_above() -> None:
    scores = [[0.0, 10.0], [1.0, 20.0]]
    fraction, low, high = performance_profile(scores, [-1.0, 0.0, 0.5, 15.0, 20.0])
    assert fraction.tolist() == [1.0, 0.75, 0.75, 0.25, 0.0]
    # One draw a task: above 0.5 lie 10 and 20 for sure and one of {0, 1}; above 15 only 20 of {10, 20}.
    assert low.tolist() == [1.0, 0.5, 0.5, 0.0, 0.0]
    assert high.tolist() == [1.0, 1.0, 1.0, 0.5, 0.0]


def test_probability_of_improvement_by_hand() -> None:
    # Task 0: 2 > 1 in both repeats of X against one of Y's, a tie against the other: (1 + 0.5 + 1 + 0.5) / 4.
    # Task 1: X is always below. One draw a task leaves 1 or 0.5 on task 0, and 0 on task 1.
    p, low, high = probability_of_improvement([[2.0, 0.0], [2.0, 0.0]], [[1.0, 5.0], [2.0, 6.0]])
    assert (p, low, high) == (0.375, 0.25, 0.5)


def test_probability_of_improvement_takes_other_numbers_of_repeats() -> None:
    assert probability_of_improvement([[3.0], [4.0], [5.0]], [[1.0], [2.0]]) == (1.0, 1.0, 1.0)
    assert probability_of_improvement([[1.0]] * 3, [[1.0]] * 2) == (0.5, 0.5, 0.5)


def test_probability_of_improvement_and_of_the_opposite_add_up_to_one() -> None:
    x, y = np.random.default_rng(5).integers(5, size=(2, 4, 6)).astype(float)
    forth, back = probability_of_improvement(x, y), probability_of_improvement(y, x)
    assert forth[0] + back[0] == pytest.approx(1.0)
    assert forth[1] < forth[0] < forth[2]
    assert forth == probability_of_improvement(x, y)
    assert forth[1:] != probability_of_improvement(x, y, seed=1)[1:]


def test_probability_of_improvement_has_the_spread_of_its_estimate() -> None:
    # x_i ~ N(0.5, 1), y_j ~ N(0, 1), one task: P(X > Y) = Phi(0.5 / sqrt 2) = 0.638.
    generator = np.random.default_rng(6)
    experiments, covered = 200, 0
    for _ in range(experiments):
        x, y = generator.normal(0.5, 1, (40, 1)), generator.normal(0.0, 1, (40, 1))
        _, low, high = probability_of_improvement(x, y, resamples=300)
        covered += low <= 0.6382 <= high
    # Standard error of the measured coverage: sqrt(0.95 * 0.05 / 200) = 1.5 %.
    assert 0.91 <= covered / experiments <= 0.99


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1.0, 2.0]] * 2, [[1.0]] * 2, "the same tasks, got 2 and 1"),
        ([[1.0]] * 2, [[1.0]], "at least 2 repeats a task, got 1"),
        ([[np.inf]] * 2, [[1.0]] * 2, "got inf"),
    ],
)
def test_improvement_is_not_judged_on_what_does_not_match(x: object, y: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        probability_of_improvement(x, y)


def test_strata_resample_whole_tasks_within_each_environment() -> None:
    scores = np.arange(10.0).reshape(2, 5)
    seen = []

    def spy(resampled: np.ndarray) -> np.ndarray:
        seen.append(resampled)
        return mean(resampled)

    stratified_bootstrap_ci(scores, spy, resamples=200, strata=["a", "a", "b", "b", "b"])
    assert seen[0].shape == (200, 2, 5)
    # A column is a task of its environment, with the repeats that it has.
    assert set(np.unique(seen[0][:, 0, :2])) == {0.0, 1.0}
    assert set(np.unique(seen[0][:, 0, 2:])) == {2.0, 3.0, 4.0}
    np.testing.assert_array_equal(seen[0][:, 1], seen[0][:, 0] + 5)


def test_strata_give_copies_an_interval_that_covers_other_goals() -> None:
    """Success of an agent that acts by its mode: goals are reached or not, and a repeat only says so again."""
    generator = np.random.default_rng(5)
    rates, experiments, covered = np.array([0.9, 0.5, 0.2, 0.7, 0.4]), 300, 0
    for _ in range(experiments):
        goals = (generator.random((5, 50)) < rates[:, None]).astype(float).ravel()
        low, high = stratified_bootstrap_ci(goals[None], resamples=400, strata=np.repeat([*"abcde"], 50).tolist())
        covered += low <= rates.mean() <= high
        assert stratified_bootstrap_ci([goals, goals], resamples=2) == (goals.mean(), goals.mean())
    assert 0.91 <= covered / experiments <= 0.98


def test_an_environment_with_one_task_has_no_spread() -> None:
    with pytest.raises(UsageError, match="at least 2 tasks an environment, got 1"):
        stratified_bootstrap_ci([[1.0, 2.0, 3.0]], strata=["a", "a", "b"])
    with pytest.raises(UsageError, match="got 2 for 3 tasks"):
        stratified_bootstrap_ci([[1.0, 2.0, 3.0]], strata=["a", "a"])


def test_improvement_with_strata_resamples_the_same_tasks_of_both() -> None:
    x, y = [[3.0, 1.0, 5.0, 0.0]], [[2.0, 2.0, 2.0, 2.0]]
    p, low, high = probability_of_improvement(x, y, strata=["a", "a", "b", "b"])
    # Within each environment one task of two is won: the mean over four draws is 0, 1/4, ..., 1, and 0 has 1/16.
    assert (p, low, high) == (0.5, 0.0, 1.0)
    above, _, _ = performance_profile(x, [0.5], strata=["a", "a", "b", "b"])
    assert above.tolist() == [0.75]


@pytest.mark.parametrize(("seeds", "statistic"), [(2, mean), (3, mean), (3, iqm), (10, mean)])
def test_the_interval_over_seeds_covers_a_method_whose_trainings_differ(seeds: int, statistic: Any) -> None:
    """What one training is better by, it is better by on every task: a task more says nothing about other trainings."""
    generator, experiments, covered = np.random.default_rng(3), 200, 0
    for _ in range(experiments):
        scores = generator.normal(0, 2, (seeds, 1)) + generator.normal(0, 0.7, (seeds, 30))
        low, high = stratified_bootstrap_ci(scores, statistic, resamples=500, strata=SEEDS)
        covered += low <= 0 <= high
    assert 0.91 <= covered / experiments <= 0.99


def test_the_interval_over_seeds_of_a_mean_is_that_of_student() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 9))
    found = stratified_bootstrap_ci(scores, resamples=20_000, strata=SEEDS)
    means = scores.mean(axis=1)
    expected = t.interval(0.95, 3, means.mean(), means.std(ddof=1) / 2)
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_two_trainings_of_one_method_are_seldom_told_apart() -> None:
    generator, experiments, apart = np.random.default_rng(4), 200, 0
    for _ in range(experiments):
        x, y = generator.normal(0, 2, (2, 5, 1)) + generator.normal(0, 0.7, (2, 5, 30))
        p, low, high = probability_of_improvement(x, y, resamples=500, strata=SEEDS)
        apart += not low <= 0.5 <= high
        assert 0 <= low <= p <= high <= 1
    assert apart / experiments <= 0.1


def test_a_ranking_over_seeds_agrees_with_the_improvement_of_two() -> None:
    x, y = np.random.default_rng(5).normal(0, 1, (2, 4, 1)) + np.random.default_rng(6).normal(0, 1, (2, 4, 12))
    p, low, high = probability_of_improvement(x, y, strata=SEEDS)
    ranked = mean_improvement([[x, y]], strata=[SEEDS])
    np.testing.assert_allclose([each[0] for each in ranked], [p, low, high], atol=0.03)
    np.testing.assert_allclose([each[1] for each in ranked], [1 - p, 1 - high, 1 - low], atol=0.03)


def test_a_profile_over_seeds_stays_between_none_and_all() -> None:
    scores = np.array([[0.0, 1.0, 2.0], [5.0, 6.0, 7.0]])
    above, low, high = performance_profile(scores, [-1.0, 3.0, 9.0], strata=SEEDS)
    assert (above.tolist(), low.tolist(), high.tolist()) == ([1.0, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0])


def test_one_seed_has_no_spread() -> None:
    for call in (
        stratified_bootstrap_ci,
        lambda scores, strata: probability_of_improvement(scores, scores, strata=strata),
    ):
        with pytest.raises(UsageError, match="at least 2 training seeds, got 1: measure more"):
            call([[1.0, 2.0]], strata=SEEDS)


def test_an_only_training_beside_several_leaves_the_interval_to_those() -> None:
    several, only = np.random.default_rng(8).normal(size=(4, 40)), np.zeros((1, 40))
    p, low, high = probability_of_improvement(several, only, strata=SEEDS)
    by_seed = (several > 0).mean(axis=1)
    expected = t.interval(0.95, 3, by_seed.mean(), by_seed.std(ddof=1) / 2)
    assert p == pytest.approx(by_seed.mean())
    np.testing.assert_allclose([low, high], expected, atol=0.02)
    np.testing.assert_allclose(
        probability_of_improvement(only, several, strata=SEEDS), [1 - p, 1 - high, 1 - low], atol=1e-12
    )
    ranked = mean_improvement([[several, only]], strata=[SEEDS])
    np.testing.assert_allclose([each[0] for each in ranked], [p, low, high], atol=0.02)


def test_the_interval_over_seeds_is_as_wide_as_the_fewest_of_them_make_it() -> None:
    """Of two agents, the one whose trainings are nine, and all alike, lends the four of the other no certainty."""
    won = [0.25, 0.4, 0.6, 0.75]  # of 40 tasks
    several = np.where((np.arange(40) + 0.5) / 40 < np.array(won)[:, None], 1.0, -1.0)
    p, low, high = probability_of_improvement(several, np.zeros((9, 40)), strata=SEEDS)
    assert p == pytest.approx(0.5)
    np.testing.assert_allclose([low, high], t.interval(0.95, 3, 0.5, np.std(won, ddof=1) / 2), atol=0.03)


def test_a_family_of_only_trainings_over_tasks_does_not_take_the_interval_over_seeds_away() -> None:
    generator = np.random.default_rng(7)
    seeds, tasks = generator.normal(size=(2, 4, 6)), generator.normal(size=(2, 1, 4))
    found, low, high = mean_improvement([[*seeds], [*tasks]], strata=[SEEDS, ["a", "a", "b", "b"]])
    assert (low < found).all()
    assert (found < high).all()


def test_tasks_of_every_family_are_resampled_on_their_own() -> None:
    scores, strata = np.random.default_rng(9).normal(size=(2, 1, 40)), ["goals"] * 40
    widths = []
    for families in (1, 4):
        _, low, high = mean_improvement([[*scores]] * families, strata=[strata] * families)
        widths.append(high[0] - low[0])
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.1)
