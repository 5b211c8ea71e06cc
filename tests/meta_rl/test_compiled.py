"""Functions bound to their first arguments, or held for all but the last, against the functions themselves."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys

import pytest
import torch

from metarl.core.scan import linear_scan
from metarl.meta_rl.compiled import Programs, can_compile, identity

needs_compiler = pytest.mark.skipif(not can_compile(), reason="torch compiles with g++, which is not installed")


@pytest.fixture(params=[False, pytest.param(True, marks=[needs_compiler, pytest.mark.nightly])], autouse=True)
def really_compiled(request, monkeypatch):
    """False: programs are the traces themselves, which takes no compiler and no time."""
    if not request.param:
        monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)
    return request.param


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def curved(weight):
    """A product with a Hessian, of a loss with a parameter that is read from elsewhere."""

    def function(pair, vector):
        x, y = pair["x"], pair["y"]
        at = x.detach().clone().requires_grad_()
        loss = (torch.nn.functional.silu(at @ weight) * y).square().sum()  # silu's second derivative writes in place
        (slope,) = torch.autograd.grad(loss, at, create_graph=True)
        return torch.autograd.grad(slope, at, vector)[0], 2 * vector

    return function


def calls(number=3, rows=4):
    return [({"x": draw(rows, 5, seed=n), "y": draw(rows, 6, seed=100 + n)},) for n in range(number)]


def test_what_is_held_is_the_function_for_every_call_and_vector():
    weight = torch.nn.Parameter(draw(5, 6))
    function, programs = curved(weight), Programs()
    for _ in range(2):
        held = programs.held("curved", function, calls(), draw(4, 5))
        for seed in range(2):
            vector = draw(4, 5, seed=seed)
            for got, call in zip(held(vector), calls(), strict=True):
                for one, other in zip(got, function(*call, vector), strict=True):
                    torch.testing.assert_close(one, other)
        with torch.no_grad():
            weight.mul_(-0.5)  # it stays live: what is held next is of the new one


def test_what_is_bound_is_the_function_for_every_form_and_number():
    shift = torch.nn.Parameter(draw(6))
    given, programs = {"weight": draw(5, 6)}, Programs()
    function = lambda params, x, y: (x @ params["weight"] + y + shift, y - 1)  # noqa: E731
    bound = programs.bound("affine", function, [given], [draw(4, 5), draw(4, 6)])
    for x, y in ((draw(4, 5, seed=1), draw(4, 6, seed=2)), (draw(5, 4, seed=3).T, draw(4, 6, seed=4))):
        for got, wanted in zip(bound(x, y), function(given, x, y), strict=True):
            torch.testing.assert_close(got, wanted)
        with torch.no_grad():
            shift.mul_(-0.5)  # it stays live
    assert len(programs._programs) == 2
    assert copy.deepcopy(bound) is None


def products(trace):
    return sum(node.target == torch.ops.aten.mm.default for node in trace.graph.nodes)


def test_products_that_do_not_depend_on_the_vector_are_computed_once():
    programs, function, (call,) = Programs(), curved(torch.nn.Parameter(draw(5, 6))), calls(1)
    programs.held("curved", function, [call], draw(4, 5))
    (split,) = programs._splits.values()
    programs.run_trees("curved", function, [(*call, draw(4, 5))])
    (whole,) = (program._trace for program in programs._programs.values())
    whole.graph.eliminate_dead_code()
    assert products(split.once._trace) == 1  # x W
    assert products(split.again._trace) == products(whole) - 1


def test_a_function_of_the_vector_alone_and_one_that_ignores_it():
    programs = Programs()
    both = programs.held("both", lambda x, vector: (vector + 1, x.exp() @ x), [(draw(3, 3),)], draw(2))
    ((moved, fixed),) = both(draw(2, seed=5))
    torch.testing.assert_close(moved, draw(2, seed=5) + 1)
    torch.testing.assert_close(fixed, draw(3, 3).exp() @ draw(3, 3))


def test_a_function_that_ignores_the_vector():
    ((fixed,),) = Programs().held("fixed", lambda x, vector: (x.exp(),), [(draw(3),)], draw(2))(draw(2))
    torch.testing.assert_close(fixed, draw(3).exp())


def test_tensors_of_another_form_or_order_of_memory_are_another_program():
    programs = Programs()
    x = draw(4, 3)
    for given in (x, x.T.contiguous().T, draw(5, 3)):
        (found,) = programs.run("double", lambda x: (2 * x,), given)
        torch.testing.assert_close(found, 2 * given)
    assert len(programs._programs) == 3


def test_scans_are_held_with_their_derivatives():
    inputs = torch.complex(draw(6, 2, 3), draw(6, 2, 3, seed=1))

    def function(inputs, vector):
        decay = torch.polar(torch.sigmoid(vector), torch.ones(3)).requires_grad_()
        loss = linear_scan(decay, torch.view_as_complex(inputs)).abs().square().sum()
        (slope,) = torch.autograd.grad(loss, decay, create_graph=True)
        (second,) = torch.autograd.grad(slope.abs().square().sum(), decay)
        return loss.detach(), torch.view_as_real(second)

    given, vector = torch.view_as_real(inputs).contiguous(), draw(3)
    (found,) = Programs().held("scan", function, [(given,)], vector)(vector)
    for got, expected in zip(found, function(given, vector), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_function_made_anew_with_the_same_values_is_the_same():
    def scaled(by):
        return lambda x: (by * x,)

    model = torch.nn.Linear(1, 1)
    assert identity(scaled(2)) == identity(scaled(2))
    assert identity(scaled(model)) == identity(scaled(model))
    others = [scaled(2), scaled(3), scaled(2.0), scaled(model), scaled(torch.nn.Linear(1, 1)), lambda x: (2 * x,)]
    assert len({identity(each) for each in others}) == len(others)
    found = []
    for factor in (1.0, 10.0):
        names = {"factor": factor}
        exec("def by_a_global(x): return (lambda y: factor * y)(x)", names)
        found.append(identity(names["by_a_global"]))
    assert found[0] != found[1]
    unhashable = scaled([2])
    assert identity(unhashable) is unhashable
    assert identity(torch.nn.functional.mse_loss) == identity(torch.nn.functional.mse_loss)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is compiled there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_compiler_hears_of_no_signal_that_is_sent_to_all(number, monkeypatch):
    """The first one lets the running epoch end, which may have to compile."""

    def compile(graph, tensors, options):
        subprocess.run([sys.executable, "-c", f"import signal; signal.raise_signal({int(number)})"], check=True)
        return graph

    monkeypatch.setattr("torch._inductor.compile", compile)
    (found,) = Programs().run("", lambda x: (x + 1,), torch.ones(2))
    assert found.tolist() == [2.0, 2.0]
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
