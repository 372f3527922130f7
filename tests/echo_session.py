"""A session that answers with what it was asked, and a queue over it. Import it as `kdzoo.tests.echo_session`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from kdzoo.export.runtime import RanOn, Session
from kdzoo.serve.batching import Batcher
from kdzoo.serve.counters import Counters

LARGEST = 8


class Echo(Session):
    """Answers with what it was asked, and remembers the batches. While `gate` is closed it does not come back."""

    shareable = True

    def __init__(self) -> None:
        self.ran_on, self.inputs = RanOn("echo", "1", "nowhere", 1), ("image",)
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.batches: list[list[int]] = []
        self.error: Exception | None = None

    def everything(self, inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        self.batches.append(inputs[:, 0].tolist())
        self.entered.release()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return {"logits": inputs * 2, "sum": inputs.sum(axis=1)}

    async def is_entered(self) -> None:
        """Until one more call has come."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=10)


def images(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array([[number] for number in numbers], np.int64)


def row(name: str = "m") -> Counters:
    return Counters([name], LARGEST)


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 30))  # type: ignore[arg-type]


def batcher(session: Session, *, threads: int = 1, counters: Counters | None = None, **options: Any) -> Batcher:
    options = {"batch": (1, LARGEST), **options}
    return Batcher([session] * threads, row=(counters or row()).row("m"), **options)


async def block(queue: Batcher, session: Echo) -> list[asyncio.Future[Any]]:
    """Every thread is busy until the gate opens."""
    session.gate.clear()
    blocking = []
    for number in range(len(queue.threads)):
        blocking.append(queue.submit(images(-1 - number)))
        await session.is_entered()
    return blocking
