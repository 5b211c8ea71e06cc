"""Single Gymnasium environments: their names, and the time limit that is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from metarl.core.errors import UsageError
from metarl.tasks.checks import check_tasks
from metarl.tasks.single import single_environment


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("name", "limit"), [("Pendulum-v1", 250), ("Pendulum-v1", 150), ("Pendulum-v1", None)])
def test_the_limit_that_is_asked_for_holds_also_above_the_registered_one(name, limit, num_workers):
    distribution = single_environment(name, num_workers=num_workers, max_episode_steps=limit)
    expected = limit or 200
    assert distribution.max_episode_steps == expected
    env = distribution.make_env(distribution.train)
    env.reset()
    truncated = [bool(env.step(np.zeros((1, 1), np.float32))[3][0]) for _ in range(expected)]
    env.close()
    assert truncated == [False] * (expected - 1) + [True]


def test_cartpole_has_the_same_limit_in_this_process_and_in_workers():
    lengths = []
    for num_workers in (0, 1):
        distribution = single_environment("CartPole-v1", num_workers=num_workers, max_episode_steps=600)
        env = distribution.make_env(distribution.train, seed=1)
        observation, _ = env.reset()
        length, ended = 0, False
        while not ended:
            length += 1
            angle, spin = observation[0, 2:]
            observation, _, terminated, truncated, _ = env.step(np.array([int(3 * angle + spin > 0)]))
            ended = bool(terminated[0] or truncated[0])
        lengths.append((length, bool(terminated[0]), bool(truncated[0])))
        env.close()
    assert lengths == [(600, False, True)] * 2


def test_the_check_of_the_limit_has_nothing_to_note():
    report = check_tasks(lambda: single_environment("Pendulum-v1", max_episode_steps=300))
    assert report.ok
    assert "300 steps, the longest episode had 300" in str(report)
    assert "cuts episodes" not in str(report)


def test_a_name_that_gymnasium_does_not_know():
    with pytest.raises(UsageError, match=r"no environment 'Pendulim-v1': did you mean 'Pendulum-v1'"):
        single_environment("Pendulim-v1")


@pytest.mark.parametrize("name", ["./tasks.py:make", "tasks.py:make", ".tasks:Own-v0"])
def test_a_file_is_no_module(name):
    with pytest.raises(UsageError, match=r"tasks.*: before the colon stands the name of a module, .* --task-dist"):
        single_environment(name)
