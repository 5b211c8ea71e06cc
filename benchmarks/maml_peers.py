"""Meta-gradients as others compute them, one task after the other: with plain autograd, with higher, with torchopt.

Each function takes a model, a stacked batch (support_x, support_y, query_x, query_y) and the inner loop's settings, and
returns the gradient of the mean query loss, a tensor for every parameter of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
MetaGradient = Callable[[nn.Module, Batch, float, int, bool], list[Tensor]]


def autograd_loop(model: nn.Module, batch: Batch, rate: float, steps: int, first_order: bool) -> list[Tensor]:
    """torch.autograd.grad in the inner loop, and through it."""
    theta = dict(model.named_parameters())
    total = _zeros(model)
    for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
        phi = theta
        for _ in range(steps):
            loss = mse_loss(_prediction(functional_call(model, phi, (support_x,))), support_y)
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=not first_order)
            phi = {name: old - rate * change for (name, old), change in zip(phi.items(), gradients, strict=True)}
        loss = mse_loss(_prediction(functional_call(model, phi, (query_x,))), query_y)
        _add(total, loss / len(batch[0]), list(theta.values()))
    return total


def with_higher(model: nn.Module, batch: Batch, rate: float, steps: int, first_order: bool) -> list[Tensor]:
    """higher's monkey-patched copy of the model and differentiable SGD (Grefenstette et al. 2019, 1910.01727)."""
    import higher

    optimizer = torch.optim.SGD(model.parameters(), rate)
    total = _zeros(model)
    for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
        with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False, track_higher_grads=not first_order) as (
            fast,
            inner,
        ):
            for _ in range(steps):
                inner.step(mse_loss(_prediction(fast(support_x)), support_y))
            loss = mse_loss(_prediction(fast(query_x)), query_y)
            # Without the graph of the inner loop, the gradient at the adapted parameters is FOMAML's.
            _add(total, loss / len(batch[0]), list(fast.parameters(time=-1 if first_order else 0)))
    return total


def with_torchopt(model: nn.Module, batch: Batch, rate: float, steps: int, first_order: bool) -> list[Tensor]:
    """torchopt's MetaSGD (Ren et al. 2023, 2211.06934); the parameters of the module are swapped and put back."""
    import torchopt

    theta = list(model.parameters())
    total = _zeros(model)
    for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
        with _put_back(model, torchopt):
            optimizer = torchopt.MetaSGD(model, lr=rate)
            for _ in range(steps):
                optimizer.step(mse_loss(_prediction(model(support_x)), support_y))
            loss = mse_loss(_prediction(model(query_x)), query_y)
            # MetaSGD always builds the graph; FOMAML's gradient does not go back through it.
            _add(total, loss / len(batch[0]), list(model.parameters()) if first_order else theta)
    return total


PEERS: dict[str, MetaGradient] = {"higher": with_higher, "torchopt": with_torchopt, "autograd loop": autograd_loop}


@contextmanager
def _put_back(model: nn.Module, torchopt: Any) -> Iterator[None]:
    state = torchopt.extract_state_dict(model, by="reference")
    try:
        yield
    finally:
        torchopt.recover_state_dict(model, state)


def _prediction(output: Any) -> Tensor:
    prediction: Tensor = output[0] if isinstance(output, tuple) else output
    return prediction


def _zeros(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(parameter) for parameter in model.parameters()]


def _add(total: Sequence[Tensor], loss: Tensor, parameters: Sequence[Tensor]) -> None:
    for part, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
        part.add_(gradient)
