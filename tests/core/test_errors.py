"""What a user reads: one line, with what is allowed."""

from __future__ import annotations

from metarl.core.errors import UsageError, missing_extra, unknown_name


def test_an_unknown_name_lists_the_known_ones_sorted_and_the_nearest():
    error = unknown_name("method", "gruu", ["lstm", "gru"])
    assert isinstance(error, UsageError)
    assert str(error) == "unknown method 'gruu': choose from gru, lstm; did you mean 'gru'?"


def test_a_name_that_is_near_to_nothing_gets_no_hint():
    assert str(unknown_name("method", "xyz", ["gru", "lstm"])) == "unknown method 'xyz': choose from gru, lstm"


def test_a_missing_package_comes_with_the_line_that_installs_it():
    error = missing_extra("envpool", "benchmarks")
    assert isinstance(error, UsageError)
    assert "envpool is not installed" in str(error)
    assert "pip install 'metarl-agent-framework[benchmarks]'" in str(error)


def test_usage_errors_are_value_errors():
    assert issubclass(UsageError, ValueError)
