"""The adapter by hand on one weight, its fields one by one, and that it never costs more than the frozen model."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import fields

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional

from metarl.adaptation.test_time_adaptation import AdaptationConfig, Adapter
from metarl.core.errors import UsageError
from metarl.core.memory import METHODS, MemoryConfig, make_memory

OFF = {"rollback": False, "grad_clip_norm": 1e9}
"""Plain gradient descent."""


def one_weight(weight=1.0):
    """y = w x; the gradient of (w x - y)² is 2 x (w x - y)."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(weight)
    return model


def column(*values):
    return torch.tensor(values)[:, None]


def weight_of(adapter):
    return adapter.predict(column(1.0)).item()


def test_update_step_is_gradient_descent():
    adapter = Adapter(one_weight(), AdaptationConfig(learning_rate=0.25, num_steps=2, **OFF))
    loss, steps = adapter.update_step(column(1.0), column(3.0))
    assert (loss, steps) == (4.0, 2)
    assert weight_of(adapter) == 2.5  # 1 -> 2 -> 2.5


def test_observe_learns_when_due_and_the_model_is_never_touched():
    model = one_weight()
    adapter = Adapter(model, AdaptationConfig(learning_rate=0.25, update_every=2, **OFF))
    adapter.observe(column(1.0), column(3.0))
    assert weight_of(adapter) == 1.0
    adapter.observe(column(1.0), column(1.0))  # the mean of both gradients is -2
    assert weight_of(adapter) == 1.5
    assert model.weight.item() == 1.0
    assert model.weight.grad is None
    assert model.weight.requires_grad


def test_arguments_may_be_overwritten_after_observe():
    adapter = Adapter(one_weight(), AdaptationConfig(learning_rate=0.25, update_every=2, **OFF))
    x, y = column(1.0), column(3.0)
    adapter.observe(x, y)
    x.zero_(), y.zero_()
    adapter.observe(column(1.0), column(3.0))
    assert weight_of(adapter) == 2.0


def test_it_learns_in_inference_mode_too():
    inside, outside = (Adapter(one_weight(), AdaptationConfig(learning_rate=0.1, update_every=2)) for _ in range(2))
    for adapter in (inside, outside):
        with torch.inference_mode(adapter is inside):
            for time in range(6):
                x, y = column(1.0 + time), column(3.0)
                adapter.predict(x)
                adapter.observe(x, y)
            adapter.update_step(x, y)
            adapter.load_state_dict(adapter.state_dict())
            adapter.reset()
            adapter.observe(x, y)
            adapter.observe(x, y)
    assert inside.metrics() == outside.metrics()
    assert weight_of(inside) == weight_of(outside) != 1.0
    with torch.inference_mode():
        x = column(2.0)
    assert inside.update_step(x, column(3.0)) == outside.update_step(column(2.0), column(3.0))


def test_reset_returns_to_the_weights_that_the_model_holds_now():
    model = one_weight()
    adapter = Adapter(model, AdaptationConfig(learning_rate=0.25, update_every=1, **OFF))
    adapter.observe(column(1.0), column(3.0))
    adapter.reset()
    assert weight_of(adapter) == 1.0
    assert adapter.metrics()["distance"] == 0.0
    model.weight.data.fill_(5.0)
    adapter.reset()
    assert weight_of(adapter) == 5.0
    adapter.observe(column(2.0), column(10.0))  # what was learnt from before is forgotten: nothing to correct
    assert weight_of(adapter) == 5.0


# --- every field of the configuration ---------------------------------------------------------------------------------


def test_adam_is_torch_s():
    model = one_weight()
    adapter = Adapter(model, AdaptationConfig(learning_rate=0.1, optimizer="adam", **OFF))
    reference = one_weight()
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.1)
    for target in (3.0, -1.0, 2.0):
        adapter.update_step(column(1.0), column(target))
        optimizer.zero_grad()
        functional.mse_loss(reference(column(1.0)), column(target)).backward()
        optimizer.step()
        assert weight_of(adapter) == pytest.approx(reference.weight.item(), rel=1e-6)


def test_parameters_choose_what_moves():
    model = nn.Sequential(nn.Linear(1, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    adapter = Adapter(model, AdaptationConfig(parameters=("norm", "2.bias")))
    adapter.update_step(column(1.0, 2.0), column(3.0, -3.0))
    source = dict(model.named_parameters())
    moved = [name for name, value in adapter.adapted.named_parameters() if not torch.equal(value, source[name])]
    assert moved == ["1.weight", "1.bias", "2.bias"]


def test_buffer_keeps_the_most_recent_rows():
    config = AdaptationConfig(learning_rate=0.25, update_every=3, buffer_size=2, batch_size=2, **OFF)
    adapter = Adapter(one_weight(), config)
    for target in (100.0, 3.0, 1.0):
        adapter.observe(column(1.0), column(target))
    assert weight_of(adapter) == 1.5


def test_batch_is_drawn_without_repeats_from_the_seed():
    def run(batch_size, seed):
        config = AdaptationConfig(learning_rate=0.25, update_every=4, batch_size=batch_size, **OFF)
        adapter = Adapter(one_weight(0.0), config, seed=seed)
        adapter.observe(column(1.0, 1.0), column(1.0, 10.0))
        for _ in range(3):
            adapter.observe(column(1.0), column(100.0))
        return weight_of(adapter)

    assert {run(1, seed) for seed in range(40)} == {0.5, 5.0, 50.0}  # half of one target
    assert {run(4, seed) for seed in range(40)} == {(1 + 300) / 8, (10 + 300) / 8, (11 + 200) / 8}
    assert [run(1, 3), run(1, 3)] == [run(1, 3)] * 2


def test_gradient_is_clipped():
    adapter = Adapter(one_weight(), AdaptationConfig(learning_rate=0.25, grad_clip_norm=0.5, rollback=False))
    adapter.update_step(column(1.0), column(1e6))
    assert weight_of(adapter) == 1.125


def test_trust_region_is_relative_to_the_source():
    adapter = Adapter(one_weight(4.0), AdaptationConfig(learning_rate=0.25, trust_region=0.5, **OFF))
    adapter.update_step(column(1.0), column(100.0))
    assert weight_of(adapter) == 6.0
    assert adapter.metrics()["distance"] == 0.5
    with pytest.raises(UsageError, match="which are all 0"):
        Adapter(one_weight(0.0), AdaptationConfig(trust_region=0.5))


def test_ema_predicts_with_the_average():
    adapter = Adapter(one_weight(), AdaptationConfig(learning_rate=0.25, num_steps=2, ema_decay=0.75, **OFF))
    adapter.update_step(column(1.0), column(3.0))
    assert weight_of(adapter) == 1 * 0.75**2 + 2 * 0.25 * 0.75 + 2.5 * 0.25
    adapter.reset()
    assert weight_of(adapter) == 1.0


def test_anchor_pulls_to_the_source():
    adapter = Adapter(one_weight(), AdaptationConfig(learning_rate=0.25, num_steps=2, anchor_weight=1.0, **OFF))
    adapter.update_step(column(1.0), column(3.0))
    assert weight_of(adapter) == 2.25  # 1 -> 2, then -0.25 * (-2 + 1)


def test_entropy_needs_no_target_and_sharpens():
    torch.manual_seed(0)
    model = nn.Linear(1, 3)
    x = torch.linspace(-1, 1, 8)[:, None]

    def entropy(logits):
        return torch.distributions.Categorical(logits=logits).entropy().mean()

    adapter = Adapter(model, AdaptationConfig(learning_rate=0.1, entropy_weight=2.0, update_every=1, rollback=False))
    loss, _ = adapter.update_step(x)
    assert loss == pytest.approx(2.0 * entropy(model(x)).item(), rel=1e-6)
    for _ in range(50):
        adapter.observe(x)
    assert entropy(adapter.predict(x)) < 0.9 * entropy(model(x))


def test_entropy_is_added_to_the_loss():
    model, x, label = nn.Linear(1, 3), column(1.0, 2.0), torch.tensor([0, 2])
    plain = Adapter(model, AdaptationConfig(), functional.cross_entropy).update_step(x, label)[0]
    both = Adapter(model, AdaptationConfig(entropy_weight=0.5), functional.cross_entropy).update_step(x, label)[0]
    entropy = torch.distributions.Categorical(logits=model(x)).entropy().mean().item()
    assert both == pytest.approx(plain + 0.5 * entropy, rel=1e-6)


@pytest.mark.parametrize(("steps", "weights"), [(1, [2.0, 2.0]), (2, [2.5, 2.5]), (0, [1.0, 1.0])])
def test_from_source_every_update_is_the_same_walk(steps, weights):
    config = AdaptationConfig(learning_rate=0.25, update_every=1, num_steps=steps, from_source=True, **OFF)
    adapter = Adapter(one_weight(), config)
    walked = []
    for _ in range(2):
        adapter.observe(column(1.0), column(3.0))
        walked.append(weight_of(adapter))
    assert walked == weights


def test_reset_every_returns_to_the_source_at_intervals():
    adapter = Adapter(one_weight(), AdaptationConfig(learning_rate=0.25, update_every=1, reset_every=3, **OFF))
    weights = []
    for _ in range(6):
        adapter.observe(column(1.0), column(3.0))
        weights.append(weight_of(adapter))
    assert weights == [2.0, 2.5, 1.0] * 2


def worsening(**options):
    """The first observation teaches w = 2; from then on w = 1 was right."""
    config = AdaptationConfig(
        learning_rate=0.25, update_every=1, buffer_size=1, batch_size=1, grad_clip_norm=1e9, **options
    )
    adapter = Adapter(one_weight(), config)
    adapter.observe(column(1.0), column(3.0))
    return adapter


def test_rollback_returns_to_the_source_and_waits():
    adapter = worsening(rollback_window=2, rollback_tolerance=0.5)
    assert weight_of(adapter) == 2.0
    adapter.observe(column(1.0), column(0.5))  # adapted 2.25, frozen 0.25, tolerated 0.125; the limit is 2.125
    assert adapter.guard.excess == 1.875
    assert adapter.guard.limit == 2.125
    assert weight_of(adapter) == 1.25
    adapter.observe(column(1.0), column(0.5))  # 0.5625, 0.25 and 0.125: 2.0625 in all; now the limit is 0.25
    assert weight_of(adapter) == 1.0
    assert adapter.metrics()["rollbacks"] == adapter.metrics()["waiting"] == 1.0
    assert adapter.update_step(column(1.0), column(3.0)) == (4.0, 0)
    for _ in range(16):  # 2.0625 / 0.125 = 16.5
        adapter.observe(column(1.0), column(0.5))
        assert weight_of(adapter) == 1.0
    adapter.observe(column(1.0), column(0.5))
    assert adapter.metrics()["waiting"] == 0.0
    assert weight_of(adapter) < 1.0


def test_without_rollback_nothing_is_scored():
    adapter = worsening(rollback=False)
    for _ in range(20):
        adapter.observe(column(1.0), column(0.5))
    assert adapter.metrics()["rollbacks"] == 0.0
    assert math.isnan(adapter.metrics()["frozen_loss"])


@pytest.mark.parametrize(("window", "held"), [(2, 1), (5, 4)])
def test_a_window_shorter_than_update_every_scores_more_often(window, held):
    adapter = Adapter(one_weight(), AdaptationConfig(update_every=100, rollback_window=window))
    for _ in range(held):
        adapter.observe(column(1.0), column(2.0))
    assert adapter.scored_rows == 0
    adapter.observe(column(1.0), column(2.0))
    assert adapter.scored_rows == window
    assert adapter.steps == 0


BAD = {
    "learning_rate": 0.0,
    "num_steps": -1,
    "update_every": 0,
    "optimizer": "adamm",
    "buffer_size": 0,
    "batch_size": 257,
    "grad_clip_norm": 0.0,
    "trust_region": 0.0,
    "ema_decay": 1.0,
    "anchor_weight": -1.0,
    "entropy_weight": -1.0,
    "reset_every": 0,
    "rollback_window": 0,
    "rollback_tolerance": -0.1,
}


@pytest.mark.parametrize("name", BAD)
def test_values_out_of_range_are_refused_by_name(name):
    with pytest.raises(UsageError, match=rf"{name}.*{BAD[name]}"):
        AdaptationConfig(**{name: BAD[name]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", math.inf),
        ("num_steps", 1.5),
        ("update_every", 2.5),
        ("buffer_size", 100.5),
        ("batch_size", 2.5),
        ("reset_every", 2.5),
        ("rollback_window", 2.5),
        ("parameters", ()),
    ],
)
def test_values_of_another_kind_are_refused_by_name(name, value):
    with pytest.raises(UsageError, match=re.escape(f"got {value}")) as error:
        AdaptationConfig(**{name: value})
    assert str(error.value).startswith(name)


def test_whole_numbers_may_be_numpy_s():
    assert AdaptationConfig(update_every=np.int64(4)).update_every == 4


def test_every_field_is_covered_here():
    assert {field.name for field in fields(AdaptationConfig)} == {*BAD, "parameters", "rollback", "from_source"}


# --- models with memory -----------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A memory between an encoder and a head, as a dynamics model has it."""

    def __init__(self, method):
        super().__init__()
        self.encoder, self.head = nn.Linear(2, 8), nn.Linear(8, 1)
        self.memory = make_memory(MemoryConfig(method=method, width=8, state_dim=8, heads=2, context=8))

    def forward(self, x, state=None):
        features, state = self.memory(self.encoder(x), state)
        return self.head(features), state


@pytest.mark.parametrize("method", METHODS)
def test_models_with_memory_adapt_from_sequences_and_their_states(method):
    torch.manual_seed(0)
    model = Recurrent(method)
    before = copy.deepcopy(model.state_dict())
    adapter = Adapter(model, AdaptationConfig(learning_rate=0.05, update_every=2, num_steps=2))
    state = model.memory.init_state(3)
    for _ in range(60):
        x = torch.randn(5, 3, 2)
        y = x.sum(-1, keepdim=True) + 1
        output, following = adapter.predict(x, state)
        assert output.shape == (5, 3, 1)
        adapter.observe(x, y, state)
        state = following
    assert adapter.metrics()["loss"] < 0.8 * adapter.metrics()["frozen_loss"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sequences_learn_from_the_state_they_were_predicted_from():
    torch.manual_seed(0)
    model = Recurrent("gru")
    x, y, state = torch.randn(4, 3, 2), torch.randn(4, 3, 1), torch.randn(3, *model.memory.state_shape)
    loss, _ = Adapter(model).update_step(x, y, state)
    assert loss == pytest.approx(functional.mse_loss(model(x, state)[0], y).item(), rel=1e-6)
    scored = Adapter(model, AdaptationConfig(update_every=3))
    for row in range(3):  # rows one by one are scored as rows together
        scored.observe(x[:, row : row + 1], y[:, row : row + 1], state[row : row + 1])
    assert scored.metrics()["frozen_loss"] == pytest.approx(loss, rel=1e-5)


class InEvaluation(nn.Module):
    """Two recurrent layers with dropout between them, switched to evaluation mode as where a model is deployed."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell(2, 8, num_layers=2, dropout=0.5), nn.Linear(8, 1)
        self.eval()

    def forward(self, x):  # [B, T, 2]
        return self.head(self.cell(x.transpose(0, 1))[0][-1])


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_a_recurrent_model_in_evaluation_mode_adapts_and_drops_nothing(cell, device):
    torch.manual_seed(0)
    model = InEvaluation(cell).to(device)
    x, y = torch.randn(4, 5, 2, device=device), torch.randn(4, 1, device=device)
    adapter = Adapter(model, AdaptationConfig(update_every=1, rollback=False))
    torch.testing.assert_close(adapter.predict(x), model(x), atol=5e-3, rtol=0)
    for module in (adapter.adapted, adapter.frozen):
        assert module.cell.training, "on a GPU there are no gradients in evaluation mode"
        assert not module.head.training
    adapter.observe(x, y)
    assert adapter.steps == 1
    torch.testing.assert_close(adapter.predict(x), adapter.predict(x), atol=5e-3, rtol=0)
    assert not model.cell.training
    assert model.cell.dropout == 0.5


# --- batch normalisation ----------------------------------------------------------------------------------------------


def test_batch_normalisation_takes_the_batch_s_statistics_and_writes_none():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    before = copy.deepcopy(model.state_dict())
    x = 3 + torch.randn(16, 2)
    reference = copy.deepcopy(model)
    adapter = Adapter(model, AdaptationConfig(update_every=1, rollback=False, parameters="norm"))
    assert torch.equal(adapter.predict(x), reference(x))  # in training mode: by this batch
    adapter.observe(x, torch.randn(16, 1))
    moved = adapter.predict(x)
    for module in (adapter.frozen, adapter.adapted):
        assert torch.equal(module[0].running_mean, before["0.running_mean"])
        assert module[0].num_batches_tracked == 0
    adapter.reset()
    assert torch.equal(adapter.predict(x), reference(x))
    assert (moved != reference(x)).any()


def test_batch_normalisation_in_evaluation_mode_keeps_to_the_running_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    model(3 + torch.randn(16, 2))
    model.eval()
    x = torch.randn(4, 2)
    assert torch.equal(Adapter(model).predict(x), model(x))


class Centred(nn.Module):
    """A hidden layer without its running mean, which it writes itself."""

    def __init__(self):
        super().__init__()
        self.hidden, self.output = nn.Linear(1, 2), nn.Linear(2, 1)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x):
        hidden = self.hidden(x)
        self.mean.lerp_(hidden.detach().mean(0), 0.1)
        return self.output(hidden - self.mean)


def test_it_may_be_made_and_reset_in_inference_mode():
    model, x = Centred(), torch.randn(4, 1)
    with torch.inference_mode():
        adapter = Adapter(model, AdaptationConfig(update_every=1))
        for _ in range(2):
            adapter.observe(x, x)
            adapter.reset()
    adapter.observe(x, x)
    assert adapter.steps == 3


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_going_back_restores_what_a_module_has_written_itself(ema_decay):
    torch.manual_seed(0)
    adapter = Adapter(Centred(), AdaptationConfig(learning_rate=1e30, update_every=1, ema_decay=ema_decay))
    for _ in range(400):
        x = torch.randn(4, 1)
        adapter.predict(x)
        adapter.observe(x, torch.randn(4, 1))
    assert adapter.guard.rollbacks > 1
    assert adapter.steps > adapter.guard.rollbacks - 2  # it learns again whenever the guard lets it
    adapter.reset()
    for module in (adapter._learner, adapter.adapted):
        assert torch.equal(module.mean, adapter.frozen.mean)


class Keeping(nn.Module):
    """A layer that keeps what it has seen."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer("seen", torch.zeros(0, 1))

    def forward(self, x):
        self.seen = torch.cat([self.seen, x.detach()])
        return self.layer(x)


def test_what_a_module_has_written_itself_may_have_another_shape():
    torch.manual_seed(0)
    model = Keeping()
    adapter, resumed = (Adapter(model, AdaptationConfig(update_every=1)) for _ in range(2))
    for _ in range(3):
        adapter.observe(column(1.0), column(3.0))
    resumed.load_state_dict(load(save(adapter.state_dict())))
    assert len(resumed.adapted.seen) == len(adapter.adapted.seen) > 0
    adapter.reset()
    assert len(adapter.frozen.seen) == len(adapter.adapted.seen) == 0


def test_a_reset_over_a_model_that_was_moved_leaves_buffers_where_they_are():
    """Moved to another type here; another device is the same."""
    model = Keeping()
    adapter = Adapter(model, AdaptationConfig(update_every=1))
    adapter.observe(column(1.0), column(3.0))
    model.double()
    adapter.reset()
    assert adapter.frozen.seen.dtype == adapter.adapted.seen.dtype == torch.float32


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_model_with_memory_needs_its_state():
    with pytest.raises(UsageError, match="give the state"):
        Adapter(Recurrent("gru")).update_step(torch.zeros(4, 3, 2), torch.zeros(4, 3, 1))


def test_rows_must_agree():
    with pytest.raises(UsageError, match=r"same rows, got \(rows first\) x \(2, 1\), y \(1, 1\)"):
        Adapter(one_weight()).observe(column(1.0, 2.0), column(1.0))


def test_a_stream_keeps_its_shapes():
    adapter = Adapter(one_weight(), AdaptationConfig(**OFF, update_every=2))
    adapter.observe(column(1.0), column(1.0))
    with pytest.raises(UsageError, match=r"keeps the shapes of its rows.*reset\(\)"):
        adapter.observe(column(1.0))


class Named(nn.Module):
    """A model that returns a dict."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return {"output": self.layer(x)}


@pytest.mark.parametrize("use", [Adapter.update_step, Adapter.observe])
def test_what_would_be_learned_as_nonsense_is_refused_in_one_line(use):
    every, x = AdaptationConfig(update_every=1), column(1.0, 2.0)

    def adapt(model, *arguments, **options):
        use(Adapter(model, every, **options), *arguments)

    with pytest.raises(UsageError, match=r"y in the shape of the output, got \(2,\) for an output \(2, 1\)"):
        adapt(one_weight(), x, torch.tensor([1.0, 2.0]))
    with pytest.raises(UsageError, match=r"y is a tensor \[B, \.\.\.\], got the shape \(\)"):
        adapt(one_weight(), x, torch.tensor(1.0))
    with pytest.raises(UsageError, match=r"y is a tensor .* got float"):
        adapt(one_weight(), x, 1.0)
    with pytest.raises(UsageError, match=r"x is a tensor .* got ndarray: convert it"):
        adapt(one_weight(), x.numpy(), x)
    with pytest.raises(UsageError, match="x has no rows, so there is nothing to observe or to learn from"):
        adapt(one_weight(), x[:0], x[:0])
    with pytest.raises(UsageError, match=r"a model returns a tensor, or .*, got dict"):
        adapt(Named(), x, x)
    with pytest.raises(UsageError, match=r"loss_fn returns a scalar tensor, .* got the shape \(2, 1\)"):
        adapt(one_weight(), x, x, loss_fn=lambda output, y: (output - y).square())
    with pytest.raises(UsageError, match=r"loss_fn returns a scalar tensor, .* got float"):
        adapt(one_weight(), x, x, loss_fn=lambda output, y: 1.0)
    with pytest.raises(UsageError, match=r"x is a tensor \[T, B, \.\.\.\], got the shape \(2,\)"):
        adapt(Recurrent("gru"), torch.zeros(2), torch.zeros(2, 1, 1), torch.zeros(2, 1, 1, 8))


def test_predict_takes_tensors():
    with pytest.raises(UsageError, match=r"x is a tensor .* got ndarray: convert it"):
        Adapter(one_weight()).predict(np.zeros((2, 1), np.float32))


def test_a_loss_of_its_own_takes_targets_in_any_shape():
    model = nn.Linear(1, 3)
    loss, steps = Adapter(model, loss_fn=functional.cross_entropy).update_step(column(1.0, 2.0), torch.tensor([0, 2]))
    assert steps == 1
    assert math.isfinite(loss)


def test_targets_may_be_missing_only_where_nothing_needs_them():
    with pytest.raises(UsageError, match="set rollback=False"):
        Adapter(one_weight()).observe(column(1.0))
    with pytest.raises(UsageError, match="set entropy_weight"):
        Adapter(one_weight()).update_step(column(1.0))


# --- what is not finite -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_left_out(bad):
    adapter = Adapter(one_weight(), AdaptationConfig(learning_rate=0.25, update_every=2, grad_clip_norm=1e9))
    adapter.observe(column(1.0, bad), column(3.0, 3.0))
    adapter.observe(column(1.0), column(bad))
    assert weight_of(adapter) == 2.0
    assert adapter.metrics()["ignored_rows"] == 2.0
    assert adapter.metrics()["rollbacks"] == 0.0
    assert adapter.metrics()["loss"] == 4.0
    loss, steps = adapter.update_step(column(bad), column(1.0))
    assert not math.isfinite(loss)
    assert (steps, weight_of(adapter), adapter.guard.rollbacks) == (0, 2.0, 0)


def test_nothing_is_learned_twice_where_no_row_is_finite():
    """Nothing would score what that does."""
    adapter = Adapter(one_weight(), AdaptationConfig(learning_rate=0.25, update_every=1, **OFF))
    weights = []
    for target in (3.0, math.nan, math.inf, 3.0):
        adapter.observe(column(1.0), column(target))
        weights.append(weight_of(adapter))
    assert weights == [2.0, 2.0, 2.0, 2.5]


def test_a_gradient_that_overflows_goes_back():
    adapter = Adapter(one_weight(), AdaptationConfig(learning_rate=0.25))
    adapter.update_step(column(1.0), column(3.0))
    assert weight_of(adapter) > 1.0
    _, steps = adapter.update_step(column(1e30), column(3.0))  # finite, but its square is not
    assert steps == 0
    assert (weight_of(adapter), adapter.guard.rollbacks) == (1.0, 1)


def test_a_wait_that_nothing_would_end_does_not_begin():
    adapter = Adapter(one_weight(), AdaptationConfig(learning_rate=0.25))
    assert adapter.update_step(column(1e30), column(3.0))[1] == 0  # nothing is scored by update_step
    assert adapter.guard.rollbacks == 1
    assert adapter.update_step(column(1.0), column(3.0)) == (4.0, 1)


def test_predict_falls_back_where_only_the_frozen_output_is_finite():
    model = one_weight()
    adapter = Adapter(model, AdaptationConfig(learning_rate=1.0, grad_clip_norm=1e30, update_every=10))
    adapter.update_step(column(1.0), column(1e19))
    predicted = adapter.predict(column(1e25, 1.0, math.nan))  # 1e44 is beyond float32
    assert predicted[0].item() == pytest.approx(1e25)
    assert predicted[1].item() == pytest.approx(2e19, rel=1e-3)
    assert math.isnan(predicted[2].item())


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"optimizer": "adam"}, {"ema_decay": 0.5}])
def test_resumed_equals_uninterrupted(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    config = AdaptationConfig(update_every=4, batch_size=3, rollback_window=6, rollback_tolerance=0.01, **options)
    stream = [(torch.randn(2, 2), torch.randn(2, 1)) for _ in range(202)]
    adapter = Adapter(model, config)
    for x, y in stream[:101]:
        adapter.observe(x, y)
    resumed = Adapter(model, config, seed=7)
    resumed.load_state_dict(load(save(adapter.state_dict())))
    for x, y in stream[101:]:
        assert torch.equal(adapter.predict(x), resumed.predict(x))
        adapter.observe(x, y)
        resumed.observe(x, y)
    assert adapter.metrics() == resumed.metrics()
    assert adapter.guard.rollbacks > 0


def test_a_state_of_an_earlier_version_learns_from_the_rows_that_it_holds():
    """It does not say whether an update has followed them."""
    config = AdaptationConfig(learning_rate=0.25, update_every=2, rollback_window=1, **OFF)
    adapter = Adapter(one_weight(), config)
    states = [adapter.state_dict()]
    adapter.observe(column(1.0), column(3.0))
    states.append(adapter.state_dict())
    for state, learned in zip(states, (1.0, 2.0), strict=True):
        del state["counters/_fresh"]
        adapter.load_state_dict(state)
        for _ in range(2):
            adapter.observe(column(1.0), column(math.nan))
        assert weight_of(adapter) == learned


@pytest.mark.parametrize("method", METHODS)
def test_what_has_a_memory_is_kept_as_safetensors(method):
    torch.manual_seed(0)
    model = Recurrent(method)
    adapter, resumed = (Adapter(model, AdaptationConfig(update_every=2)) for _ in range(2))
    state = model.memory.init_state(3)
    stream = [(torch.randn(5, 3, 2), torch.randn(5, 3, 1)) for _ in range(8)]
    for x, y in stream[:5]:
        adapter.observe(x, y, state)
    resumed.load_state_dict(load(save(adapter.state_dict())))
    for x, y in stream[5:]:
        adapter.observe(x, y, state)
        resumed.observe(x, y, state)
    assert adapter.metrics() == resumed.metrics()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_on_a_gpu_it_goes_on_from_a_file(optimizer):
    torch.manual_seed(0)
    config = AdaptationConfig(update_every=4, batch_size=3, optimizer=optimizer)
    adapter, resumed = (Adapter(nn.Linear(2, 1).cuda(), config) for _ in range(2))
    stream = [(torch.randn(2, 2).cuda(), torch.randn(2, 1).cuda()) for _ in range(20)]
    for x, y in stream[:10]:
        adapter.observe(x, y)
    resumed.load_state_dict(load(save(adapter.state_dict())))
    for x, y in stream[10:]:
        adapter.observe(x, y)
        resumed.observe(x, y)
    assert torch.equal(adapter.predict(stream[0][0]), resumed.predict(stream[0][0]))
    assert adapter.metrics() == resumed.metrics()
