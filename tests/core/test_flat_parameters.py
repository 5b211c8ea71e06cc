"""Parameters as one vector: the same memory, and the same steps of an optimiser."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from metarl.adaptation.config import AdaptationConfig
from metarl.adaptation.test_time_adaptation import Adapter
from metarl.core.errors import UsageError
from metarl.core.flat_parameters import FlatParameters, flat_values
from metarl.core.optimization import load_optimizer_tensors, optimizer_tensors
from metarl.meta_rl.rl2_agent import RL2Agent, RL2Config


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


class Friction(nn.Module):
    def __init__(self):
        super().__init__()
        self.mass, self.drag = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.mass * x + self.drag * x.square()


def test_an_optimiser_of_single_numbers_goes_on_from_its_state():
    model = Friction()
    flat = FlatParameters(model, ["mass", "drag"])
    optimizer = torch.optim.Adam([flat.values], lr=0.1)
    step(model, optimizer)
    values, state = flat.values.clone(), flat.optimizer_tensors(optimizer)
    step(model, optimizer)
    expected = flat.values.clone()
    flat.values.copy_(values)
    flat.load_optimizer_tensors(optimizer, state)
    step(model, optimizer)
    assert torch.equal(flat.values, expected)


# --- copies -----------------------------------------------------------------------------------------------------------

COPIES = {"copied": copy.deepcopy, "pickled": lambda held: pickle.loads(pickle.dumps(held))}
each_copy = pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)


@each_copy
@pytest.mark.parametrize("first", ["model", "flat", "optimizer"])
def test_a_copy_learns_as_the_original_and_apart_from_it(duplicate, first):
    _, model, flat, (_, optimizer) = make_pair()
    for _ in range(2):
        step(model, optimizer)
    held = {"model": model, "flat": flat, "optimizer": optimizer}
    twin = duplicate({first: held[first], **held})
    before = flat.values.clone()
    step(twin["model"], twin["optimizer"])
    assert torch.equal(flat.values, before)
    assert not torch.equal(twin["flat"].values, before)
    assert torch.equal(flat_values(twin["model"], list(flat.shapes)), twin["flat"].values)
    step(model, optimizer)
    assert torch.equal(flat.values, twin["flat"].values)


def test_a_copy_of_an_agent_learns_as_the_original():
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    agent = RL2Agent(box, box, RL2Config(update_steps=4))

    def learn(agent):
        draws, nobody = np.random.default_rng(0), np.zeros(3, dtype=bool)
        agent.begin_trial(3)
        for _ in range(4):
            observation = draws.standard_normal((3, 2)).astype(np.float32)
            agent.observe(observation, agent.act(observation), observation[:, 0], nobody, nobody, -observation)
        agent.update()
        return torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()])

    learn(agent)
    twin = copy.deepcopy(agent)
    before = learn(agent)
    assert torch.equal(learn(twin), before)
    assert not torch.equal(learn(agent), before)


@each_copy
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_copy_of_an_adapter_adapts_as_the_original(duplicate, ema_decay):
    adapter = Adapter(nn.Linear(2, 1), AdaptationConfig(learning_rate=0.1, optimizer="adam", ema_decay=ema_decay))
    x, y = torch.ones(4, 2), torch.ones(4, 1)
    adapter.update_step(x, y)
    twin, before = duplicate(adapter), adapter.predict(x)
    twin.update_step(x, y)
    assert torch.equal(adapter.predict(x), before)
    assert not torch.equal(twin.predict(x), before)
    adapter.update_step(x, y)
    assert torch.equal(adapter.predict(x), twin.predict(x))
