"""Clipped steps, their refusal of what is not finite, and an optimiser that goes on as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from metarl.core.optimization import (
    TrainingDiverged,
    clipped_step,
    load_optimizer_tensors,
    optimizer_tensors,
    step_along_gradients,
)


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(3, 2, generator=generator))
        self.second = nn.Parameter(torch.randn(1, 3, generator=generator))
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return torch.tanh(x @ self.first.T) @ self.second.T


def make(rate=0.05):
    module = TwoLayers()
    return module, torch.optim.Adam(module.parameters(), lr=rate)


def losses(module, seed=0):
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(seed))
    y = module(x)
    return {"fit": (y - x.sum(1, keepdim=True)).square().mean(), "size": 0.1 * y.square().mean()}


def values(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_a_fused_optimiser_steps_along_a_gradient_in_another_order_of_memory():
    module, _ = make()
    before, rate = values(module), 0.1
    module.first.grad = torch.arange(6.0).view(2, 3).T  # Adam's first step is its sign, but for eps as large
    optimizer = torch.optim.Adam([module.first], lr=rate, eps=3.0, fused=True)
    step_along_gradients(optimizer, module, {"fit": 0.0}, bound=torch.inf)
    gradient = torch.arange(6.0).view(2, 3).T
    torch.testing.assert_close(module.first.detach(), before["first"] - rate * gradient / (gradient + 3.0))


def test_a_step_without_a_gradient_changes_nothing():
    module, _ = make()
    before = values(module)
    optimizer = torch.optim.Adam(module.parameters())
    assert step_along_gradients(optimizer, module, {"fit": 0.0}, bound=1.0) == 0.0
    for name, value in values(module).items():
        assert torch.equal(value, before[name])


def test_a_step_minimises_the_sum_and_returns_the_norm_before_clipping():
    module, _ = make()
    bound, rate = 0.01, 2.0
    before = values(module)
    total = sum(losses(module).values())
    gradient = dict(zip(("first", "second"), torch.autograd.grad(total, [module.first, module.second]), strict=True))
    norm = torch.cat([part.flatten() for part in gradient.values()]).norm()
    got = clipped_step(torch.optim.SGD(module.parameters(), lr=rate), module, losses(module), bound)
    assert got == pytest.approx(float(norm), rel=1e-5)
    assert got > bound
    after = values(module)
    for name, part in gradient.items():
        torch.testing.assert_close(after[name], before[name] - rate * part * bound / norm, atol=1e-6, rtol=1e-4)
    assert torch.equal(after["idle"], before["idle"])


def test_a_gradient_below_the_bound_is_not_scaled():
    module, _ = make()
    before = values(module)
    gradient = torch.autograd.grad(sum(losses(module).values()), module.second)[0]
    clipped_step(torch.optim.SGD(module.parameters(), lr=1.0), module, losses(module), 1e6)
    torch.testing.assert_close(module.second.detach(), before["second"] - gradient)


def test_gradients_do_not_pile_up_over_steps():
    module, optimizer = make(rate=1e-12)
    norms = [clipped_step(optimizer, module, losses(module), 1.0) for _ in range(3)]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_and_nothing_moves(bad):
    module, optimizer = make()
    clipped_step(optimizer, module, losses(module), 1.0)
    parameters, moments = values(module), copy.deepcopy(optimizer_tensors(optimizer, module))
    broken = losses(module)
    broken["size"] = broken["size"] * bad
    with pytest.raises(TrainingDiverged, match="the size loss") as error:
        clipped_step(optimizer, module, broken, 1.0)
    assert "\n" not in str(error.value)
    assert "fit" not in str(error.value)
    assert_same(values(module), parameters)
    assert_same(optimizer_tensors(optimizer, module), moments)
    clipped_step(optimizer, module, losses(module), 1.0)  # and training can go on


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_only_the_parameter_whose_gradient_is_not_finite_is_named(bad):
    module, optimizer = make()
    before = values(module)
    module.second.register_hook(lambda gradient: gradient * bad)
    with pytest.raises(TrainingDiverged, match="the gradient of second") as error:
        clipped_step(optimizer, module, losses(module), 1.0)
    assert "first" not in str(error.value)
    assert "loss" not in str(error.value)
    assert_same(values(module), before)


def test_gradients_too_large_to_measure_are_refused_too():
    module, optimizer = make()
    before = values(module)
    module.second.register_hook(lambda gradient: torch.full_like(gradient, 1e30))
    with pytest.raises(TrainingDiverged, match="the norm of the gradient"):
        clipped_step(optimizer, module, losses(module), 1.0)
    assert_same(values(module), before)


def test_a_restored_optimizer_goes_on_as_the_old_one():
    module, optimizer = make()
    for seed in range(3):
        clipped_step(optimizer, module, losses(module, seed), 1.0)
    twin, other = make()
    twin.load_state_dict(module.state_dict())
    load_optimizer_tensors(other, twin, optimizer_tensors(optimizer, module))
    for seed in range(3, 6):
        norms = [clipped_step(o, m, losses(m, seed), 1.0) for o, m in ((optimizer, module), (other, twin))]
        assert norms[0] == norms[1]
    assert_same(values(module), values(twin))


def test_a_state_taken_does_not_move_with_later_steps():
    module, optimizer = make()
    clipped_step(optimizer, module, losses(module), 1.0)
    state = optimizer_tensors(optimizer, module)
    assert {"first.exp_avg", "first.exp_avg_sq", "first.step", "second.exp_avg"} < state.keys()
    before = {name: tensor.clone() for name, tensor in state.items()}
    clipped_step(optimizer, module, losses(module), 1.0)
    assert_same(state, before)


def test_restoring_a_fresh_state_forgets_what_was_learned_since():
    module, optimizer = make()
    fresh = optimizer_tensors(optimizer, module)
    start = values(module)
    clipped_step(optimizer, module, losses(module), 1.0)
    first = values(module)
    clipped_step(optimizer, module, losses(module, seed=1), 1.0)
    module.load_state_dict(start)
    load_optimizer_tensors(optimizer, module, fresh)
    clipped_step(optimizer, module, losses(module), 1.0)
    assert_same(values(module), first)
