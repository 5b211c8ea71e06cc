"""What worlds that reset themselves say about the step in which they did: `successor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def successor(observation: NDArray[Any], infos: Mapping[str, Any]) -> NDArray[Any]:
    """The true next observation [B, obs]: the final one where the world reset itself.

    Args:
        observation: [B, obs] what a step with same-step autoreset returned.
        infos: what it returned beside that. Where rows ended, `_final_obs` [B] marks them, and `final_obs` holds their
            final observations: [B, obs], or as in Gymnasium's own vector environments [B] objects.
    """
    if "_final_obs" not in infos:
        return observation
    ended, final = infos["_final_obs"], infos["final_obs"][infos["_final_obs"]]
    following = observation.copy()
    following[ended] = np.stack(final) if final.dtype == object else final
    return following
