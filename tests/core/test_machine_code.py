"""Machine code of functions, and what is kept of it."""

import importlib.util
import math
import sys

import numpy as np
import pytest
from numba.core import caching

from metarl.core import machine_code
from metarl.env_runner.mujoco_kinematics import about

STEP = 2.0


def stepped(x):  # pragma: no cover (compiled)
    return about((1.0, 0.0, 0.0), STEP * x)[1]


def twice(x):  # pragma: no cover (compiled)
    return 2.0 * x


def in_place(function):
    def run(values):  # pragma: no cover (compiled)
        for index in range(len(values)):
            values[index] = function(values[index])

    return machine_code.compiled(run)


def test_plain_functions_are_called_by_name_and_as_closure():
    values = np.array([0.1, 0.2])
    in_place(stepped)(values)
    assert values.tolist() == [math.sin(0.1), math.sin(0.2)]
    in_place(twice)(values)
    assert values.tolist() == [2.0 * math.sin(0.1), 2.0 * math.sin(0.2)]


def kept_as(function):
    return in_place(function).py_func.__qualname__


def test_what_is_kept_is_told_apart_by_all_that_it_uses(monkeypatch):
    """Numba itself looks at the text of one function's file."""
    before = kept_as(stepped)
    assert before == kept_as(stepped) != kept_as(math_free)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "STEP", 3.0)
        assert kept_as(stepped) != before
    with monkeypatch.context() as patch:
        code = about.__code__
        patch.setattr(about, "__code__", code.replace(co_consts=(*code.co_consts[:-1], 2.0 * code.co_consts[-1])))
        assert kept_as(stepped) != before
    assert kept_as(stepped) == before


def test_what_is_kept_is_what_this_process_has_whatever_became_of_its_file(tmp_path):
    """Rewards are compiled at the first step of their worlds, which may come long after their import."""
    file = tmp_path / "edited.py"
    file.write_text("def thrice(x):\n    return 3.0 * x\n")
    spec = importlib.util.spec_from_file_location("edited", file)
    module = sys.modules["edited"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        before = kept_as(module.thrice)
        file.write_text("def thrice(x):\n    return 3.5 * x + 0.0\n")
        assert kept_as(module.thrice) == before
        file.unlink()
        assert kept_as(module.thrice) == before
    finally:
        del sys.modules["edited"]


def math_free(x):  # pragma: no cover (compiled)
    return about((1.0, 0.0, 0.0), x)[0]


def test_code_that_can_be_kept_nowhere_is_compiled_all_the_same(monkeypatch):
    """As with a package that is read-only and no home."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    values = np.ones(3)
    in_place(twice)(values)
    assert values.tolist() == [2.0, 2.0, 2.0]


def test_only_a_place_that_is_missing_is_gone_around(monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr(machine_code.numba, "njit", refuse)
    with pytest.raises(RuntimeError, match="something else"):
        machine_code.compiled(lambda: None)
