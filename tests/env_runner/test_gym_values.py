"""What own environments get wrong, said in one line with its name, its type and its place."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.gym_values import raised, read_observation, read_step
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.rows import WorldError

SEEN = np.zeros(2)


class Returns(gymnasium.Env[Any, Any]):
    """Gives back what it was told to, from `reset` and from `step`."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-1.0, 1.0, shape=(2,))

    def __init__(self, step: Any = None, reset: Any = (SEEN, {})) -> None:
        self.steps, self.resets = step, reset

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.resets

    def step(self, action: Any) -> Any:
        return self.steps


def worlds(env: Returns) -> GymWorkers:
    return GymWorkers(lambda: env, [Task(3, {})], apply=lambda env, task: None, max_episode_steps=9)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ((SEEN, np.ones(1), False, False, {}), r"the reward is one number or bool, got an array of float64 \(1,\)"),
        ((SEEN, None, False, False, {}), "the reward is one number or bool, got None"),
        ((SEEN, "1", False, False, {}), "the reward is one number or bool, got str"),
        (
            (SEEN, 1.0, False, {}),
            r"step returns \(observation, .* info\), got a tuple of 4; wrap an environment of the old",
        ),
        (None, r"step returns \(observation, .* info\), got None"),
        ((SEEN, 1.0, False, False, None), "info is a dictionary, got None"),
        ((SEEN, 1.0, None, False, {}), "terminated is one number or bool, got None"),
        ((SEEN, 1.0, False, np.array([True, False]), {}), r"truncated is one .*, got an array of bool \(2,\)"),
        (
            (SEEN, 1.0, False, False, {"success": np.array([0, 1])}),
            r"info\['success'\] is one .* array of int64 \(2,\)",
        ),
        ((None, 1.0, False, False, {}), "got an observation of 1 numbers from a space of 2"),
        (
            (np.array(["a", "b"]), 1.0, False, False, {}),
            r"got an observation that is no array of numbers: an array of <U1",
        ),
        (([[1.0], [1.0, 2.0]], 1.0, False, False, {}), r"got an observation that is not of Box.*: a list of 2"),
        ((torch.ones(2, requires_grad=True), 1.0, False, False, {}), "got an observation that is not of Box.*: Tensor"),
        ((SEEN, torch.ones((), requires_grad=True), False, False, {}), "the reward is one number or bool, got Tensor"),
        ((SEEN, 10**400, False, False, {}), "the reward is one number or bool, got a large int"),
    ],
)
def test_what_step_must_not_return_is_named(returned: Any, message: str) -> None:
    env = worlds(Returns(returned))
    env.reset()
    with pytest.raises(WorldError, match=rf"row 0, Task\(3: \): {message}") as failure:
        env.step(np.zeros(1, dtype=int))
    assert "\n" not in str(failure.value)
    assert "raised" not in str(failure.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            SEEN,
            r"reset returns \(observation, info\), got an array of float64 \(2,\); wrap an environment of the old gym",
        ),
        ((SEEN, None), "info is a dictionary, got None"),
        ((np.zeros(3), {}), "got an observation of 3 numbers from a space of 2"),
    ],
)
def test_what_reset_must_not_return_is_named(returned: Any, message: str) -> None:
    with pytest.raises(WorldError, match=rf"row 0, Task\(3: \): {message}"):
        worlds(Returns(reset=returned)).reset()


@pytest.mark.parametrize(
    ("space", "fits", "outside"),
    [
        (spaces.Discrete(5), (0, np.int64(4), np.array(2)), (-1, 5, np.array([0, 0, 1, 0, 0]))),
        (spaces.Discrete(3, start=2), (2, 4), (1, 0, 5)),
        (spaces.MultiDiscrete([2, 3]), ([1, 2], np.array([0, 0])), ([-1, 0], [2, 0], np.array([0, 3]))),
        (spaces.MultiDiscrete([2, 3], start=[5, 6]), ([5, 8],), ([1, 2],)),
        (spaces.Dict(a=spaces.Discrete(3)), ({"a": 2}, {"a": 2, "more": 1}), ({"a": -1}, {"a": 3}, {"b": 0})),
        (spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]), ((0, 1), (1, 2)), ((-1, 2), (2, 0), (0, 2), (1, -1))),
        (spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2)]), ((2, 1), [0, 0]), ((0, -1), (1,), (1, 1, 1))),
    ],
)
def test_a_choice_that_its_space_does_not_have_is_refused(
    space: spaces.Space[Any], fits: tuple[Any, ...], outside: tuple[Any, ...]
) -> None:
    size = spaces.flatdim(space)
    for observation in fits:
        assert np.array_equal(read_observation(space, observation, size), spaces.flatten(space, observation))
    for observation in outside:
        with pytest.raises(UsageError, match="got an observation that is not of "):
            read_observation(space, observation, size)


def test_numbers_may_be_of_any_kind_that_is_one() -> None:
    for reward in (2, 2.0, np.float32(2), np.array(2.0), np.int64(2)):
        for flag in (True, 1, np.bool_(True), np.array(True)):
            step = read_step((SEEN, reward, flag, False, {"is_success": flag}))
            assert step[1:] == (2.0, True, False, True)
    assert read_step([SEEN, 0.0, False, False, {}])[4] is None
    assert read_step((SEEN, 0.0, False, False, {"success": 0.0}))[4] is False


def error_of(function: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    return caught.value


def test_an_exception_is_told_in_one_line_with_its_own_place() -> None:
    def lines() -> None:
        raise ValueError("first\n  second")

    place = r"\(test_gym_values.py:\d+ in lines\)"
    assert re.fullmatch(rf"ValueError: first second {place}", raised(error_of(lines)))


def test_the_place_is_the_users_where_a_library_raised() -> None:
    def choose() -> None:
        random.choice([])

    assert re.fullmatch(r"IndexError: .* \(test_gym_values.py:\d+ in choose\)", raised(error_of(choose)))
    lacking = error_of(lambda: Task(0, {})["goal"])
    assert re.fullmatch(r"KeyError: 'goal' \(test_gym_values.py:\d+ in <lambda>\)", raised(lacking))


def test_the_place_is_the_librarys_where_no_other_is_there() -> None:
    class Chooses(Returns):
        step = random.choice  # type: ignore[assignment]

    env = worlds(Chooses())
    env.reset()
    with pytest.raises(WorldError, match=r"step raised .* \(random.py:\d+ in choice\)$") as failure:
        env.step(np.zeros(1, dtype=int))
    assert failure.value.__cause__ is not None


def test_an_error_without_a_frame_has_no_place() -> None:
    assert raised(UsageError("nowhere")) == "UsageError: nowhere"
