"""Ending a run between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignals:
    """Remembers Ctrl-C and SIGTERM, so that the step at hand can end. A second Ctrl-C ends at once; a second SIGTERM does not:
    schedulers send one to every process, and torchrun one more."""

    def __init__(self) -> None:
        self.received: int | None = None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    @contextmanager
    def listen(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
