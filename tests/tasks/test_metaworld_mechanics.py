"""The mechanics that Meta-World's rewards share, against the official functions and by hand."""

from __future__ import annotations

import itertools

import pytest

from metarl.tasks import metaworld_mechanics as mechanics

X = [0.0, 0.004, 0.05, 0.0500001, 0.06, 0.3, 2.0]
MARGINS = [0.0, 0.01, 0.25, 1.3]


def test_nearness_is_that_of_the_official_package():
    official = pytest.importorskip("metaworld.utils.reward_utils").tolerance
    for x, margin in itertools.product([-0.2, *X], MARGINS):
        tail = official(x, bounds=(0.0, 0.05), margin=margin, sigmoid="long_tail")
        assert mechanics.within(x, 0.05, margin) == pytest.approx(tail, abs=1e-12)
        bell = official(x, bounds=(0.0, 0.05), margin=margin, sigmoid="gaussian")
        assert mechanics.sharply_within(x, 0.05, margin) == pytest.approx(bell, abs=1e-12)
        ring = official(x, bounds=(0.02, 0.05), margin=margin, sigmoid="long_tail")
        assert mechanics.between(x, 0.02, 0.05, margin) == pytest.approx(ring, abs=1e-12)


def test_nearness_by_hand():
    assert mechanics.within(0.05, 0.05, 0.1) == 1.0
    assert mechanics.within(0.15, 0.05, 0.1) == pytest.approx(0.1)
    assert mechanics.sharply_within(0.15, 0.05, 0.1) == pytest.approx(0.1)
    assert mechanics.within(0.06, 0.05, 0.0) == mechanics.sharply_within(0.06, 0.05, 0.0) == 0.0


def test_where_the_margin_is_the_distance_itself_nearness_ends_near_by():
    """What docs/metaworld.md says of door-lock."""
    near = [mechanics.within(apart, 0.01, apart) for apart in (0.01, 0.02, 0.1, 10.0)]
    assert near == pytest.approx([1.0, 0.31, 0.12, 0.1], abs=0.005)


def test_both_is_the_hamacher_product():
    official = pytest.importorskip("metaworld.utils.reward_utils").hamacher_product
    for a, b in itertools.product([0.0, 0.1, 0.5, 1.0], repeat=2):
        assert mechanics.both(a, b) == pytest.approx(official(a, b), abs=1e-12)
    assert mechanics.both(0.5, 0.5) == pytest.approx(1 / 3)


def test_distances_by_hand():
    assert mechanics.distance((1.0, 2.0, 3.0), (1.0, 5.0, 7.0)) == 5.0
    assert mechanics.distance((1.0, 0.0, 0.0), (0.0, 2.0, 1.0), (3.0, 1.0, 6.0)) == 7.0
    assert mechanics.flat_distance((3.0, 4.0, 9.0), (0.0, 0.0, 0.0)) == 5.0
    assert mechanics.side_distance((3.0, 9.0, 4.0), (0.0, 0.0, 0.0)) == 5.0


def test_a_funnel_by_hand():
    assert mechanics.funnel(0.02, 0.03, 0.04, 0.4) == 0.0
    assert mechanics.funnel(1.03, 0.03, 0.04, 0.4) == pytest.approx(0.4)
    assert mechanics.above_funnel(0.3, 0.3, 0.05) == 1.0
    assert mechanics.above_funnel(0.24, 0.3, 0.05) == pytest.approx(0.1)
