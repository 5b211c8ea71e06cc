"""The CUDA kernels against the CPU ones: on a GPU where there is one, else in Triton's interpreter where installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from metarl.core.scan import linear_scan, linear_scan_reference

COMPARE = """
import torch
from metarl.core import scan_numba, scan_triton
torch.manual_seed(0)
for steps, rows, width in ((1, 1, 1), (7, 3, 5), (32, 1, 16), (75, 2, 40)):
    decay = torch.view_as_real(torch.polar(torch.rand(rows, width) * 0.9, torch.rand(rows, width))).double()
    inputs, v = (torch.randn(steps, rows, width, 2, dtype=torch.float64) for _ in range(2))
    keep, initial = (torch.rand(steps, rows) > 0.3).double(), torch.randn(rows, width, 2, dtype=torch.float64)
    states = scan_numba.scan(decay, inputs, keep, initial)
    torch.testing.assert_close(scan_triton.scan(decay, inputs, keep, initial), states)
    for got, expected in zip(
        scan_triton.scan_gradient(decay, states, keep, initial, v),
        scan_numba.scan_gradient(decay, states, keep, initial, v),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)
print("equal")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which they are tested below")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton")
def test_kernels_in_the_interpreter_equal_the_cpu_kernels():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPARE], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex64, 1e-5), (torch.complex128, 1e-10)])
def test_on_a_gpu_states_and_gradients_equal_the_reference(dtype, tolerance):
    generator = torch.Generator("cuda").manual_seed(0)
    decay = torch.polar(torch.rand(33, device="cuda", generator=generator) * 0.95, torch.ones(33, device="cuda"))
    decay = decay.to(dtype).requires_grad_()
    inputs = torch.randn(200, 7, 33, dtype=dtype, device="cuda", generator=generator).requires_grad_()
    starts = torch.rand(200, 7, device="cuda", generator=generator) < 0.1
    ours, reference = (f(decay, inputs, starts) for f in (linear_scan, linear_scan_reference))
    torch.testing.assert_close(ours, reference, atol=tolerance, rtol=tolerance)
    for got, expected in zip(
        *(torch.autograd.grad(states.abs().square().mean(), (decay, inputs)) for states in (ours, reference)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_second_derivatives_are_exact():
    decay = torch.polar(torch.rand(3) * 0.9, torch.ones(3)).to("cuda", torch.complex128).requires_grad_()
    inputs = torch.randn(5, 2, 3, dtype=torch.complex128, device="cuda", requires_grad=True)
    starts = torch.rand(5, 2, device="cuda") < 0.3
    assert torch.autograd.gradgradcheck(lambda decay, inputs: linear_scan(decay, inputs, starts), (decay, inputs))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_gpu_than_the_current_one_states_and_gradients_equal_the_reference():
    decay = torch.polar(torch.rand(3) * 0.9, torch.ones(3)).to("cuda:1", torch.complex128).requires_grad_()
    inputs = torch.randn(20, 2, 3, dtype=torch.complex128, device="cuda:1", requires_grad=True)
    found = []
    for function in (linear_scan, linear_scan_reference):
        states = function(decay, inputs)
        found.append([states.detach(), *torch.autograd.grad(states.abs().square().sum(), (decay, inputs))])
    torch.testing.assert_close(*found)
