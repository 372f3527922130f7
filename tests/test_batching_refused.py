"""The queue is bounded, whoever comes too late is told, and so is a runtime that fails or hangs."""

from __future__ import annotations

import asyncio

import pytest

from kdzoo.serve.refusal import Reason, Refusal
from kdzoo.tests.echo_session import Echo, batcher, block, images, row, run


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
