"""MPPI where the best plan is known: a linear system with quadratic costs, solved as a least-squares problem."""

from __future__ import annotations

import pytest
import torch

from metarl.meta_rl.planning import mppi, next_plan, predicted_return
from metarl.tasks.reward_model import RewardModel

HORIZON, ROWS = 5, 3
A = torch.tensor([[1.0, 0.2], [-0.1, 0.9]])
B = torch.tensor([[0.1, 0.0], [0.3, 0.5]])
COST = 0.1
UNBOUNDED = torch.full((2,), 10.0)


def _predict(
    observation: torch.Tensor, action: torch.Tensor, memory: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return observation @ A.T + action @ B.T, memory


def _nothing(rows: int) -> torch.Tensor:
    """The memory of a model that has none, in every row."""
    return torch.zeros(rows, 1, 0)


QUADRATIC = RewardModel(lambda before, action, after: -after.square().sum(-1) - COST * action.square().sum(-1))


def _best_plan(start: torch.Tensor) -> torch.Tensor:
    """argmin over U of Σ |x_h|² + c |u_h|², x linear in U: the normal equations of the stacked system."""
    powers = [torch.linalg.matrix_power(A, power) for power in range(HORIZON + 1)]
    effect = torch.zeros(2 * HORIZON, 2 * HORIZON)
    for after in range(HORIZON):
        for step in range(after + 1):
            effect[2 * after : 2 * after + 2, 2 * step : 2 * step + 2] = powers[after - step] @ B
    free = torch.cat([powers[step + 1] @ start for step in range(HORIZON)])
    hessian = effect.T @ effect + COST * torch.eye(2 * HORIZON)
    return torch.linalg.solve(hessian, -effect.T @ free).view(HORIZON, 2)


def _plan(starts, *, steps=60, noise=0.3, temperature=0.1, bound=UNBOUNDED, seed=0, reward_model=QUADRATIC):
    generator = torch.Generator().manual_seed(seed)
    plan = torch.zeros(len(starts), HORIZON, 2)

    def score(actions):
        return predicted_return(_predict, reward_model, starts, actions, _nothing(len(starts)))

    for _ in range(steps):
        shape = (len(starts), 256, HORIZON, 2)
        plan = mppi(score, plan, noise * torch.randn(shape, generator=generator), -bound, bound, temperature)
    return plan, score(plan[:, None])[:, 0]


def test_it_finds_the_best_plan_of_a_linear_system():
    starts = torch.tensor([[1.0, 0.0], [0.0, -2.0], [3.0, 1.0]])
    plan, returns = _plan(starts)
    best = torch.stack([_best_plan(start) for start in starts])
    optimum = predicted_return(_predict, QUADRATIC, starts, best[:, None], _nothing(3))[:, 0]
    nothing = predicted_return(_predict, QUADRATIC, starts, torch.zeros_like(best)[:, None], _nothing(3))[:, 0]
    gained = (returns - nothing) / (optimum - nothing)
    assert (gained > 0.98).all()
    assert (gained <= 1).all()
    assert (plan - best).abs().max() < 0.5


def test_plans_stay_within_bounds():
    starts = torch.tensor([[3.0, 1.0]])
    bound = torch.tensor([0.2, 0.1])
    plan, _ = _plan(starts, bound=bound)
    assert (plan.abs() <= bound + 1e-6).all()
    assert torch.allclose(plan[0, 0].abs(), bound, atol=0.05)  # the best is beyond them


def test_the_scale_of_rewards_does_not_matter():
    starts = torch.tensor([[3.0, 1.0]])
    hundredfold = RewardModel(lambda *step: 100 * QUADRATIC.reward(*step) + 7)
    assert torch.allclose(_plan(starts)[0], _plan(starts, reward_model=hundredfold)[0], atol=1e-2)


def test_a_step_weighs_candidates_by_the_exponential_of_their_return():
    noise = torch.tensor([5.0, 1.0, -1.0]).view(1, 3, 1, 1)  # that of the first is ignored: it is the plan itself
    plan = torch.full((1, 1, 1), 0.5)
    new = mppi(lambda actions: 2 * actions[..., 0, 0], plan, noise, torch.tensor([-2.0]), torch.tensor([2.0]), 0.5)
    candidates = torch.tensor([0.5, 1.5, -0.5])
    returns = 2 * candidates
    weights = torch.softmax(returns / (0.5 * returns.std(correction=0)), 0)
    assert new.item() == pytest.approx((weights * candidates).sum().item(), rel=1e-5)


def test_candidates_that_are_all_alike_average():
    noise = torch.randn(2, 8, HORIZON, 2)
    plan = torch.zeros(2, HORIZON, 2)
    new = mppi(lambda actions: torch.ones(2, 8), plan, noise, -UNBOUNDED, UNBOUNDED, 0.1)
    assert torch.allclose(new, noise[:, 1:].sum(1) / 8, atol=1e-5)


def test_rows_do_not_influence_each_other():
    starts = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    plan, _ = _plan(starts, steps=3)
    other, _ = _plan(torch.tensor([[1.0, 0.0], [9.0, 9.0]]), steps=3)
    assert torch.allclose(plan[0], other[0], atol=1e-6)
    assert not torch.allclose(plan[1], other[1], atol=1e-2)


def test_nothing_counts_after_the_step_that_ends_an_episode():
    counting = RewardModel(
        lambda before, action, after: torch.ones(after.shape[:-1]), lambda after: after[..., 0] >= 2.0
    )
    returns = predicted_return(
        lambda observation, action, memory: (observation + action, memory),
        counting,
        torch.zeros(1, 1),
        torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0], [2.0, -2.0, 0.0, 0.0]]).view(1, 3, 4, 1),
        _nothing(1),
    )
    assert returns.tolist() == [[2.0, 4.0, 1.0]]


def test_every_member_goes_by_its_own_predictions_and_memory_and_the_mean_counts():
    def predict(observation, action, memory):
        return observation + memory * action, memory + 1.0

    returns = predicted_return(
        predict,
        RewardModel(lambda before, action, after: after[..., 0].square() + 0.0 * action.sum(-1)),
        torch.zeros(2, 1),
        torch.tensor([1.0, 2.0]).view(1, 1, 2, 1).expand(2, 3, 2, 1),
        torch.tensor([[[1.0], [-1.0]], [[0.0], [5.0]]]),  # two members in each of two rows
    )
    first = ((1.0 + (1 + 2 * 2) ** 2) + (1.0 + (-1 + 0) ** 2)) / 2
    second = ((0.0 + (0 + 1 * 2) ** 2) + (25.0 + (5 + 6 * 2) ** 2)) / 2
    assert returns.tolist() == [[first] * 3, [second] * 3]


def test_the_next_plan_begins_with_the_second_action_and_ends_at_rest():
    plan = torch.arange(6.0).view(1, 3, 2)
    assert next_plan(plan, torch.tensor([9.0, 9.0])).tolist() == [[[2.0, 3.0], [4.0, 5.0], [9.0, 9.0]]]
