from __future__ import annotations

from dataclasses import dataclass

import pytest

from metarl.core.errors import UsageError
from metarl.experiments.flags import parse, value_of, without


@dataclass(frozen=True)
class Part:
    """A part."""

    learning_rate: float = 0.1
    """A rate."""
    sizes: tuple[int, ...] = ()
    """Some sizes."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise UsageError(f"learning_rate is above 0, got {self.learning_rate}: " + "a long explanation " * 9)


@dataclass(frozen=True)
class Flags:
    """All."""

    part: Part = Part()
    steps: int | None = None
    """Steps."""
    share: float | None = None
    """A share."""
    quick: bool = False
    """Whether."""


@pytest.mark.parametrize("given", ["--learning-rate 0.5", "--learning_rate 0.5", "--learning_rate=0.5"])
def test_dashes_and_underscores_are_the_same(given: str) -> None:
    assert parse(Flags, given.split(), "run") == Flags(Part(0.5))


def test_values_reach_their_part() -> None:
    parsed = parse(Flags, ["--sizes", "3", "4", "--quick", "--steps", "7"], "run")
    assert parsed == Flags(Part(sizes=(3, 4)), steps=7, quick=True)


def test_what_a_part_refuses_comes_through_word_for_word() -> None:
    with pytest.raises(UsageError) as error:
        parse(Flags, ["--learning-rate", "-1"], "run")
    assert str(error.value) == "learning_rate is above 0, got -1.0: " + "a long explanation " * 9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--steps many", "--steps takes an integer, got 'many'; see metarl run --help"),
        ("--share most", "--share takes a number, got 'most'; see metarl run --help"),
        ("--learning-rate fast", "--learning-rate takes a number, got 'fast'; see metarl run --help"),
        ("--sizes 1 b", "--sizes takes integers, got '1', 'b'; see metarl run --help"),
        ("--sizes", "--sizes needs at least one integer, such as 1"),
        ("--learnin_rate 1", "unknown flag '--learnin_rate': did you mean --learning-rate?; see metarl run --help"),
        ("--zzz", "unknown flag '--zzz'; see metarl run --help"),
        ("stray --quick", "unexpected argument 'stray': no flag before it takes it; see metarl run --help"),
    ],
)
def test_mistakes(given: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(Flags, given.split(), "run")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("given", "value", "rest"),
    [
        ("--a 1 --resume here --b", "here", "--a 1 --b"),
        ("--resume=here --b", "here", "--b"),
        ("--a --resume", "", "--a"),
        ("--resume --epochs 3", "", "--epochs 3"),
        ("--a resume", None, "--a resume"),
    ],
)
def test_a_value_before_all_flags_are_known(given: str, value: str | None, rest: str) -> None:
    assert value_of(given.split(), "resume") == value
    assert without(given.split(), "resume") == rest.split()


def test_underscores_in_a_flag_looked_for() -> None:
    assert value_of(["--env_name", "CartPole-v1"], "env-name") == "CartPole-v1"
