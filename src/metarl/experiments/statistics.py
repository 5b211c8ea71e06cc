"""Scores with their uncertainty: pure functions of a score matrix `scores[repeats, tasks]`.

A repeat is an independent attempt at the same task: a row of worlds with its own seed. What the confidence interval
covers is how far the number would move if the same agent were measured again on the same tasks. What it does not cover:
other tasks of the family, and other training seeds.

To speak about a method, average the rows of each training seed first, give one row a seed, and `SEEDS` for the strata.
An agent that came out well is better on all tasks at once, so what one seed did on them is resampled as a whole, and
the few seeds that there are widen the interval by Student's t: it covers new training seeds on these tasks.

Where nothing is left to chance, repeats are copies of each other and such an interval has no width, which says nothing
about how well a few goals stand for their environment. With `strata`, the environment of each task, tasks are resampled
within environments, whole columns at a time: the interval then covers other goals of the same environments (and the
repeats in them), but not other environments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metarl.core.errors import UsageError

Scores: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Scores], Any]
Strata: TypeAlias = Sequence[str]

SEEDS = "seeds"
"""In place of strata: every row of scores is another training seed."""

IQM_CUT = 0.25
"""Fraction of the scores that the interquartile mean leaves out at each end."""

RESAMPLES = 2000
"""Bootstrap resamples: 50 of them lie beyond each limit of a 95 % interval."""

CVAR_ALPHA = 0.05
"""Fraction of the tasks that the conditional value at risk averages: the worst 5 %."""


class Summary(TypedDict):
    """A score in four numbers; `ci95` is the interval of `mean`."""

    mean: float
    iqm: float
    ci95: list[float]
    cvar05: float


def mean(scores: Scores) -> Any:
    """Mean over repeats and tasks: [..., repeats, tasks] -> [...]."""
    return scores.mean(axis=(-2, -1))


def iqm(scores: Scores) -> Any:
    """Interquartile mean, the 25 % trimmed mean of all scores: [..., repeats, tasks] -> [...].

    floor(n / 4) of the n = repeats * tasks scores are left out at each end, so fewer than four leave the plain mean.
    Source: Agarwal et al. (2021), Deep Reinforcement Learning at the Edge of the Statistical Precipice.
    """
    from scipy.stats import trim_mean  # type: ignore[import-untyped] # it takes most of a second to load

    return trim_mean(scores.reshape(*scores.shape[:-2], -1), IQM_CUT, axis=-1)


def cvar(task_means: ArrayLike, alpha: float = CVAR_ALPHA) -> float:
    """Conditional value at risk: the mean of the worst ceil(alpha * n) of n task means [tasks]; low scores are bad."""
    means = np.sort(np.asarray(task_means, dtype=np.float64))
    if means.ndim != 1 or not len(means):
        raise UsageError(f"cvar takes the mean score of each task [tasks], at least one; got shape {means.shape}")
    if not 0 < alpha <= 1:
        raise UsageError(f"cvar averages a fraction of the tasks, 0 < alpha <= 1; got {alpha}")
    # Rounded, because a product such as 0.07 * 100 = 7.000000000000001 must not count one task more.
    worst = math.ceil(round(alpha * len(means), 9))
    return float(means[:worst].mean())


def stratified_bootstrap_ci(
    scores: ArrayLike,
    statistic: Statistic = mean,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    strata: Strata | None = None,
) -> tuple[float, float]:
    """Percentile interval of `statistic`, resampling the repeats within each task (the tasks are the strata).

    Each resample draws, for every task on its own, R - 1 of its R repeats with replacement; the interval runs between
    the (1 - level) / 2 and (1 + level) / 2 quantiles of the statistic over the resamples. It covers new repeats on this
    fixed set of tasks, not new tasks. Where all repeats of a task agree, as in a world without chance, it has no width.

    With `strata` each resample draws, for every environment on its own, as many tasks as it has, with replacement. The
    variance of a mean over n tasks of an environment then comes out (n - 1) / n of its value.

    With `SEEDS` each resample draws R - 1 of the R rows, for all tasks alike, and the interval is the statistic plus
    and minus its standard deviation over the resamples times Student's t with R - 1 degrees of freedom; for the mean,
    that is the t interval of the seeds' means, but for the chance in the resamples: with 2000, some 2 % of its width.

    Args:
        scores: [repeats, tasks], finite; at least two repeats, or two tasks in every stratum: from one, the spread
            cannot be known.
        statistic: maps [resamples, repeats, tasks] to [resamples], such as `mean` or `iqm`.
        level: probability that the interval is meant to cover, between 0 and 1.
        seed: of the resampling; equal seeds give equal intervals.
        strata: [tasks], the environment of each task; `SEEDS`: rows are training seeds; None: repeats are resampled.

    Source: Agarwal et al. (2021), rliable. Differs from it: R - 1 draws in place of R, after Rao and Wu (1988),
    Resampling Inference with Complex Survey Data. With R draws the variance of the mean comes out (R - 1) / R of its
    value, and the 95 % interval of four repeats a task covers only 91 %; with R - 1 draws it comes out right.
    """
    scores = score_matrix(scores)
    values = np.asarray(statistic(_resampled(scores, level, resamples, seed, strata)))
    if values.shape != (resamples,):
        raise UsageError(f"statistic must map [resamples, repeats, tasks] to [{resamples}], got shape {values.shape}")
    if strata == SEEDS:
        low, high = _student(np.asarray(statistic(scores[None]))[0], values, level, len(scores))
    else:
        low, high = _limits(values, level)
    return float(low), float(high)


def performance_profile(
    scores: ArrayLike,
    thresholds: ArrayLike,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    strata: Strata | None = None,
) -> tuple[Scores, Scores, Scores]:
    """Fraction of all scores above each threshold, and its pointwise interval: three arrays [thresholds].

    F(tau) = 1 / (R N) * sum over the R repeats and N tasks of 1[score > tau]: the whole distribution of the scores,
    tails included, where a mean is one number. The interval is that of `stratified_bootstrap_ci`, at each threshold.

    Args:
        scores, strata: as in `stratified_bootstrap_ci`.

    Source: Agarwal et al. (2021), arXiv 2108.13264, run-score distributions.
    """

    def above(scores: Scores) -> Scores:
        return np.stack([(scores > tau).mean(axis=(-2, -1)) for tau in np.asarray(thresholds)], axis=-1)

    scores = score_matrix(scores)
    fraction, values = above(scores), above(_resampled(scores, level, resamples, seed, strata))
    if strata == SEEDS:
        return fraction, *np.clip(_student(fraction, values, level, len(scores)), 0, 1)
    return fraction, *_limits(values, level)


def probability_of_improvement(
    x: ArrayLike,
    y: ArrayLike,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    strata: Strata | None = None,
) -> tuple[float, float, float]:
    """How likely a score of X is above one of Y on the same task, task drawn at random, and its interval.

    P(X > Y) = 1 / N * sum over tasks of the fraction of all pairs (x_i, y_j) with x_i > y_j; a tie counts one half, so
    that P(X > Y) + P(Y > X) = 1. The interval resamples the repeats of X and of Y within each task, each on its own,
    as `stratified_bootstrap_ci` does; with `strata` it resamples tasks, the same ones for X and Y; with `SEEDS` the
    rows of X and of Y, whole. Where every seed of X is above every one of Y on every task there is nothing to resample,
    and it has no width: of three seeds and three of the same method, one pair in ten comes out like that. An only row
    stays as it is: the interval covers other seeds of the other agent.

    Args:
        x, y: [repeats, tasks], the same tasks; without `strata`, each at least two repeats, with `SEEDS` one of them.

    Returns:
        P(X > Y), and the lower and upper limit of its interval.

    Source: Agarwal et al. (2021), arXiv 2108.13264.
    """
    found, low, high = mean_improvement([[x, y]], level, resamples, seed, [strata])
    return float(found[0]), float(low[0]), float(high[0])


def mean_improvement(
    scores: Sequence[Sequence[ArrayLike]],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    strata: Sequence[Strata | None] | None = None,
) -> tuple[Scores, Scores, Scores]:
    """How likely each agent's score is above that of another agent, the other and the task drawn at random.

    The mean over the other agents, and over all tasks of all families, of `probability_of_improvement`: scores are
    compared within a task only, so families need no common scale. 0.5 is the mean of all agents. The interval resamples
    the repeats of every agent within each task; in a family with strata, the tasks within each, for all agents alike;
    with `SEEDS`, the rows of every agent, whole, in each family on their own; an only row stays as it is.

    Args:
        scores: for each family the matrices [repeats, tasks] of all agents, at least two, in one order.
        strata: for each family, as in `stratified_bootstrap_ci`; None: in none.

    Returns:
        Three arrays [agents]: the probability, and the lower and upper limit of its interval.
    """
    families = [[score_matrix(matrix) for matrix in agents] for agents in scores]
    if {len(agents) for agents in families} != {len(families[0])} or len(families[0]) < 2:
        raise UsageError("a ranking needs at least two agents, the same ones in every family")
    generator, count = np.random.default_rng(seed), len(families[0])
    shares = (count - 1) * sum(agents[0].shape[1] for agents in families)
    found, values = np.zeros(count), np.zeros((resamples, count))
    for index, (agents, groups) in enumerate(zip(families, strata or [None] * len(families), strict=True)):
        num_tasks, *others = (matrix.shape[1] for matrix in agents)
        if {num_tasks} != {num_tasks, *others}:
            counts = " and ".join(map(str, (num_tasks, *others)))
            raise UsageError(f"an improvement is judged on the same tasks, got {counts} of them: measure all alike")
        if groups is None or groups == SEEDS:
            which, what = (max, "training seeds") if groups == SEEDS else (min, "repeats a task")
            _check_bootstrap(which(map(len, agents)), level, resamples, what)
            own = 1 if groups == SEEDS else num_tasks
            drawn = [_drawn(generator, len(matrix), resamples, own).repeat(num_tasks // own, 1) for matrix in agents]
        for one, other in combinations(range(count), 2):
            wins = _wins(agents[one], agents[other])
            by_task = wins.mean(axis=(0, 1))
            if groups is None or groups == SEEDS:
                resampled = np.einsum("stx,xyt,sty->s", drawn[one], wins, drawn[other], optimize=True)
            else:  # one seed for all pairs of a family: they meet the same tasks
                resampled = _resampled(by_task[None], level, resamples, seed + index, groups).sum(axis=(1, 2))
            won = num_tasks * wins.mean()
            found[[one, other]] += won, num_tasks - won
            values[:, one] += resampled
            values[:, other] += num_tasks - resampled
    if any(groups == SEEDS for groups in strata or ()):
        by_row = [agents for agents, groups in zip(families, strata or (), strict=True) if groups in (None, SEEDS)]
        fewest = min(len(matrix) for agents in by_row for matrix in agents if len(matrix) > 1)  # of those with a spread
        low, high = np.clip(_student(found / shares, values / shares, level, fewest), 0, 1)
    else:
        low, high = _limits(values / shares, level)
    return found / shares, low, high


def summary(scores: ArrayLike, strata: Strata | None = None) -> Summary:
    """Mean, IQM, 95 % interval of the mean and CVaR 5 % over the tasks' means, from `scores[repeats, tasks]`.

    `strata`: as in `stratified_bootstrap_ci`.
    """
    scores = score_matrix(scores)
    return {
        "mean": float(mean(scores)),
        "iqm": float(iqm(scores)),
        "ci95": list(stratified_bootstrap_ci(scores, mean, strata=strata)),
        "cvar05": cvar(scores.mean(axis=0)),
    }


def _wins(x: Scores, y: Scores) -> Scores:
    """1 where x is above y, one half where they tie: [repeats of X, repeats of Y, tasks]."""
    wins: Scores = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
    return wins


def _drawn(generator: np.random.Generator, count: int, resamples: int, num_tasks: int) -> Scores:
    """How often each of `count` repeats is drawn, as a fraction [resamples, tasks, repeats]: the same law as drawing
    indices. An only one is drawn every time."""
    if count == 1:
        return np.ones((resamples, num_tasks, 1))
    drawn: Scores = generator.multinomial(count - 1, np.full(count, 1 / count), size=(resamples, num_tasks)) / (
        count - 1
    )
    return drawn


def _resampled(scores: ArrayLike, level: float, resamples: int, seed: int, strata: Strata | None) -> Scores:
    """Resamples of [repeats, tasks] within each task, or of whole rows, [resamples, repeats - 1, tasks]; or of tasks
    within each stratum, [resamples, repeats, tasks]."""
    scores = score_matrix(scores)
    num_repeats, num_tasks = scores.shape
    generator = np.random.default_rng(seed)
    resampled: Scores
    if strata is None or strata == SEEDS:
        _check_bootstrap(num_repeats, level, resamples, "training seeds" if strata == SEEDS else "repeats a task")
        draws = generator.integers(num_repeats, size=(resamples, num_repeats - 1, 1 if strata == SEEDS else num_tasks))
        resampled = scores[draws, np.arange(num_tasks)]
        return resampled
    if len(strata) != num_tasks:
        raise UsageError(f"strata name the environment of each task: got {len(strata)} for {num_tasks} tasks")
    members = [np.flatnonzero(np.asarray(strata) == name) for name in dict.fromkeys(strata)]
    _check_bootstrap(min(map(len, members)), level, resamples, "tasks an environment")
    drawn = [each[generator.integers(len(each), size=(resamples, len(each)))] for each in members]
    resampled = scores[:, np.concatenate(drawn, axis=1)].swapaxes(0, 1)
    return resampled


def _check_bootstrap(count: int, level: float, resamples: int, what: str) -> None:
    if count < 2:
        raise UsageError(f"a confidence interval needs at least 2 {what}, got {count}: measure more")
    if not 0 < level < 1:
        raise UsageError(f"the level of a confidence interval lies between 0 and 1, got {level}")
    if resamples < 1:
        raise UsageError(f"the bootstrap needs at least 1 resample, got {resamples}")


def _limits(values: Scores, level: float) -> Any:
    """Percentile limits over the resamples: [resamples, ...] -> (low [...], high [...])."""
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)


def _student(value: Any, values: Scores, level: float, rows: int) -> Any:
    """Limits (low, high) around a value whose resamples, of whole rows, are `values` [resamples, ...]."""
    from scipy.stats import t  # it takes most of a second to load

    half = t.ppf((1 + level) / 2, rows - 1) * values.std(axis=0)
    return np.stack([value - half, value + half])


def score_matrix(scores: ArrayLike) -> Scores:
    """`scores` as a float64 matrix [repeats, tasks]; refuses another shape, an empty one, and NaN or infinity."""
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise UsageError(f"scores are a matrix [repeats, tasks] that is not empty, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        repeat, task = np.argwhere(~np.isfinite(matrix))[0]
        raise UsageError(f"scores must be finite, got {matrix[repeat, task]} in repeat {repeat} of task column {task}")
    return matrix
