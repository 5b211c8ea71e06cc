"""Recordings, with a stand-in for the graphs of CUDA: what runs again is the function, on the memory recorded with."""

from __future__ import annotations

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch

from metarl.meta_rl import recorded
from metarl.meta_rl.recorded import Recordings


@pytest.fixture(autouse=True)
def records(monkeypatch):
    """How often something was recorded."""
    made = []

    def record(function):
        outputs = [output.detach().clone() for output in function()]
        made.append(function)

        def replay():
            for held, output in zip(outputs, function(), strict=True):
                held.copy_(output)

        return replay, outputs

    monkeypatch.setattr(recorded, "_record", record)
    return made


def halves_and_sum(x, y):
    return x / 2, x + y


def test_every_run_is_of_its_own_arguments_and_keeps_its_results(records):
    recordings = Recordings()
    x, y = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 1.0])
    first = recordings.run("f", halves_and_sum, x, y)
    second = recordings.run("f", halves_and_sum, 10 * x, y)
    assert [each.tolist() for each in first] == [[1, 2], [3, 5]]
    assert [each.tolist() for each in second] == [[10, 20], [21, 41]]
    assert x.tolist() == [2, 4]
    assert len(records) == 1


def test_another_key_shape_or_dtype_is_recorded_on_its_own(records):
    recordings, x = Recordings(), torch.arange(4)
    assert recordings.run("double", lambda x: (2 * x,), x)[0].tolist() == [0, 2, 4, 6]
    assert recordings.run("square", lambda x: (x * x,), x)[0].tolist() == [0, 1, 4, 9]
    assert recordings.run("double", lambda x: (2 * x,), x[:2])[0].tolist() == [0, 2]
    assert recordings.run("double", lambda x: (2 * x,), x.double())[0].dtype == torch.float64
    assert len(records) == 4


def test_arguments_may_lie_in_memory_in_any_order_and_what_is_read_from_elsewhere_is_live(records):
    recordings, weight = Recordings(), torch.eye(3)
    x = torch.arange(6.0).view(2, 3)
    assert torch.equal(recordings.run("f", lambda x: (x @ weight,), x)[0], x)
    weight.mul_(2)
    assert torch.equal(recordings.run("f", lambda x: (x @ weight,), x.T.contiguous().T)[0], 2 * x)
    assert len(records) == 1


def test_it_records_on_the_device_of_its_arguments(records, monkeypatch):
    entered = []

    @contextmanager
    def device_of(tensor):
        entered.append((tensor.device, len(records)))
        yield

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    recordings = Recordings()
    for _ in range(2):
        recordings.run("f", halves_and_sum, torch.ones(1), torch.ones(1))
    assert entered == [(torch.device("cpu"), 0)]


def test_gradients_can_be_taken_inside(records):
    weight = torch.tensor(3.0, requires_grad=True)

    def slope(x):
        return torch.autograd.grad((weight * x).square().sum(), [weight])

    assert Recordings().run("f", slope, torch.tensor([1.0, 2.0]))[0].item() == 2 * 3 * 5


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_records_anew(records, copied):
    recordings = Recordings()
    recordings.run("f", halves_and_sum, torch.ones(1), torch.ones(1))
    copied(recordings).run("f", halves_and_sum, torch.ones(1), torch.ones(1))
    assert len(records) == 2
