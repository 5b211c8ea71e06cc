"""The twin computes what the model computes, and its derivatives are right where those of fused layers are not."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from metarl.core.differentiable import PlainRecurrence, call_twin, differentiable_kernels, differentiable_twin
from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig, make_memory

STEPS, ROWS, SIZE, HIDDEN = 6, 3, 4, 5
RECURRENT = {
    "tanh": lambda **options: nn.RNN(SIZE, HIDDEN, nonlinearity="tanh", **options),
    "relu": lambda **options: nn.RNN(SIZE, HIDDEN, nonlinearity="relu", **options),
    "gru": lambda **options: nn.GRU(SIZE, HIDDEN, **options),
    "lstm": lambda **options: nn.LSTM(SIZE, HIDDEN, **options),
}
NORMALISATIONS = {
    "layer": lambda: nn.LayerNorm((4, 6)),
    "layer, plain": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "batch": lambda: nn.BatchNorm1d(4),
    "batch, evaluated": lambda: nn.BatchNorm1d(4).eval(),
    "batch without running statistics, evaluated": lambda: nn.BatchNorm1d(4, track_running_stats=False).eval(),
    "instance": lambda: nn.InstanceNorm1d(4, affine=True),
    "instance with running statistics": lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
    "instance, evaluated": lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True).eval(),
    "group": lambda: nn.GroupNorm(2, 4),
}
each_cell = pytest.mark.parametrize("cell", RECURRENT)
each_normalisation = pytest.mark.parametrize("name", NORMALISATIONS)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def flat(output):
    """All tensors of (y, h) or (y, (h, c))."""
    y, state = output
    return [y, state] if isinstance(state, torch.Tensor) else [y, *state]


def twin_of(model):
    twin, _ = differentiable_twin(model)
    return twin


def make_normalisation(name):
    """The layer with affine values and running statistics that are not those of a new one."""
    norm = NORMALISATIONS[name]().double()
    with torch.no_grad():
        for value in norm.parameters():
            value.copy_(normal(*value.shape))
        if getattr(norm, "running_mean", None) is not None:
            norm.running_mean.copy_(normal(4))
            norm.running_var.copy_(normal(4).exp())
    return norm


# --- recurrence -------------------------------------------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2},
        {"bidirectional": True},
        {"batch_first": True},
        {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
    ],
    ids=lambda options: " ".join(options) or "one layer",
)
def test_a_plain_recurrence_is_the_fused_layer(cell, options, given_state):
    fused = RECURRENT[cell](**options).double()
    x = normal(ROWS, STEPS, SIZE) if "batch_first" in options else normal(STEPS, ROWS, SIZE)
    states = fused.num_layers * (1 + fused.bidirectional), ROWS, HIDDEN
    given = (normal(*states), normal(*states)) if cell == "lstm" else normal(*states)
    arguments = (x, given) if given_state else (x,)
    for plain, wanted in zip(flat(twin_of(fused)(*arguments)), flat(fused(*arguments)), strict=True):
        torch.testing.assert_close(plain, wanted, rtol=1e-12, atol=1e-12)


@each_cell
def test_rows_that_start_at_different_times_are_reset_there(cell):
    fused = RECURRENT[cell](num_layers=2).double()
    x, starts = normal(STEPS, ROWS, SIZE), torch.zeros(STEPS, ROWS, dtype=torch.bool)
    starts[0, 0] = starts[2, 0] = starts[3, 1] = starts[5, 1] = True  # and the last row never starts
    held = normal(2, ROWS, HIDDEN)
    state = (held, 2 * held) if cell == "lstm" else held
    y, *last = flat(twin_of(fused)(x, state, starts))
    for row in range(ROWS):
        own = tuple(part[:, [row]] for part in state) if cell == "lstm" else state[:, [row]]
        for time in range(STEPS):
            if starts[time, row]:
                own = tuple(torch.zeros_like(part) for part in own) if cell == "lstm" else torch.zeros_like(own)
            wanted, own = fused(x[[time], row : row + 1], own)
            torch.testing.assert_close(y[time, row], wanted[0, 0], rtol=1e-12, atol=1e-12)
        for got, wanted in zip(last, own if cell == "lstm" else (own,), strict=True):
            torch.testing.assert_close(got[:, [row]], wanted, rtol=1e-12, atol=1e-12)


def test_dropout_between_layers_falls_as_in_the_fused_layer():
    fused = nn.GRU(SIZE, HIDDEN, 2, dropout=0.5).double()
    twin, x = twin_of(fused), normal(STEPS, ROWS, SIZE)
    assert not torch.equal(twin(x)[0], twin(x)[0])
    torch.testing.assert_close(twin.eval()(x)[0], fused.eval()(x)[0])


@pytest.mark.parametrize("method", ["gru", "lstm"])
def test_the_twin_of_a_recurrent_memory_forgets_as_the_memory_does(method):
    memory = make_memory(MemoryConfig(method=method, width=HIDDEN, depth=2)).double()
    x, state = normal(STEPS, ROWS, HIDDEN), normal(ROWS, *memory.state_shape)
    starts = torch.rand(STEPS, ROWS) < 0.3
    assert len({tuple(row) for row in starts.T.tolist()}) == ROWS, "rows start at different times"
    for arguments in ((x, state, starts), (x, state), (x,)):
        for plain, wanted in zip(twin_of(memory)(*arguments), memory(*arguments), strict=True):
            torch.testing.assert_close(plain, wanted, rtol=1e-12, atol=1e-12)


CELLS = {
    "tanh": lambda **options: nn.RNNCell(SIZE, HIDDEN, nonlinearity="tanh", **options),
    "relu": lambda **options: nn.RNNCell(SIZE, HIDDEN, nonlinearity="relu", **options),
    "gru": lambda **options: nn.GRUCell(SIZE, HIDDEN, **options),
    "lstm": lambda **options: nn.LSTMCell(SIZE, HIDDEN, **options),
}


@each_cell
@pytest.mark.parametrize("bias", [True, False])
def test_single_cells_have_torchs_values_also_under_vmap(cell, bias):
    fused = CELLS[cell](bias=bias).double()
    x, held = normal(ROWS, SIZE), normal(ROWS, HIDDEN)
    state = (held, 2 * held) if cell == "lstm" else held
    own = {name: normal(2, *value.shape) for name, value in fused.named_parameters()}
    with differentiable_kernels():
        mapped = vmap(lambda params: torch.func.functional_call(fused, params, (x, state)))(own)
    for task in range(2):
        alone = torch.func.functional_call(fused, {name: value[task] for name, value in own.items()}, (x, state))
        pairs = zip(mapped, alone, strict=True) if cell == "lstm" else [(mapped, alone)]
        for got, wanted in pairs:
            torch.testing.assert_close(got[task], wanted, rtol=1e-12, atol=1e-12)


class DoublingGRU(nn.GRU):
    def forward(self, x, state=None):
        return super().forward(2 * x, state)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.LSTM(4, 3, proj_size=2)), "through 0 need proj_size 0, got 2"),
        (nn.LSTM(4, 3, proj_size=2), "through an LSTM need proj_size 0"),
        (nn.Sequential(DoublingGRU(4, 3)), "not through a subclass such as DoublingGRU of 0"),
    ],
)
def test_a_recurrent_layer_without_a_plain_form_is_refused(model, message):
    with pytest.raises(UsageError, match=message):
        differentiable_twin(model)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, (torch.zeros(6, 4),), r"sequences \[T, B, d\], padded; got \(6, 4\)"),
        ({}, (nn.utils.rnn.pack_sequence([torch.zeros(6, 4)]),), "got PackedSequence"),
        ({"bidirectional": True}, (torch.zeros(6, 3, 4), None, torch.zeros(6, 3)), "bidirectional GRU takes no starts"),
    ],
)
def test_input_that_a_plain_recurrence_cannot_read_is_refused(options, arguments, message):
    with pytest.raises(UsageError, match=message):
        twin_of(nn.GRU(4, 3, **options))(*arguments)


# --- normalisation ----------------------------------------------------------------------------------------------------


@each_normalisation
def test_normalisations_have_torchs_values(name):
    norm, x = make_normalisation(name), normal(5, 4, 6)
    twin = twin_of(norm)
    with differentiable_kernels():
        plain = twin(x)
    torch.testing.assert_close(plain, norm(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm1d(4), (5, 4)), (nn.BatchNorm2d(4), (5, 4, 3, 2)), (nn.GroupNorm(4, 4), (5, 4, 3, 2))],
)
def test_normalisations_of_other_ranks_have_torchs_values(norm, shape):
    norm, x = norm.double(), normal(*shape)
    with differentiable_kernels():
        plain = twin_of(norm)(x)
    torch.testing.assert_close(plain, norm(x), rtol=1e-12, atol=1e-12)


def curve(norm, x, values):
    """A scalar of no symmetry, that makes every derivative of a normalisation count."""
    own = {name: values[name] for name in dict(norm.named_parameters())}
    y = torch.func.functional_call(norm, own, (x * values["scale"].exp(),))
    return (y.sin() * torch.arange(1.0, 1 + y.numel(), dtype=y.dtype).view(y.shape)).sum()


def gradient_length(norm, x, values):
    gradients = grad(lambda own: curve(norm, x, own))(values)
    return sum(value.square().sum() for value in gradients.values())


@each_normalisation
def test_second_derivatives_under_vmap_are_those_of_torchs_own_in_a_loop(name):
    norm = make_normalisation(name)
    own = {key: value.detach() for key, value in norm.named_parameters()} | {"scale": normal(4, 1)}
    tasks = {key: value + 0.3 * normal(3, *value.shape) for key, value in own.items()}
    x = normal(3, 5, 4, 6)
    twin = twin_of(norm)
    with differentiable_kernels():
        mapped = vmap(grad(lambda values, x: gradient_length(twin, x, values)))(tasks, x)
    for task in range(3):
        values = {key: value[task].requires_grad_() for key, value in tasks.items()}
        untracked = copy.deepcopy(norm)  # torch's own writes running statistics
        first = torch.autograd.grad(curve(untracked, x[task], values), list(values.values()), create_graph=True)
        second = torch.autograd.grad(sum(value.square().sum() for value in first), list(values.values()))
        for key, wanted in zip(values, second, strict=True):
            torch.testing.assert_close(mapped[key][task], wanted, rtol=1e-9, atol=1e-9)


@each_normalisation
def test_third_derivatives_are_finite_differences_of_second_ones(name):
    norm, x = make_normalisation(name), normal(5, 4, 6)
    values = {key: value.detach() for key, value in norm.named_parameters()} | {"scale": normal(4, 1)}
    along = {key: normal(*value.shape) for key, value in values.items()}
    twin = twin_of(norm)

    def second(values):
        gradients = grad(lambda own: gradient_length(twin, x, own))(values)
        return sum((gradients[key] * along[key]).sum() for key in gradients)

    with differentiable_kernels():
        third = sum((value * along[key]).sum() for key, value in grad(second)(values).items())
        ahead, behind = (second({key: values[key] + h * along[key] for key in values}) for h in (1e-5, -1e-5))
    torch.testing.assert_close(third, (ahead - behind) / 2e-5, rtol=1e-6, atol=0.0)


def test_batch_normalisation_of_one_value_is_refused_as_in_torch():
    with pytest.raises(UsageError, match=r"more than one value a channel, got \(1, 4\)"), differentiable_kernels():
        nn.BatchNorm1d(4)(torch.zeros(1, 4))


# --- attention --------------------------------------------------------------------------------------------------------


def make_mask(kind):
    """[B, 1, Q, K] of numbers or [B, heads, Q, K] of flags; a query that may look at nothing is among them."""
    if kind == "added":
        mask = normal(2, 1, 5, 7)
        mask[0, 0, 1, 2:] = mask[1, 0, 3] = -math.inf
        return mask
    mask = torch.rand(2, 4, 5, 7) < 0.6
    mask[1, 2, 3] = False
    return mask


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attn_mask": "added"},
        {"attn_mask": "flags"},
        {"is_causal": True},
        {"scale": 0.3},
        {"scale": -0.3},
        {"enable_gqa": True},
        {"dropout_p": 0.3},
    ],
    ids=str,
)
def test_attention_has_the_values_of_torchs_reference(options):
    options = {name: make_mask(value) if name == "attn_mask" else value for name, value in options.items()}
    heads = 2 if "enable_gqa" in options else 4
    arguments = normal(2, 4, 5, 3), normal(2, heads, 7, 3), normal(2, heads, 7, 3)
    with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
        wanted = functional.scaled_dot_product_attention(*arguments, **options)
    with differentiable_kernels():
        plain = functional.scaled_dot_product_attention(*arguments, **options)
    torch.testing.assert_close(plain, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("training", [True, False])
def test_torchs_transformer_has_its_values_and_no_fused_path(training, monkeypatch):
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).double().train(training)
    x, padded = normal(3, 5, 8), torch.arange(5) >= torch.tensor([[5], [4], [2]])
    with torch.no_grad():
        wanted = encoder(x, src_key_padding_mask=padded)
    for fused in ("_transformer_encoder_layer_fwd", "_native_multi_head_attention", "_nested_tensor_from_mask"):
        monkeypatch.setattr(torch, fused, None)
    with torch.no_grad(), differentiable_kernels():
        plain = encoder(x, src_key_padding_mask=padded)
    torch.testing.assert_close(plain[~padded], wanted[~padded], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_returns_weights_where_they_are_asked_for(need_weights):
    attention, x = nn.MultiheadAttention(8, 2).double(), normal(5, 3, 8)
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)
    options = {"need_weights": need_weights, "attn_mask": causal, "is_causal": True}
    wanted, wanted_weights = attention(x, x, x, **options)
    with differentiable_kernels():
        plain, weights = attention(x, x, x, **options)
    torch.testing.assert_close(plain, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights, wanted_weights)


def test_a_query_that_may_look_at_nothing_gets_nothing_from_multi_head_attention_as_in_torch():
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).double(), normal(3, 5, 8)
    causal = nn.Transformer.generate_square_subsequent_mask(5).isinf()
    options = {"need_weights": False, "attn_mask": causal, "key_padding_mask": torch.arange(5).repeat(3, 1) < 2}
    with sdpa_kernel(SDPBackend.MATH):
        wanted = attention(x, x, x, **options)[0]
    with differentiable_kernels():
        plain = attention(x, x, x, **options)[0]
    torch.testing.assert_close(plain, wanted, rtol=1e-12, atol=1e-12)
    found, wanted = (torch.autograd.grad(y.sin().sum(), attention.in_proj_weight)[0] for y in (plain, wanted))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_multi_head_attention_has_second_derivatives_where_a_default_device_is_set():
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).double(), normal(3, 5, 8)
    with torch.device("cpu"), differentiable_kernels():
        output = attention(x, x, x, need_weights=False)[0]
    (gradient,) = torch.autograd.grad(output.sin().sum(), attention.in_proj_weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sin().sum(), attention.in_proj_weight)
    assert second.any()


def test_second_derivatives_of_attention_are_those_of_torchs_reference_in_every_thread():
    memory = make_memory(MemoryConfig(method="transformer", width=8, heads=2, context=4)).double()
    values, x = {name: value.detach() for name, value in memory.named_parameters()}, normal(5, 3, 8)

    def first(values, **options):
        own = copy.deepcopy(memory)  # functional_call writes into it as it runs
        y = functional_call(own, values, (x,))[0].sin().sum()
        return torch.autograd.grad(y, list(values.values()), **options, materialize_grads=True)

    def second():
        own = {name: value.clone().requires_grad_() for name, value in values.items()}
        length = sum(gradient.square().sum() for gradient in first(own, create_graph=True))
        return torch.autograd.grad(length, list(own.values()), materialize_grads=True)

    def plain(_):
        with differentiable_kernels():
            return second()

    with sdpa_kernel(SDPBackend.MATH):
        wanted = second()
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(plain, range(40)):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# --- the twin and the switch ------------------------------------------------------------------------------------------


def test_the_model_of_a_twin_stays_as_it_is():
    model = nn.Sequential(nn.LSTM(4, 3), nn.BatchNorm1d(3), nn.Dropout())
    before = copy.deepcopy(model.state_dict())
    twin, replaced = differentiable_twin(model)
    assert replaced == ["0 (LSTM)"]
    assert [type(module) for module in model] == [nn.LSTM, nn.BatchNorm1d, nn.Dropout]
    assert [type(module) for module in twin] == [PlainRecurrence, nn.BatchNorm1d, nn.Dropout]
    assert model[1].track_running_stats
    assert list(twin.state_dict()) == list(before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_twin_writes_no_running_statistics():
    twin = twin_of(nn.Sequential(nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True)))
    before = copy.deepcopy(twin.state_dict())
    with differentiable_kernels():
        twin(torch.randn(5, 4, 6))
    for name, value in twin.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, None])
def test_weight_normalisation_has_torchs_values_and_true_second_derivatives(dim):
    layer = weight_norm(nn.Conv1d(2, 3, 2).double(), dim=dim)
    with differentiable_kernels():
        weight = layer.weight
    torch.testing.assert_close(weight, layer.weight)

    def wave(g, v):
        with differentiable_kernels():
            return torch._weight_norm(v, g, -1 if dim is None else dim).sin()

    assert torch.autograd.gradgradcheck(wave, tuple(layer.parametrizations.weight.parameters()))


def test_weight_normalisation_of_a_vector_has_torchs_values():
    layer = weight_norm(nn.LayerNorm(4).double())
    with differentiable_kernels():
        weight = layer.weight
    torch.testing.assert_close(weight, layer.weight)


class Repeating(nn.Module):
    """One layer at two places, and its weight in a third."""

    def __init__(self):
        super().__init__()
        self.first = self.again = nn.Linear(SIZE, SIZE)
        self.tied = nn.Linear(SIZE, SIZE)
        self.tied.weight = self.first.weight

    def forward(self, x):
        return self.tied(self.again(self.first(x).tanh()).tanh())


def test_a_twin_is_called_by_other_parameters_also_where_layers_and_weights_repeat():
    model, x = Repeating().double(), normal(3, SIZE)
    twin = twin_of(model)
    for factor in (0.5, 2.0):  # a call leaves nothing behind for the next
        other = {name: factor * value for name, value in model.named_parameters()}
        changed = copy.deepcopy(model)
        with torch.no_grad():
            for value in changed.parameters():
                value.mul_(factor)
        torch.testing.assert_close(call_twin(twin, model, other, (x,)), changed(x))
        assert all(value.is_leaf for value in twin.parameters())


def test_a_called_twin_moves_the_buffers_of_layers_that_do_so_in_training():
    model, x = spectral_norm(nn.Linear(SIZE, SIZE)), torch.randn(2, SIZE)
    torchs = copy.deepcopy(model)
    torchs(x)
    call_twin(twin_of(model), model, {}, (x,))
    torch.testing.assert_close(model.state_dict(), torchs.state_dict())


def test_parameters_that_the_model_does_not_have_are_refused():
    model = nn.Linear(SIZE, SIZE)
    with pytest.raises(UsageError, match="the model has no parameter c: give those of named_parameters"):
        call_twin(twin_of(model), model, {"c": torch.ones(1)}, (torch.randn(2, SIZE),))


def test_torchs_own_kernels_come_back_after_an_error():
    norm = nn.BatchNorm1d(2)
    with pytest.raises(ZeroDivisionError), differentiable_kernels():
        raise ZeroDivisionError
    norm(torch.randn(3, 2))
    assert norm.num_batches_tracked == 1


def test_what_one_thread_switches_is_its_own():
    def switches():
        return torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()

    first, second = differentiable_kernels(), differentiable_kernels()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        assert switches() == (True, True)
        one.submit(first.__exit__, None, None, None).result()
        other.submit(second.__exit__, None, None, None).result()
    assert switches() == (True, True)
