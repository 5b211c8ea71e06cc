"""All memories through one interface: stepped, whole, in pieces, and with rows that forget at different times."""

from __future__ import annotations

import pytest
import torch

from metarl.core.errors import UsageError
from metarl.core.memory import METHODS, MemoryConfig, NoMemory, make_memory, register_memory

WIDTH, CONTEXT, STEPS, ROWS = 8, 5, 23, 4
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
REMEMBERING = [method for method in METHODS if method != "mlp"]
each_memory = pytest.mark.parametrize(("method", "depth"), [(method, depth) for method in METHODS for depth in (1, 2)])


def make(method, depth=1, **changes):
    sizes = {"width": WIDTH, "state_dim": 6, "heads": 2, "context": CONTEXT} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(depth)
        return make_memory(MemoryConfig(method=method, depth=depth, **sizes))


def make_data(seed=0):
    """Inputs, and starts that fall at different times in different rows, one of them at the first step."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(STEPS, ROWS, WIDTH, generator=generator)
    starts = torch.rand(STEPS, ROWS, generator=generator) < 0.15
    starts[0, 0], starts[0, 1], starts[STEPS - 1, 2] = True, False, True
    return x, starts


def step_through(memory, x, state, starts, prepared=None):
    outputs = []
    for time in range(len(x)):
        keep = (~starts[time]).float().view(-1, *[1] * (state.ndim - 1))
        y, state = memory.step(x[time], state * keep, prepared)
        outputs.append(y)
    return torch.stack(outputs), state


def used_state(memory, seed=3):
    """A state that a memory really reaches."""
    x, _ = make_data(seed)
    return memory(x)[1].detach()


@each_memory
def test_stepping_equals_the_sequence_with_desynchronised_resets(method, depth):
    memory = make(method, depth)
    x, starts = make_data()
    state = used_state(memory)
    outputs, last = memory(x, state, starts)
    assert outputs.shape == x.shape
    for prepared in (None, memory.prepare()):
        stepped, held = step_through(memory, x, state, starts, prepared)
        torch.testing.assert_close(stepped, outputs, **TOLERANCE)
        # What a state holds may differ where nothing can be read from it; what follows from it may not.
        follow, _ = make_data(seed=9)
        torch.testing.assert_close(memory(follow, held)[0], memory(follow, last)[0], **TOLERANCE)


@each_memory
def test_two_halves_with_the_state_carried_are_the_whole(method, depth):
    memory = make(method, depth)
    x, starts = make_data()
    state = used_state(memory)
    whole, last = memory(x, state, starts)
    for cut in (1, 9, STEPS - 1):
        first, middle = memory(x[:cut], state, starts[:cut])
        second, end = memory(x[cut:], middle, starts[cut:])
        torch.testing.assert_close(torch.cat([first, second]), whole, **TOLERANCE)
        torch.testing.assert_close(end, last, **TOLERANCE)


@each_memory
def test_a_row_after_its_reset_is_a_row_that_begins_there(method, depth):
    memory = make(method, depth)
    x, _ = make_data()
    starts = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    times = [0, 4, 11, 17]
    for row, time in enumerate(times):
        starts[time, row] = True
    outputs, _ = memory(x, used_state(memory), starts)
    for row, time in enumerate(times):
        fresh, _ = memory(x[time:, row : row + 1])
        torch.testing.assert_close(outputs[time:, row : row + 1], fresh, **TOLERANCE)


@each_memory
def test_zeros_are_an_empty_memory(method, depth):
    memory = make(method, depth)
    x, _ = make_data()
    empty = memory.init_state(ROWS)
    assert empty.shape == (ROWS, *memory.state_shape)
    assert not empty.any()
    outputs, last = memory(x, empty)
    assert last.shape == empty.shape
    torch.testing.assert_close(memory(x)[0], outputs, atol=0, rtol=0)
    for row in range(ROWS):  # and rows do not see each other
        torch.testing.assert_close(memory(x[:, row : row + 1])[0], outputs[:, row : row + 1], **TOLERANCE)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.int64])
@pytest.mark.parametrize("method", METHODS)
def test_starts_may_be_flags_or_numbers(method, kind):
    memory = make(method)
    x, starts = make_data()
    torch.testing.assert_close(memory(x, None, starts.to(kind))[0], memory(x, None, starts)[0], **TOLERANCE)


@each_memory
def test_the_future_does_not_reach_back(method, depth):
    memory = make(method, depth)
    x, starts = make_data()
    changed = x.clone()
    changed[12:] *= -1
    before, after = memory(x, None, starts)[0], memory(changed, None, starts)[0]
    torch.testing.assert_close(after[:12], before[:12], atol=0, rtol=0)
    assert (after[12] - before[12]).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_the_past_reaches_forward_only_where_there_is_a_memory(method):
    memory = make(method)
    x, _ = make_data()
    changed = x.clone()
    changed[6] *= -1  # a constant shift would be taken out by the norm
    moved = (memory(x)[0] - memory(changed)[0])[7:].abs().amax(dim=(1, 2))
    assert bool(moved[0] > 1e-4) == (method in REMEMBERING)


@pytest.mark.parametrize("method", REMEMBERING)
def test_a_reset_cuts_gradients_to_what_was_before(method):
    memory = make(method)
    x, _ = make_data()
    x.requires_grad_()
    starts = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    starts[10, 0] = True
    memory(x, None, starts)[0][12].sum().backward()
    assert not x.grad[:10, 0].any()
    assert x.grad[10, 0].any()
    assert x.grad[9, 1].any()


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_learns(method):
    memory = make(method, depth=2)
    x, starts = make_data()
    memory(x, None, starts)[0].square().mean().backward()
    untouched = [name for name, p in memory.named_parameters() if p.grad is None or not p.grad.any()]
    assert not untouched


def test_transformer_sees_exactly_its_context():
    memory = make("transformer")
    x, _ = make_data()
    x.requires_grad_()
    time = CONTEXT + 9
    memory(x)[0][time].square().sum().backward()
    reached = x.grad.abs().amax(dim=(1, 2)) > 0
    assert reached.nonzero().flatten().tolist() == list(range(time - CONTEXT, time + 1))


def test_a_transformer_looks_less_at_what_is_farther_away():
    """Queries of zero leave the penalty alone: weights are softmax(-slope * distance), slopes 2^-4 and 2^-8."""
    memory = make("transformer")
    x, _ = make_data()
    with torch.no_grad():
        memory.projections[0].weight[:WIDTH], memory.projections[0].bias[:WIDTH] = 0, 0
    value = memory.projections[0](memory.norms[0](x))[..., 2 * WIDTH :].unflatten(-1, (2, -1))  # [T, B, heads, d]
    time, distance = CONTEXT + 9, torch.arange(CONTEXT + 1)
    weights = torch.softmax(-torch.tensor([2.0**-4, 2.0**-8])[:, None] * distance, -1)
    seen = torch.einsum("hk,kbhd->bhd", weights, value[time - distance]).flatten(1)
    y = x[time] + memory.merges[0](seen)
    torch.testing.assert_close(memory(x)[0][time], y + memory.feed_forwards[0](y), **TOLERANCE)


def test_transformer_takes_a_sequence_shorter_than_its_context():
    memory = make("transformer", context=3 * STEPS)
    x, starts = make_data()
    outputs, last = memory(x, None, starts)
    stepped, held = step_through(memory, x, memory.init_state(ROWS), starts)
    torch.testing.assert_close(stepped, outputs, **TOLERANCE)
    follow, _ = make_data(seed=9)
    torch.testing.assert_close(memory(follow, held)[0], memory(follow, last)[0], **TOLERANCE)


def test_a_transformer_of_low_precision_forgets_at_each_of_many_starts():
    memory, x = make("transformer").bfloat16(), torch.randn(300, 1, WIDTH, generator=torch.Generator().manual_seed(0))
    starts, changed = torch.ones(300, 1, dtype=torch.bool), x.clone()
    changed[255] *= -1
    before, after = (memory(each.bfloat16(), None, starts)[0] for each in (x, changed))
    assert not torch.equal(after[255], before[255])
    assert torch.equal(after[256:], before[256:])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MemoryConfig(method="grru"), "unknown method 'grru': choose from .*transformer; did you mean 'gru'"),
        (MemoryConfig(method="transformer", width=10, heads=4), "width 10 and 4 heads"),
        (MemoryConfig(width=0), "at least 1"),
        (MemoryConfig(depth=0), "at least 1"),
        (MemoryConfig(method="transformer", context=0), "at least 1"),
        (MemoryConfig(method="transformer", heads=0), "at least 1"),
        (MemoryConfig(state_dim=7), "must be even, got 7"),
    ],
)
def test_wrong_configs_are_one_line_errors(config, message):
    with pytest.raises(UsageError, match=message) as error:
        make_memory(config)
    assert "\n" not in str(error.value)


def test_an_own_memory_goes_by_its_name(monkeypatch):
    monkeypatch.setattr("metarl.core.memory._METHODS", {"mlp": NoMemory})
    register_memory("none", NoMemory)
    assert isinstance(make_memory(MemoryConfig("none")), NoMemory)
    with pytest.raises(UsageError, match="method 'none' is registered already; choose another name"):
        register_memory("none", NoMemory)


CHANGED = {"width": 16, "depth": 2, "state_dim": 10, "heads": 4, "context": CONTEXT - 1}
READ_BY = {
    "width": METHODS,
    "depth": METHODS,
    "state_dim": ("ssm",),
    "heads": ("transformer",),
    "context": ("transformer",),
}


@pytest.mark.parametrize(("field", "method"), [(field, method) for field in READ_BY for method in READ_BY[field]])
def test_every_field_of_the_config_changes_the_memory(field, method):
    assert {*READ_BY, "method"} == MemoryConfig.__dataclass_fields__.keys(), "say here what a new field changes"

    def measure(**changes):
        memory = make(method, **changes)
        width = changes.get("width", WIDTH)
        x = torch.sin(torch.arange(STEPS * width).float()).view(STEPS, 1, width)
        return sum(p.numel() for p in memory.parameters()), memory(x)[0].sum().item()

    assert measure(**{field: CHANGED[field]}) != measure()
