"""Steps in, time-first tensors out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.core.trajectory import Trajectory


def make_steps(number=4, rows=3):
    return [
        {"observation": torch.full((rows, 2), float(time)), "ended": torch.arange(rows) == time}
        for time in range(number)
    ]


def test_steps_are_stacked_time_first():
    trajectory = Trajectory()
    for step in make_steps():
        trajectory.append(**step)
    stacked = trajectory.stack()
    assert len(trajectory) == 4
    assert stacked["observation"].shape == (4, 3, 2)
    assert stacked["observation"][:, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert stacked["ended"].dtype == torch.bool
    assert stacked["ended"].nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]


def test_unstacking_undoes_stacking_and_the_result_can_go_on():
    trajectory = Trajectory()
    for step in make_steps(3):
        trajectory.append(**step)
    again = Trajectory.unstack(trajectory.stack())
    assert len(again) == 3
    again.append(**make_steps()[3])
    trajectory.append(**make_steps()[3])
    for name, tensor in trajectory.stack().items():
        assert torch.equal(again.stack()[name], tensor)


def test_an_array_is_kept_as_it_was_when_it_was_appended():
    trajectory, reused = Trajectory(), np.zeros((3, 2), dtype=np.float32)
    for time in range(3):
        reused[:] = time
        trajectory.append(observation=reused)
    stacked = trajectory.stack()["observation"]
    assert stacked.dtype == torch.float32
    assert stacked[:, 0, 0].tolist() == [0.0, 1.0, 2.0]


def test_an_empty_trajectory_has_no_steps():
    assert len(Trajectory()) == 0
    assert Trajectory().stack() == {}
    assert len(Trajectory.unstack({})) == 0


@pytest.mark.parametrize("names", [("observation",), ("observation", "ended", "extra"), ("observation", "end")])
def test_a_step_with_other_names_is_refused(names):
    trajectory = Trajectory()
    trajectory.append(**make_steps()[0])
    with pytest.raises(KeyError, match="ended"):
        trajectory.append(**dict.fromkeys(names, torch.zeros(3)))
    assert len(trajectory) == 1
