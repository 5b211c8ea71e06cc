from __future__ import annotations

import errno
import os
import signal

import pytest

from metarl.experiments.interrupt import first_interrupt_asks


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_the_second_stops(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with first_interrupt_asks() as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_where_nobody_reads_any_more_it_asks_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(handle: int, text: bytes) -> None:
        raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(os, "write", gone)
    with first_interrupt_asks() as asked:
        signal.raise_signal(signal.SIGTERM)
        assert asked()
