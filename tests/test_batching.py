"""The queue keeps the order, loses nothing, answers nothing twice; it is bounded, and a runtime that fails or hangs is told."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from kdzoo.export.runtime import RanOn, Session
from kdzoo.serve.batching import Batcher
from kdzoo.serve.counters import Counters
from kdzoo.serve.refusal import Reason, Refusal

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


@pytest.mark.parametrize("seed", range(6))
def test_every_request_has_its_own_answer_whatever_else_is_cancelled_or_late(seed: int) -> None:
    draw, session, counters = random.Random(seed), Echo(), row()

    async def body() -> None:
        threads, bound = draw.choice([1, 2, 4]), draw.choice([5, 40])
        queue = batcher(session, threads=threads, counters=counters, bound=bound, max_wait=draw.choice([0.0, 0.002]))
        asked, refused, told = [], 0, list[int]()
        for number in range(300):
            own = images(*(1000 * number + k for k in range(draw.randint(1, LARGEST))))
            try:
                future = queue.submit(own, draw.choice([None, None, 0.0005, 5.0]))
            except Refusal as refusal:
                assert refusal.reason is Reason.BUSY
                refused += 1
            else:
                future.add_done_callback(lambda future, number=number: told.append(number))
                asked.append((number, own, future))
                if draw.random() < 0.15:
                    asyncio.get_running_loop().call_later(draw.random() * 0.003, future.cancel)
            assert queue.waiting <= max(bound, LARGEST)
            if draw.random() < 0.5:
                await asyncio.sleep(draw.random() * 0.002)
        await queue.close()
        await asyncio.wait([future for _, _, future in asked], timeout=10)
        ends = {"answered": 0, "late": 0, "cancelled": 0}
        for number, own, future in asked:
            if future.cancelled():
                ends["cancelled"] += 1
            elif future.exception() is not None:
                assert isinstance(error := future.exception(), Refusal) and error.reason is Reason.LATE
                ends["late"] += 1
            else:
                assert np.array_equal(future.result()["logits"], own * 2), f"request {number} has an answer of another one"
                assert future.result()["sum"].shape == (len(own),)
                ends["answered"] += 1
        total = counters.total("m")
        assert sorted(told) == [number for number, _, _ in asked], "a request was told twice, or never"
        assert (total["late"], total["cancelled"], total["refused"]) == (ends["late"], ends["cancelled"], refused)
        assert queue.waiting == 0 and total["waiting"] == 0 and not queue.jobs
        assert ends["answered"] > 50

    run(body)
    assert max(map(len, session.batches)) <= LARGEST
    assert sum(map(len, session.batches)) == counters.total("m")["images"]


def test_requests_are_computed_in_the_order_in_which_they_came() -> None:
    session = Echo()

    async def body() -> None:
        queue = batcher(session)
        await block(queue, session)
        futures = [queue.submit(images(*range(start, start + 3))) for start in range(0, 30, 3)]
        session.gate.set()
        await asyncio.gather(*futures)
        await queue.close()

    run(body)
    assert session.batches[1:] == [[*range(6)], [*range(6, 12)], [*range(12, 18)], [*range(18, 24)], [*range(24, 30)]]


def test_a_batch_below_the_smallest_is_filled_up_and_nobody_sees_it() -> None:
    session = Echo()

    async def body() -> None:
        queue = batcher(session, batch=(4, LARGEST))
        assert (await queue.submit(images(7)))["logits"].tolist() == [[14]]
        await queue.close()

    run(body)
    assert [len(batch) for batch in session.batches] == [4]


def test_what_waits_is_shared_between_the_threads() -> None:
    session = Echo()

    async def body() -> None:
        queue = batcher(session, threads=2)
        await block(queue, session)
        futures = [queue.submit(images(number)) for number in range(6)]
        session.gate.set()
        await asyncio.gather(*futures)
        await queue.close()

    run(body)
    assert max(len(batch) for batch in session.batches[2:]) <= 3, "one thread took what two could compute at the same time"


def test_requests_gather_until_the_batch_is_full_or_the_first_has_waited_long_enough() -> None:
    session = Echo()

    async def body() -> None:
        queue = batcher(session, max_wait=5.0)
        futures = [queue.submit(images(number)) for number in range(LARGEST)]
        await asyncio.wait_for(asyncio.gather(*futures), 4)  # full: nobody waits for five seconds
        queue.max_wait = 0.05
        began = asyncio.get_running_loop().time()
        first = queue.submit(images(1))
        await asyncio.sleep(0.02)
        await asyncio.gather(first, queue.submit(images(2)))
        assert asyncio.get_running_loop().time() - began >= 0.045
        await queue.close()

    run(body)
    assert session.batches == [list(range(LARGEST)), [1, 2]]


def test_threads_that_gather_leave_nothing_to_one_that_sleeps() -> None:
    session = Echo()

    async def body() -> None:
        queue = batcher(session, threads=2, max_wait=0.03)
        session.gate.clear()
        futures = [queue.submit(images(number)) for number in range(4)]
        await session.is_entered()
        await session.is_entered()  # the other half, while the first is still being computed
        session.gate.set()
        await asyncio.gather(*futures)
        await queue.close()

    run(body)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    session = Echo()

    async def body() -> None:
        counters = row()
        queue = batcher(session, counters=counters, bound=4)
        blocking = await block(queue, session)
        waiting = [queue.submit(images(number)) for number in range(4)]
        with pytest.raises(Refusal, match="4 images are waiting") as caught:
            queue.submit(images(9))
        assert caught.value.reason is Reason.BUSY and caught.value.reason.later and caught.value.retry_after >= 1
        assert counters.total("m")["refused"] == 1
        waiting[1].cancel()
        await asyncio.sleep(0)
        again = queue.submit(images(9))  # who went away left a place
        session.gate.set()
        assert (await again)["logits"].tolist() == [[18]]
        await asyncio.gather(*blocking, waiting[0], *waiting[2:])
        await queue.close()

    run(body)
    assert 1 not in [number for batch in session.batches for number in batch], "a cancelled request was computed"


def test_one_request_larger_than_an_empty_queue_is_taken() -> None:
    session = Echo()

    async def body() -> None:
        queue = batcher(session, bound=2)
        assert len((await queue.submit(images(1, 2, 3)))["logits"]) == 3
        await queue.close()

    run(body)


def test_whoever_is_late_is_told_and_leaves_the_queue() -> None:
    session = Echo()

    async def body() -> None:
        counters = row()
        queue = batcher(session, counters=counters)
        blocking = await block(queue, session)
        late = queue.submit(images(5), timeout=0.01)
        with pytest.raises(Refusal, match="no answer within 10 ms") as caught:
            await late
        assert caught.value.reason is Reason.LATE and queue.waiting == 0
        being_computed = blocking[0]
        session.gate.set()
        await being_computed
        await queue.close()
        assert (counters.total("m")["late"], counters.total("m")["images"]) == (1, 1)

    run(body)


def test_an_answer_that_comes_too_late_is_thrown_away() -> None:
    session = Echo()

    async def body() -> None:
        queue = batcher(session)
        session.gate.clear()
        future = queue.submit(images(5), timeout=0.02)
        with pytest.raises(Refusal, match="no answer within"):
            await future
        session.gate.set()
        await queue.close()
        assert isinstance(future.exception(), Refusal)

    run(body)


def test_a_runtime_that_fails_fails_those_in_the_batch_and_is_told_once() -> None:
    session, told = Echo(), list[Exception]()

    async def body() -> None:
        queue = batcher(session, on_failure=told.append)
        blocking = await block(queue, session)
        both = [queue.submit(images(number)) for number in range(2)]
        session.gate.set()
        await blocking[0]
        await asyncio.gather(*both)
        session.error = RuntimeError("/secret/path: out of memory")
        with pytest.raises(Refusal, match="the runtime failed") as caught:
            await queue.submit(images(3))
        assert caught.value.reason is Reason.FAILED and "secret" not in caught.value.what
        session.error = None
        assert (await queue.submit(images(4)))["logits"].tolist() == [[8]]
        await queue.close()

    run(body)
    assert [str(error) for error in told] == ["/secret/path: out of memory"]


def test_a_call_that_does_not_come_back_is_seen() -> None:
    session = Echo()

    async def body() -> None:
        queue = batcher(session)
        assert queue.longest_call() == 0
        blocking = await block(queue, session)
        await asyncio.sleep(0.03)
        assert queue.longest_call() >= 0.03
        session.gate.set()
        await blocking[0]
        assert queue.longest_call() == 0
        await queue.close()

    run(body)


def test_closing_answers_what_waits_and_takes_nothing_new() -> None:
    session = Echo()

    async def body() -> None:
        queue = batcher(session, max_wait=5.0)
        session.gate.clear()
        waiting = [queue.submit(images(number)) for number in range(20)]
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="about to stop"):
            queue.submit(images(99))
        session.gate.set()
        await closing
        answers = await asyncio.gather(*waiting)
        assert [answer["logits"].tolist() for answer in answers] == [[[2 * number]] for number in range(20)]
        assert not any(thread.is_alive() for thread in queue.threads)

    run(body)


def test_the_counters_tell_how_batches_were_made() -> None:
    session, counters = Echo(), row()

    async def body() -> None:
        queue = batcher(session, counters=counters)
        blocking = await block(queue, session)
        futures = [queue.submit(images(number, number)) for number in range(3)]
        assert counters.total("m")["waiting"] == 6
        session.gate.set()
        await asyncio.gather(*blocking, *futures)
        await queue.close()

    run(body)
    total = counters.total("m")
    assert {size: count for size, (count, _) in total.batches.items()} == {1: 1, 6: 1}
    assert (total["executions"], total["images"], total["waiting"]) == (2, 7, 0)
    assert total["infer_ns"] > 0 and total["queue_ns"] > 0 and total["last_ms"] > 1_600_000_000_000
