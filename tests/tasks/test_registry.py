"""Task families by name: registered ones, names that stand for many, and functions of own files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from metarl.core.errors import UsageError
from metarl.tasks import registry
from metarl.tasks.distribution import TaskDistribution

Poles: TypeAlias = Callable[..., TaskDistribution]


def test_families_by_name(poles: Poles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", {})

    def heavy(seed: int = 0) -> TaskDistribution:
        """Poles under heavy gravity.

        More words.
        """
        return poles(seed=seed, name="heavy")

    registry.register_tasks("heavy", heavy)
    registry.register_tasks("also", lambda: poles(seed=1))
    assert registry.list_tasks() == ["also", "heavy"]
    assert registry.describe_tasks() == {"also": "", "heavy": "Poles under heavy gravity."}
    assert registry.make_tasks("heavy", seed=3).seed == 3
    with pytest.raises(UsageError, match="unknown task family 'heavi': choose from also, heavy; did you mean 'heavy'"):
        registry.make_tasks("heavi")
    with pytest.raises(UsageError, match="'heavy' is registered already"):
        registry.register_tasks("heavy", heavy)


def test_what_is_no_name_or_no_function_is_one_line(poles: Poles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", {})
    with pytest.raises(UsageError, match="'poles' is registered with a function that makes it, got <metarl"):
        registry.register_tasks("poles", poles())  # type: ignore[arg-type]
    for wrong in (poles, poles(), None):
        with pytest.raises(UsageError, match=r"make_tasks takes the name of a task family, or 'file\.py:function' as"):
            registry.make_tasks(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"'own:tasks' is no task family: .* named 'file\.py:function', with the \.py"):
        registry.make_tasks("own:tasks")


def test_a_name_in_capitals_stands_for_many(poles: Poles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", {})
    registry.register_tasks("poles-WEIGHT", lambda weight, seed=0: poles(name=f"poles-{weight}", seed=seed))
    registry.register_tasks("poles", poles)
    assert registry.list_tasks() == ["poles", "poles-WEIGHT"]
    assert registry.make_tasks("poles-very-heavy", seed=3).name == "poles-very-heavy"
    assert registry.make_tasks("poles-light", seed=3).seed == 3
    with pytest.raises(UsageError, match="unknown task family 'pole-light': choose from poles, poles-WEIGHT"):
        registry.make_tasks("pole-light")
    with pytest.raises(UsageError, match="poles-WEIGHT stands for a family for every WEIGHT: put the name of one"):
        registry.make_tasks("poles-WEIGHT")
    with pytest.raises(UsageError, match="option of 'poles-light' 'sed'"):
        registry.make_tasks("poles-light", sed=3)


def test_a_name_in_capitals_is_a_pattern_only_where_the_factory_has_that_parameter(
    poles: Poles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", {})
    registry.register_tasks("poles-ON-MARS", lambda seed=0: poles(name="mars", seed=seed))
    registry.register_tasks("poles-WEIGHT", lambda weight: poles(name=weight))
    registry.register_tasks("poles-light", lambda: poles(name="registered itself"))
    assert registry.make_tasks("poles-ON-MARS", seed=3).name == "mars"
    assert registry.make_tasks("poles-light").name == "registered itself"
    assert registry.make_tasks("poles-heavy").name == "heavy"
    assert registry.make_tasks("poles-ON-EARTH").name == "ON-EARTH"


def test_options_of_a_factory_that_takes_all_or_none(poles: Poles, monkeypatch: pytest.MonkeyPatch) -> None:
    single = poles()
    monkeypatch.setattr(registry, "_FACTORIES", {})
    registry.register_tasks("all", poles)
    registry.register_tasks("none", lambda: single)
    assert registry.make_tasks("all", seed=3, num_train=4).train == poles(seed=3, num_train=4).train
    with pytest.raises(UsageError, match="none takes no options, got 'seed': give its function a parameter"):
        registry.make_tasks("none", seed=3)


def test_an_own_family_is_named_by_file_and_function(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "import metarl\n"
        "def tasks(num_train=3):\n"
        "    base = metarl.make_tasks('bandit', num_train=num_train, num_test=2)\n"
        "    return base\n"
    )
    assert len(registry.make_tasks(f"{path}:tasks").train) == 3
    assert len(registry.make_tasks(f"{path}:tasks", num_train=5).train) == 5
    with pytest.raises(UsageError, match=r"function .*'nothing': choose from .*tasks"):
        registry.make_tasks(f"{path}:nothing")
    with pytest.raises(UsageError, match=r"function .*'': choose from .*tasks"):
        registry.make_tasks(str(path))
    path.write_text("NUMBER = 3\n")
    with pytest.raises(UsageError, match=r"own\.py defines no function: "):
        registry.make_tasks(f"{path}:tasks")
    path.write_text("def tasks():\n    return 3\n")
    with pytest.raises(UsageError, match="must return a metarl"):
        registry.make_tasks(f"{path}:tasks")
    with pytest.raises(UsageError, match="no file"):
        registry.make_tasks(f"{tmp_path}/absent.py:tasks")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_this_name\n", r"own\.py raised ModuleNotFoundError: .* \(own\.py:1 in <module>\)$"),
        ("def tasks(:\n", r"own\.py raised SyntaxError: .* \(own\.py, line 1\)$"),
        ("def tasks():\n    return {}['g']\n", r"own\.py:tasks raised KeyError: 'g' \(own\.py:2 in tasks\)$"),
    ],
)
def test_what_an_own_file_raises_is_one_line_with_its_place(tmp_path, text, said):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UsageError, match=said) as error:
        registry.make_tasks(f"{tmp_path}/own.py:tasks")
    assert "\n" not in str(error.value)


def test_an_own_file_is_ordinary_python(tmp_path):
    """It has dataclasses, which look their module up, and imports the file beside it."""
    (tmp_path / "beside_own_tasks.py").write_text("NUMBER = 4\n")
    path = tmp_path / "own.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import metarl\n"
        "from beside_own_tasks import NUMBER\n"
        "@dataclass\n"
        "class Size:\n"
        "    number: int = NUMBER\n"
        "def tasks():\n"
        "    return metarl.make_tasks('bandit', num_train=Size().number, num_test=2)\n"
        "def sized(number, *, scale, **rest):\n"
        "    return tasks()\n"
    )
    assert len(registry.make_tasks(f"{path}:tasks").train) == 4
    with pytest.raises(UsageError, match=r"own\.py:sized needs number, scale: give them as options, or defaults"):
        registry.make_tasks(f"{path}:sized")
    with pytest.raises(UsageError, match=r"own\.py:sized needs scale: "):
        registry.make_tasks(f"{path}:sized", number=3)
    assert len(registry.make_tasks(f"{path}:sized", number=3, scale=1.0).train) == 4


OWN_DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass
import gymnasium, metarl

class Pole(gymnasium.Wrapper):
    pass

def tasks(num_workers=0):
    @dataclass
    class Planet:
        gravity: float

    def make_env():
        return Pole(gymnasium.make("CartPole-v1"))

    both = [{"gravity": Planet(gravity).gravity} for gravity in (3.7, 9.8)]
    return metarl.TaskDistribution(
        make_env, train=both, test=both, apply=lambda env, task: None, max_episode_steps=10, num_workers=num_workers
    )
"""


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_own_function_may_define_a_dataclass_and_its_worlds_travel_to_workers(tmp_path, num_workers):
    (tmp_path / "own_late.py").write_text(OWN_DATACLASS)
    distribution = registry.make_tasks(f"{tmp_path}/own_late.py:tasks", num_workers=num_workers)
    assert [task["gravity"] for task in distribution.train] == [3.7, 9.8]
    env = distribution.make_env(distribution.train)
    assert env.reset()[0].shape == (2, 4)
    env.close()


def test_the_sum_of_an_own_file_follows_what_is_in_it(tmp_path):
    path = tmp_path / "own.py"
    sums = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        path.write_text(text)
        sums.append(registry.source_sum(f"{path}:tasks"))
    assert sums[0] == sums[2] != sums[1]
    assert registry.source_sum("halfcheetah-vel") is None


def test_an_unknown_option_of_a_family_names_the_known_ones():
    with pytest.raises(UsageError, match=r"option of 'bandit' 'num_trian': .*did you mean 'num_train'"):
        registry.make_tasks("bandit", num_trian=3)
