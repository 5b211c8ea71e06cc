"""Advantages of a tiny round computed again in NumPy, episode by episode, and losses written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.core.policy import CategoricalHead, GaussianHead
from metarl.core.policy_gradient import by_task, clipped_loss, in_windows, masked_mean, ratio_loss, with_advantages

STEPS, ROWS, TASK_ROWS = 6, 4, 2
DISCOUNT, TRACE = 0.9, 0.8
TERMINATED, TRUNCATED = [(2, 0), (5, 2)], [(3, 1), (5, 1)]
"""(step, row). Row 0 goes on in another episode that the round cuts; so does row 1, whose last episode is truncated
with the round; row 3 has one episode, cut by the round."""
INACTIVE = [(step, 1) for step in (4, 5)]


def flags(places):
    marked = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    for place in places:
        marked[place] = True
    return marked


def draw(seed=0, inactive=INACTIVE):
    """A collected round: [T, B, ...]."""
    generator = torch.Generator().manual_seed(seed)
    x, next_x = torch.randn(2, STEPS, ROWS, 2, generator=generator)
    terminated, truncated = flags(TERMINATED), flags(TRUNCATED)
    time = torch.zeros(STEPS, ROWS)
    for step in range(1, STEPS):
        ended = terminated[step - 1] | truncated[step - 1]
        time[step] = torch.where(ended, 0.0, time[step - 1] + 1)
        next_x[step - 1] = torch.where(ended[:, None], next_x[step - 1], x[step])
    return {
        "x": x,
        "next_x": next_x,
        "time": time,
        "reward": torch.randn(STEPS, ROWS, generator=generator),
        "terminated": terminated,
        "truncated": truncated,
        "active": ~flags(inactive),
    }


def advantages(collected, trace=TRACE, discount=DISCOUNT):
    return with_advantages(collected, TASK_ROWS, discount=discount, trace=trace)["advantage"]


# --- the same by hand -------------------------------------------------------------------------------------------------


def episodes_of(collected, row):
    """Lists of the steps of each episode of one row, inactive steps left out."""
    episodes, steps = [], []
    for step in range(STEPS):
        if not collected["active"][step, row]:
            continue
        steps.append(step)
        if collected["terminated"][step, row] or collected["truncated"][step, row]:
            episodes.append(steps)
            steps = []
    return [*episodes, steps] if steps else episodes


def features(x, time):
    t = time / 100
    return np.array([*x, *(x**2), t, t**2, t**3, 1.0])


def ridge(rows, targets):
    """argmin Σ (φᵀw − y)² + 1e-5 · n · ‖w‖² as an ordinary least-squares problem."""
    penalty = np.sqrt(1e-5 * len(rows)) * np.eye(rows.shape[1])
    return np.linalg.lstsq(np.vstack([rows, penalty]), np.concatenate([targets, np.zeros(len(penalty))]), rcond=None)[0]


def advantages_by_hand(collected, trace=TRACE, discount=DISCOUNT):
    """{(step, row): advantage} of all that is active."""
    arrays = {name: values.double().numpy() for name, values in collected.items()}
    result = {}
    for task in range(ROWS // TASK_ROWS):
        rows = range(task * TASK_ROWS, (task + 1) * TASK_ROWS)
        episodes = [(row, steps) for row in rows for steps in episodes_of(collected, row)]
        here = np.array(
            [features(arrays["x"][s, row], arrays["time"][s, row]) for row, steps in episodes for s in steps]
        )
        weights = np.zeros(here.shape[1])

        def after(step, row, weights):
            """What comes after the last step of an episode."""
            if collected["terminated"][step, row]:
                return 0.0
            return features(arrays["next_x"][step, row], arrays["time"][step, row] + 1) @ weights

        for _ in range(2):
            targets = []
            for row, steps in episodes:
                value, returns = after(steps[-1], row, weights), []
                for step in reversed(steps):
                    value = arrays["reward"][step, row] + discount * value
                    returns.insert(0, value)
                targets += returns
            weights = ridge(here, np.array(targets))
        found = {}
        for row, steps in episodes:
            following, advantage = after(steps[-1], row, weights), 0.0
            for step in reversed(steps):
                value = features(arrays["x"][step, row], arrays["time"][step, row]) @ weights
                error = arrays["reward"][step, row] + discount * following - value
                advantage = error + discount * trace * advantage
                found[step, row] = advantage
                following = value
        values = np.array(list(found.values()))
        result |= {place: (value - values.mean()) / values.std() for place, value in found.items()}
    return result


@pytest.mark.parametrize("trace", [0.0, TRACE, 1.0])
@pytest.mark.parametrize("inactive", [INACTIVE, []], ids=["masked", "whole"])
def test_advantages_by_hand(trace, inactive):
    collected = draw(inactive=inactive)
    advantage = advantages(collected, trace)
    expected = advantages_by_hand(collected, trace)
    assert advantage.shape == (ROWS // TASK_ROWS, STEPS, TASK_ROWS)
    for step in range(STEPS):
        for row in range(ROWS):
            got = float(advantage[row // TASK_ROWS, step, row % TASK_ROWS])
            assert got == pytest.approx(expected.get((step, row), 0.0), abs=1e-4), (step, row)


def test_advantages_have_mean_0_and_deviation_1_in_each_task():
    collected = draw()
    collected["reward"][:, TASK_ROWS:] *= 50
    batch = with_advantages(collected, TASK_ROWS, discount=DISCOUNT, trace=TRACE)
    for advantage, mask in zip(batch["advantage"], batch["active"], strict=True):
        own = advantage[mask > 0].double()
        assert float(own.mean()) == pytest.approx(0, abs=1e-5)
        assert float(own.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert not batch["advantage"][batch["active"] == 0].any()


def test_what_is_inactive_does_not_count():
    collected, expected = draw(), advantages(draw())
    mask = ~collected["active"]
    for name in ("x", "next_x", "reward", "time"):
        collected[name][mask] = 77.0
    assert torch.equal(advantages(collected), expected)
    counted = draw()
    counted["reward"][0, 1] += 1
    assert not torch.equal(advantages(counted), expected)


def test_the_successor_counts_where_an_episode_is_cut_and_nowhere_else():
    expected = advantages(draw())
    for place in [(step, row) for step in range(STEPS) for row in range(ROWS)]:
        collected = draw()
        collected["next_x"][place] += 1
        cut = place in TRUNCATED or (place[0] == STEPS - 1 and place not in TERMINATED)
        counts = cut and place not in INACTIVE
        assert torch.equal(advantages(collected), expected) != counts, place


def test_tasks_do_not_see_each_other():
    changed = draw()
    changed["reward"][:, :TASK_ROWS] += torch.randn(STEPS, TASK_ROWS, generator=torch.Generator().manual_seed(5))
    before, after = advantages(draw()), advantages(changed)
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_a_return_that_the_features_explain_leaves_no_advantage():
    """Rewards that are linear in the observation, and nothing to come: the baseline takes all but the ridge's share."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, 2, generator=generator)
    collected = draw() | {
        "x": x,
        "next_x": x,
        "time": torch.zeros(50, 4),
        "reward": x @ torch.tensor([2.0, -1.0]) + 3,
        "terminated": torch.ones(50, 4, dtype=torch.bool),
        "truncated": torch.zeros(50, 4, dtype=torch.bool),
        "active": torch.ones(50, 4, dtype=torch.bool),
    }
    explained = advantages(collected)
    collected["reward"][0, 0] += 1
    # Only the disturbed step is a surprise now; before, what was left had no such peak.
    assert int(advantages(collected)[0].abs().argmax()) == 0
    assert float(advantages(collected)[0, 0, 0]) > 5 > float(explained.abs().max())


def test_a_reward_that_is_not_finite_shows_in_its_own_task_alone():
    collected = draw()
    collected["reward"][1, 2] = torch.nan
    assert advantages(collected).isnan().flatten(1).any(1).tolist() == [False, True]
    assert torch.equal(advantages(collected)[0], advantages(draw())[0])


def test_rows_of_a_task_are_neighbours():
    values = torch.arange(2 * 6).reshape(2, 6)
    assert by_task(values, 3).tolist() == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]]]


def test_windows_lie_side_by_side_and_the_last_is_filled_up():
    values = torch.arange(1, 11).reshape(1, 5, 2)  # one task, five steps of two rows
    windows = in_windows({"x": values[..., None], "active": torch.ones(1, 5, 2)}, 3)
    assert windows["x"][..., 0].tolist() == [[[1, 2, 7, 8], [3, 4, 9, 10], [5, 6, 0, 0]]]
    assert windows["active"].tolist() == [[[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]]


@pytest.mark.parametrize("length", [5, 6, 100])
def test_a_round_that_fits_is_one_window(length):
    values = torch.rand(2, 5, 3)
    assert torch.equal(in_windows({"active": values}, length)["active"], values)


def test_the_mean_over_what_is_active():
    assert float(masked_mean(torch.tensor([1.0, 2.0, 300.0]), torch.tensor([1.0, 1.0, 0.0]))) == 1.5


# --- losses -----------------------------------------------------------------------------------------------------------

HEADS = {
    "continuous": GaussianHead(spaces.Box(-1.0, 1.0, (2,))),
    "discrete": CategoricalHead(spaces.Discrete(3)),
}


def one_task(kind, seed=0):
    """(head, distribution parameters [T, E, output] that require a gradient, batch) of one task, in float64."""
    head, generator = HEADS[kind], torch.Generator().manual_seed(seed)
    output = torch.randn(STEPS, TASK_ROWS, head.output_size, generator=generator, dtype=torch.float64)
    action = head.sample(output, head.noise(STEPS * TASK_ROWS, generator).view(STEPS, TASK_ROWS, -1).double())
    mask = torch.ones(STEPS, TASK_ROWS, dtype=torch.float64)
    mask[4:, 1] = 0
    advantage = torch.randn(STEPS, TASK_ROWS, generator=generator, dtype=torch.float64)
    log_prob = head.log_prob(output, action)
    batch = {"action": action, "log_prob": log_prob, "active": mask, "advantage": advantage}
    return head, output.clone().requires_grad_(), batch


@pytest.mark.parametrize("kind", HEADS)
def test_where_the_policy_collected_the_gradient_of_the_ratio_is_the_policy_gradient(kind):
    head, output, batch = one_task(kind)
    log_prob = head.log_prob(output, batch["action"])
    reinforce = sum(
        -batch["advantage"][step, row] * log_prob[step, row]
        for step in range(STEPS)
        for row in range(TASK_ROWS)
        if batch["active"][step, row]
    ) / int(batch["active"].sum())
    (expected,) = torch.autograd.grad(reinforce, output, retain_graph=True)
    loss = ratio_loss(log_prob, batch)
    (found,) = torch.autograd.grad(loss, output)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert not found[4:, 1].any()
    assert found[4:, 0].any()
    mean = (batch["advantage"] * batch["active"]).sum() / batch["active"].sum()
    assert float(loss.detach()) == pytest.approx(-float(mean))


def test_its_hessian_has_the_square_of_the_score_which_that_of_reinforce_misses():
    """E[A (∇²log π + ∇log π ∇log πᵀ)] against E[A ∇²log π]: for logits z and action a, with p = softmax(z) and e the
    one-hot vector of a, ∇log π = e − p and ∇²log π = p pᵀ − diag(p)."""
    head = HEADS["discrete"]
    logits = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
    action, advantage = torch.tensor(1), 2.0
    batch = {
        "log_prob": head.log_prob(logits, action)[None],
        "advantage": torch.tensor([advantage], dtype=torch.float64),
        "active": torch.ones(1, dtype=torch.float64),
    }
    found = torch.autograd.functional.hessian(lambda z: ratio_loss(head.log_prob(z, action)[None], batch), logits)
    p, score = torch.softmax(logits, 0), torch.eye(3, dtype=torch.float64)[1] - torch.softmax(logits, 0)
    curvature = torch.outer(p, p) - torch.diag(p)
    torch.testing.assert_close(found, -advantage * (curvature + torch.outer(score, score)))


def test_its_hessian_leaves_out_how_the_return_changes_with_later_actions():
    """Two binary actions, each 1 with probability σ = σ(z), pay 1 where both are 1: J = σ², so J' = 2 σ σ' and J'' =
    2 σ σ'' + 2 σ'², of which the last term is left out. Rows are all four trajectories, weighed by probability."""
    logit = torch.tensor(0.3, dtype=torch.float64)
    actions = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]], dtype=torch.float64)

    def log_prob(z):
        return torch.where(actions > 0, torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z))

    batch = {
        "log_prob": log_prob(logit),
        "advantage": actions.prod(0).expand(2, 4),
        "active": log_prob(logit).sum(0).exp().expand(2, 4),
    }

    def gained(z):  # the sum over both steps, of which the loss is the mean
        return -2 * ratio_loss(log_prob(z), batch)

    p = torch.sigmoid(logit)
    slope, curvature = p * (1 - p), p * (1 - p) * (1 - 2 * p)
    torch.testing.assert_close(torch.autograd.functional.jacobian(gained, logit), 2 * p * slope)
    torch.testing.assert_close(torch.autograd.functional.hessian(gained, logit), 2 * p * curvature)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_the_clipped_loss_by_hand(ratio, advantage, loss, slope):
    """min(r A, clip(r, 0.8, 1.2) A); d r / d log π = r."""
    log_prob = torch.tensor([np.log(ratio), 5.0], dtype=torch.float64, requires_grad=True)
    batch = {
        "log_prob": torch.zeros(2, dtype=torch.float64),
        "advantage": torch.tensor([advantage, 3.0], dtype=torch.float64),
        "active": torch.tensor([1.0, 0.0], dtype=torch.float64),
    }
    found = clipped_loss(log_prob, batch, 0.2)
    found.backward()
    assert float(found.detach()) == pytest.approx(loss)
    assert log_prob.grad.tolist() == pytest.approx([slope, 0.0])


def test_shrinkage_keeps_a_short_round_from_being_explained_away():
    """Twelve samples and twenty features: the weights of x and x² are held back, those of time are not."""
    generator = torch.Generator().manual_seed(0)
    x, next_x = torch.randn(2, 12, 1, 8, generator=generator)
    reward = torch.randn(12, 1, generator=generator)
    nowhere = torch.zeros(12, 1, dtype=torch.bool)
    time = torch.arange(12.0)[:, None]
    collected = {"x": x, "next_x": next_x, "time": time, "reward": reward, "active": ~nowhere}
    collected |= {"terminated": nowhere, "truncated": nowhere}
    shrunk = with_advantages(collected, 1, discount=0.0, trace=0.0, shrinkage=0.5)["advantage"].flatten()
    t = time.numpy().astype(np.float64) / 100
    features = np.concatenate([x[:, 0], x[:, 0] ** 2, t, t**2, t**3, np.ones_like(t)], 1)
    power = features.T @ features
    held_back = 0.5 * np.diag(power) * (np.arange(20) < 16)
    weights = np.linalg.solve(
        power + 12e-5 * np.eye(20) + np.diag(held_back), features.T @ reward[:, 0].double().numpy()
    )
    expected = reward[:, 0].numpy() - features @ weights
    np.testing.assert_allclose(shrunk, (expected - expected.mean()) / expected.std(), rtol=1e-3, atol=1e-3)


def test_advantages_below_the_least_deviation_stay_below_1():
    collected = draw()
    options = {"discount": DISCOUNT, "trace": TRACE}
    whole = with_advantages(collected, TASK_ROWS, **options)["advantage"]
    least = torch.zeros(len(whole))
    assert torch.equal(with_advantages(collected, TASK_ROWS, **options, least=least)["advantage"], whole)
    least[0] = 1e3
    held = with_advantages(collected, TASK_ROWS, **options, least=least)["advantage"]
    assert torch.equal(held[1:], whole[1:])
    torch.testing.assert_close(held[0] / held[0].abs().max(), whole[0] / whole[0].abs().max())
    assert held[0].abs().max() < 0.01
