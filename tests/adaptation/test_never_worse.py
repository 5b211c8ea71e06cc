"""Never worse than the frozen model by more than the bound, on streams of every kind; and better where it can be."""

from __future__ import annotations

import math
from statistics import median

import pytest
import torch
from torch import nn

from metarl.adaptation.test_time_adaptation import AdaptationConfig, Adapter

EVERY, WINDOW, TOLERANCE = 5, 40, 0.05
CONFIG = {"learning_rate": 0.5, "update_every": EVERY, "rollback_window": WINDOW, "rollback_tolerance": TOLERANCE}
"""A learning rate at which adapting to noise does harm."""


def known_bound(every=EVERY):
    """Largest limit and largest excess of a segment for one row whose loss lies in [0, 1]."""
    return TOLERANCE * WINDOW + every


def bounded(output, y):
    """A loss in [0, 1): 1 - exp(-(output - y)²)."""
    return -torch.expm1(-(output - y).square()).mean()


def make_model():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    return model


def no_shift(step, frozen, adapted, draw):
    return frozen + 0.1 * draw


def shift(step, frozen, adapted, draw):
    return frozen + 0.1 * draw + (0.7 if step % 600 > 200 else 0.0)


def gradual_shift(step, frozen, adapted, draw):
    return frozen + math.sin(step / 100)


def label_noise(step, frozen, adapted, draw):
    return frozen + 0.5 * draw


def outliers(step, frozen, adapted, draw):
    return frozen + (1e6 * draw if step % 97 == 0 else 0.1 * draw)


def adversarial(step, frozen, adapted, draw):
    """Baits while both predict alike, and makes the frozen model right once the adapted one has moved."""
    return frozen + 0.8 if (adapted - frozen).abs() < 0.05 else frozen - 0.2 * (adapted - frozen)


def run(stream, steps, *, spoil=False, loss_fn=bounded, **options):
    """Losses [steps] of what the adapter predicted and of the untouched model, not finite where x or y were not."""
    model = make_model()
    adapter = Adapter(model, AdaptationConfig(**CONFIG | options), loss_fn)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(steps, 1, 3, generator=generator).double()
    inputs, draws = drawn[..., :2], drawn[..., 2:]
    if spoil:
        inputs[::7, 0, 1], inputs[3::11] = math.nan, math.inf
        draws[5::13] = math.nan
    predicted, expected, targets = [], [], []
    with torch.no_grad():
        frozen_outputs = model(inputs)
        for step in range(steps):
            x = inputs[step]
            output = adapter.predict(x)
            y = stream(step, frozen_outputs[step], output, draws[step])
            adapter.observe(x, y)
            predicted.append(output), expected.append(frozen_outputs[step]), targets.append(y)
        pairs = torch.func.vmap(loss_fn)
        target = torch.stack(targets)
        return pairs(torch.stack(predicted), target), pairs(torch.stack(expected), target), adapter


def stretch_beyond_tolerance(adapted, frozen, every=EVERY):
    """The largest Σ A - Σ F - τ Σ |F| over stretches of whole segments, and the largest of one segment."""
    beyond = adapted - frozen - TOLERANCE * frozen.abs()
    beyond = torch.where(torch.isfinite(beyond), beyond, 0.0).view(-1, every).sum(1)
    sums = torch.cat([beyond.new_zeros(1), beyond.cumsum(0)])
    return (sums - sums.cummin(0).values).max().item(), max(0.0, beyond.max().item())


STREAMS = (no_shift, shift, gradual_shift, label_noise, outliers, adversarial)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("spoil", [False, True])
def test_never_worse_than_frozen_by_more_than_the_bound(stream, spoil):
    adapted, frozen, _ = run(stream, 1500, spoil=spoil)
    assert stretch_beyond_tolerance(adapted, frozen)[0] <= known_bound()
    assert (torch.isfinite(adapted) == torch.isfinite(frozen)).all()
    assert torch.isfinite(frozen).all() != spoil


@pytest.mark.parametrize("stream", STREAMS)
def test_the_bound_of_an_unbounded_loss_is_its_largest_limit_and_segment(stream):
    adapted, frozen, adapter = run(stream, 1500, loss_fn=nn.functional.mse_loss, learning_rate=0.1)
    stretch, single = stretch_beyond_tolerance(adapted, frozen)
    means, held = frozen.view(-1, EVERY).mean(1).tolist(), WINDOW // EVERY
    limits = [TOLERANCE * WINDOW * median(means[max(0, end - held) : end]) for end in range(1, len(means) + 1)]
    assert stretch <= (max(limits) + single) * (1 + 1e-9)
    assert adapter.scored_rows == 1500


@pytest.mark.parametrize("stream", [shift, gradual_shift, adversarial])
def test_without_the_guard_the_bound_is_broken(stream):
    adapted, frozen, _ = run(stream, 1500, rollback=False)
    assert stretch_beyond_tolerance(adapted, frozen)[0] > known_bound()


@pytest.mark.parametrize("stream", [shift, gradual_shift])
def test_what_adapting_gains_in_a_shift_the_guard_keeps(stream):
    gains = []
    for rollback in (True, False):
        adapted, frozen, _ = run(stream, 1500, learning_rate=0.1, rollback=rollback)
        gains.append((frozen - adapted).mean().item())
    assert gains[0] > gains[1]
    assert gains[0] > 0.2 * frozen.mean().item()


def test_a_hundred_thousand_steps():
    every = 25
    adapted, frozen, adapter = run(adversarial, 100_000, update_every=every, num_steps=5)
    assert stretch_beyond_tolerance(adapted, frozen, every)[0] <= known_bound(every)
    assert adapted.sum() <= (1 + TOLERANCE) * frozen.sum() + known_bound(every)
    assert adapter.guard.rollbacks > 100
