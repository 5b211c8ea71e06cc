"""What was measured before a stop is found again, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metarl.core.agent import Array
from metarl.core.errors import UsageError
from metarl.experiments.kept_parts import KeptParts
from metarl.experiments.protocol import Protocol, evaluate

SOURCE = {"checkpoint": "abc"}
PROTOCOL = Protocol("few-shot", (2,), repeats=2, seed=6)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 repeats of 10 steps at most: two of the family's tasks, then one."""
    monkeypatch.setattr("metarl.experiments.protocol.ROUND_STEPS", 40)


class Stopping:
    """Stops a measurement as Ctrl-C does, when a round begins."""

    def __init__(self, begun: int) -> None:
        self.begun = begun
        self.rounds: list[int] = []

    def __call__(self, begun: int, rounds: int) -> None:
        self.rounds.append(begun)
        if begun == self.begun:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize(("stopped_in", "left"), [(2, range(1, 7)), (4, range(4, 7)), (6, range(4, 7))])
def test_a_stopped_measurement_goes_on_after_its_whole_parts(
    bonus_family, scripted_agent, tmp_path: Path, stopped_in: int, left: range
) -> None:
    class Sampling(type(scripted_agent)):  # type: ignore[misc]
        """Its actions go by its random stream."""

        def _act(self, observation: Array) -> Array:
            actions: Array = super()._act(observation) + self.noise.item() % 97 / 97
            return actions

    family, agent = bonus_family(luck=1.0), Sampling()
    whole = evaluate(agent, family, family.test, PROTOCOL)
    with pytest.raises(KeyboardInterrupt):
        evaluate(agent, family, family.test, PROTOCOL, Stopping(stopped_in), kept=KeptParts(tmp_path / "k", SOURCE))
    going_on, kept = Stopping(0), KeptParts(tmp_path / "k", SOURCE)
    resumed = evaluate(agent, family, family.test, PROTOCOL, going_on, kept=kept)
    assert going_on.rounds == [*left]
    assert (resumed.protocol, resumed.tasks, resumed.strata) == (whole.protocol, whole.tasks, whole.strata)
    assert (resumed.env_steps, resumed.unstable_rows) == (whole.env_steps, whole.unstable_rows)
    for shot, expected in zip(resumed.shots, whole.shots, strict=True):
        for name in ("returns", "success", "final_success"):
            np.testing.assert_array_equal(getattr(shot, name), getattr(expected, name), strict=True)
        assert (shot.shot, shot.episodes, shot.gradient_steps) == (
            expected.shot,
            expected.episodes,
            expected.gradient_steps,
        )
    assert len(list((tmp_path / "k").iterdir())) == 2
    kept.forget()
    assert not (tmp_path / "k").exists()


@pytest.mark.parametrize(
    ("source", "protocol", "tasks"),
    [
        ({"checkpoint": "abd"}, PROTOCOL, slice(None)),
        (SOURCE, replace(PROTOCOL, seed=7), slice(None)),
        (SOURCE, replace(PROTOCOL, few_shot=(1,)), slice(None)),
        (SOURCE, PROTOCOL, slice(2)),
    ],
    ids=["another agent", "other worlds", "other shots", "other tasks"],
)
def test_a_part_of_another_measurement_is_not_taken(
    bonus_family, scripted_agent, tmp_path: Path, source: dict[str, str], protocol: Protocol, tasks: slice
) -> None:
    family = bonus_family()
    kept = KeptParts(tmp_path, SOURCE)
    evaluate(scripted_agent, family, family.test, PROTOCOL, kept=kept)
    other = KeptParts(tmp_path, source)
    assert kept.find(PROTOCOL, family.test) is not None
    assert other.find(protocol, family.test[tasks]) is None
    other.forget()
    assert kept.find(PROTOCOL, family.test) is not None


def test_what_is_not_defined_stays_so(bonus_family, scripted_agent, tmp_path: Path) -> None:
    family = bonus_family()
    part = evaluate(scripted_agent, family, family.test, PROTOCOL)
    unknown = tuple(replace(shot, success=None, final_success=None) for shot in part.shots)
    kept = KeptParts(tmp_path, SOURCE)
    kept.keep(replace(part, shots=unknown))
    found = kept.find(PROTOCOL, family.test)
    assert found is not None
    assert [(shot.success, shot.final_success) for shot in found.shots] == [(None, None)] * 2


def test_damage_and_a_folder_that_cannot_be_made_are_one_line(bonus_family, scripted_agent, tmp_path: Path) -> None:
    family = bonus_family()
    kept = KeptParts(tmp_path / "kept", SOURCE)
    part = evaluate(scripted_agent, family, family.test, PROTOCOL, kept=kept)
    (path,) = (tmp_path / "kept").iterdir()
    path.write_text("{}")
    with pytest.raises(UsageError, match=rf"{path.name} is damaged: remove it, and that part is measured again"):
        kept.find(PROTOCOL, family.test)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot make .*: Not a directory; free space there"):
        KeptParts(tmp_path / "file" / "kept", SOURCE).keep(part)
