"""MetaMAML against a loop over tasks, finite differences and numbers computed by hand."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, mse_loss

from metarl.core.errors import UsageError
from metarl.core.memory import METHODS, MemoryConfig, make_memory
from metarl.core.optimization import TrainingDiverged
from metarl.meta_rl.meta_maml import MetaMAML

EXACT = {"rtol": 1e-9, "atol": 1e-12}
TASKS, SAMPLES, INPUTS, OUTPUTS = 3, 5, 4, 2


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def plain():
    return nn.Sequential(nn.Linear(INPUTS, 6), nn.Tanh(), nn.Linear(6, OUTPUTS)).double()


def flat_tasks(tasks=TASKS):
    return (
        normal(tasks, SAMPLES, INPUTS),
        normal(tasks, SAMPLES, OUTPUTS),
        normal(tasks, 7, INPUTS),
        normal(tasks, 7, 2),
    )


def ragged_tasks(sizes=((3, 6), (5, 2), (1, 4))):
    return [(normal(a, INPUTS), normal(a, OUTPUTS), normal(b, INPUTS), normal(b, OUTPUTS)) for a, b in sizes]


def memory_case(method):
    """A memory, and tasks of sequences [T, B, d]."""
    memory = make_memory(MemoryConfig(method=method, width=8, state_dim=6, heads=2, context=4)).double()
    return memory, tuple(normal(TASKS, steps, 2, 8) for steps in (6, 6, 4, 4))


def conv_case():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)
    )
    return model.double(), tuple(normal(TASKS, 4, *shape) for shape in ((1, 4, 4), (2,), (1, 4, 4), (2,)))


def attention_case():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Linear(8, 2)).double(), tuple(normal(TASKS, 4, 3, size) for size in (8, 2, 8, 2))


class Unrolled(nn.Module):
    """A recurrent cell, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(INPUTS, OUTPUTS)

    def forward(self, x):
        state = None
        for _ in range(3):
            state = self.cell(x, state)
        return state[0]


CASES = {method: lambda method=method: memory_case(method) for method in METHODS} | {
    "plain": lambda: (plain(), flat_tasks()),
    "cell": lambda: (Unrolled().double(), flat_tasks()),
    "conv": conv_case,
    "attention": attention_case,
    "batch normalisation": lambda: (
        nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), plain()[1], nn.Linear(3, 2)).double(),
        flat_tasks(),
    ),
}


def reference(model, tasks, lr, steps=1, first_order=False, loss_fn=mse_loss):
    """The mean query loss and its gradient, task by task by torch.autograd through the model's own layers."""
    model = copy.deepcopy(model)
    theta = dict(model.named_parameters())

    def loss(params, x, y):
        output = functional_call(model, params, (x,))
        return loss_fn(output[0] if isinstance(output, tuple) else output, y)

    losses = []
    with sdpa_kernel(SDPBackend.MATH):  # torch's fast attention has no second derivative
        for support_x, support_y, query_x, query_y in tasks:
            phi = theta
            for _ in range(steps):
                inner = loss(phi, support_x, support_y)
                found = torch.autograd.grad(inner, list(phi.values()), create_graph=not first_order, allow_unused=True)
                phi = {
                    name: value if slope is None else value - lr * slope
                    for (name, value), slope in zip(phi.items(), found, strict=True)
                }
            losses.append(loss(phi, query_x, query_y))
        mean = torch.stack(losses).mean()
        gradients = torch.autograd.grad(mean, list(theta.values()), allow_unused=True, materialize_grads=True)
    return mean.detach(), dict(zip(theta, gradients, strict=True))


def assert_equal_gradients(got, wanted, **tolerance):
    """Element by element, relative to the largest gradient."""
    (loss, gradients), (wanted_loss, wanted_gradients) = got, wanted
    torch.testing.assert_close(loss, wanted_loss, **(tolerance or EXACT))
    assert list(gradients) == list(wanted_gradients)
    largest = max(float(value.abs().max()) for value in wanted_gradients.values())
    assert largest > 1e-3
    for name, value in wanted_gradients.items():
        difference = float((gradients[name] - value).abs().max())
        assert difference <= (tolerance or EXACT)["rtol"] * largest, (name, difference, largest)


# --- the meta-gradient is exact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradient_is_that_of_a_loop_over_tasks(case, steps, first_order):
    model, tasks = CASES[case]()
    wanted = reference(model, list(zip(*tasks, strict=True)), 0.1, steps, first_order)
    for options in ({}, {"recompute": True}, {"vectorize": False}) if steps > 1 else ({},):
        maml = MetaMAML(model, inner_lr=0.1, first_order=first_order, inner_steps=steps, **options)
        assert_equal_gradients(maml.meta_gradient(tasks), wanted)


def test_second_order_is_another_gradient_than_first_order():
    model, tasks = plain(), flat_tasks()
    exact = MetaMAML(model, inner_lr=0.3).meta_gradient(tasks)
    first = MetaMAML(model, inner_lr=0.3, first_order=True).meta_gradient(tasks)
    assert torch.equal(exact.loss, first.loss)
    assert (exact.gradients["0.weight"] - first.gradients["0.weight"]).norm() > 0.01 * exact.gradients[
        "0.weight"
    ].norm()


@pytest.mark.parametrize("options", [{}, {"learn_rates": True}, {"learn_rates": True, "rate_of": "tensor"}])
@pytest.mark.parametrize("recompute", [False, True])
def test_meta_gradient_is_the_finite_difference_of_the_loss(options, recompute):
    maml = MetaMAML(
        nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double(),
        inner_lr=0.2,
        inner_steps=2,
        recompute=recompute,
        **options,
    )
    tasks = tuple(normal(2, 4, size) for size in (2, 1, 2, 1))
    _, gradients = maml.meta_gradient(tasks)
    rates = maml.rates() if options else {}
    assert list(gradients) == [*maml.parameters(), *(f"inner_lr.{name}" for name in rates)]
    for (name, gradient), value in zip(gradients.items(), maml.learned.parameters(), strict=True):
        assert gradient.shape == value.shape, name
        for index in range(value.numel()):
            losses = []
            for h in (1e-5, -1e-5):
                value.data.view(-1)[index] += h
                losses.append(maml.meta_gradient(tasks).loss)
                value.data.view(-1)[index] -= h
            difference = (losses[0] - losses[1]) / 2e-5
            torch.testing.assert_close(gradient.view(-1)[index], difference, rtol=1e-5, atol=1e-9)


def test_a_list_and_a_stacked_batch_are_the_same():
    maml, tasks = MetaMAML(plain()), flat_tasks()
    assert_equal_gradients(maml.meta_gradient(list(zip(*tasks, strict=True))), maml.meta_gradient(tasks))


def test_tied_parameters_stay_tied():
    model = plain()
    model.append(nn.Tanh())
    model.append(nn.Linear(2, 2).double())
    model.append(model[-1])
    tasks = flat_tasks()
    wanted = reference(model, list(zip(*tasks, strict=True)), 0.1)
    assert_equal_gradients(MetaMAML(model, inner_lr=0.1).meta_gradient(tasks), wanted)


def test_the_path_around_fused_layers_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, logger="metarl"):
        maml = MetaMAML(nn.Sequential(nn.LSTM(4, 2)).double())
        maml.meta_gradient(tuple(normal(2, 3, 2, size) for size in (4, 2, 4, 2)))
    assert [record.getMessage() for record in caplog.records] == [
        "meta-gradients go through plain operations in place of 0 (LSTM)"
    ]


# --- ragged tasks and losses that resist ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"vectorize": False}])
def test_ragged_tasks_are_the_loop_over_them(options):
    model, tasks = plain(), ragged_tasks()
    maml, wanted = MetaMAML(model, inner_lr=0.1, inner_steps=3, **options), reference(model, tasks, 0.1, 3)
    assert_equal_gradients(maml.meta_gradient(tasks), wanted)
    assert_equal_gradients(maml.meta_gradient(tuple(tasks)), wanted)


@pytest.mark.parametrize("method", METHODS)
def test_sequences_of_different_lengths_are_the_loop_over_them(method):
    model, _ = memory_case(method)
    tasks = [tuple(normal(length, 2, 8) for length in (a, a, b, b)) for a, b in ((3, 5), (6, 2))]
    wanted = reference(model, tasks, 0.1, 2)
    assert_equal_gradients(MetaMAML(model, inner_lr=0.1, inner_steps=2).meta_gradient(tasks), wanted)


def relative_error(prediction, target):
    """Not finite where a target is zero, as zeros in the place of missing targets would be."""
    return ((prediction - target) / target).square().mean()


@pytest.mark.parametrize("ragged", ["support", "query"])
def test_padding_breaks_no_loss_that_is_finite_on_the_samples(ragged):
    tasks = ragged_tasks(((3, 4), (5, 4)) if ragged == "support" else ((4, 3), (4, 5)))
    model = plain()
    wanted = reference(model, tasks, 1e-4, loss_fn=relative_error)
    assert_equal_gradients(MetaMAML(model, inner_lr=1e-4).meta_gradient(tasks, relative_error), wanted)


def test_ragged_classes_of_integers():
    tasks = [
        (normal(a, INPUTS), torch.arange(a) % 2, normal(b, INPUTS), torch.arange(b) % 2) for a, b in ((3, 4), (5, 2))
    ]
    model = plain()
    wanted = reference(model, tasks, 0.1, loss_fn=cross_entropy)
    assert_equal_gradients(MetaMAML(model, inner_lr=0.1).meta_gradient(tasks, cross_entropy), wanted)


def test_ragged_tasks_take_nothing_from_the_random_stream_of_dropout():
    model, tasks = nn.Sequential(plain(), nn.Dropout(0.5)), ragged_tasks()
    state = torch.get_rng_state()
    model.eval()
    MetaMAML(model).meta_gradient(tasks)
    assert torch.equal(torch.get_rng_state(), state)
    assert math.isfinite(MetaMAML(model.train()).meta_gradient(tasks).loss)


def summed(prediction, target):
    return (prediction - target).square().sum()


@pytest.mark.parametrize("sizes", [((3, 3), (5, 3)), ((3, 3), (3, 5)), ((3, 1), (5, 1)), ((1, 1), (2, 1))])
def test_a_loss_that_is_no_mean_over_samples_is_refused_for_ragged_tasks(sizes):
    tasks, model = ragged_tasks(sizes), plain()
    with pytest.raises(UsageError, match=r"a mean over samples, got .* use vectorize=False"):
        MetaMAML(model).meta_gradient(tasks, summed)
    wanted = reference(model, tasks, 0.01, loss_fn=summed)
    assert_equal_gradients(MetaMAML(model, vectorize=False).meta_gradient(tasks, summed), wanted)


class Backwards(nn.Module):
    """Reads a sequence from its end."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(INPUTS, OUTPUTS, bidirectional=True)

    def forward(self, x):
        return self.cell(x)[0][..., OUTPUTS:]


class TrainingInside(nn.Module):
    """Batch normalisation that trains in a model that does not."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(INPUTS, OUTPUTS), nn.BatchNorm1d(OUTPUTS))
        self.training = False

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(INPUTS, OUTPUTS), nn.BatchNorm1d(OUTPUTS)),
        nn.Sequential(nn.Linear(INPUTS, OUTPUTS), nn.BatchNorm1d(OUTPUTS, track_running_stats=False)).eval(),
        TrainingInside(),
    ],
    ids=["training", "no running statistics", "training inside"],
)
def test_batch_normalisation_of_padded_tasks_is_refused(model):
    tasks = ragged_tasks(((3, 6), (5, 2)))
    with pytest.raises(UsageError, match=r"the model mixes samples, .* vectorize=False"):
        MetaMAML(model.double()).meta_gradient(tasks)
    wanted = reference(model, tasks, 0.01)
    assert_equal_gradients(MetaMAML(model, vectorize=False).meta_gradient(tasks), wanted)


def test_batch_normalisation_by_running_statistics_takes_ragged_tasks():
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS), nn.BatchNorm1d(OUTPUTS)).double().eval()
    tasks = ragged_tasks()
    assert_equal_gradients(MetaMAML(model, inner_lr=0.1).meta_gradient(tasks), reference(model, tasks, 0.1))


def test_a_sequence_model_that_looks_ahead_refuses_padding():
    model = Backwards().double()
    tasks = [tuple(normal(length, 2, size) for length, size in ((a, 4), (a, 2), (4, 4), (4, 2))) for a in (3, 5)]
    with pytest.raises(UsageError, match="the model mixes samples"):
        MetaMAML(model).meta_gradient(tasks)
    assert_equal_gradients(MetaMAML(model, vectorize=False).meta_gradient(tasks), reference(model, tasks, 0.01))


def reading(prediction, target):
    return mse_loss(prediction, target) * (1 + 0 * mse_loss(prediction, target).item())


def branching(prediction, target):
    loss = mse_loss(prediction, target)
    return loss if loss > 0 else -loss


@pytest.mark.parametrize("make_tasks", [flat_tasks, ragged_tasks])
@pytest.mark.parametrize(("loss_fn", "reason"), [(reading, r"\.item\(\)"), (branching, "data-dependent control flow")])
def test_a_loss_that_cannot_be_vmapped_says_why(loss_fn, reason, make_tasks):
    tasks, model = make_tasks(), plain()
    with pytest.raises(UsageError, match=rf"cannot be vmapped over tasks \(.*{reason}.*\): use vectorize=False"):
        MetaMAML(model).meta_gradient(tasks, loss_fn)
    wanted = MetaMAML(model).meta_gradient(tasks)
    assert_equal_gradients(MetaMAML(model, vectorize=False).meta_gradient(tasks, loss_fn), wanted)
    assert MetaMAML(model, vectorize=False).meta_update(tasks, loss_fn) == pytest.approx(float(wanted.loss))


def test_an_error_of_the_users_own_passes_through():
    with pytest.raises(RuntimeError, match="must match the size"):
        MetaMAML(plain()).meta_gradient(flat_tasks(), lambda prediction, target: (prediction + target[:2]).mean())


# --- variants, by hand ------------------------------------------------------------------------------------------------

# One weight w = 1, one sample x = 1, loss (w − y)²: ∂L = 2 (w − y), and a step of rate 0.1 is w ← 0.8 w + 0.2 y.
# Support targets are 0 and 2, query targets 3 and 1.


def scalar_case(**options):
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    one = torch.ones(2, 1, 1, dtype=torch.float64)
    targets = torch.tensor([[0.0, 2.0], [3.0, 1.0]], dtype=torch.float64).view(2, 2, 1, 1)
    return MetaMAML(model, inner_lr=0.1, **options), (one, targets[0], one, targets[1])


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("options", "loss", "gradient"),
    [
        # φ = 0.8 and 1.2; query losses 2.2² = 4.84 and 0.2² = 0.04; their gradients −4.4 and 0.4.
        ({"first_order": True}, 2.44, (-4.4 + 0.4) / 2),
        ({}, 2.44, 0.8 * (-4.4 + 0.4) / 2),
        # φ_2 = 0.64 and 1.36; query gradients −4.72 and 0.72; inner gradients 2, 1.6 and −2, −1.6.
        ({"inner_steps": 2}, (2.36**2 + 0.36**2) / 2, 0.64 * (-4.72 + 0.72) / 2),
        ({"inner_steps": 2, "first_order": True}, (2.36**2 + 0.36**2) / 2, (-4.72 + 0.72) / 2),
        ({"inner_steps": 2, "reptile": True}, (2.36**2 + 0.36**2) / 2, (2 + 1.6 - 4.72 - 2 - 1.6 + 0.72) / 2),
        # Both steps count by half: 0.8 · (−4.4, 0.4) and 0.64 · (−4.72, 0.72). The loss is that of the last.
        (
            {"inner_steps": 2, "multi_step_updates": 10},
            (2.36**2 + 0.36**2) / 2,
            0.5 * (0.8 * (-4.4 + 0.4) + 0.64 * (-4.72 + 0.72)) / 2,
        ),
    ],
)
def test_variants_give_the_gradient_computed_by_hand(options, loss, gradient, vectorize):
    maml, tasks = scalar_case(vectorize=vectorize, **options)
    got = maml.meta_gradient(tasks)
    assert got.loss.item() == pytest.approx(loss, rel=1e-12)
    assert got.gradients["weight"].item() == pytest.approx(gradient, rel=1e-12)


def test_reptile_counts_every_gradient_on_the_way():
    maml, (x, _, _, query_y) = scalar_case(inner_steps=3, reptile=True)
    support_y = torch.zeros_like(query_y)  # φ = 1, 0.8, 0.64, 0.512
    gradient = maml.meta_gradient((x, support_y, x, support_y)).gradients["weight"]
    assert gradient.item() == pytest.approx(2 * (1 + 0.8 + 0.64 + 0.512), rel=1e-12)


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_sgd_learns_a_rate_for_every_element(first_order):
    maml, tasks = scalar_case(learn_rates=True, first_order=first_order)
    gradients = maml.meta_gradient(tasks).gradients
    # ∂L/∂α = −(support gradient)(query gradient) = −(2)(−4.4) and −(−2)(0.4).
    assert gradients["inner_lr.weight"].item() == pytest.approx((8.8 + 0.8) / 2, rel=1e-12)
    before = maml.rates()["weight"].item()
    maml.meta_update(tasks)
    assert maml.rates()["weight"].item() == pytest.approx(before - 0.001, rel=1e-6)  # Adam's first step


@pytest.mark.parametrize("rate_of", ["element", "tensor"])
def test_rates_have_the_shapes_of_what_they_are_the_rates_of(rate_of):
    model = nn.Sequential(nn.LayerNorm(INPUTS), plain())
    maml = MetaMAML(model, inner_lr=0.3, learn_rates=True, rate_of=rate_of, adapt=("1.*",))
    assert {name: rate.shape for name, rate in maml.rates().items()} == {
        name: value.shape if rate_of == "element" else ()
        for name, value in model.named_parameters()
        if name.startswith("1.")
    }
    assert all(bool((rate == 0.3).all()) for rate in maml.rates().values())


def test_the_rate_of_a_tensor_learns_from_all_its_elements():
    tasks = flat_tasks()
    each, whole = (
        MetaMAML(plain(), inner_lr=0.3, learn_rates=True, rate_of=rate_of) for rate_of in ("element", "tensor")
    )
    whole.model.load_state_dict(each.model.state_dict())
    by_element, by_tensor = each.meta_gradient(tasks).gradients, whole.meta_gradient(tasks).gradients
    for name in whole.rates():
        # ∂L/∂log α = α ∂L/∂α
        torch.testing.assert_close(by_tensor[f"inner_lr.{name}"], 0.3 * by_element[f"inner_lr.{name}"].sum())


def test_rates_of_parameters_with_the_names_of_dictionary_methods():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.values = nn.Parameter(normal(INPUTS, OUTPUTS))

        def forward(self, x):
            return x @ self.values

    assert list(MetaMAML(Table(), learn_rates=True).meta_gradient(flat_tasks()).gradients) == [
        "values",
        "inner_lr.values",
    ]


def test_multi_step_weights_go_linearly_from_equal_to_the_last():
    maml, tasks = scalar_case(inner_steps=2, multi_step_updates=2)
    first, last = 0.8 * (-4.4 + 0.4) / 2, 0.64 * (-4.72 + 0.72) / 2
    for updates, weight in ((0, 0.5), (1, 0.25), (2, 0.0), (7, 0.0)):
        maml.updates = updates
        gradient = maml.meta_gradient(tasks).gradients["weight"].item()
        assert gradient == pytest.approx(weight * first + (1 - weight) * last, rel=1e-12)


def test_tasks_of_different_sizes_adapt_one_after_the_other_by_a_model_that_mixes_samples():
    model = nn.Sequential(nn.Linear(INPUTS, 6), nn.BatchNorm1d(6), nn.Linear(6, OUTPUTS)).double()
    maml = MetaMAML(model, inner_lr=0.1, vectorize=False)
    xs, ys = [normal(size, INPUTS) for size in (3, 5)], [normal(size, OUTPUTS) for size in (3, 5)]
    adapted = maml.adapt_tasks(xs, ys)
    for task, (x, y) in enumerate(zip(xs, ys, strict=True)):
        for name, value in maml.adapt_task(x, y).items():
            torch.testing.assert_close(adapted[name][task], value, rtol=0, atol=0)


def test_multi_step_weights_are_as_precise_as_the_model():
    maml, tasks = scalar_case(inner_steps=3, multi_step_updates=1)
    gradient = maml.meta_gradient(tasks).gradients["weight"].item()
    assert gradient == pytest.approx(-2 * (0.8 + 0.8**2 + 0.8**3) / 3, rel=1e-12)


def test_every_update_counts_towards_the_weights():
    maml, tasks = scalar_case(inner_steps=2, multi_step_updates=2)
    for number in range(1, 4):
        maml.meta_update(tasks)
        assert maml.updates == number


@pytest.mark.parametrize("reptile", [False, True])
def test_anil_adapts_only_what_matches_and_learns_everything(reptile):
    model, tasks = plain(), flat_tasks()
    maml = MetaMAML(model, inner_lr=0.1, adapt=("2.*",), reptile=reptile)
    params = maml.adapt_task(tasks[0][0], tasks[1][0])
    changed = {name for name, value in model.named_parameters() if not torch.equal(params[name], value)}
    assert changed == {"2.weight", "2.bias"}
    assert list(params) == list(dict(model.named_parameters()))
    assert all(bool(gradient.any()) for gradient in maml.meta_gradient(tasks).gradients.values())


def test_anil_gradient_is_that_of_a_loop():
    model, tasks = plain(), flat_tasks()
    theta, losses = dict(model.named_parameters()), []
    for support_x, support_y, query_x, query_y in zip(*tasks, strict=True):
        inner = mse_loss(functional_call(model, theta, (support_x,)), support_y)
        head = {name: theta[name] for name in ("2.weight", "2.bias")}
        slopes = torch.autograd.grad(inner, list(head.values()), create_graph=True)
        stepped = {name: theta[name] - 0.1 * slope for name, slope in zip(head, slopes, strict=True)}
        losses.append(mse_loss(functional_call(model, theta | stepped, (query_x,)), query_y))
    mean = torch.stack(losses).mean()
    wanted = dict(zip(theta, torch.autograd.grad(mean, list(theta.values())), strict=True))
    got = MetaMAML(model, inner_lr=0.1, adapt=("2.*",)).meta_gradient(tasks)
    assert_equal_gradients(got, (mean.detach(), wanted))


def test_frozen_parameters_are_neither_adapted_nor_learned():
    model, tasks = plain(), flat_tasks()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    maml = MetaMAML(model, inner_lr=0.1, learn_rates=True)
    assert set(maml.adapt_task(tasks[0][0], tasks[1][0])) == {"2.weight", "2.bias"}
    names = {"2.weight", "2.bias", "inner_lr.2.weight", "inner_lr.2.bias"}
    assert set(maml.meta_gradient(tasks).gradients) == names
    maml.meta_update(tasks)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"2.weight", "2.bias"}


# --- adapting ---------------------------------------------------------------------------------------------------------


def test_adapting_leaves_the_model_as_it_is_and_builds_no_graph():
    model = nn.Sequential(plain(), nn.BatchNorm1d(2), nn.GRU(2, 2), nn.Dropout(0.1)).double()[:2]
    before, classes = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    maml, (x, y, *_) = MetaMAML(model, inner_lr=0.1, adapt=("0.*",)), flat_tasks()
    for params in (maml.adapt_task(x[0], y[0]), maml.adapt_tasks(x, y)):
        assert not any(value.requires_grad for value in params.values())
        for value in params.values():
            value.add_(1.0)  # adapted in place, they must not leak into the model
    assert not maml.forward_tasks(x, maml.adapt_tasks(x, y)).requires_grad
    maml.meta_gradient((x, y, x, y))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [type(module) for module in model.modules()] == classes
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adaptation_is_gradient_descent_of_so_many_steps():
    model, (x, y, *_) = plain(), flat_tasks()
    maml = MetaMAML(model, inner_lr=0.1, inner_steps=2)
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for steps in range(1, 6):
        optimizer.zero_grad()
        mse_loss(by_hand(x[0]), y[0]).backward()
        optimizer.step()
        params = maml.adapt_task(x[0], y[0], num_steps=steps)
        for name, value in by_hand.named_parameters():
            torch.testing.assert_close(params[name], value.detach(), **EXACT)
        if steps == 2:
            assert all(torch.equal(params[name], value) for name, value in maml.adapt_task(x[0], y[0]).items())


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("case", ["plain", "conv", "gru", "ssm"])
def test_tasks_adapted_at_once_are_tasks_adapted_alone(case, vectorize):
    model, (x, y, query_x, _) = CASES[case]()
    maml = MetaMAML(model, inner_lr=0.1, inner_steps=2, vectorize=vectorize)
    together = maml.adapt_tasks(x, y, loss_fn=torch.nn.functional.l1_loss)
    predictions = maml.forward_tasks(query_x, together)
    for task in range(TASKS):
        alone = maml.adapt_task(x[task], y[task], loss_fn=torch.nn.functional.l1_loss)
        for name, value in alone.items():
            torch.testing.assert_close(together[name][task], value, **EXACT)
        output = maml.functional_forward(query_x[task], alone)
        wanted = output[0] if isinstance(output, tuple) else output
        torch.testing.assert_close(predictions[task], wanted, **EXACT)


@pytest.mark.parametrize("method", ["ssm", "gru", "lstm", "transformer"])
def test_a_sequence_model_adapts_from_the_state_it_is_given(method):
    memory, (x, y, *_) = memory_case(method)
    maml = MetaMAML(memory, inner_lr=0.1)
    state = memory(x[1])[1].detach()
    begun, empty = maml.adapt_task(x[0], y[0], initial_state=state), maml.adapt_task(x[0], y[0])
    name = next(iter(maml.adapted))
    assert not torch.equal(begun[name], empty[name])
    zero = maml.adapt_task(x[0], y[0], initial_state=memory.init_state(2))
    assert all(torch.equal(zero[name], value) for name, value in empty.items())
    for given in ((), (state,)):
        outputs = maml.functional_forward(x[0], dict(memory.named_parameters()), *given)
        for got, wanted in zip(outputs, memory(x[0], *given), strict=True):
            torch.testing.assert_close(got, wanted, **EXACT)


def test_loss_of_a_given_state_is_what_adaptation_lowers():
    memory, (x, y, *_) = memory_case("gru")
    maml = MetaMAML(memory, inner_lr=0.05)
    state = normal(2, *memory.state_shape)
    params = maml.adapt_task(x[0], y[0], num_steps=20, initial_state=state)
    after = mse_loss(maml.functional_forward(x[0], params, state)[0], y[0])
    assert after < mse_loss(memory(x[0], state)[0], y[0]) - 0.01


# --- dropout and batch normalisation ----------------------------------------------------------------------------------


def dropping():
    return nn.Sequential(nn.Linear(INPUTS, 16), nn.Dropout(0.5), nn.Linear(16, OUTPUTS)).double()


def same_task_twice():
    return tuple(part[:1].expand(2, *part.shape[1:]) for part in flat_tasks())


@pytest.mark.parametrize("vectorize", [True, False])
def test_dropout_falls_differently_for_every_task_and_step_in_training_only(vectorize):
    model, (x, y, *_) = dropping(), same_task_twice()
    maml = MetaMAML(model, inner_lr=0.1, vectorize=vectorize)
    params = maml.adapt_tasks(x, y)["0.weight"]
    assert not torch.allclose(params[0], params[1])
    model.eval()
    params = maml.adapt_tasks(x, y)["0.weight"]
    torch.testing.assert_close(params[0], params[1], **EXACT)
    assert torch.equal(maml.adapt_tasks(x, y)["0.weight"], params)
    tasks = (x, y, x, y)
    assert_equal_gradients(maml.meta_gradient(tasks), reference(model, list(zip(*tasks, strict=True)), 0.1))


@pytest.mark.parametrize("vectorize", [True, False])
def test_recomputed_steps_drop_the_same_again(vectorize):
    model, tasks = dropping(), flat_tasks()
    found = []
    for recompute in (False, True):
        maml = MetaMAML(model, inner_lr=0.1, inner_steps=3, recompute=recompute, vectorize=vectorize)
        torch.manual_seed(7)
        found.append(maml.meta_gradient(tasks))
        found.append((torch.rand(1, dtype=torch.float64).sum(), {}))  # what is drawn next is the same too
    assert_equal_gradients(found[2], found[0])
    assert torch.equal(found[1][0], found[3][0])
    torch.manual_seed(8)
    assert not torch.equal(maml.meta_gradient(tasks).loss, found[0].loss)


def test_an_update_in_training_mode_writes_no_running_statistics():
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS), nn.BatchNorm1d(OUTPUTS)).double()
    before = {name: value.clone() for name, value in model.named_buffers()}
    maml = MetaMAML(model, inner_steps=2)
    maml.meta_update(flat_tasks())
    maml.adapt_task(*[part[0] for part in flat_tasks()[:2]])
    assert set(before) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name


def test_evaluation_normalises_by_the_running_statistics():
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS), nn.BatchNorm1d(OUTPUTS)).double()
    x, params = normal(6, INPUTS), dict(model.named_parameters())
    maml = MetaMAML(model)
    model(3 + x)  # the user's own pass writes them, after the learner was made
    in_training = maml.functional_forward(x, params)
    torch.testing.assert_close(in_training.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0.0)
    model.eval()
    torch.testing.assert_close(maml.functional_forward(x, params), model(x), **EXACT)
    assert not torch.allclose(model(x), in_training)


# --- updates, checkpoints, devices ------------------------------------------------------------------------------------


def test_an_update_is_one_clipped_step_of_adam_along_the_meta_gradient():
    model, tasks = plain(), flat_tasks()
    maml = MetaMAML(model, inner_lr=0.1, outer_lr=0.01, grad_clip_norm=0.05)
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    for _ in range(3):
        loss, gradients = maml.meta_gradient(tasks)
        for name, parameter in by_hand.named_parameters():
            parameter.grad = gradients[name]
        assert nn.utils.clip_grad_norm_(by_hand.parameters(), 0.05) > 0.05
        optimizer.step()
        assert maml.meta_update(tasks) == float(loss)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter, by_hand.get_parameter(name), rtol=1e-9, atol=1e-9)


def test_updates_lower_the_loss_after_adaptation():
    maml, tasks = MetaMAML(plain(), inner_lr=0.1, outer_lr=0.05), flat_tasks()
    first = maml.meta_update(tasks)
    for _ in range(40):
        last = maml.meta_update(tasks)
    assert last < 0.7 * first


def learner(**options):
    return MetaMAML(plain(), inner_lr=0.1, inner_steps=2, **options)


OPTIONS = {"learn_rates": True, "multi_step_updates": 6}


def test_a_resumed_learner_is_the_uninterrupted_one_bit_for_bit():
    maml, resumed = learner(**OPTIONS), learner(**OPTIONS)
    batches = [flat_tasks() for _ in range(6)]
    for tasks in batches[:3]:
        maml.meta_update(tasks)
    state = maml.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    resumed.meta_update(batches[5])  # what it was before is replaced entirely
    resumed.load_state_dict(state)
    assert resumed.updates == 3
    for tasks in batches[3:]:
        assert resumed.meta_update(tasks) == maml.meta_update(tasks)
    assert all(torch.equal(value, kept[name]) for name, value in state.items()), "a kept state must not move on"
    after = maml.state_dict()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, after[name]), name
    assert any(name.startswith("learned.inner_lr.") for name in state)
    assert any(name.endswith("exp_avg") for name in state)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_a_learner_moves_with_all_it_has(device):
    maml, moved = learner(**OPTIONS), learner(**OPTIONS)
    batches = [flat_tasks() for _ in range(4)]
    for tasks in batches[:2]:
        maml.meta_update(tasks)
    moved.load_state_dict(maml.state_dict())
    assert moved.to(device) is moved
    there = tuple(part.to(device) for part in batches[2])
    assert moved.meta_update(there) == pytest.approx(maml.meta_update(batches[2]), rel=1e-9)
    assert next(moved.model.parameters()).device.type == device
    moved.to("cpu")
    assert moved.meta_update(batches[3]) == pytest.approx(maml.meta_update(batches[3]), rel=1e-9)
    assert moved.state_dict().keys() == maml.state_dict().keys()
    for name, value in moved.state_dict().items():
        torch.testing.assert_close(value, maml.state_dict()[name], rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recomputed_steps_drop_the_same_again_on_a_gpu():
    model, tasks = dropping().cuda(), tuple(part.cuda() for part in flat_tasks())
    found = []
    for recompute in (False, True):
        torch.manual_seed(7)
        found.append(MetaMAML(model, inner_lr=0.1, inner_steps=3, recompute=recompute).meta_gradient(tasks))
    assert_equal_gradients(found[1], found[0])


# --- what goes wrong --------------------------------------------------------------------------------------------------


def spoiled(part, task, value):
    parts = [tensor.clone() for tensor in flat_tasks()]
    parts[part][task, 0, 0] = value
    return tuple(parts)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (0, "the support loss of task 2 after 0 inner steps"),
        (1, "the support loss of task 2 after 0 inner steps"),
        (2, "the query loss of task 2"),
        (3, "the query loss of task 2"),
    ],
)
def test_data_that_is_not_finite_is_named_and_nothing_changes(part, message, vectorize):
    maml = learner(vectorize=vectorize)
    before = maml.state_dict()
    with pytest.raises(TrainingDiverged, match=f"not finite: {message}"):
        maml.meta_update(spoiled(part, 2, math.nan))
    after = maml.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_rate_that_is_too_high_is_named_by_task_and_step(vectorize):
    maml = MetaMAML(plain(), inner_lr=1e150, inner_steps=3, vectorize=vectorize)
    tasks, before = flat_tasks(), maml.state_dict()
    message = "not finite: the support loss of task 0 after 2 inner steps; try a lower inner_lr"
    with pytest.raises(TrainingDiverged, match=message):
        maml.meta_update(tasks)
    with pytest.raises(TrainingDiverged, match="of task 0 after 2 inner steps; try a lower inner_lr"):
        maml.adapt_task(tasks[0][0], tasks[1][0], num_steps=5)
    assert all(torch.equal(value, before[name]) for name, value in maml.state_dict().items())


def test_a_spoiled_ragged_task_is_named():
    tasks = ragged_tasks()
    tasks[2][0][0, 0] = math.nan
    with pytest.raises(TrainingDiverged, match="the support loss of task 2 after 0 inner steps"):
        MetaMAML(plain()).meta_update(tasks)


def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing():
    def rooted(prediction, target):
        return mse_loss(prediction, target) + (0 * prediction).square().sum().sqrt()  # of slope 0/0

    maml = MetaMAML(plain(), first_order=True)
    before = maml.state_dict()
    with pytest.raises(TrainingDiverged, match="not finite"):
        maml.meta_update(flat_tasks(), rooted)
    assert all(torch.equal(value, before[name]) for name, value in maml.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_lr": 0.0}, "inner_lr is above 0, got 0.0"),
        ({"inner_lr": math.nan}, "inner_lr is above 0, got nan"),
        ({"outer_lr": -1.0}, "outer_lr is above 0, got -1.0"),
        ({"inner_steps": 0}, "inner_steps is at least 1, got 0"),
        ({"rate_of": "layer"}, "rate_of is element or tensor, got layer"),
        ({"multi_step_updates": -1}, "multi_step_updates is at least 0, got -1"),
        ({"grad_clip_norm": 0.0}, "grad_clip_norm is above 0, got 0.0"),
        ({"reptile": True, "learn_rates": True}, "reptile .* goes without learn_rates and multi_step_updates"),
        ({"reptile": True, "multi_step_updates": 3}, "reptile .* goes without learn_rates and multi_step_updates"),
        (
            {"adapt": ("head.*",)},
            r"no parameter is called 'head\.\*'; there are 0\.weight, 0\.bias, 2\.weight, 2\.bias",
        ),
        ({"adapt": "head.*"}, r"no parameter is called 'head\.\*'"),
        ({"adapt": ()}, "nothing to adapt"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        MetaMAML(plain(), **options)


@pytest.mark.parametrize("model", [nn.Tanh(), nn.Linear(2, 1).requires_grad_(False)])
def test_a_model_without_parameters_is_refused(model):
    with pytest.raises(UsageError, match=r"nothing to adapt: .* a parameter that requires a gradient"):
        MetaMAML(model)


@pytest.mark.parametrize(
    ("loss_fn", "got"), [(nn.MSELoss(reduction="none"), r"the shape \(3, \d\)"), (lambda prediction, y: 1.0, "float")]
)
def test_a_loss_that_is_no_scalar_is_refused(loss_fn, got):
    maml, x, y = MetaMAML(plain()), normal(2, 3, INPUTS), normal(2, 3, OUTPUTS)
    for use in (lambda: maml.meta_update((x, y, x, y), loss_fn), lambda: maml.adapt_task(x[0], y[0], loss_fn=loss_fn)):
        with pytest.raises(UsageError, match=f"^loss_fn returns a scalar tensor, the mean over samples, got {got}$"):
            use()


def test_fewer_than_one_step_is_refused():
    with pytest.raises(UsageError, match="num_steps is at least 1, got 0"):
        MetaMAML(plain()).adapt_task(normal(3, INPUTS), normal(3, OUTPUTS), num_steps=0)


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_bytes(function):
    """The most that torch held at once of what it allocated inside `function`."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [(e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(events):
        held += size
        peak = max(peak, held)
    return peak


def test_ten_recomputed_steps_hold_less_than_twice_the_memory_of_one():
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    tasks = tuple(torch.randn(10, 200, 1) for _ in range(4))

    def peak(**options):
        maml = MetaMAML(model, **options)
        return peak_bytes(lambda: maml.meta_gradient(tasks))

    one = peak(inner_steps=1)
    assert peak(inner_steps=10, recompute=True) < 2 * one
    assert peak(inner_steps=5) > 2.5 * one


# --- what is given ----------------------------------------------------------------------------------------------------


def test_tasks_of_different_sizes_adapt_together_as_each_alone():
    maml, tasks = MetaMAML(plain(), inner_lr=0.1, inner_steps=2, samples_at_once=5), ragged_tasks()
    xs, ys = [task[0] for task in tasks], [task[1] for task in tasks]
    together = maml.adapt_tasks(xs, ys)
    for number, (x, y) in enumerate(zip(xs, ys, strict=True)):
        for name, value in maml.adapt_task(x, y).items():
            torch.testing.assert_close(together[name][number], value, **EXACT)


def test_tasks_adapt_in_groups(monkeypatch):
    maml = MetaMAML(plain(), inner_lr=0.1, samples_at_once=2 * SAMPLES)
    x, y, *_ = flat_tasks(5)
    seen, inner_step = [], maml.inner_step

    def watched(loss, params, batch, **how):
        seen.append(len(batch["x"]))
        return inner_step(loss, params, batch, **how)

    monkeypatch.setattr(maml, "inner_step", watched)
    params = maml.adapt_tasks(x, y)
    assert seen == [2, 2, 1]
    for name, value in MetaMAML(maml.model, inner_lr=0.1).adapt_tasks(x, y).items():
        torch.testing.assert_close(params[name], value, **EXACT)
    broken = x.clone()
    broken[3] = math.inf
    with pytest.raises(TrainingDiverged, match="task 3"):
        maml.adapt_tasks(broken, y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda maml, x, y: maml.adapt_task(x[0, :0], y[0, :0]), "task 0 has 0 inputs and 0 targets"),
        (lambda maml, x, y: maml.adapt_tasks(x, y[:, :1].expand(-1, 9, -1)), "task 0 has 5 inputs and 9 targets"),
        (lambda maml, x, y: maml.adapt_tasks(x, y[:2]), "got inputs of 3 tasks and targets of 2: as many, at least"),
        (
            lambda maml, x, y: maml.adapt_tasks(x[0], y[0]),
            r"inputs of shape \(5, 4\) are no batch of tasks .* in a list",
        ),
        (
            lambda maml, x, y: maml.meta_update((x[0], y[0], x[0], y[0])),
            r"inputs of shape \(5, 4\) are no batch of tasks",
        ),
        (lambda maml, x, y: maml.adapt_tasks(x, y[..., 0]), r"same shape, got \(5, 2\) and \(5,\)"),
        (lambda maml, x, y: maml.adapt_tasks(x, y[:, :3]), r"same shape, got \(5, 2\) and \(3, 2\)"),
        (lambda maml, x, y: maml.meta_update([(x[0], y[0, :3], x[0], y[0])]), r"same shape, got \(5, 2\) and \(3, 2\)"),
    ],
)
def test_tasks_that_cannot_be_meant_are_one_line_errors(call, message):
    x, y, *_ = flat_tasks()
    with pytest.raises(UsageError, match=message) as error:
        call(MetaMAML(plain()), x, y)
    assert "\n" not in str(error.value)


def test_a_loss_may_compare_the_last_predictions_alone():
    def last(prediction, target):
        return mse_loss(prediction[-len(target) :], target)

    x, y, query_x, query_y = flat_tasks()
    maml = MetaMAML(plain(), inner_lr=0.1)
    changed = torch.cat([normal(TASKS, 2, INPUTS), query_x[:, 2:]], 1)
    losses = [float(maml.meta_gradient((x, y, each, query_y[:, 2:]), last).loss) for each in (query_x, changed)]
    assert losses[0] == pytest.approx(losses[1])
