"""The step against its closed form where loss and divergence are linear and quadratic, and where there is no step."""

from __future__ import annotations

import math

import pytest
import torch

from metarl.core.optimization import TrainingDiverged
from metarl.meta_rl.trust_region import DAMPING, conjugate_gradient, trust_region_step

SIZE = 6


def positive_definite(seed=0, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.T + 0.5 * torch.eye(size, dtype=torch.float64)


def vector(seed=1, size=SIZE):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters(start):
    """The vector in two parts of different shapes, as of a module."""
    return [start[:2].clone().requires_grad_(), start[2:].clone().view(2, 2).requires_grad_()]


def joined(parts):
    return torch.cat([part.reshape(-1) for part in parts])


def step(parts, loss, divergence, max_divergence=0.01, iterations=SIZE, sampled=None):
    bounds = {"max_divergence": max_divergence, "iterations": iterations}

    def outcome():
        return loss(), divergence()

    return trust_region_step(parts, outcome, slope_of(parts, loss), hessian(parts, sampled or divergence), **bounds)


def slope_of(parts, loss):
    """The loss and its gradient, when called."""

    def slope():
        value = loss()
        return value.detach(), joined(torch.autograd.grad(value, parts, allow_unused=True, materialize_grads=True))

    return slope


def hessian(parts, divergence):
    """Its products with vectors."""
    options = {"allow_unused": True, "materialize_grads": True}
    slope = joined(torch.autograd.grad(divergence(), parts, create_graph=True, **options))
    return lambda along: joined(torch.autograd.grad(slope, parts, along, retain_graph=True, **options))


def test_conjugate_gradients_solve_a_system_in_as_many_iterations_as_it_has_unknowns():
    matrix, target = positive_definite(), vector()
    calls = []

    def product(direction):
        calls.append(direction)
        return matrix @ direction

    solution = conjugate_gradient(product, target, SIZE)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, target), rtol=1e-8, atol=1e-10)
    assert len(calls) == SIZE
    partial = conjugate_gradient(product, target, 2)
    assert torch.linalg.norm(matrix @ partial - target) > 1e-3


def test_every_iteration_of_conjugate_gradients_is_the_best_in_its_subspace():
    """x_k minimises ½ xᵀA x − bᵀx over span(b, A b, ..., A^(k−1) b)."""
    matrix, target = positive_definite(), vector()
    for iterations in (1, 2, 3):
        krylov = torch.stack([torch.linalg.matrix_power(matrix, k) @ target for k in range(iterations)], 1)
        best = krylov @ torch.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ target)
        found = conjugate_gradient(lambda direction: matrix @ direction, target, iterations)
        torch.testing.assert_close(found, best, rtol=1e-7, atol=1e-9)


def test_nothing_is_solved_for_a_zero_target():
    assert not conjugate_gradient(lambda direction: direction, torch.zeros(3), 5).any()


@pytest.mark.parametrize("bound", [1e-2, 1e-4])
def test_the_step_is_the_natural_gradient_step_to_the_bound(bound):
    """loss gᵀx and divergence ½ (x − x₀)ᵀ H (x − x₀): s = −√(2 δ / (gᵀ H⁻¹ g)) H⁻¹ g, nearly to the bound (damping)."""
    matrix, slope, start = positive_definite(), vector(), vector(2)
    parts = parameters(start)

    def divergence():
        moved = joined(parts) - start
        return 0.5 * moved @ matrix @ moved

    metrics = step(parts, lambda: slope @ joined(parts), divergence, bound)
    damped = matrix + DAMPING * torch.eye(SIZE, dtype=torch.float64)
    natural = torch.linalg.solve(damped, slope)
    expected = start - math.sqrt(2 * bound / float(slope @ natural)) * natural
    torch.testing.assert_close(joined(parts).detach(), expected, rtol=1e-7, atol=1e-9)
    assert metrics["step_fraction"] == 1
    assert metrics["policy_loss"] == pytest.approx(float(slope @ start))
    assert metrics["kl"] == pytest.approx(float(divergence().detach()))
    assert 0.99 * bound < metrics["kl"] <= bound


def one_dimension(divergence, bound):
    """A step from 0, gradient −1, curvature 1: metrics, where it ends, the full step, how many were tried."""
    parts, tried = [torch.zeros(1, dtype=torch.float64, requires_grad=True)], []

    def loss():
        return -parts[0].sum()

    def outcome():
        tried.append(float(parts[0]))
        return loss(), divergence(parts[0])

    limits = {"max_divergence": bound, "iterations": 1}
    metrics = trust_region_step(parts, outcome, slope_of(parts, loss), lambda along: along, **limits)
    return metrics, float(parts[0].detach()), math.sqrt(2 * bound / (1 + DAMPING)), len(tried)


@pytest.mark.parametrize("steeper", [1.5, 8.0, 20.0])
def test_a_step_that_goes_too_far_is_shortened_at_once_to_the_first_that_holds(steeper):
    """The whole data may show a divergence that grows faster than the sample does."""
    metrics, reached, full, tried = one_dimension(lambda x: 0.5 * steeper * x.square().sum(), 0.1)
    first = next(f for f in (0.8**power for power in range(15)) if steeper * f**2 / (1 + DAMPING) <= 1)
    assert metrics["step_fraction"] == pytest.approx(first)
    assert reached == pytest.approx(first * full)
    assert tried == 2


def test_the_shortest_step_is_tried_however_far_the_first_one_went():
    metrics, reached, full, tried = one_dimension(lambda x: 0.5 * x.square().sum() + 2500 * x.pow(4).sum(), 0.1)
    assert metrics["step_fraction"] == pytest.approx(0.8**14)
    assert reached == pytest.approx(0.8**14 * full)
    assert tried == 2


@pytest.mark.parametrize("growth", [1, 4])
def test_the_step_is_shortened_until_the_divergence_holds(growth):
    """Slower, or faster than with the square of the step: tried again and again, or shortened further than needed."""
    bound = 0.1
    metrics, reached, full, tried = one_dimension(
        lambda x: 0.5 * x.square().sum() + 2 * x.abs().pow(growth).sum(), bound
    )
    assert metrics["kl"] == pytest.approx(0.5 * reached**2 + 2 * abs(reached) ** growth)
    assert 0.1 * bound < metrics["kl"] <= bound
    assert 0 < metrics["step_fraction"] < 1
    assert reached == pytest.approx(metrics["step_fraction"] * full)
    assert tried == {1: 5, 4: 2}[growth]


def test_the_step_is_shortened_until_the_loss_falls():
    """loss x² − x around x = 0 falls as far as x = 1 alone, and the bound would allow 3."""
    parts = [torch.zeros(1, dtype=torch.float64, requires_grad=True)]
    metrics = step(
        parts,
        lambda: torch.sum(parts[0].square() - parts[0]),
        lambda: 0.5 * parts[0].square().sum(),
        max_divergence=4.5,
        iterations=1,
    )
    reached = float(parts[0].detach())
    assert metrics["step_fraction"] == pytest.approx(0.8**5)  # 3 · 0.8⁴ is 1.23, 3 · 0.8⁵ is 0.98
    assert reached == pytest.approx(3 * 0.8**5, rel=1e-3)
    assert 0 < reached < 1


def test_the_direction_follows_from_the_sample_and_the_bound_from_all():
    """A sample that is four times as curved along the second axis, and half as curved as all there is."""
    slope = torch.tensor([1.0, 1.0], dtype=torch.float64)
    parts = [torch.zeros(2, dtype=torch.float64, requires_grad=True)]
    curvature = torch.tensor([1.0, 4.0], dtype=torch.float64)

    def sampled():
        return 0.5 * (curvature * parts[0].square()).sum()

    metrics = step(parts, lambda: slope @ parts[0], lambda: 2 * sampled(), 0.01, 2, sampled)
    moved = parts[0].detach()
    assert float(moved[0] / moved[1]) == pytest.approx(4, rel=1e-3)
    assert metrics["step_fraction"] == pytest.approx(0.8**2)  # twice 0.8² is 1.28, twice 0.8⁴ is 0.82
    assert metrics["kl"] == pytest.approx(2 * 0.01 * 0.8**4, rel=1e-3)


def test_without_an_acceptable_step_nothing_changes():
    start = vector(2)
    parts = parameters(start)
    before = [part.detach().clone() for part in parts]
    calls = []

    def loss():
        """Falls nowhere: it is the lowest where it is asked first."""
        calls.append(0)
        return joined(parts).sum() + (0 if len(calls) == 1 else 1e6)

    metrics = step(parts, loss, lambda: 0.5 * (joined(parts) - start).square().sum())
    assert all(torch.equal(part, old) for part, old in zip(parts, before, strict=True))
    assert (metrics["step_fraction"], metrics["kl"]) == (0.0, 0.0)


@pytest.mark.parametrize("what", ["no gradient", "a divergence that is not finite"])
def test_a_step_that_cannot_be_computed_changes_nothing(what):
    start = vector(2)
    parts = parameters(start)
    before = [part.detach().clone() for part in parts]
    scale = 0.0 if what == "no gradient" else 1.0
    spoilt = 1.0 if what == "no gradient" else float("nan")
    metrics = step(
        parts, lambda: scale * joined(parts).sum(), lambda: spoilt * 0.5 * (joined(parts) - start).square().sum()
    )
    assert all(torch.equal(part, old) for part, old in zip(parts, before, strict=True))
    assert metrics["step_fraction"] == 0
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_is_refused_and_nothing_changes(what):
    start = vector(2)
    parts = parameters(start)
    before = [part.detach().clone() for part in parts]

    def loss():
        x = joined(parts).sum()
        return x * float("nan") if what == "loss" else torch.sqrt(x - x.detach())  # 0, with an infinite slope

    with pytest.raises(TrainingDiverged, match=r"^not finite: the policy loss or its gradient; try a lower inner_lr$"):
        step(parts, loss, lambda: 0.5 * (joined(parts) - start).square().sum())
    assert all(torch.equal(part, old) for part, old in zip(parts, before, strict=True))


def test_a_parameter_that_neither_loss_nor_divergence_knows_stays():
    parts = [*parameters(vector(2)), torch.ones(3, dtype=torch.float64, requires_grad=True)]
    start = joined(parts[:2]).detach().clone()
    step(parts, lambda: joined(parts[:2]).sum(), lambda: 0.5 * (joined(parts[:2]) - start).square().sum())
    assert torch.equal(parts[2], torch.ones(3, dtype=torch.float64))
    assert not torch.equal(joined(parts[:2]), start)
