"""The batched Gymnasium environment of the public face."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.classic_worlds import CartPoleWorlds
from metarl.env_runner.environment import Environment
from metarl.env_runner.gym_workers import GymWorkers
from metarl.env_runner.named_worlds import find_spec, make_named_worlds


def test_a_batch_steps_and_says_how_it_ended() -> None:
    with Environment("CartPole-v1", batch_size=3, seed=0) as env:
        assert env.observation_space.shape == (4,)
        assert env.action_space == gymnasium.spaces.Discrete(2)
        observation = env.reset()
        assert observation.shape == (3, 4)
        assert observation.dtype == np.float32
        for _ in range(20):
            before = observation
            observation, reward, done, info = env.step(np.ones(3, dtype=np.int64))
            assert np.array_equal(done, info["terminated"] | info["truncated"])
            assert reward.tolist() == [1.0, 1.0, 1.0]
            same = (observation == info["final_observation"]).all(axis=1)
            assert np.array_equal(same, ~done), "they differ exactly where an episode ended"
            # Where it ended, the final observation carries on from the one before: the cart moves by 0.02 velocity.
            np.testing.assert_allclose(info["final_observation"][:, 0], before[:, 0] + 0.02 * before[:, 1], atol=1e-6)
            if done.any():
                break
        assert info["terminated"].any()
        assert (np.abs(observation[done]) <= 0.05).all()


def test_the_time_limit_is_gymnasiums() -> None:
    env = Environment("Pendulum-v1", batch_size=2, seed=0)
    env.reset()
    flags = [env.step(np.zeros((2, 1)))[2:] for _ in range(200)]
    assert not any(done.any() for done, _ in flags[:-1])
    done, info = flags[-1]
    assert done.all()
    assert info["truncated"].all()
    assert not info["terminated"].any()
    env.close()


def test_a_batch_of_one_keeps_its_row_and_takes_a_bare_action() -> None:
    with Environment("Pendulum-v1", seed=1) as env:
        assert env.reset().shape == (1, 3)
        for action in (np.zeros(1), np.zeros((1, 1)), env.action_space.sample()):
            observation, reward, done, info = env.step(action)
            assert observation.shape == info["final_observation"].shape == (1, 3)
            assert reward.shape == done.shape == (1,)


def test_seeds() -> None:
    def first(seed: int | None) -> list[list[float]]:
        with Environment("CartPole-v1", batch_size=2, seed=seed) as env:
            return env.reset().tolist()

    assert first(5) == first(5)
    assert first(5) != first(6)
    assert first(None) != first(None)


def test_normalisation_is_that_of_all_observations_so_far() -> None:
    plain = Environment("CartPole-v1", batch_size=4, seed=0)
    env = Environment("CartPole-v1", batch_size=4, seed=0, normalize=True)
    seen = [plain.reset()]
    normalized = env.reset()
    rng = np.random.default_rng(0)
    finals = []
    for _ in range(60):
        action = rng.integers(0, 2, 4)
        observation, _, done, plain_info = plain.step(action)
        seen.append(observation)
        normalized, _, _, info = env.step(action)
        finals.append((plain_info["final_observation"], info["final_observation"], done))
    past = np.concatenate(seen)
    expected = (seen[-1] - past.mean(0)) / past.std(0)
    np.testing.assert_allclose(normalized, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(info["final_observation"][~done], normalized[~done])
    assert any(done.any() for *_, done in finals)
    assert all((np.abs(final) <= 10.0).all() for _, final, _ in finals)


def test_an_unknown_name_is_an_error_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="Gymnasium knows no environment 'CartPole-v3': did you mean 'CartPole-v1'"):
        Environment("CartPole-v3")
    with pytest.raises(UsageError, match=r"'qqqqq': gymnasium\.pprint_registry"):
        find_spec("qqqqq")
    with pytest.raises(UsageError, match="there is no module 'no_such_module'"):
        find_spec("no_such_module:CartPole-v1")
    for wrong in (gymnasium.make("CartPole-v1"), gymnasium.Env, None):
        with pytest.raises(UsageError, match=r"given by its Gymnasium name, got .*: gymnasium\.register gives"):
            Environment(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"batch_size is a whole number of at least 1, got 1\.5"):
        Environment("CartPole-v1", batch_size=1.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_size is a whole number of at least 1, got 0"):
        Environment("CartPole-v1", batch_size=0)


def test_an_environment_that_cannot_be_made_says_why() -> None:
    gymnasium.register("metarl-tests/NeedsMore-v0", entry_point="no_such_package.envs:Env", max_episode_steps=5)
    try:
        with pytest.raises(
            UsageError, match="cannot make 'metarl-tests/NeedsMore-v0': No module named 'no_such_package'"
        ):
            Environment("metarl-tests/NeedsMore-v0")
    finally:
        del gymnasium.registry["metarl-tests/NeedsMore-v0"]


def test_only_cartpole_in_this_process_is_vectorised() -> None:
    tasks = [Task(0, {})] * 2
    for name, workers, kind in (
        ("CartPole-v1", 0, CartPoleWorlds),
        ("CartPole-v1", 1, GymWorkers),
        ("CartPole-v0", 0, GymWorkers),
    ):
        env = make_named_worlds(name, tasks, max_episode_steps=7, seed=3, num_workers=workers)
        assert type(env) is kind
        if workers:
            other = make_named_worlds(name, tasks, max_episode_steps=7, seed=3)
            assert np.array_equal(env.reset()[0], other.reset()[0])
        env.close()
