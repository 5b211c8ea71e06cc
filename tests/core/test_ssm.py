"""StateSpaceModel against scipy's simulation of the same matrices, and against itself in other pieces."""

from __future__ import annotations

import itertools
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import solve_discrete_lyapunov
from scipy.signal import dlsim
from torch.utils.checkpoint import checkpoint

from metarl.core import ssm_chunks
from metarl.core.errors import UsageError
from metarl.core.ssm import SSM, StateSpaceModel, _diagonal
from metarl.core.ssm_chunks import DiagonalLayer

STRUCTURES = ("dense", "diagonal")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
STATE, INPUTS, OUTPUTS = 6, 3, 2


def make_model(structure, dtype=torch.float64, seed=0, sizes=(STATE, INPUTS, OUTPUTS)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StateSpaceModel(*sizes, structure=structure).to(dtype)


def make_data(steps, rows, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(steps, rows, INPUTS, generator=generator, dtype=torch.float64).to(dtype)
    state = torch.randn(rows, STATE, generator=generator, dtype=torch.float64).to(dtype)
    starts = torch.rand(steps, rows, generator=generator) < 0.2
    return inputs, state, starts


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_equals_scipys_simulation_of_its_matrices(structure, dtype):
    model = make_model(structure, dtype)
    inputs, state, _ = make_data(80, 4, dtype)
    matrices = tuple(matrix.double().numpy() for matrix in model.matrices())
    outputs, last = model(inputs, state)
    for row in range(4):
        driven = inputs[:, row].double().numpy()
        _, expected, states = dlsim((*matrices, 1.0), driven, x0=state[row].double().numpy())
        after = matrices[0] @ states[-1] + matrices[1] @ driven[-1]
        np.testing.assert_allclose(outputs[:, row].detach(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        np.testing.assert_allclose(last[row].detach(), after, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_dense_matrices_are_the_parameters():
    model = make_model("dense")
    for matrix, parameter in zip(model.matrices(), (model.A, model.B, model.C, model.D), strict=True):
        assert torch.equal(matrix, parameter)


def test_a_hand_computed_dense_sequence():
    model = make_model("dense", sizes=(1, 1, 1))
    with torch.no_grad():
        for parameter, value in ((model.A, 0.5), (model.B, 2.0), (model.C, 3.0), (model.D, 10.0)):
            parameter.fill_(value)
    inputs = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1)
    outputs, last = model(inputs, torch.full((1, 1), 4.0, dtype=torch.float64))
    # x: 4, 0.5·4 + 2 = 4, 2, then 1 + 2 = 3;  y = 3 x + 10 u
    assert outputs.flatten().tolist() == [22.0, 12.0, 16.0]
    assert last.item() == 3.0


@pytest.mark.parametrize("structure", STRUCTURES)
def test_resets_at_different_times_equal_separate_runs(structure):
    model = make_model(structure)
    inputs, state, _ = make_data(20, 3)
    starts = torch.zeros(20, 3, dtype=torch.bool)
    begins = {0: [5, 6], 1: [0, 19], 2: []}
    for row, times in begins.items():
        starts[times, row] = True
    outputs, last = model(inputs, state, starts)
    for row, times in begins.items():
        bounds = sorted({0, *times, 20})
        for begin, end in itertools.pairwise(bounds):
            initial = torch.zeros_like(state[:1]) if begin in times else state[row : row + 1]
            piece, end_state = model(inputs[begin:end, row : row + 1], initial)
            torch.testing.assert_close(outputs[begin:end, row : row + 1], piece, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(last[row : row + 1], end_state, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_stepping_equals_the_sequence_with_desynchronised_resets(structure):
    model = make_model(structure)
    inputs, state, starts = make_data(30, 5)
    outputs, last = model(inputs, state, starts)
    for coefficients in (None, model.coefficients()):
        held = state
        for time in range(30):
            held = held * ~starts[time][:, None]
            y, held = model.step(inputs[time], held, coefficients)
            torch.testing.assert_close(y, outputs[time], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(held, last, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_two_halves_with_the_state_carried_are_the_whole(structure):
    model = make_model(structure)
    inputs, state, starts = make_data(21, 4)
    whole, last = model(inputs, state, starts)
    first, middle = model(inputs[:8], state, starts[:8])
    second, end = model(inputs[8:], middle, starts[8:])
    torch.testing.assert_close(torch.cat([first, second]), whole, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(end, last, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_no_state_is_the_hidden_state_at_the_start_which_is_zero(structure):
    model = make_model(structure)
    hidden = model.init_hidden(4)
    assert hidden.shape == (4, STATE)
    assert hidden.dtype == model.B.dtype
    assert not hidden.any()
    inputs, _, _ = make_data(5, 4)
    assert torch.equal(model(inputs)[0], model(inputs, hidden)[0])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("structure", STRUCTURES)
def test_is_stable_at_initialisation(structure, seed):
    transition = make_model(structure, torch.float32, seed, sizes=(64, 8, 8)).matrices()[0]
    assert torch.linalg.eigvals(transition.double()).abs().max() < 1


def test_eigenvalues_begin_in_the_ring_and_slow_modes_first():
    model = make_model("diagonal", sizes=(4000, 1, 1))
    modulus, phase = (-model.log_rate.detach().exp()).exp(), model.log_phase.detach().exp()
    assert 0.8 <= modulus.min() < 0.81
    assert 0.998 < modulus.max() <= 0.999
    assert modulus.square().mean() == pytest.approx((0.8**2 + 0.999**2) / 2, abs=0.01)  # uniform over the ring's area
    assert 0 < phase.min() < 0.01
    assert 0.99 < phase.max() / (0.3 * np.pi) < 1.001
    assert phase.mean() == pytest.approx(0.15 * np.pi, rel=0.05)


def test_diagonal_stays_stable_wherever_training_takes_it():
    model = make_model("diagonal", sizes=(200, 2, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (model.log_rate, model.log_phase):
            parameter.copy_(5 * torch.randn(100, generator=generator, dtype=torch.float64))
    assert torch.linalg.eigvals(model.matrices()[0]).abs().max() < 1


def test_diagonal_state_has_the_size_of_its_input_map_whatever_the_eigenvalue():
    """Under white noise the stationary covariance P solves P = A P Aᵀ + B Bᵀ; a pair's share of its trace is ‖B‖²."""
    model = make_model("diagonal")
    transition, gain, _, _ = (matrix.numpy() for matrix in model.matrices())
    variance = np.diag(solve_discrete_lyapunov(transition, gain @ gain.T)).reshape(-1, 2).sum(1)
    expected = model.B.detach().square().view(STATE // 2, -1).sum(1)
    np.testing.assert_allclose(variance, expected, rtol=1e-8)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_parameter_is_learnable(structure):
    model = make_model(structure)
    inputs, _, starts = make_data(10, 4)
    model(inputs, None, starts)[0].square().mean().backward()
    names = dict(model.named_parameters())
    assert {"B", "C", "D"} < names.keys()
    assert ({"A"} if structure == "dense" else {"log_rate", "log_phase"}) < names.keys()
    for name, parameter in names.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().min() > 0, name


def make_arguments(steps, rows, seed=2):
    """Of a diagonal layer: inputs in an order of their own in memory, coefficients, starts, a state."""
    model, generator = make_model("diagonal"), torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, steps, INPUTS, generator=generator, dtype=torch.float64).transpose(0, 1)
    state = torch.randn(rows, STATE, generator=generator, dtype=torch.float64)
    keep = (torch.rand(steps, rows, generator=generator) < 0.7).double()
    learned = [value.detach() for value in (inputs, model.log_rate, model.log_phase, model.B, model.C, model.D)]
    return *(value.requires_grad_() for value in learned), keep, state.requires_grad_()


@pytest.mark.parametrize(("steps", "rows"), [(1, 1), (1, 4), (7, 3), (13, 1), (4, 9)])
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_chunks_of_time_are_the_operations_one_after_the_other(steps, rows, used, monkeypatch):
    monkeypatch.setattr(ssm_chunks, "VECTORS", 6)
    arguments = make_arguments(steps, rows)
    leaves = [argument for argument in arguments if argument.requires_grad]
    wanted, got = _diagonal(*arguments), DiagonalLayer.apply(_diagonal, *arguments)
    given = [torch.randn_like(result) for result in wanted]
    found = []
    for results in (wanted, got):
        chosen = [results[part] for part in used]
        gradients = torch.autograd.grad(chosen, leaves, [given[part] for part in used], allow_unused=True)
        found.append([torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)])
    assert max(float(part.abs().max()) for part in found[0]) > 0.1
    for one, other in zip((*wanted, *found[0]), (*got, *found[1]), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("sizes", [(2, 3, 2), (2, 1, 1), (STATE, INPUTS, OUTPUTS)])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_single_pair_and_no_rows_are_a_case_like_any_other(structure, sizes, rows):
    model, (state_dim, input_dim, output_dim) = make_model(structure, sizes=sizes), sizes
    inputs = torch.randn(7, rows, input_dim, dtype=torch.float64, requires_grad=True)
    state = torch.randn(rows, state_dim, dtype=torch.float64, requires_grad=True)
    outputs, last = model(inputs, state)
    assert (outputs.shape, last.shape) == ((7, rows, output_dim), (rows, state_dim))
    stepped, stepped_last = [], state
    for step in inputs:
        output, stepped_last = model.step(step, stepped_last)
        stepped.append(output)
    torch.testing.assert_close(outputs, torch.stack(stepped))
    torch.testing.assert_close(last, stepped_last)
    leaves = [inputs, state, *model.parameters()]
    found, wanted = (
        torch.autograd.grad(y.square().sum() + h.sin().sum(), leaves, create_graph=True)
        for y, h in ((outputs, last), (torch.stack(stepped), stepped_last))
    )
    torch.testing.assert_close(found, wanted)
    second, wanted = (torch.autograd.grad(sum(g.sin().sum() for g in each), leaves) for each in (found, wanted))
    torch.testing.assert_close(second, wanted)


def test_a_layer_by_chunks_has_exact_first_and_second_derivatives(monkeypatch):
    monkeypatch.setattr(ssm_chunks, "VECTORS", 4)
    *arguments, keep, state = make_arguments(5, 2)
    work = lambda *values: DiagonalLayer.apply(_diagonal, *values[:-1], keep, values[-1])  # noqa: E731
    assert torch.autograd.gradcheck(work, (*arguments, state))
    assert torch.autograd.gradgradcheck(work, (*arguments, state))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_halves_with_the_state_carried_have_the_first_and_second_derivatives_of_the_whole(structure):
    model, (inputs, state, starts) = make_model(structure), make_data(8, 3)
    parameters = list(model.parameters())
    first, held = model(inputs[:4], state, starts[:4])
    halves = torch.cat([first, model(inputs[4:], held, starts[4:])[0]])
    found, wanted = (
        torch.autograd.grad(outputs.sin().sum(), parameters, create_graph=True)
        for outputs in (halves, model(inputs, state, starts)[0])
    )
    torch.testing.assert_close(found, wanted)
    second, wanted = (torch.autograd.grad(sum(g.sin().sum() for g in each), parameters) for each in (found, wanted))
    torch.testing.assert_close(second, wanted)


def test_the_sequence_goes_by_chunks_on_a_cpu_and_one_by_one_where_tasks_are_vmapped(monkeypatch):
    model, inputs = make_model("diagonal", torch.float32), torch.randn(3, 7, 2, INPUTS)
    each = torch.stack([model(task)[0] for task in inputs])
    forward = MagicMock(side_effect=DiagonalLayer.apply)
    monkeypatch.setattr(DiagonalLayer, "apply", forward)
    model(inputs[0])
    assert forward.call_count == 1
    torch.testing.assert_close(torch.func.vmap(lambda task: model(task)[0])(inputs), each)
    assert forward.call_count == 1


def test_traces_hold_the_layer_in_one_piece():
    *arguments, keep, state = (argument.detach() for argument in make_arguments(7, 3))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(ssm_chunks._run, (*arguments, keep, state), test_utils=checks)
    outputs, last, *kept = ssm_chunks._run(*arguments, keep, state)
    inputs, log_rate, log_phase, drive, _, _ = arguments
    given = (inputs, log_rate, log_phase, drive, keep, state, *kept, outputs, last)
    torch.library.opcheck(ssm_chunks._gradients, given, test_utils=checks)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_of_the_sequence_equal_those_of_the_steps(structure):
    model = make_model(structure)
    inputs, state, starts = make_data(12, 3)

    def stepwise():
        held, outputs = state, []
        for time in range(12):
            y, held = model.step(inputs[time], held * ~starts[time][:, None])
            outputs.append(y)
        return torch.stack(outputs)

    parameters = list(model.parameters())
    whole = torch.autograd.grad(model(inputs, state, starts)[0].square().sum(), parameters)
    steps = torch.autograd.grad(stepwise().square().sum(), parameters)
    for got, expected in zip(whole, steps, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_saved_model_comes_back_the_same(structure, dtype, tmp_path):
    model = make_model(structure, dtype)
    model.save(tmp_path / "model.safetensors")
    loaded = StateSpaceModel.load(tmp_path / "model.safetensors")
    assert loaded.structure == structure
    inputs, state, starts = make_data(9, 2, dtype)
    for got, expected in zip(loaded(inputs, state, starts), model(inputs, state, starts), strict=True):
        assert torch.equal(got, expected)


def test_loading_a_file_that_holds_something_else_says_so(tmp_path):
    save_file({"B": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"other\.safetensors holds no StateSpaceModel"):
        StateSpaceModel.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("kept", [0, 40, -4], ids=["empty", "cut in the header", "cut at the end"])
def test_loading_a_damaged_file_is_a_one_line_error(kept, tmp_path):
    path = tmp_path / "model.safetensors"
    make_model("diagonal").save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UsageError, match=r"^cannot read a StateSpaceModel from .*model\.safetensors: .") as error:
        StateSpaceModel.load(path)
    assert "\n" not in str(error.value)


def test_loading_a_file_that_is_not_there_is_a_one_line_error(tmp_path):
    with pytest.raises(UsageError, match=r"^cannot read a StateSpaceModel from .*nowhere: .") as error:
        StateSpaceModel.load(tmp_path / "nowhere")
    assert "\n" not in str(error.value)


def test_the_short_name_is_the_same_class():
    assert SSM is StateSpaceModel


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1), "dimensions >= 1"),
        ((4, 1, 1, "sparse"), "dense, diagonal"),
        ((5, 1, 1), "use 6"),
    ],
)
def test_wrong_dimensions_are_one_line_errors(arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        StateSpaceModel(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    ("inputs", "state", "message"),
    [
        ((0, 2, INPUTS), (2, STATE), "T >= 1"),
        ((5, 2, INPUTS + 1), (2, STATE), "m = 3"),
        ((5, INPUTS), (5, STATE), r"\[T, B, m\]"),
        ((5, 2, INPUTS), (3, STATE), r"state \[B, n\] = \(2, 6\), got \(3, 6\)"),
        ((5, 2, INPUTS), (2, STATE + 2), "got"),
    ],
)
def test_wrong_shapes_are_one_line_errors(structure, inputs, state, message):
    model = make_model(structure, torch.float32)
    with pytest.raises(UsageError, match=message) as error:
        model(torch.zeros(inputs), torch.zeros(state))
    assert "\n" not in str(error.value)


def test_arrays_are_a_one_line_error():
    model = make_model("diagonal", torch.float32)
    for call in (lambda: model(np.zeros((5, 2, INPUTS))), lambda: model.step(np.zeros((2, INPUTS)), torch.zeros(2, 6))):
        with pytest.raises(UsageError, match=r"^StateSpaceModel takes tensors, got ndarray: convert it by torch\.as_t"):
            call()


@pytest.mark.parametrize("structure", ["dense", "diagonal"])
def test_starts_of_another_shape_are_a_one_line_error(structure):
    model = make_model(structure, torch.float32)
    with pytest.raises(UsageError, match=r"^StateSpaceModel needs starts \[T, B\] = \(5, 2\), got \(5, 1\)$"):
        model(torch.zeros(5, 2, INPUTS), None, torch.zeros(5, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_diagonal_sequence_of_low_precision_is_a_one_line_error_on_a_cpu(dtype):
    for model_dtype in (dtype, torch.float32):
        model = make_model("diagonal", model_dtype)
        with pytest.raises(UsageError, match=rf"float32 or float64 on a CPU, got {dtype} .*by \.float\(\)$") as error:
            model(torch.zeros(5, 2, INPUTS, dtype=dtype))
        assert "\n" not in str(error.value)
    outputs, _ = make_model("dense", dtype)(torch.zeros(5, 2, INPUTS, dtype=dtype))
    assert outputs.dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu_a_diagonal_sequence_goes_with_autocast(dtype):
    model, (inputs, state, starts) = make_model("diagonal", torch.float32).cuda(), make_data(20, 3, torch.float32)
    inputs, state, starts = inputs.cuda(), state.cuda(), starts.cuda()
    expected = model(inputs, state, starts)
    for given in (inputs, inputs.to(dtype)):
        with torch.autocast("cuda", dtype):
            found = model(given, state, starts)
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got.float(), wanted, atol=0.1, rtol=0.1)
    found[0].float().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_another_dtype_than_the_model_s_is_a_one_line_error(structure):
    model = make_model(structure, torch.float32)
    inputs, state = torch.zeros(5, 2, INPUTS), torch.zeros(2, STATE)
    message = r"^a StateSpaceModel of torch.float32 takes inputs and states of that, got torch.float64"
    for call in (
        lambda: model(inputs.double()),
        lambda: model.step(inputs[0].double(), state),
        lambda: model.step(inputs[0].double(), state.double()),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    with pytest.raises(UsageError, match=r"got torch.float32 and a state of torch.float64: convert them$"):
        model(inputs, state.double())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_doubles_are_a_one_line_error_under_autocast_too(structure):
    model, inputs = make_model(structure, torch.float32), torch.zeros(5, 2, INPUTS, dtype=torch.float64)
    state = torch.zeros(2, STATE)
    for call in (
        lambda: model(inputs),
        lambda: model.step(inputs[0], state),
        lambda: model.step(inputs[0].float(), state.double()),
    ):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(UsageError, match=r"got .*torch\.float64"):
            call()


def test_a_step_takes_no_time_axis():
    model = make_model("diagonal", torch.float32)
    with pytest.raises(UsageError, match=r"\[B, m\]"):
        model.step(torch.zeros(1, 2, INPUTS), torch.zeros(2, STATE))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_checkpointed_sequence_has_the_gradients_of_one_that_is_not(structure):
    model, (inputs, state, starts) = make_model(structure), make_data(9, 3)

    def gradients(outputs):
        return torch.autograd.grad(outputs.sin().sum(), list(model.parameters()))

    recomputed = checkpoint(lambda: model(inputs, state, starts)[0], use_reentrant=False)
    torch.testing.assert_close(gradients(recomputed), gradients(model(inputs, state, starts)[0]))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_returned_state_can_be_written_to(structure):
    model, (inputs, state, _) = make_model(structure), make_data(4, 3)
    _, untouched = model(inputs, state)
    last = model(inputs, state)[1]
    last[0] = 0
    last.sum().backward()
    torch.testing.assert_close(last[1:], untouched[1:])
    assert not last[0].any()
