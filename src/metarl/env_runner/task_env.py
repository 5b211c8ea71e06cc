"""`TaskVectorEnv`: a Gymnasium vector environment whose rows carry tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from metarl.core.autoreset import successor
from metarl.core.task import Task

__all__ = ["Array", "Infos", "TaskVectorEnv", "successor"]

Array: TypeAlias = NDArray[Any]
Infos: TypeAlias = dict[str, Any]


class TaskVectorEnv(VectorEnv[Array, Array, Array]):
    """Rows of worlds, each with exactly one task during a trial. Same-step autoreset.

    Beyond `gymnasium.vector.VectorEnv`:

    - `set_tasks(tasks)`: one task a row, in force from the row's next reset.
    - `reset(seed=..., options={"reset_mask": mask})` resets the rows marked in mask [B]; the other rows go on, and
      their current observation is returned unchanged; there are no infos. A seed restarts the random streams of all
      rows, those of rows that go on at their next reset.
    - `step` returns, where a row's episode ended, the first observation of its next episode. The true successor is
      `infos["final_obs"]` ([B, obs], valid in the rows marked by `infos["_final_obs"]`). Both keys are present if and
      only if some row ended.
    - `infos["success"]` [B] (bool), where the tasks define success.
    - `infos["unstable"]` [B] (bool), where the simulator had to give a row up; that row is terminated.

    Observations and rewards are finite float32 arrays that the caller may keep: `step` never writes into what it
    returned.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (as in VectorEnv)
    tasks: tuple[Task, ...]
    max_episode_steps: int

    @abstractmethod
    def set_tasks(self, tasks: Sequence[Task]) -> None:
        """Give row i the task tasks[i], from its next reset on."""
