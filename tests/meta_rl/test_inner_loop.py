"""The inner step as a pure function: by hand, and the same in a loop, in one vmap and recomputed."""

from __future__ import annotations

import pytest
import torch

from metarl.core.errors import UsageError
from metarl.meta_rl.inner_loop import inner_step, over_tasks

VARIANTS = [{}, {"recompute": True}, {"vectorize": False}, {"vectorize": False, "recompute": True}]
each_variant = pytest.mark.parametrize("options", VARIANTS, ids=lambda options: " ".join(options) or "vmapped")


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def loss(params, batch):
    """½ s (w − y)², so ∂/∂w = s (w − y) and ∂²/∂w² = s."""
    return 0.5 * params["s"] * (params["w"] - batch["y"]).square()


def stepped(w, s, rate, *, stacked=False, **options):
    batch = {"y": tensor(0.0, 3.0)}
    return inner_step(loss, {"s": s}, {"w": w}, {"w": rate}, batch, stacked=stacked, **options)["w"]


@each_variant
def test_a_step_and_its_gradients_by_hand(options):
    w, s, rate = tensor(1.0)[0].requires_grad_(), tensor(2.0)[0].requires_grad_(), tensor(0.1)[0].requires_grad_()
    after = stepped(w, s, rate, **options)
    torch.testing.assert_close(after, tensor(1 - 0.1 * 2 * 1, 1 - 0.1 * 2 * -2))
    # of the sum: Σ (1 − α s), Σ −α (w − y), Σ −s (w − y)
    gradients = torch.autograd.grad(after.sum(), (w, s, rate))
    torch.testing.assert_close(torch.stack(gradients), tensor(2 * 0.8, -0.1 * (1 - 2), -2 * (1 - 2)))


@each_variant
def test_a_first_order_step_takes_the_gradient_as_a_constant(options):
    w, s, rate = tensor(1.0)[0].requires_grad_(), tensor(2.0)[0].requires_grad_(), tensor(0.1)[0].requires_grad_()
    after = stepped(w, s, rate, first_order=True, **options)
    torch.testing.assert_close(after, tensor(0.8, 1.4))
    by_w, by_s, by_rate = torch.autograd.grad(after.sum(), (w, s, rate), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(torch.stack((by_w, by_s, by_rate)), tensor(2.0, 0.0, 2.0))


@each_variant
def test_a_second_step_goes_on_from_each_tasks_own(options):
    w, s = tensor(1.0)[0].requires_grad_(), tensor(2.0)[0]
    once = stepped(w, s, 0.1, **options)
    twice = stepped(once, s, 0.1, stacked=True, **options)
    torch.testing.assert_close(twice, tensor(0.64, 1.4 - 0.2 * (1.4 - 3)))
    (gradient,) = torch.autograd.grad(twice[0], w)
    torch.testing.assert_close(gradient, tensor(0.64)[0])


@each_variant
def test_without_gradients_nothing_is_kept(options):
    w = tensor(1.0)[0].requires_grad_()
    with torch.no_grad():
        after = stepped(w, tensor(2.0)[0], 0.1, **options)
    assert not after.requires_grad
    torch.testing.assert_close(after, tensor(0.8, 1.4))


@pytest.mark.parametrize("vectorize", [True, False])
def test_over_tasks_slices_what_has_a_task_axis(vectorize):
    def function(shared, own, x):
        return {"sum": shared["a"] + own["b"] * x, "x": x}

    shared, own, x = {"a": tensor(10.0)[0]}, {"b": tensor(1.0, 2.0)}, tensor(3.0, 4.0)
    results = over_tasks(function, (None, 0, 0), shared, own, x, vectorize=vectorize)
    torch.testing.assert_close(results, {"sum": tensor(13.0, 18.0), "x": x})
    single = over_tasks(lambda shared, x: shared["a"] + x, (None, 0), shared, x, vectorize=vectorize)
    torch.testing.assert_close(single, tensor(13.0, 14.0))


def test_what_vmap_cannot_do_is_explained():
    with pytest.raises(
        UsageError, match=r"cannot be vmapped over tasks \(vmap: .*data-dependent.*vectorize=False"
    ) as e:
        over_tasks(lambda x: x if x > 0 else -x, (0,), tensor(1.0, -1.0))
    assert isinstance(e.value.__cause__, RuntimeError)
    with pytest.raises(UsageError, match=r"cannot be vmapped over tasks \(vmap: .*\.item\(\)"):
        over_tasks(lambda x: x * x.item(), (0,), tensor(1.0, -1.0))


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="size of tensor") as caught:
        over_tasks(lambda x: x + tensor(1.0, 2.0), (0,), torch.zeros(2, 3))
    assert type(caught.value) is RuntimeError
