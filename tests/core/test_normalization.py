"""Running statistics against NumPy over everything seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.core.normalization import CLIP, ESTABLISHED, OUTLIER, RunningMoments


def make_batches(seed=0):
    """Batches of several sizes and shapes, of elements with very different scales."""
    generator = np.random.default_rng(seed)
    offset, scale = np.array([0.0, 1e4, -3.0]), np.array([1.0, 50.0, 1e-2])
    return [offset + scale * generator.standard_normal((*shape, 3)) for shape in ((1,), (7,), (4, 5), (300,))]


def filled():
    moments = RunningMoments(3)
    for batch in make_batches():
        moments.update(batch)
    return moments


def test_mean_and_deviation_are_those_of_all_batches_together():
    moments = filled()
    everything = np.concatenate([batch.reshape(-1, 3) for batch in make_batches()])
    assert moments.count == len(everything)
    np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.deviations / moments.count, everything.var(0), rtol=1e-9)
    standard = moments.normalize(everything)
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(standard.std(0), 1, atol=1e-3)


def test_a_hand_computed_value():
    moments = RunningMoments(1)
    moments.update(np.array([[1.0], [3.0]]))
    moments.update(np.array([[5.0], [7.0]]))
    # mean 4, variance (9 + 1 + 1 + 9) / 4 = 5
    np.testing.assert_allclose(moments.normalize(np.array([[4.0], [9.0]])), [[0.0], [5 / np.sqrt(5)]], rtol=1e-6)


def test_before_the_first_update_it_only_clips():
    values = np.array([[-1e5, 0.25, CLIP], [3.0, -CLIP - 1, 9.0]])
    moments = RunningMoments(3)
    moments.update(np.zeros((0, 3)))
    np.testing.assert_allclose(moments.normalize(values), np.clip(values, -CLIP, CLIP), rtol=1e-6)


def test_clips_to_ten_deviations():
    moments = filled()
    far = moments.mean + 1e3 * np.array([1.0, 50.0, 1e-2])
    assert moments.normalize(far).tolist() == [CLIP] * 3
    assert moments.normalize(2 * moments.mean - far).tolist() == [-CLIP] * 3


def established():
    """Statistics with mean 0 and deviation 1."""
    moments = RunningMoments(1)
    moments.update(np.tile([[-1.0], [1.0]], (ESTABLISHED // 2, 1)))
    return moments


@pytest.mark.parametrize("way", [-1.0, 1.0])
def test_an_object_that_flies_off_counts_as_far_away_and_no_more(way):
    """One number at 1e6 deviations would make the deviation 1e4, and of everything else zeros."""
    moments, expected = established(), established()
    moments.update(np.array([[way * 1e6]]))
    expected.update(np.array([[way * OUTLIER]]))
    np.testing.assert_allclose(moments.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(moments.deviations, expected.deviations, rtol=1e-6)
    assert abs(moments.normalize(np.ones(1))[0]) > 0.6
    assert moments.normalize(np.array([way * 1e6])) == way * CLIP


def test_a_scale_that_changes_for_good_is_found_within_some_batches():
    moments = established()
    for _ in range(20):
        moments.update(np.tile([[-1e5], [1e5]], (100, 1)))
    share = 4000 / (ESTABLISHED + 4000)
    np.testing.assert_allclose(np.sqrt(moments.deviations / moments.count), 1e5 * np.sqrt(share), rtol=0.15)


def test_an_element_that_never_changes_becomes_zero():
    moments = RunningMoments(2)
    moments.update(np.array([[0.1, 1.0], [0.1, 2.0]], np.float32))
    moments.update(np.array([[0.1, 5.0]], np.float32))
    assert moments.normalize(np.array([0.1, 5.0], np.float32))[0] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_what_is_not_finite_is_left_out_and_nothing_else(bad, shape):
    batch = np.random.default_rng(1).standard_normal((4, 5, *shape)).astype(np.float32)
    whole = np.ones((4, 5), bool)
    whole[1, 2] = whole[3, 4] = False
    spoiled = batch.copy()
    spoiled[1, 2], spoiled[(3, 4, *[0] * len(shape))] = bad, bad
    moments, expected = RunningMoments(shape), RunningMoments(shape)
    for each, given in ((moments, spoiled), (expected, batch[whole])):
        each.update(np.full(shape, bad) if each is moments else np.zeros((0, *shape)))
        each.update(given)
    assert moments.count == 18
    for name, tensor in expected.state_dict().items():
        assert tensor.equal(moments.state_dict()[name]), name


def test_normalize_gives_float32_and_leaves_its_input_alone():
    moments = filled()
    for dtype in (np.float32, np.float64, np.int64):
        values = np.full((2, 3), 7, dtype)
        result = moments.normalize(values)
        assert result.dtype == np.float32
        assert (values == 7).all()


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_elements_may_have_any_shape(shape):
    batch = np.random.default_rng(1).standard_normal((50, *shape))
    moments = RunningMoments(shape)
    moments.update(batch[:20])
    moments.update(batch[20:])
    np.testing.assert_allclose(moments.mean, batch.mean(0), atol=1e-12)
    np.testing.assert_allclose(moments.normalize(batch), (batch - batch.mean(0)) / batch.std(0), atol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_single_element_is_standardised_by_moments_that_move_and_by_frozen_ones(shape):
    moments = RunningMoments(shape)
    moments.update(np.array([1.0, 3.0, 5.0, 7.0]).reshape(4, *shape))  # mean 4, variance 5
    for found in (moments.normalize(np.full(shape, 9.0)), moments.frozen()(torch.full(shape, 9.0)).numpy()):
        assert (found.shape, found.dtype) == (shape, np.float32)
        np.testing.assert_allclose(found, 5 / np.sqrt(5), rtol=1e-6)


def test_restored_statistics_go_on_as_the_old_ones():
    kept, restored = filled(), RunningMoments(3)
    restored.load_state_dict(kept.state_dict())
    more = make_batches(seed=1)
    for batch in more:
        np.testing.assert_array_equal(restored.normalize(batch), kept.normalize(batch))
        kept.update(batch)
        restored.update(batch)
    for name, tensor in kept.state_dict().items():
        assert tensor.equal(restored.state_dict()[name]), name


def test_a_state_taken_does_not_move_with_later_updates():
    moments = filled()
    state = moments.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    restored = RunningMoments(3)
    restored.load_state_dict(state)
    for each in (moments, restored):
        each.update(np.full((5, 3), 99.0))
    assert all(state[name].equal(before[name]) for name in before)
