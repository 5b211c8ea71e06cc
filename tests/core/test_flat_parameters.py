"""Parameters as one vector: the same memory, and the same steps of an optimiser."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metarl.core.errors import UsageError
from metarl.core.flat_parameters import FlatParameters, flat_values
from metarl.core.optimization import load_optimizer_tensors, optimizer_tensors


def test_the_vector_shares_its_memory_with_the_parameters_and_gradients():
    model = nn.Linear(2, 1)
    names = ["weight", "bias"]
    before = flat_values(model, names)
    flat = FlatParameters(model, names)
    assert torch.equal(flat.values, before)
    flat.values.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert (model.weight.tolist(), model.bias.tolist()) == ([[1.0, 2.0]], [3.0])
    for total in (1, 2):  # backward accumulates into the same memory
        model(torch.tensor([[4.0, 5.0]])).sum().backward()
        assert flat.gradients.tolist() == [4.0 * total, 5.0 * total, 1.0 * total]


def test_only_what_is_in_the_vector_takes_gradients():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    FlatParameters(model, ["1.bias"])
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["1.bias"]


def test_two_dtypes_do_not_make_one_vector():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double())
    with pytest.raises(UsageError, match="one dtype and one device"):
        FlatParameters(model, ["0.bias", "1.bias"])


def make_pair():
    """The same model twice: its parameters, and the vector of them, each with an optimiser."""
    plain, other = (nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)) for _ in range(2))
    other.load_state_dict(plain.state_dict())
    flat = FlatParameters(other, [name for name, _ in other.named_parameters()])
    optimizers = torch.optim.Adam(plain.parameters(), lr=0.1), torch.optim.Adam([flat.values], lr=0.1)
    return plain, other, flat, optimizers


def step(model, optimizer):
    model.zero_grad(set_to_none=False)
    model(torch.tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()


def test_the_state_of_an_optimiser_of_the_vector_is_that_of_one_of_the_parameters():
    plain, other, flat, (of_parameters, of_vector) = make_pair()
    assert flat.optimizer_tensors(of_vector) == {}
    for _ in range(3):
        step(plain, of_parameters)
        step(other, of_vector)
    wanted, found = optimizer_tensors(of_parameters, plain), flat.optimizer_tensors(of_vector)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


@pytest.mark.parametrize("kept", ["parameters", "vector"])
def test_either_goes_on_from_the_state_of_the_other(kept):
    plain, other, flat, (of_parameters, of_vector) = make_pair()
    for _ in range(3):
        step(plain, of_parameters)
        step(other, of_vector)
    state = optimizer_tensors(of_parameters, plain) if kept == "parameters" else flat.optimizer_tensors(of_vector)
    flat.load_optimizer_tensors(of_vector, state)
    load_optimizer_tensors(of_parameters, plain, state)
    for _ in range(2):
        step(plain, of_parameters)
        step(other, of_vector)
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two, one)
