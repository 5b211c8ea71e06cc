"""The true next observation, in the two forms in which worlds give final ones."""

from __future__ import annotations

import numpy as np
import pytest

from metarl.core.autoreset import successor

OBSERVATION = np.arange(6.0, dtype=np.float32).reshape(3, 2)
FINAL = OBSERVATION + 10


def as_objects(marked):
    """As Gymnasium's own vector environments hold them: None where no episode ended."""
    held = np.full(len(marked), None, dtype=object)
    for row in np.flatnonzero(marked):
        held[row] = FINAL[row]
    return held


@pytest.mark.parametrize("marked", [[True, False, True], [True, True, True], [False, True, False]])
@pytest.mark.parametrize("form", [as_objects, lambda marked: FINAL], ids=["objects", "rows"])
def test_final_observations_stand_where_a_world_reset_itself(form, marked):
    before = OBSERVATION.copy()
    following = successor(OBSERVATION, {"_final_obs": np.array(marked), "final_obs": form(marked)})
    assert following.dtype == np.float32
    assert following.tolist() == np.where(np.array(marked)[:, None], FINAL, OBSERVATION).tolist()
    assert np.array_equal(OBSERVATION, before)


def test_without_an_end_it_is_what_the_step_returned():
    assert successor(OBSERVATION, {}) is OBSERVATION
