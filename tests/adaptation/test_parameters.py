"""Which parameters a choice stands for."""

from __future__ import annotations

import pytest
from torch import nn

from metarl.adaptation.parameters import select_parameters
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
    message = r"parameters 'haed' stands for nothing.*all, norm, head .*or patterns of weight, bias"
    with pytest.raises(UsageError, match=message):
        select_parameters(nn.Linear(1, 1), ("all", "haed"))
    with pytest.raises(UsageError, match="'norm' stands for nothing"):
        select_parameters(nn.Linear(1, 1), "norm")
    with pytest.raises(UsageError, match="it has none"):
        select_parameters(nn.ReLU(), "head")


def test_what_is_frozen_adapts_only_by_name():
    model = make()
    model[0]["encoder"].requires_grad_(False)
    model[0]["norm"].bias.requires_grad_(False)
    assert select_parameters(model, "all") == [
        "0.norm.weight",
        "0.batch.weight",
        "0.batch.bias",
        "0.head.weight",
        "0.head.bias",
    ]
    assert select_parameters(model, "norm") == ["0.norm.weight", "0.batch.weight", "0.batch.bias"]
    assert select_parameters(model, ("head", "0.encoder.*"))[:2] == ["0.encoder.weight", "0.encoder.bias"]
    model[0]["head"].requires_grad_(False)
    with pytest.raises(UsageError, match=r"'head' stands for nothing that may adapt.*those not frozen"):
        select_parameters(model, "head")


def test_a_choice_is_one_among_those_that_matter():
    among = ["0.encoder.weight", "0.encoder.bias", "0.norm.weight", "0.norm.bias"]
    assert select_parameters(make(), "all", among) == among
    assert select_parameters(make(), "head", among[:2]) == among[:2]
    with pytest.raises(UsageError, match=r"'0\.head\.weight' stands for nothing"):
        select_parameters(make(), "0.head.weight", among)
