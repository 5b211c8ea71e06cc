"""Which parameters a choice stands for, and that the vector is the parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metarl.adaptation.parameters import FlatParameters, flat_values, select_parameters
from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig, make_memory


def make():
    layers = {"encoder": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "batch": nn.BatchNorm1d(3), "head": nn.Linear(3, 1)}
    return nn.Sequential(nn.ModuleDict(layers))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("norm", ["0.norm.weight", "0.norm.bias", "0.batch.weight", "0.batch.bias"]),
        ("head", ["0.head.weight", "0.head.bias"]),
        ("*.bias", ["0.encoder.bias", "0.norm.bias", "0.batch.bias", "0.head.bias"]),
        (("head", "0.encoder.weight"), ["0.encoder.weight", "0.head.weight", "0.head.bias"]),
    ],
)
def test_choices(chosen, expected):
    assert select_parameters(make(), chosen) == expected


def test_all_is_every_parameter_of_a_memory_and_norm_its_normalisation():
    memory = make_memory(MemoryConfig(method="ssm", width=4, state_dim=4))
    assert select_parameters(memory, "all") == [name for name, _ in memory.named_parameters()]
    assert select_parameters(memory, "norm") == ["blocks.0.norm.weight", "blocks.0.norm.bias"]


def test_what_stands_for_nothing_is_refused_with_what_there_is():
    message = r"parameters 'haed' stands for nothing.*all, norm, head, or patterns of weight, bias"
    with pytest.raises(UsageError, match=message):
        select_parameters(nn.Linear(1, 1), ("all", "haed"))
    with pytest.raises(UsageError, match="'norm' stands for nothing"):
        select_parameters(nn.Linear(1, 1), "norm")
    with pytest.raises(UsageError, match="it has none"):
        select_parameters(nn.ReLU(), "head")


def test_the_vector_shares_its_memory_with_the_parameters_and_gradients():
    model = nn.Linear(2, 1)
    names = select_parameters(model, "all")
    before = flat_values(model, names)
    flat = FlatParameters(model, names)
    assert torch.equal(flat.values, before)
    flat.values.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert (model.weight.tolist(), model.bias.tolist()) == ([[1.0, 2.0]], [3.0])
    for total in (1, 2):  # backward accumulates into the same memory
        model(torch.tensor([[4.0, 5.0]])).sum().backward()
        assert flat.gradients.tolist() == [4.0 * total, 5.0 * total, 1.0 * total]


def test_only_what_adapts_takes_gradients():
    model = make()
    FlatParameters(model, ["0.head.bias"])
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["0.head.bias"]


def test_two_dtypes_do_not_make_one_vector():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double())
    with pytest.raises(UsageError, match="one dtype and one device"):
        FlatParameters(model, ["0.bias", "1.bias"])
