"""The guard's account by hand, and its bound on streams of every kind."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metarl.adaptation.guard import Guard


def largest_stretch(excess):
    """Largest sum over a stretch of consecutive elements (Kadane), at least 0."""
    largest = running = 0.0
    for each in excess:
        running = max(0.0, running + each)
        largest = max(largest, running)
    return largest


def test_excess_beyond_the_tolerance_adds_up_until_the_limit():
    guard = Guard(window=4, tolerance=0.5)
    assert not guard.score(2.5, 1.0)  # excess 2.5 - 1 - 0.5 = 1; limit 0.5 * 4 * 1 = 2
    assert (guard.excess, guard.limit) == (1.0, 2.0)
    assert not guard.score(2.5, 1.0)  # 2: not above the limit
    assert guard.score(1.75, 1.0)  # 2.25
    assert (guard.excess, guard.waiting, guard.rollbacks) == (2.25, True, 1)


def test_while_it_waits_the_frozen_loss_pays_the_excess_off():
    guard = Guard(window=1, tolerance=0.5)
    assert guard.score(3.0, 1.0)  # excess 1.5, limit 0.5
    for expected in (1.0, 0.5):
        assert not guard.score(1.0, 1.0)
        assert (guard.excess, guard.waiting) == (expected, True)
    assert not guard.score(1.0, 1.0)
    assert (guard.excess, guard.waiting) == (0.0, False)


def test_better_is_no_credit():
    guard = Guard(window=2, tolerance=0.5)
    guard.score(0.0, 100.0)
    assert guard.excess == 0.0
    for _ in range(2):  # the first loss leaves the window
        guard.score(1.0, 1.0)
    assert guard.limit == 1.0
    assert guard.score(3.0, 1.0)


def test_a_negative_loss_is_tolerated_by_its_size():
    guard = Guard(window=10, tolerance=0.1)
    guard.score(-7.0, -10.0)  # 3 above, 1 of it tolerated
    assert guard.excess == pytest.approx(2.0)
    assert guard.limit == pytest.approx(10.0)


def test_window_counts_observations_and_the_limit_takes_their_median():
    guard = Guard(window=6, tolerance=0.5)
    for frozen in (80.0, 2.0, 4.0, 6.0):  # two observations each: 40, 1, 2 and 3 for one of them; the first is too old
        guard.score(frozen, frozen, observations=2)
    assert guard.limit == 0.5 * 6 * 2.0


def test_one_label_that_is_far_off_buys_no_allowance():
    guard = Guard(window=100, tolerance=0.05)
    for _ in range(50):
        guard.score(1.0, 1.0)
    guard.score(1e9, 1e9)
    assert guard.limit == 5.0


def test_without_tolerance_the_first_excess_ends_adaptation():
    guard = Guard(window=10, tolerance=0.0)
    assert not guard.score(0.5, 1.0)
    assert guard.score(1.25, 1.0)
    for _ in range(1000):
        guard.score(1.0, 1.0)
    assert guard.waiting


@pytest.mark.parametrize("adapted", [math.nan, math.inf])
def test_what_is_not_finite_goes_back_and_waits_a_window(adapted):
    guard = Guard(window=10, tolerance=0.25)
    guard.score(1.0, 1.0)
    assert guard.score(adapted, 1.0)
    waited = 0
    while guard.waiting:
        guard.score(1.0, 1.0)
        waited += 1
    assert waited == 10


def test_a_frozen_loss_that_is_not_finite_is_left_out():
    guard = Guard(window=10, tolerance=0.25)
    guard.score(1.5, 1.0)
    before = (guard.excess, guard.limit)
    assert not guard.score(5.0, math.nan)
    assert not guard.score(math.inf, math.inf)
    assert (guard.excess, guard.limit) == before == (0.25, 2.5)


def steady(generator, waiting, step):
    frozen = generator.exponential()
    return frozen * 1.02, frozen


def noisy(generator, waiting, step):
    return generator.exponential(), generator.exponential()


def heavy_tailed(generator, waiting, step):
    return generator.pareto(1.0), generator.pareto(1.0)


def drifting(generator, waiting, step):
    frozen = 1 + math.sin(step / 500)
    return frozen + math.sin(step / 70), frozen


def adversarial(generator, waiting, step):
    """Hard for the frozen model until adaptation is back, and from then on as harmful as it can be."""
    return 1.0, float(waiting)


def negative(generator, waiting, step):
    frozen = generator.normal() - 2
    return frozen + generator.normal(), frozen


STREAMS = (steady, noisy, heavy_tailed, drifting, adversarial, negative)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("window", "tolerance"), [(1, 0.5), (20, 0.05), (100, 0.0)])
def test_no_stretch_of_any_stream_exceeds_the_bound(stream, window, tolerance):
    generator = np.random.default_rng(0)
    guard = Guard(window, tolerance)
    beyond, limits = [], []
    for step in range(5_000):
        adapted, frozen = stream(generator, guard.waiting, step)
        if guard.waiting:
            adapted = frozen
        guard.score(adapted, frozen)
        beyond.append(adapted - frozen - tolerance * abs(frozen))
        limits.append(guard.limit)
    bound = max(limits) + max(0.0, *beyond)
    assert largest_stretch(beyond) <= bound * (1 + 1e-9)
    if stream is adversarial:
        assert bound <= 1 + window * tolerance  # losses lie in [0, 1]: known beforehand
        assert guard.rollbacks >= (1 if tolerance == 0 else 50)


def test_state_dict_resumes_the_account():
    generator = np.random.default_rng(0)
    losses = [
        (adapted, frozen, 1 + step % 3)
        for step, (adapted, frozen) in enumerate(generator.exponential(size=(400, 2)).tolist())
    ]
    guard, resumed = Guard(20, 0.1), Guard(20, 0.1)
    for each in losses[:200]:
        guard.score(*each)
    resumed.load_state_dict(guard.state_dict())
    assert (resumed.excess, resumed.limit) == (guard.excess, guard.limit)
    for each in losses[200:]:
        assert guard.score(*each) == resumed.score(*each)
        assert (guard.excess, guard.limit, guard.waiting) == (resumed.excess, resumed.limit, resumed.waiting)
    assert resumed.rollbacks == guard.rollbacks > 0
