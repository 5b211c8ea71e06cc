"""Generalised advantages: numbers computed by hand, identities, and a plain loop."""

from __future__ import annotations

import pytest
import torch

from metarl.core.returns import generalized_advantage

REWARDS, VALUES, LAST_VALUE = [1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 20.0, 30.0, 40.0, 50.0], 60.0
NEVER = [False] * 5


def advantages(terminated, truncated, final_values, discount=0.5, trace=0.5):
    """Of one row with the rewards and values above."""
    columns = (torch.tensor(column)[:, None] for column in (REWARDS, VALUES))
    flags = (torch.tensor(column)[:, None] for column in (terminated, truncated, final_values))
    estimate = generalized_advantage(*columns, torch.tensor([LAST_VALUE]), *flags, discount=discount, trace=trace)
    return estimate[:, 0].tolist()


def at(time, value=True):
    column = [type(value)()] * 5
    column[time] = value
    return column


def plain_loop(rewards, values, last_value, terminated, truncated, final_values, *, discount, trace):
    result = torch.zeros_like(rewards)
    for row in range(rewards.shape[1]):
        estimate = 0.0
        for time in reversed(range(rewards.shape[0])):
            if terminated[time, row]:
                following, estimate = 0.0, 0.0
            elif truncated[time, row]:
                following, estimate = final_values[time, row], 0.0
            else:
                following = last_value[row] if time + 1 == len(rewards) else values[time + 1, row]
            error = rewards[time, row] + discount * following - values[time, row]
            estimate = error + discount * trace * estimate
            result[time, row] = estimate
    return result


def make_data(steps=40, rows=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rewards, values, final_values = torch.randn(3, steps, rows, generator=generator, dtype=torch.float64)
    last_value = torch.randn(rows, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.rand(2, steps, rows, generator=generator) < 0.1
    terminated[3, 0] = truncated[3, 0] = terminated[-1, 1] = truncated[-1, 2] = True
    return rewards, values, last_value, terminated, truncated, final_values


def test_no_episode_ends():
    # δ = 1, -3, -7, -11 and 5 + 60/2 - 50 = -15; each estimate adds a quarter of the next
    expected = [-0.41796875, -5.671875, -10.6875, -14.75, -15.0]
    assert advantages(NEVER, NEVER, [99.0] * 5) == pytest.approx(expected)


def test_a_termination_and_a_truncation_in_the_middle():
    # t = 4: 5 + 60/2 - 50 = -15            last_value
    # t = 3: 4 + 8/2 - 40 = -32             truncated: the value of the final observation, nothing from t = 4
    # t = 2: 3 + 40/2 - 30 - 32/4 = -15
    # t = 1: 2 - 20 = -18                   terminated: no value, nothing from t = 2
    # t = 0: 1 + 20/2 - 10 - 18/4 = -3.5
    assert advantages(at(1), at(3), at(3, 8.0)) == pytest.approx([-3.5, -18.0, -15.0, -32.0, -15.0])


def test_where_both_flags_are_set_the_episode_terminated():
    both = advantages(at(1), at(1), at(1, 1000.0))
    assert both == pytest.approx(advantages(at(1), NEVER, [0.0] * 5))
    assert both[1] == pytest.approx(-18.0)


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [(NEVER, NEVER, -15.0), (at(4), NEVER, -45.0), (NEVER, at(4), -42.0)],
)
def test_the_last_step(terminated, truncated, expected):
    assert advantages(terminated, truncated, at(4, 6.0))[4] == pytest.approx(expected)


def test_final_values_are_read_only_where_truncated():
    rewards, values, last_value, terminated, truncated, final_values = make_data()
    other = torch.where(truncated, final_values, torch.tensor(1e6, dtype=torch.float64))
    options = {"discount": 0.9, "trace": 0.8}
    assert torch.equal(
        generalized_advantage(rewards, values, last_value, terminated, truncated, other, **options),
        generalized_advantage(rewards, values, last_value, terminated, truncated, final_values, **options),
    )


@pytest.mark.parametrize(("discount", "trace"), [(0.99, 0.95), (1.0, 1.0), (0.0, 0.5), (0.9, 0.0)])
@pytest.mark.parametrize("steps", [1, 40])
def test_equals_a_plain_loop(steps, discount, trace):
    data = make_data()
    data = tuple(part if part.ndim == 1 else part[-steps:] for part in data)
    got = generalized_advantage(*data, discount=discount, trace=trace)
    torch.testing.assert_close(got, plain_loop(*data, discount=discount, trace=trace), atol=1e-10, rtol=1e-10)
    single = tuple(part.float() if part.is_floating_point() else part for part in data)
    got = generalized_advantage(*single, discount=discount, trace=trace)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), plain_loop(*data, discount=discount, trace=trace), atol=1e-4, rtol=1e-4)


def test_with_a_trace_of_zero_it_is_the_one_step_error():
    rewards, values, last_value, terminated, truncated, final_values = make_data()
    following = torch.cat([values[1:], last_value[None]])
    following = torch.where(truncated, final_values, following) * ~terminated
    got = generalized_advantage(
        rewards, values, last_value, terminated, truncated, final_values, discount=0.9, trace=0.0
    )
    torch.testing.assert_close(got, rewards + 0.9 * following - values)


def test_with_a_trace_of_one_it_is_the_discounted_return_less_the_value():
    rewards, values, last_value, _, _, final_values = make_data(steps=12)
    none = torch.zeros(12, 6, dtype=torch.bool)
    got = generalized_advantage(rewards, values, last_value, none, none, final_values, discount=0.9, trace=1.0)
    powers = 0.9 ** torch.arange(13, dtype=torch.float64)[:, None]
    for time in range(12):
        returns = (powers[: 12 - time] * rewards[time:]).sum(0) + powers[12 - time] * last_value
        torch.testing.assert_close(got[time], returns - values[time])


def test_a_perfect_critic_leaves_no_advantage():
    rewards, _, last_value, terminated, truncated, final_values = make_data()
    zeros = torch.zeros_like(rewards)
    # Over V = 0 the estimate with a trace of one is the return itself, bootstrapped where the data ends.
    values = plain_loop(rewards, zeros, last_value, terminated, truncated, final_values, discount=0.9, trace=1.0)
    got = generalized_advantage(
        rewards, values, last_value, terminated, truncated, final_values, discount=0.9, trace=0.7
    )
    torch.testing.assert_close(got, zeros, atol=1e-12, rtol=0)
