"""Meta-gradients in groups of tasks and as machine code are those of one piece."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig, make_memory
from metarl.core.optimization import TrainingDiverged
from metarl.core.threads import side_by_side
from metarl.meta_rl.compiled import NARROW, REWRITTEN, Programs, can_compile
from metarl.meta_rl.meta_maml import MetaMAML
from metarl.meta_rl.supervised_tasks import groups

needs_compiler = pytest.mark.skipif(not can_compile(), reason="torch compiles with g++, which is not installed")


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make_model():
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def make_tasks(number=5, samples=4):
    return tuple(torch.randn(number, samples, size, dtype=torch.float64) for size in (2, 1, 2, 1))


def assert_same(got, wanted):
    torch.testing.assert_close(got.loss, wanted.loss, rtol=1e-10, atol=1e-12)
    assert max(float(value.abs().max()) for value in wanted.gradients.values()) > 1e-3
    for name, value in wanted.gradients.items():
        torch.testing.assert_close(got.gradients[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"inner_steps": 3, "multi_step_updates": 4}, {"learn_rates": True}])
@pytest.mark.parametrize("samples_at_once", [1, 8, 12, 1000])
def test_groups_of_tasks_sum_to_the_whole(samples_at_once, options):
    model, tasks = make_model(), make_tasks()
    whole = MetaMAML(model, 0.1, **options).meta_gradient(tasks)
    assert_same(MetaMAML(model, 0.1, samples_at_once=samples_at_once, **options).meta_gradient(tasks), whole)


@pytest.mark.parametrize(("samples", "sizes"), [(1, [1] * 5), (8, [2, 2, 1]), (16, [3, 2]), (100, [5])])
def test_groups_are_even_and_hold_every_task_once(samples, sizes):
    x = torch.arange(5.0).view(5, 1, 1).expand(5, 4, 2)
    parts = [support["x"] for support, _ in groups([{"x": x, "y": x}, {"x": x[:, :2], "y": x[:, :2]}], samples)]
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts), x)


def test_a_task_of_a_later_group_is_named_when_it_breaks():
    tasks = make_tasks()
    tasks[1][3, 0] = torch.nan
    with pytest.raises(TrainingDiverged, match="the support loss of task 3 after 0 inner steps"):
        MetaMAML(make_model(), samples_at_once=4).meta_update(tasks)


@pytest.fixture(params=[False, pytest.param(True, marks=[needs_compiler, pytest.mark.nightly])])
def really_compiled(request, monkeypatch):
    """False: programs are the traces themselves, which takes no compiler and no time."""
    if not request.param:
        monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)


def test_traced_meta_gradients_are_the_same_and_follow_the_parameters(really_compiled):
    model, tasks = make_model(), make_tasks()
    options = {"inner_steps": 2, "learn_rates": True, "multi_step_updates": 2, "outer_lr": 0.05}
    compiled, plain = MetaMAML(model, 0.1, compile=True, **options), MetaMAML(model, 0.1, **options)
    start = model[0].weight.detach().clone()
    for _ in range(4):  # through the end of annealing, which is another program
        wanted = plain.meta_gradient(tasks)
        assert_same(compiled.meta_gradient(tasks), wanted)
        assert compiled.meta_update(tasks) == pytest.approx(wanted.loss.item(), rel=1e-10)
        plain.updates = compiled.updates
        plain.learned.load_state_dict(compiled.learned.state_dict())
    assert float((model[0].weight.detach() - start).abs().max()) > 0.05
    tasks[1][2, 0] = torch.nan
    with pytest.raises(TrainingDiverged, match="the support loss of task 2 after 0 inner steps"):
        compiled.meta_update(tasks)


def test_groups_run_side_by_side_and_sum_to_the_whole(really_compiled):
    model, tasks = make_model(), make_tasks()
    wanted = MetaMAML(model, 0.1).meta_gradient(tasks)
    maml = MetaMAML(model, 0.1, compile=True, samples_at_once=8)  # 2, 2 and 1 tasks
    for _ in range(2):
        assert_same(maml.meta_gradient(tasks), wanted)
    ragged = [tuple(part[task, : 4 - task % 2] for part in tasks) for task in range(5)]
    assert_same(maml.meta_gradient(ragged), MetaMAML(model, 0.1).meta_gradient(ragged))


@pytest.mark.parametrize("loss", [nn.functional.l1_loss, nn.functional.huber_loss, nn.functional.smooth_l1_loss])
def test_losses_whose_curvature_is_zero_can_be_traced(loss, monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)
    model, tasks = make_model(), make_tasks()
    assert_same(MetaMAML(model, compile=True).meta_gradient(tasks, loss), MetaMAML(model).meta_gradient(tasks, loss))


def test_a_loss_that_is_written_in_a_loop_is_traced_once(monkeypatch):
    made = []
    monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: made.append(graph) or graph)
    maml, tasks = MetaMAML(make_model(), compile=True), make_tasks()
    losses = [maml.meta_update(tasks, lambda y, target: (y - target).abs().mean()) for _ in range(3)]
    assert len(set(losses)) == 3
    assert len(made) == 1


def test_several_threads_run_what_draws_nothing(monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)
    threads = set()

    def noted(function, calls):
        def run(call):
            threads.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
            return function(call)

        return side_by_side(run, calls)

    monkeypatch.setattr("metarl.meta_rl.compiled.side_by_side", noted)
    before = torch.get_num_threads()
    drawing = nn.Sequential(nn.Linear(2, 5), nn.Dropout(0.5), nn.Linear(5, 1)).double()
    MetaMAML(drawing, compile=True, samples_at_once=4).meta_gradient(make_tasks())
    assert not threads
    MetaMAML(make_model(), compile=True, samples_at_once=4).meta_gradient(make_tasks())
    assert threads == {(False, 1)}
    assert torch.get_num_threads() == before


def test_groups_draw_in_order(monkeypatch):
    monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: graph)
    drawing = nn.Sequential(nn.Linear(2, 5), nn.Dropout(0.5), nn.Linear(5, 1)).double()
    tasks, found = make_tasks(), []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(MetaMAML(drawing, 0.1, compile=True, samples_at_once=4).meta_gradient(tasks))
    assert_same(found[0], found[1])
    assert not torch.equal(MetaMAML(drawing, 0.1, compile=True).meta_gradient(tasks).loss, found[0].loss)


@pytest.mark.parametrize("form", [(30, 6, 5), (30, 40, 5), (4, 6, 5), (30, 6, 30)])
def test_products_of_few_columns_are_transposed_and_the_same(form, monkeypatch):
    traced = []
    monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: traced.append(graph) or graph)
    rows, inner, columns = form
    x, w, b = (torch.randn(*size, dtype=torch.float64) for size in ((rows, inner), (inner, columns), (columns,)))
    work = lambda x, w, b: (x @ w, torch.addmm(b, x, w), x.expand(3, -1, -1) @ w.expand(3, -1, -1))  # noqa: E731
    (found,) = Programs().run_trees("", work, [(x, w, b)])
    for got, wanted in zip(found, work(x, w, b), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
        assert got.stride() == wanted.stride()
    products = [node.meta["val"] for node in traced[0].graph.nodes if node.target in REWRITTEN]
    transposed = columns <= NARROW and columns < rows
    assert {tuple(value.shape[-2:]) for value in products} == {(columns, rows) if transposed else (rows, columns)}


@needs_compiler
def test_a_compiled_meta_gradient_is_the_same():
    model = nn.Linear(2, 1).double()
    tasks = make_tasks()
    assert_same(MetaMAML(model, 0.1, compile=True).meta_gradient(tasks), MetaMAML(model, 0.1).meta_gradient(tasks))


def test_a_program_is_kept_by_form_and_by_loss(monkeypatch):
    traced = []
    monkeypatch.setattr("torch._inductor.compile", lambda graph, tensors, options: traced.append(graph) or graph)
    maml = MetaMAML(make_model(), 0.1, compile=True)
    for number, samples, loss in (
        (5, 4, nn.functional.mse_loss),
        (5, 4, nn.functional.huber_loss),
        (3, 4, nn.functional.mse_loss),
    ):
        for _ in range(2):
            maml.meta_gradient(make_tasks(number, samples), loss)
    assert len(traced) == 3


def test_what_leaves_torch_for_numbers_is_refused_by_name():
    class Scaled(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * float(x.sum())

    maml = MetaMAML(Scaled(2, 1), compile=True, vectorize=False)
    with pytest.raises(UsageError, match=r"cannot be traced .*: leave compile off") as error:
        maml.meta_gradient(tuple(torch.randn(2, 3, size) for size in (2, 1, 2, 1)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["ssm", "transformer"])
def test_meta_gradients_through_a_memory_are_the_same_traced(method, really_compiled):
    memory = make_memory(MemoryConfig(method=method, width=4, state_dim=4, heads=2, context=3)).double()
    tasks = tuple(torch.randn(2, 5, 2, 4, dtype=torch.float64) for _ in range(4))
    wanted = MetaMAML(memory, 0.1).meta_gradient(tasks)
    assert_same(MetaMAML(memory, 0.1, compile=True).meta_gradient(tasks), wanted)


def test_recompute_and_compile_exclude_each_other():
    with pytest.raises(UsageError, match="recompute and compile exclude each other"):
        MetaMAML(make_model(), recompute=True, compile=True)


def test_what_cannot_be_compiled_here_is_one_line(monkeypatch):
    def failing(graph, tensors, options):
        raise torch._inductor.exc.InductorError(OSError("No space left on device"), None)

    monkeypatch.setattr("torch._inductor.compile", failing)
    message = r"^cannot compile here \(OSError: No space left on device\): .*Python's headers.* or turn compile off$"
    with pytest.raises(UsageError, match=message):
        Programs().run("", torch.sin, torch.ones(2))


def test_compiling_takes_a_compiler_pythons_headers_and_folders_without_spaces(monkeypatch, tmp_path):
    libraries = {"LIBDIR": "/usr/lib"}
    monkeypatch.setattr("metarl.meta_rl.compiled.sysconfig.get_config_var", libraries.get)
    monkeypatch.setattr("torch.__file__", "/packages/torch/__init__.py")
    monkeypatch.setattr("metarl.meta_rl.compiled.shutil.which", lambda name: f"/bin/{name}")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("metarl.meta_rl.compiled.sysconfig.get_path", lambda name: str(tmp_path))
    assert can_compile()
    (tmp_path / "Python.h").unlink()
    assert not can_compile()
    (tmp_path / "Python.h").touch()
    libraries["LIBDIR"] = "/Library/Application Support/uv/lib"
    assert not can_compile()
    libraries["LIBDIR"] = "/usr/lib"
    monkeypatch.setattr("torch.__file__", "/my project/torch/__init__.py")
    assert not can_compile()
    monkeypatch.setattr("torch.__file__", "/packages/torch/__init__.py")
    assert can_compile()
    monkeypatch.setattr("metarl.meta_rl.compiled.shutil.which", lambda name: None)
    assert not can_compile()
