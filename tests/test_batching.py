"""The queue keeps the order, loses nothing, and answers nothing twice."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from kdzoo.serve.refusal import Reason, Refusal
from kdzoo.tests.echo_session import LARGEST, Echo, batcher, block, images, row, run


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
