from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.core.memory import MemoryConfig
from metarl.core.normalization import RunningMoments
from metarl.meta_rl.dynamics import DynamicsModel, prediction_loss
from metarl.meta_rl.meta_maml import MetaMAML


def _model(seed: int = 0, method: str = "mlp", members: int = 1) -> DynamicsModel:
    torch.manual_seed(seed)
    model = DynamicsModel(3, 2, MemoryConfig(method, width=8, state_dim=8), members)
    generator = np.random.default_rng(0)
    inputs, changes = RunningMoments(5), RunningMoments(3)
    inputs.update(generator.normal(2.0, 3.0, (100, 5)))
    changes.update(generator.normal(-1.0, 0.1, (100, 3)))
    model.standardize_by(inputs, changes)
    return model


@pytest.mark.parametrize("method", ["mlp", "ssm", "gru", "lstm"])
@pytest.mark.parametrize("members", [1, 3])
def test_a_sequence_is_its_steps_one_after_the_other(method, members):
    model, x = _model(method=method, members=members), torch.randn(6, 4, 5)
    starts = (torch.rand(6, 4) < 0.3).float()
    whole, last = model(x, None, starts)
    assert whole.shape == (6, 4, members, 3)
    state = model.init_state(4)
    for time in range(6):
        step, state = model(x[time : time + 1], state, starts[time : time + 1])
        torch.testing.assert_close(step[0], whole[time], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)
    assert model.remembers == (method != "mlp")
    again, _ = model(x.flip(0))
    assert torch.allclose(again[-1], model(x[:1])[0][0], atol=1e-5) == (method == "mlp")


def test_members_predict_by_themselves_from_what_each_has_seen():
    model, x = _model(members=3), torch.randn(2, 4, 5)
    together, _ = model(x)
    assert not torch.allclose(together[:, :, 0], together[:, :, 1], atol=1e-2)
    apart = torch.randn(2, 4, 3, 5)
    seen, _ = model(apart)
    for member in range(3):
        torch.testing.assert_close(seen[:, :, member], model(apart[:, :, member])[0][:, :, member])


def test_every_row_has_the_gain_that_it_is_given():
    model, x = _model(), torch.randn(2, 4, 5)
    gains = torch.rand(4, 2)
    rows, _ = model(x, gain=gains)
    for row in range(4):
        with torch.no_grad():
            model.gain.copy_(gains[row])
        torch.testing.assert_close(rows[:, row], model(x)[0][:, row])


@pytest.mark.parametrize("method", ["mlp", "ssm", "gru"])
def test_it_can_be_meta_learned_as_a_sequence_model(method):
    model = _model(method=method, members=2)
    maml = MetaMAML(model, 0.1, adapt=("gain",))
    x, y = torch.randn(4, 6, 1, 5), torch.randn(4, 6, 1, 3)
    params = maml.adapt_tasks(x, y, loss_fn=prediction_loss)
    rows = maml.forward_tasks(x, params)
    gains = params["gain"]
    together, _ = model(x[:, :, 0].transpose(0, 1), gain=gains)
    torch.testing.assert_close(rows[:, :, 0].transpose(0, 1), together, rtol=1e-4, atol=1e-5)
    assert (gains != model.gain).any(1).all()


def test_the_loss_is_that_of_the_steps_for_which_there_are_targets():
    predicted, target = torch.randn(5, 4, 2, 3), torch.randn(2, 4, 3)
    expected = np.mean([(predicted[3:, :, member] - target).square().mean().item() for member in range(2)])
    assert prediction_loss(predicted, target).item() == pytest.approx(expected, rel=1e-5)


def test_a_prediction_is_in_the_units_of_the_data():
    model, change = _model(), torch.randn(6, 3)
    torch.testing.assert_close(model.change(model.target(change)), change)
    predicted, _ = model(torch.randn(1, 6, 5))
    assert torch.allclose(model.change(predicted), torch.full((), -1.0), atol=0.5)


def test_inputs_are_standardised_and_clipped():
    model = _model()
    mean, std = model.input_mean, model.input_std
    assert torch.allclose(mean, torch.full((5,), 2.0), atol=1.0)
    assert torch.allclose(std, torch.full((5,), 3.0), atol=0.6)
    far, beyond, near = (model((mean + number * std)[None, None])[0] for number in (10.1, 1e6, 9.0))
    assert torch.equal(beyond, far)
    assert not torch.equal(near, far)


def test_a_gain_of_zero_takes_an_action_out():
    model = _model()
    with torch.no_grad():
        model.gain[1] = 0.0
    x = torch.randn(1, 6, 5)
    first, second = x.clone(), x.clone()
    first[..., 3] += 1.0
    second[..., 4] += 1.0
    assert torch.equal(model(second)[0], model(x)[0])
    assert not torch.allclose(model(first)[0], model(x)[0], atol=1e-3)


def test_what_never_changes_is_not_blown_up():
    model = DynamicsModel(1, 1)
    still = RunningMoments(1)
    still.update(np.zeros((10, 1)))
    model.standardize_by(RunningMoments(2), still)
    assert model.target(torch.tensor([0.0])).item() == 0.0
    assert abs(model.target(torch.tensor([1e-6])).item()) < 0.01


def test_statistics_travel_with_the_state():
    model, other = _model(), DynamicsModel(3, 2, MemoryConfig("mlp", width=8))
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 2, 5)
    assert torch.equal(other(x)[0], model(x)[0])
