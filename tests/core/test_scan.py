"""linear_scan against its reference, finite differences, and itself under torch.func."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
from numba.core import caching
from torch.autograd import forward_ad
from torch.func import grad, jacrev, vmap

from metarl.core import scan_numba
from metarl.core.errors import UsageError
from metarl.core.scan import linear_scan, linear_scan_reference
from metarl.core.scan_derivatives import _composed_second, _run_second, scan_pairs
from metarl.core.threads import torch_threads


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make_case(steps, rows, width, dtype=torch.complex128, per_row=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.rand(*((rows, width) if per_row else (width,)), generator=generator, dtype=torch.float64) * 0.95
    phase = torch.rand(magnitude.shape, generator=generator, dtype=torch.float64) * 3
    decay = torch.polar(magnitude, phase).to(dtype)
    inputs = torch.randn(steps, rows, width, generator=generator, dtype=torch.complex128).to(dtype)
    initial = torch.randn(rows, width, generator=generator, dtype=torch.complex128).to(dtype)
    starts = torch.rand(steps, rows, generator=generator) < 0.2
    return decay, inputs, starts, initial


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex64, 1e-5), (torch.complex128, 1e-10)])
@pytest.mark.parametrize(("steps", "rows", "width"), [(1, 1, 1), (1, 5, 3), (50, 1, 4), (400, 7, 33)])
def test_equals_the_reference_with_desynchronised_resets(steps, rows, width, dtype, tolerance, per_row):
    decay, inputs, starts, initial = make_case(steps, rows, width, dtype, per_row)
    expected = linear_scan_reference(decay, inputs, starts, initial)
    torch.testing.assert_close(linear_scan(decay, inputs, starts, initial), expected, atol=tolerance, rtol=tolerance)


def test_gradients_equal_the_reference_in_float32():
    leaves = [t.requires_grad_() if t.is_complex() else t for t in make_case(100, 6, 9, torch.complex64, per_row=True)]
    wanted = [leaves[0], leaves[1], leaves[3]]
    ours, reference = (
        torch.autograd.grad(f(*leaves).abs().square().mean(), wanted) for f in (linear_scan, linear_scan_reference)
    )
    for got, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_threads_change_nothing():
    results = []
    for threads in (1, 2, 3):
        with torch_threads(threads):
            decay, inputs, starts, initial = make_case(40, 7, 5, torch.complex64)
            for tensor in (decay, inputs, initial):
                tensor.requires_grad_()
            states = linear_scan(decay, inputs, starts, initial)
            results.append((states, *torch.autograd.grad(states.abs().square().sum(), (decay, inputs, initial))))
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert torch.equal(one, other)


def test_what_comes_in_a_lower_precision_is_scanned_in_that_of_the_decay():
    decay, inputs, starts, initial = make_case(9, 3, 4, torch.complex64)
    decay, inputs, initial = (torch.view_as_real(each) for each in (decay, inputs, initial))
    keep, low = 1 - starts.float(), inputs.bfloat16()
    states = scan_pairs(decay, low, keep.bfloat16(), initial)
    assert torch.equal(states, scan_pairs(decay, low.float(), keep, initial))


def test_a_hand_computed_reset():
    decay = torch.tensor([0.5 + 0j])
    inputs = torch.ones(4, 1, 1, dtype=torch.complex64)
    starts = torch.tensor([[0], [0], [1], [0]])
    states = linear_scan(decay, inputs, starts, torch.full((1, 1), 2 + 0j))
    assert states[:, 0, 0].real.tolist() == [2.0, 2.0, 1.0, 1.5]


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("steps", [1, 5])
def test_first_and_second_derivatives_are_exact(steps, per_row):
    decay, inputs, starts, initial = make_case(steps, 3, 2, per_row=per_row)
    leaves = tuple(t.requires_grad_() for t in (decay, inputs, initial))

    def scan(decay, inputs, initial):
        return linear_scan(decay, inputs, starts, initial)

    assert torch.autograd.gradcheck(scan, leaves)
    assert torch.autograd.gradgradcheck(scan, leaves)


@pytest.mark.parametrize("steps", [1, 4])
def test_third_derivatives_are_exact(steps):
    decay, inputs, starts, initial = make_case(steps, 2, 2, per_row=True)
    leaves = tuple(t.requires_grad_() for t in (decay, inputs, initial))
    weights = torch.randn(steps, 2, 2, dtype=torch.complex128)

    def gradients(*leaves):
        loss = (linear_scan(*leaves[:2], starts, leaves[2]) * weights).abs().square().sum()
        return torch.autograd.grad(loss, leaves, create_graph=True)

    assert torch.autograd.gradgradcheck(gradients, leaves)


def test_second_derivatives_in_one_pass_are_those_that_a_gpu_composes():
    decay, inputs, starts, initial = (
        torch.view_as_real(each) if each.is_complex() else 1 - each.double()
        for each in make_case(7, 3, 5, per_row=True)
    )
    states, grad_inputs, u, w = (
        torch.randn(shape, dtype=torch.float64) for shape in (inputs.shape, inputs.shape, inputs.shape, decay.shape)
    )
    arguments = decay, states, starts, initial, grad_inputs, u, w
    for got, expected in zip(_run_second(*arguments), _composed_second(*arguments), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch's own forward mode
def test_torch_func_derives_in_reverse_mode_alone():
    decay, inputs, starts, initial = make_case(5, 2, 3)

    def length(inputs):
        return torch.view_as_real(linear_scan(decay, torch.view_as_complex(inputs), starts, initial)).square().sum()

    x = torch.view_as_real(inputs).clone()
    hessian = jacrev(jacrev(length))(x).flatten(0, 3).flatten(1)
    # The scan is linear in its inputs, so the square's second derivative is that at any other point.
    torch.testing.assert_close(hessian, jacrev(jacrev(length))(2 * x).flatten(0, 3).flatten(1))
    assert torch.linalg.eigvalsh(hessian).min() > 0
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode"):
        length(forward_ad.make_dual(x, x))


def test_conjugate_views_count_as_what_they_show():
    decay, inputs, starts, initial = make_case(6, 3, 2)
    expected = linear_scan(decay.conj().resolve_conj(), inputs.conj().resolve_conj(), starts, initial)
    torch.testing.assert_close(linear_scan(decay.conj(), inputs.conj(), starts, initial), expected, atol=0, rtol=0)


def inner_step_loss(parameter, inputs, targets, starts):
    """A post-adaptation loss: one gradient step on decay, then the loss again."""

    def loss(parameter):
        return (linear_scan(parameter, inputs, starts) - targets).abs().square().mean()

    return loss(parameter - 0.1 * grad(loss)(parameter))


def test_vmapped_second_order_equals_the_loop_over_tasks():
    tasks = 4
    decay = make_case(1, 1, 3)[0].requires_grad_()
    inputs, targets = (torch.randn(tasks, 6, 2, 3, dtype=torch.complex128) for _ in range(2))
    starts = torch.rand(tasks, 6, 2) < 0.3
    batched = vmap(inner_step_loss, (None, 0, 0, 0))(decay, inputs, targets, starts).mean()
    looped = sum(inner_step_loss(decay, inputs[i], targets[i], starts[i]) for i in range(tasks)) / tasks
    torch.testing.assert_close(
        torch.autograd.grad(batched, decay)[0], torch.autograd.grad(looped, decay)[0], atol=1e-14, rtol=1e-12
    )


def test_vmap_over_a_decay_that_differs_by_task_at_any_batch_axis():
    tasks = 3
    decay = torch.stack([make_case(1, 1, 2, seed=i)[0] for i in range(tasks)])
    inputs = torch.randn(5, 4, tasks, 2, dtype=torch.complex128)
    batched = vmap(linear_scan, (0, 2), out_dims=2)(decay, inputs)
    for task in range(tasks):
        torch.testing.assert_close(batched[:, :, task], linear_scan_reference(decay[task], inputs[:, :, task]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay": torch.ones(4, dtype=torch.complex128)}, "decay"),
        ({"inputs": torch.ones(0, 2, 3, dtype=torch.complex128)}, "T >= 1"),
        ({"inputs": torch.ones(5, 2, 3, dtype=torch.float64)}, "complex64 or all of complex128, got .*float64"),
        ({"starts": torch.zeros(5, 3)}, "starts"),
        ({"initial": torch.ones(3, 3, dtype=torch.complex128)}, "initial"),
    ],
)
def test_wrong_shapes_and_types_are_one_line_errors(change, message):
    decay, inputs, starts, initial = make_case(5, 2, 3)
    arguments = {"decay": decay, "inputs": inputs, "starts": starts, "initial": initial} | change
    with pytest.raises(UsageError, match=message) as error:
        linear_scan(**arguments)
    assert "\n" not in str(error.value)


SIDE_BY_SIDE = """
import torch
from concurrent.futures import ThreadPoolExecutor
from metarl.core.scan import linear_scan
decay, inputs = torch.full((64,), 0.5 + 0.1j), torch.randn(400, 64, 64, dtype=torch.complex64)
expected = linear_scan(decay, inputs)
for threads in (1, 2):
    torch.set_num_threads(threads)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: linear_scan(decay, inputs), range(40)):
            torch.testing.assert_close(found, expected)
print("equal")
"""


@pytest.mark.parametrize("layer", ["workqueue", "default"])
def test_threads_may_scan_side_by_side_in_every_pool(layer):
    """numba's own pool ends the process where two threads enter it at once."""
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer}
    done = subprocess.run(
        [sys.executable, "-c", SIDE_BY_SIDE], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "equal", done.stderr


def test_the_number_of_torch_threads_is_left_as_it_was():
    """Also where torch has more of them than numba may use."""
    case = make_case(20, 4, 3)
    for threads in (1, 2, numba.config.NUMBA_NUM_THREADS + 1):
        with torch_threads(threads):
            linear_scan(case[0].requires_grad_(), *case[1:]).real.sum().backward()
            assert torch.get_num_threads() == threads


def test_a_kernel_that_can_be_kept_nowhere_is_compiled_all_the_same(monkeypatch):
    """As with a package that is read-only and no home."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    def double(values):  # pragma: no cover (compiled)
        for index in numba.prange(len(values)):
            values[index] *= 2

    values = np.ones(3)
    scan_numba.kernel(double)(values)
    assert values.tolist() == [2.0, 2.0, 2.0]
