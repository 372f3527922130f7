"""Ctrl-C waits while native modules are loaded, and is not forgotten."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from kdzoo.export.interrupts import interrupted_later


@pytest.fixture
def heard() -> Iterator[None]:
    """As at a terminal; a job in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_counts_when_the_modules_are_loaded() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt):
        with interrupted_later():
            steps.append("begun")
            signal.raise_signal(signal.SIGINT)
            steps.append("loaded")
        steps.append("went on")
    assert steps == ["begun", "loaded"]


@pytest.mark.usefixtures("heard")
def test_without_ctrl_c_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupted_later():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_where_it_is_ignored_it_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupted_later():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_in_another_thread_signals_are_left_alone() -> None:
    found = []

    def load() -> None:
        with interrupted_later():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]
