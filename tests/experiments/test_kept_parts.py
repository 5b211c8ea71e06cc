"""What was measured before a stop is found again, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metarl.core.agent import Array
from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.experiments.kept_parts import KeptParts
from metarl.experiments.protocol import Protocol, evaluate

CHECKPOINT, SOURCE = "abc" * 10, {"device": "cpu"}
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
        evaluate(
            agent,
            family,
            family.test,
            PROTOCOL,
            Stopping(stopped_in),
            kept=KeptParts(tmp_path / "k", CHECKPOINT, SOURCE),
        )
    going_on, kept = Stopping(0), KeptParts(tmp_path / "k", CHECKPOINT, SOURCE)
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
    ("checkpoint", "source", "protocol", "tasks", "luck"),
    [
        ("abd" * 10, SOURCE, PROTOCOL, slice(None), 2.0),
        (CHECKPOINT, {"device": "cuda"}, PROTOCOL, slice(None), 2.0),
        (CHECKPOINT, SOURCE, replace(PROTOCOL, seed=7), slice(None), 2.0),
        (CHECKPOINT, SOURCE, replace(PROTOCOL, few_shot=(1,)), slice(None), 2.0),
        (CHECKPOINT, SOURCE, PROTOCOL, slice(2), 2.0),
        (CHECKPOINT, SOURCE, PROTOCOL, slice(None), 3.0),
    ],
    ids=["another agent", "another machine", "other worlds", "other shots", "other tasks", "tasks changed"],
)
def test_a_part_of_another_measurement_is_not_taken(
    bonus_family, scripted_agent, tmp_path: Path, checkpoint, source, protocol, tasks, luck
) -> None:
    family = bonus_family()
    given = [replace_params(task, luck=2.0) for task in family.test]
    kept = KeptParts(tmp_path, CHECKPOINT, SOURCE)
    kept.keep(replace(evaluate(scripted_agent, family, family.test, PROTOCOL), tasks=tuple(given)))
    other = KeptParts(tmp_path, checkpoint, source)
    assert kept.find(PROTOCOL, given) is not None
    assert other.find(protocol, [replace_params(task, luck=luck) for task in given[tasks]]) is None
    assert (kept.found, other.found) == (True, False)


def replace_params(task: Task, **params: float) -> Task:
    return Task(task.id, {**task.params, **params})


def test_parts_of_other_checkpoints_go_with_the_own_and_those_of_other_measurements_stay(
    bonus_family, scripted_agent, tmp_path: Path
) -> None:
    family = bonus_family()
    old, new, beside = (
        KeptParts(tmp_path, *of) for of in (("old" * 10, SOURCE), ("new" * 10, SOURCE), ("new" * 10, {}))
    )
    for kept in (old, new, beside):
        evaluate(scripted_agent, family, family.test, PROTOCOL, kept=kept)
    new.forget()
    assert [kept.find(PROTOCOL, family.test) is None for kept in (old, new, beside)] == [True, True, False]
    beside.forget()
    assert not tmp_path.exists()


def test_parts_of_a_checkpoint_that_is_still_there_stay(bonus_family, scripted_agent, tmp_path: Path) -> None:
    """The best one is measured whole, and that of the last one goes on later."""
    family, last, best = bonus_family(), "last" * 10, "best" * 10
    stopped, whole = (KeptParts(tmp_path, own, SOURCE, lambda: (last, best)) for own in (last, best))
    for kept in (stopped, whole):
        evaluate(scripted_agent, family, family.test, PROTOCOL, kept=kept)
    whole.forget()
    assert whole.find(PROTOCOL, family.test) is None
    assert stopped.find(PROTOCOL, family.test) is not None


def test_every_step_is_seen_also_where_parts_are_kept(bonus_family, scripted_agent, tmp_path: Path) -> None:
    family = bonus_family()
    kept = KeptParts(tmp_path, CHECKPOINT, SOURCE)
    evaluate(scripted_agent, family, family.test, PROTOCOL, kept=kept)
    seen: list[int] = []
    evaluate(scripted_agent, family, family.test, PROTOCOL, on_step=lambda *step: seen.append(1), kept=kept)
    assert seen


def test_what_is_not_defined_stays_so(bonus_family, scripted_agent, tmp_path: Path) -> None:
    family = bonus_family()
    part = evaluate(scripted_agent, family, family.test, PROTOCOL)
    unknown = tuple(replace(shot, success=None, final_success=None) for shot in part.shots)
    kept = KeptParts(tmp_path, CHECKPOINT, SOURCE)
    kept.keep(replace(part, shots=unknown))
    found = kept.find(PROTOCOL, family.test)
    assert found is not None
    assert [(shot.success, shot.final_success) for shot in found.shots] == [(None, None)] * 2


def test_what_was_counted_is_kept(bonus_family, scripted_agent, tmp_path: Path) -> None:
    family = bonus_family()
    part = replace(evaluate(scripted_agent, family, family.test, PROTOCOL), unstable_rows=5)
    kept = KeptParts(tmp_path, CHECKPOINT, SOURCE)
    kept.keep(part)
    found = kept.find(PROTOCOL, family.test)
    assert found is not None
    assert (found.env_steps, found.unstable_rows) == (part.env_steps, 5)


def test_damage_and_a_folder_that_cannot_be_made_are_one_line(bonus_family, scripted_agent, tmp_path: Path) -> None:
    family = bonus_family()
    kept = KeptParts(tmp_path / "kept", CHECKPOINT, SOURCE)
    part = evaluate(scripted_agent, family, family.test, PROTOCOL, kept=kept)
    (path,) = (tmp_path / "kept").iterdir()
    path.write_text("{}")
    with pytest.raises(UsageError, match=rf"{path.name} is damaged: remove it, and that part is measured again"):
        kept.find(PROTOCOL, family.test)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot make .*: Not a directory; free space there"):
        KeptParts(tmp_path / "file" / "kept", CHECKPOINT, SOURCE).keep(part)
