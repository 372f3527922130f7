"""The two kinds of load. Closed: so many clients, each of which sends the next request when the last one is answered. Open:
requests come at a rate, whatever the server does, at times drawn beforehand (Poisson); each has its latency from the time it was
to be sent, so a server that is slow cannot hide it by slowing its clients down (coordinated omission)."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from .connection import Connection, connect
from .tally import CUT, NOT_CONNECTED, TIMED_OUT, Tally

if TYPE_CHECKING:
    from ssl import SSLContext

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds before a connection is tried again
LOOK = 0.25  # seconds between two looks for requests that take too long
MOST_CONNECTIONS = 512  # of an open loop
DRAIN = 10.0  # seconds in which what was to be sent in time may still be answered


@dataclass(frozen=True)
class Goal:
    """Where the requests go, and what they are.

    Attributes:
        name: of the host, as its certificate has it. honour: stay away as long as a refusal asks for. timeout: seconds for an
            answer.
    """

    address: str
    port: int
    tls: SSLContext | None
    name: str
    requests: Sequence[bytes]
    honour: bool = False
    timeout: float = 30.0


class Load(ABC):
    """Sends until the end of the tally's window."""

    def __init__(self, goal: Goal, tally: Tally) -> None:
        self.goal, self.tally, self.requests = goal, tally, cycle(goal.requests)
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.clock, self.over = time.perf_counter, False

    @abstractmethod
    def free(self, connection: Connection) -> None:
        """A connection can take a request."""

    @abstractmethod
    async def play(self) -> None:
        """From now to the end of the window."""

    async def run(self) -> Tally:
        watch = asyncio.ensure_future(self._watch())
        used = asyncio.ensure_future(self._measure_processor())
        try:
            await self.play()
            await used
        finally:
            self.over = True
            for task in (watch, used, *self.tasks):
                task.cancel()
            await asyncio.gather(watch, used, *self.tasks, return_exceptions=True)
            for connection in list(self.connections):
                connection.transport.abort()
            await asyncio.sleep(0)  # they tell that they are lost
        return self.tally

    def answered(self, connection: Connection, status: int) -> None:
        self.tally.answered(connection.began, self.clock(), status)

    def lost(self, connection: Connection, exc: Exception | None) -> None:
        self.connections.discard(connection)
        if self.over:
            return
        if connection.began:
            self.tally.failed(CUT, self.clock(), connection.began)
            connection.began = 0.0
        self.open(connection.retry_after if self.goal.honour else 0.0)

    def open(self, after: float = 0.0) -> None:
        """Another connection, as soon as it can be had."""
        task = asyncio.ensure_future(self._open(after))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _open(self, after: float) -> None:
        await asyncio.sleep(after)
        pause = FIRST_PAUSE
        while not self.over:
            try:
                await connect(self, self.goal.address, self.goal.port, self.goal.tls, self.goal.name)
                return
            except OSError:
                self.tally.failed(NOT_CONNECTED, self.clock())
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def drain(self) -> list[float]:
        """Wait for what is under way; since when those have waited that still have no answer."""
        give_up = self.tally.end + min(self.goal.timeout, DRAIN)
        while (left := self.pending()) and self.clock() < give_up:
            await asyncio.sleep(0.005)
        return left

    def pending(self) -> list[float]:
        return [connection.began for connection in self.connections if connection.began]

    async def _watch(self) -> None:
        """Give up what takes too long."""
        while True:
            await asyncio.sleep(LOOK)
            now = self.clock()
            for connection in list(self.connections):
                if connection.began and now - connection.began > self.goal.timeout:
                    self.tally.failed(TIMED_OUT, now, connection.began)
                    connection.began = 0.0
                    connection.transport.abort()

    async def _measure_processor(self) -> None:
        await asyncio.sleep(self.tally.start - self.clock())
        before = time.process_time()
        await asyncio.sleep(self.tally.end - self.clock())
        self.tally.cpu_seconds = time.process_time() - before


class Closed(Load):
    """`num_clients` connections, none of which is ever idle."""

    def __init__(self, goal: Goal, tally: Tally, num_clients: int) -> None:
        super().__init__(goal, tally)
        self.num_clients = num_clients

    def free(self, connection: Connection) -> None:
        self.connections.add(connection)
        if self.goal.honour and connection.retry_after:
            asyncio.get_running_loop().call_later(connection.retry_after, self._send, connection)
        else:
            self._send(connection)

    def _send(self, connection: Connection) -> None:
        now = self.clock()
        if now < self.tally.end and connection in self.connections:
            connection.send(next(self.requests), now)

    async def play(self) -> None:
        for _ in range(self.num_clients):
            self.open()
        await asyncio.sleep(self.tally.end - self.clock())
        for began in await self.drain():
            self.tally.unanswered(began, self.clock())


class Open(Load):
    """`rate` requests a second; connections are opened as they are needed, `most` of them."""

    def __init__(self, goal: Goal, tally: Tally, rate: float, seed: int = 0, most: int = MOST_CONNECTIONS) -> None:
        super().__init__(goal, tally)
        self.rate, self.seed, self.most = rate, seed, most
        self.times, self.waiting = deque[float](), deque[float]()
        self.idle: list[Connection] = []
        self.num_open = 0

    def free(self, connection: Connection) -> None:
        self.connections.add(connection)
        if self.waiting:
            connection.send(next(self.requests), self.waiting.popleft())
        else:
            self.idle.append(connection)

    def lost(self, connection: Connection, exc: Exception | None) -> None:
        if connection in self.idle:
            self.idle.remove(connection)
        super().lost(connection, exc)

    def pending(self) -> list[float]:
        return [*super().pending(), *self.waiting]

    def due(self) -> None:
        """Send what is to be sent by now."""
        now = self.clock()
        while self.times and self.times[0] <= now:
            intended = self.times.popleft()
            self.tally.sent_late(intended, now)
            if self.idle:
                self.idle.pop().send(next(self.requests), intended)
                continue
            self.waiting.append(intended)
            if self.num_open < self.most:
                self.num_open += 1
                self.open()

    async def play(self) -> None:
        times = arrivals(self.rate, self.clock(), self.tally.end, self.seed)
        self.times.extend(times)
        alarm = Alarm(times, asyncio.get_running_loop(), self.due)
        try:
            await asyncio.sleep(self.tally.end - self.clock())
            left = await self.drain()
        finally:
            alarm.stop()
        for began in left:
            self.tally.unanswered(began, self.clock())


def arrivals(rate: float, begin: float, end: float, seed: int) -> list[float]:
    """Times of a Poisson process: independent of each other, `rate` a second on average."""
    import numpy as np

    draw, found = np.random.default_rng(seed), [begin]
    while found[-1] < end:
        gaps = draw.exponential(1 / rate, max(16, int(rate)))
        found += (found[-1] + np.cumsum(gaps)).tolist()
    return [at for at in found[1:] if at < end]


class Alarm(threading.Thread):
    """Lets `loop` call `ring` at `times`, exact to some ten microseconds; an event loop rounds its timers to milliseconds."""

    def __init__(self, times: Sequence[float], loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        super().__init__(name="alarm", daemon=True)
        self.times, self.loop, self.ring = times, loop, ring
        self.rings = self.is_over = False
        self.start()

    def run(self) -> None:
        for at in self.times:
            while not self.is_over and (left := at - time.perf_counter()) > 0:
                time.sleep(min(left, 0.1))
            if self.is_over:
                return
            if not self.rings:  # else it will see this time, too
                self.rings = True
                self.loop.call_soon_threadsafe(self._call)

    def stop(self) -> None:
        self.is_over = True
        self.join()

    def _call(self) -> None:
        self.rings = False
        self.ring()
