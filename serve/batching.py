"""Requests wait in one queue, gather into batches, and are computed by threads; answers go back to the event loop. Torch-free.

Every method but the work of the threads belongs to the event loop. A request is never reordered, lost, or answered twice; one that
was cancelled or whose time is over leaves the queue, and one that is being computed then is thrown away.

Shapes: `N` images, `H` `W` space, `C` channels, `K` classes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .refusal import Reason, Refusal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..export.runtime import Session
    from .counters import Row

    Outputs = dict[str, NDArray[Any]]

STUCK = 60.0  # seconds; a call that takes longer does not come back


class Job:
    """A request on its way: `num` images, and the future of their outputs."""

    __slots__ = ("enqueued", "future", "images", "num", "queued", "timer")

    def __init__(self, images: NDArray[Any], future: asyncio.Future[Outputs]) -> None:
        self.images, self.num, self.future = images, len(images), future
        self.enqueued = time.perf_counter_ns()
        self.timer: asyncio.TimerHandle | None = None
        self.queued = True


class Batcher:
    """A thread for each of `sessions`, which may all be the same one where it takes several calls at once.

    Args:
        batch: smallest and largest that is computed; a smaller one is filled up.
        max_wait: seconds that a request waits for others, where a batch is not full.
        bound: images that may wait; beyond it requests are refused.
        on_failure: told, in the event loop, what the runtime raised.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        *,
        batch: tuple[int, int],
        row: Row,
        max_wait: float = 0.0,
        bound: int = 256,
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.loop, self.sessions, self.row = asyncio.get_running_loop(), list(sessions), row
        self.smallest, self.largest, self.max_wait, self.bound, self.on_failure = *batch, max_wait, bound, on_failure
        self.jobs: deque[Job] = deque()
        self.waiting = 0  # images in the queue
        self.coming = 0  # requests whose task has not begun
        self.closing = False
        self.wake = threading.Condition()
        self.began: list[float | None] = [None] * len(self.sessions)  # of the call that each thread is in
        # A runtime that hangs must not keep the process from ending.
        self.threads = [
            threading.Thread(target=self._work, args=(number, session), name=f"compute-{number}", daemon=True)
            for number, session in enumerate(self.sessions)
        ]
        for thread in self.threads:
            thread.start()

    def submit(self, images: NDArray[Any], timeout: float | None = None) -> asyncio.Future[Outputs]:
        """The outputs of `images`, by name, once they are computed. Cancel the future, and they leave the queue.

        Args:
            timeout: seconds after which the answer is of no use any more.

        Raises:
            Refusal: BUSY, the queue is full or about to be closed. The future's own: LATE, or FAILED where the runtime failed.
        """
        if self.closing:
            raise Refusal(Reason.BUSY, "this server is about to stop")
        if self.waiting + len(images) > self.bound and self.waiting:
            self.row.add("refused")
            raise self.full()
        job = Job(images, self.loop.create_future())
        if timeout is not None:
            job.timer = self.loop.call_later(timeout, self._late, job, timeout)
        job.future.add_done_callback(lambda future: self._leave(job))
        with self.wake:
            self.jobs.append(job)
            self.waiting += job.num
            self.row.set("waiting", self.waiting)
            self.wake.notify()
        return job.future

    def full(self) -> Refusal:
        return Refusal(Reason.BUSY, f"{self.waiting} images are waiting already; the queue takes {self.bound}")

    def longest_call(self) -> float:
        """Seconds since the oldest call began that has not come back."""
        now = time.monotonic()
        return max((now - began for began in self.began if began is not None), default=0.0)

    async def close(self) -> None:
        """Answer what waits, then let the threads end."""
        with self.wake:
            self.closing = True
            self.wake.notify_all()
        for thread in self.threads:
            await asyncio.to_thread(thread.join, STUCK)

    def _leave(self, job: Job) -> None:
        """Its future is done: it was answered, or it was cancelled or too late and may still be in the queue."""
        if job.timer is not None:
            job.timer.cancel()
        if job.future.cancelled():
            self.row.add("cancelled")
        if not job.queued:
            return
        with self.wake:
            if job.queued:  # no thread took it in the meantime
                self.jobs.remove(job)
                self.waiting -= job.num
                self.row.set("waiting", self.waiting)

    def _late(self, job: Job, timeout: float) -> None:
        if not job.future.done():
            self.row.add("late")
            job.future.set_exception(Refusal(Reason.LATE, f"no answer within {1000 * timeout:.0f} ms"))

    def _take(self) -> list[Job]:
        """The next batch, in the order of the queue: an equal share for every thread, and what one request asks for as a whole."""
        share = min(self.largest, -(-self.waiting // len(self.threads)))
        taken = [self.jobs.popleft()]
        num = taken[0].num
        while self.jobs and num + self.jobs[0].num <= share:
            taken.append(self.jobs.popleft())
            num += taken[-1].num
        self.waiting -= num
        self.row.set("waiting", self.waiting)
        for job in taken:
            job.queued = False
        return taken

    def _gather(self) -> None:
        """Wait, with the lock held, until a batch is full or the first request has waited long enough."""
        while self.max_wait and self.jobs and self.waiting < self.largest and not self.closing:
            left = self.max_wait - (time.perf_counter_ns() - self.jobs[0].enqueued) / 1e9
            if left <= 0:
                return
            self.wake.wait(left)

    def _work(self, number: int, session: Session) -> None:
        while True:
            with self.wake:
                while not self.jobs:
                    if self.closing:
                        return
                    self.wake.wait()
                self._gather()
                if not self.jobs:
                    continue
                batch = self._take()
            taken = time.perf_counter_ns()
            self.began[number] = time.monotonic()
            outputs, error, started = self._compute(session, batch)
            ended = time.perf_counter_ns()
            self.began[number] = None
            self.loop.call_soon_threadsafe(self._deliver, batch, outputs, error, taken, started, ended)

    def _compute(self, session: Session, batch: list[Job]) -> tuple[Outputs, Exception | None, int]:
        """The outputs of all images of a batch; how many there are is told by the jobs. When the runtime was called, in ns."""
        import numpy as np

        started = time.perf_counter_ns()
        try:
            images = batch[0].images if len(batch) == 1 else np.concatenate([job.images for job in batch])
            if len(images) < self.smallest:
                images = np.resize(images, (self.smallest, *images.shape[1:]))
            started = time.perf_counter_ns()
            return session.everything(images), None, started
        except Exception as error:  # each runtime has its own; whatever it is, those who wait are told
            return {}, error, started

    def _deliver(self, batch: list[Job], outputs: Outputs, error: Exception | None, taken: int, started: int, ended: int) -> None:
        row, size, place = self.row, sum(job.num for job in batch), 0
        now = time.perf_counter_ns()
        if error is None:
            row.executed(size, ended - started)
            row.add("input_ns", started - taken)
            row.add("output_ns", now - ended)
            row.set("last_ms", int(time.time() * 1000))
        row.set("waiting", self.waiting)
        for job in batch:
            row.add("queue_ns", taken - job.enqueued)
            if not job.future.done() and error is None:
                job.future.set_result({name: array[place : place + job.num] for name, array in outputs.items()})
            elif not job.future.done():
                job.future.set_exception(Refusal(Reason.FAILED, "the runtime failed on these images; the server's log says more"))
            place += job.num
        if error is not None:
            self.on_failure(error)
