from __future__ import annotations

import pytest
import torch

from metarl.core.errors import UsageError
from metarl.meta_rl.replay import Replay


def _filled(*rounds: tuple[int, int], capacity: int = 1000) -> Replay:
    """Rounds of (steps, rows); a pair is (number of its sequence, its step), y is -x."""
    replay, first = Replay(2, 2, capacity), 0
    for steps, rows in rounds:
        number = torch.arange(first, first + rows).expand(steps, rows)
        step = torch.arange(steps)[:, None].expand(steps, rows)
        x = torch.stack([number, step], -1).float()
        replay.append(x, -x)
        first += rows
    return replay


def test_windows_are_consecutive_steps_of_one_sequence():
    replay = _filled((10, 3), (7, 2))
    x, y = replay.sample(500, 4, torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (500, 4, 2)
    assert torch.equal(x, -y)
    assert (x[:, :, 0] == x[:, :1, 0]).all()
    assert (x[:, 1:, 1] - x[:, :-1, 1] == 1).all()


def test_every_window_is_drawn_and_as_often_as_any_other():
    replay = _filled((5, 1), (3, 2), (2, 1))
    x, _ = replay.sample(7000, 3, torch.Generator().manual_seed(0))
    firsts, counts = torch.unique(x[:, 0], dim=0, return_counts=True)
    assert firsts.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [2, 0]]  # the sequence of two steps has no window
    assert counts.min() > 1250
    assert counts.max() < 1550


def test_sequences_end_where_they_are_said_to():
    replay = Replay(1, 1, 100)
    x = torch.arange(12.0).view(2, 6, 1).transpose(0, 1)  # two rows of six steps
    ends = torch.zeros(6, 2, dtype=torch.bool)
    ends[1, 0] = ends[5, 0] = ends[0, 1] = True
    replay.append(x, -x, ends)
    assert replay.lengths.tolist() == [2, 4, 1, 5]
    drawn, _ = replay.sample(200, 4, torch.Generator().manual_seed(0))
    assert torch.unique(drawn[:, 0]).tolist() == [2, 7, 8]


def test_the_oldest_sequences_go():
    replay = _filled((4, 2), (4, 2), (4, 1), capacity=13)
    assert replay.lengths.tolist() == [4, 4, 4]
    assert torch.unique(replay.x[:, 0]).tolist() == [2, 3, 4]
    assert len(replay) == 12


def test_the_newest_sequence_stays_even_if_it_is_longer_than_the_capacity():
    replay = _filled((4, 1), (9, 2), capacity=5)
    assert replay.lengths.tolist() == [9]
    assert replay.x[:, 0].tolist() == [2] * 9


def test_no_sequence_as_long_as_a_window_is_refused():
    with pytest.raises(UsageError, match="a window needs 5 steps in a row, the longest sequence held has 4"):
        _filled((4, 2)).sample(1, 5, torch.Generator())
    with pytest.raises(UsageError, match="the longest sequence held has 0"):
        Replay(2, 2, 10).sample(1, 5, torch.Generator())


def test_a_restored_replay_draws_the_same():
    replay, other = _filled((10, 3)), Replay(2, 2, 1000)
    state = replay.state_dict()
    replay.append(torch.zeros(4, 1, 2), torch.zeros(4, 1, 2))
    other.load_state_dict(state)
    one, two = (each.sample(20, 4, torch.Generator().manual_seed(1))[0] for each in (_filled((10, 3)), other))
    assert torch.equal(one, two)
