from __future__ import annotations

import numpy as np
import torch

from metarl.core.normalization import RunningMoments
from metarl.meta_rl.dynamics import DynamicsModel
from metarl.meta_rl.meta_maml import MetaMAML


def _model(seed: int = 0) -> DynamicsModel:
    torch.manual_seed(seed)
    model = DynamicsModel(3, 2, width=8, depth=2)
    generator = np.random.default_rng(0)
    inputs, changes = RunningMoments(5), RunningMoments(3)
    inputs.update(generator.normal(2.0, 3.0, (100, 5)))
    changes.update(generator.normal(-1.0, 0.1, (100, 3)))
    model.standardize_by(inputs, changes)
    return model


def test_every_row_predicts_by_its_own_parameters():
    model = _model()
    maml = MetaMAML(model, 0.1)
    x = torch.randn(4, 6, 5)
    params = maml.adapt_tasks(x, torch.randn(4, 6, 3))
    rows = model.forward_rows(params, x)
    for row in range(4):
        alone = maml.functional_forward(x[row], {name: value[row] for name, value in params.items()})
        assert torch.allclose(rows[row], alone, atol=1e-5)
    assert not torch.allclose(rows, model(x), atol=1e-3)


def test_parameters_that_rows_share_give_what_the_model_gives():
    model = _model()
    x = torch.randn(4, 6, 5)
    params = {name: value.expand(4, *value.shape) for name, value in model.named_parameters()}
    assert torch.allclose(model.forward_rows(params, x), model(x), atol=1e-5)


def test_a_prediction_adds_the_change_in_the_units_of_the_data():
    model = _model()
    observation, action = torch.randn(1, 6, 3), torch.randn(1, 6, 2)
    params = {name: value[None] for name, value in model.named_parameters()}
    following = model.predict_rows(params, observation, action)
    expected = model(torch.cat([observation, action], -1))
    assert torch.allclose(model.target(following - observation), expected, atol=1e-4)
    assert torch.allclose(following - observation, torch.full((), -1.0), atol=0.5)


def test_inputs_are_standardised_and_clipped():
    model = _model()
    mean, std = model.input_mean, model.input_std
    assert torch.allclose(mean, torch.full((5,), 2.0), atol=1.0)
    assert torch.allclose(std, torch.full((5,), 3.0), atol=0.6)
    assert torch.equal(model(mean + 1e6 * std), model(mean + 10.1 * std))
    assert not torch.equal(model(mean + 9.0 * std), model(mean + 10.1 * std))


def test_a_gain_of_zero_takes_an_action_out():
    model = _model()
    with torch.no_grad():
        model.gain[1] = 0.0
    x = torch.randn(6, 5)
    first, second = x.clone(), x.clone()
    first[:, 3] += 1.0
    second[:, 4] += 1.0
    assert torch.equal(model(second), model(x))
    assert not torch.allclose(model(first), model(x), atol=1e-3)


def test_what_never_changes_is_not_blown_up():
    model = DynamicsModel(1, 1)
    still = RunningMoments(1)
    still.update(np.zeros((10, 1)))
    model.standardize_by(RunningMoments(2), still)
    assert model.target(torch.tensor([0.0])).item() == 0.0
    assert abs(model.target(torch.tensor([1e-6])).item()) < 0.01


def test_statistics_travel_with_the_state():
    model, other = _model(), DynamicsModel(3, 2, width=8, depth=2)
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(other(x), model(x))
