"""The short way of tensors: it answers as the long way does, and leaves to that whatever is out of the ordinary."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdzoo.export.package import MANIFEST
from kdzoo.serve import connection as connection_module
from kdzoo.serve import express
from kdzoo.serve.app import App
from kdzoo.serve.settings import Batching, Bounds
from kdzoo.tests.memory_connection import Talk, request
from kdzoo.tests.serve_in_process import with_app
from kdzoo.tests.serving import ENTRY, MODEL, package_in, small_models

INFER = f"/v2/models/{MODEL}/infer"
OTHER = f"{ENTRY}-2"
RAW = "Inference-Header-Content-Length: 0"
Body = Callable[[App], Awaitable[None]]


@pytest.fixture(scope="module")
def models(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return small_models(once)


@pytest.fixture(scope="module")
def image(models: Path) -> bytes:
    """The raw bytes of one golden image."""
    return package_in(models, "1").golden()[0][0].tobytes()


def tensors(image: bytes, *headers: str, name: str = "image", shape: tuple[int, ...] = (1, 16, 16, 3), **document: Any) -> bytes:
    """A request in the protocol, with raw bytes; `document` goes beside the inputs."""
    given = {"name": name, "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": len(image)}}
    head = json.dumps({"inputs": [given], **document}).encode()
    return request(INFER, head + image, f"Inference-Header-Content-Length: {len(head)}", *headers)


def numbers(image: bytes) -> bytes:
    given = {"name": "image", "shape": (1, 16, 16, 3), "datatype": "UINT8", "data": list(image)}
    return request(INFER, json.dumps({"inputs": [given]}).encode())


REQUESTS: dict[str, Callable[[bytes], bytes]] = {
    "raw bytes": lambda image: request(INFER, image, RAW),
    "numbers": numbers,
    "binary": lambda image: tensors(image, outputs=[{"name": "logits", "parameters": {"binary_data": True}}]),
    "binary in, numbers out": tensors,
    "all binary": lambda image: tensors(image, parameters={"binary_data_output": True}),
    "classes and an id": lambda image: tensors(image, id="7", outputs=[{"name": "logits", "parameters": {"classification": 2}}]),
    "a packed answer": lambda image: tensors(image * 40, "Accept-Encoding: gzip", shape=(40, 16, 16, 3)),
    "no time": lambda image: tensors(image, "Kdzoo-Timeout-Ms: 20000"),
    "a wrong name": lambda image: tensors(image, name="picture"),
    "a wrong shape": lambda image: tensors(image, shape=(1, 3, 16, 16)),
    "a word for a truth value": lambda image: tensors(image, parameters={"binary_data_output": "yes"}),
    "too few bytes": lambda image: request(INFER, image[:-1], RAW),
    "no JSON": lambda image: request(INFER, image),
    "a wrong length of JSON": lambda image: request(INFER, image, "Inference-Header-Content-Length: 99999"),
    "no body": lambda image: request(INFER, b""),
}
LONG: dict[str, Callable[[bytes], bytes]] = {
    "another path": lambda image: request("/v2/repository/index", b""),
    "a query": lambda image: request(f"{INFER}?branch=2", image, RAW),
    "a preference": lambda image: request(INFER, image, RAW, "Kdzoo-Prefer: latency"),
    "a version": lambda image: request(f"/v2/models/{MODEL}/versions/1/infer", image, RAW),
    "an unknown model": lambda image: request("/v2/models/nobody/infer", image, RAW),
    "a method": lambda image: request(INFER, b"", method="GET"),
    "a packed body": lambda image: request(INFER, image, RAW, "Content-Encoding: identity"),
    "the same header twice": lambda image: request(INFER, image, RAW, "X-Twice: 1", "X-Twice: 2"),
    "a wrong time": lambda image: request(INFER, image, RAW, "Kdzoo-Timeout-Ms: soon"),
    "a head without end": lambda image: request(INFER, image, RAW, f"X-Long: {'x' * express.LONGEST}"),
}


def talk(models: Path, body: Body, **options: Any) -> None:
    with_app(models, body, branches=["1", "2"], **options)


def counts(app: App) -> dict[str, int]:
    """What was counted, but for times."""
    found = app.repository.counters.total(MODEL).counts
    return {name: count for name, count in found.items() if not name.endswith(("_ns", "_ms"))}


@pytest.mark.parametrize("kind", REQUESTS)
def test_the_short_way_answers_and_counts_as_the_long_one(kind: str, models: Path, image: bytes) -> None:
    async def body(app: App) -> None:
        connection, asked = Talk(app), REQUESTS[kind](image)
        before = counts(app)
        first, is_short = await connection.ask(asked)
        once = counts(app)
        assert not is_short and first.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))
        for _ in range(2):
            assert await connection.ask(asked) == (first, True)
        assert {name: 3 * (once[name] - before[name]) for name in once} == {name: counts(app)[name] - before[name] for name in once}
        assert not app.guard.under_way and not app.repository.find(MODEL).users

    talk(models, body)


def test_what_is_known_of_one_image_is_not_taken_for_another(models: Path, image: bytes) -> None:
    async def body(app: App) -> None:
        other = np.random.default_rng(0).integers(0, 256, len(image), np.uint8).tobytes()
        for kind in ("raw bytes", "binary"):
            connection = Talk(app)
            of_image, _ = await connection.ask(REQUESTS[kind](image))
            of_other, is_short = await connection.ask(REQUESTS[kind](other))
            assert is_short and of_other != of_image
            assert await connection.ask(REQUESTS[kind](image)) == (of_image, True)

    talk(models, body)


def test_json_that_is_nearly_what_came_before_is_read_anew(models: Path, image: bytes) -> None:
    async def body(app: App) -> None:
        connection = Talk(app)
        for number in ("7", "8", "7"):
            for _ in range(2):
                answer, _ = await connection.ask(tensors(image, id=number))
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["id"] == number
        head = tensors(image, id="7").partition(b"\r\n\r\n")[2][: -len(image)]
        for _ in range(2):
            asked = request(INFER, head + image + b"x", f"Inference-Header-Content-Length: {len(head)}")
            answer, _ = await connection.ask(asked)
            assert answer.startswith(b"HTTP/1.1 400 ") and b"unexpected additional input data" in answer

    talk(models, body)


@pytest.mark.parametrize("kind", LONG)
def test_whatever_is_out_of_the_ordinary_goes_the_long_way(kind: str, models: Path, image: bytes) -> None:
    async def body(app: App) -> None:
        connection = Talk(app)
        first, _ = await connection.ask(LONG[kind](image))
        second, is_short = await connection.ask(LONG[kind](image))
        assert not is_short and first == second and not app.express.heads

    talk(models, body)


@pytest.mark.parametrize("ending", ["Connection: close", "Expect: 100-continue"])
def test_a_head_that_says_more_than_the_body_to_come_is_not_known(ending: str, models: Path, image: bytes) -> None:
    async def body(app: App) -> None:
        connection = Talk(app)
        connection.send(request(INFER, image, RAW, ending))
        while b"HTTP/1.1 200 OK" not in connection.memory.written:
            await asyncio.sleep(0.01)
        assert not app.express.heads

    talk(models, body)


def test_lines_that_end_otherwise_are_not_known(models: Path, image: bytes) -> None:
    """Only the parser knows where such a head ends."""

    async def body(app: App) -> None:
        for old, new in ((b"Host: test\r\n", b"Host: test\n"), (b"Host: test", b"Host:\r\n test"), (b"POST", b"\r\nPOST")):
            connection = Talk(app)
            connection.send(request(INFER, image, RAW).replace(old, new, 1))
            assert (await connection.answer()).startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))
        assert not app.express.heads

    talk(models, body)


def test_a_body_may_come_after_its_head_but_not_much_later(models: Path, image: bytes) -> None:
    async def body(app: App) -> None:
        connection, asked = Talk(app), request(INFER, image, RAW)
        head = asked[: -len(image)]
        good, _ = await connection.ask(asked)
        assert await connection.ask(head, image) == (good, True)
        assert await connection.ask(head + image[:5], image[5:9], image[9:]) == (good, True)
        assert await connection.ask(head[:20], head[20:] + image) == (good, False)
        cycle = connection.connection.cycle
        connection.send(head)
        for piece in (image[:5], image[5:9]):
            connection.send(piece)
            await asyncio.sleep(0.7 * connection_module.TOGETHER)
        assert connection.connection.cycle is not cycle, "who dawdles goes the long way, which is patient and knows when to end"
        connection.send(image[9:])
        assert await connection.answer() == good
        connection.send(head, image[:5])
        connection.connection.shutdown()
        connection.send(image[5:])
        assert b"connection: close" in await connection.answer()

    talk(models, body)


def test_a_long_body_that_comes_in_pieces_goes_the_long_way(models: Path, image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express, "SHORT", len(image) - 1)

    async def body(app: App) -> None:
        connection, asked = Talk(app), request(INFER, image, RAW)
        good, _ = await connection.ask(asked)
        assert await connection.ask(asked[:-5], asked[-5:]) == (good, False)
        assert await connection.ask(asked) == (good, True)

    talk(models, body)


def test_requests_that_come_before_the_answer_are_answered_in_order(models: Path, image: bytes) -> None:
    async def body(app: App) -> None:
        connection, asked, wrong = Talk(app), request(INFER, image, RAW), request(INFER, image + b"x", RAW)
        good, _ = await connection.ask(asked)
        bad, _ = await connection.ask(wrong)
        connection.send(asked + wrong + asked)
        assert [await connection.answer() for _ in range(3)] == [good, bad, good]
        connection.send(asked, wrong, asked[:9])  # the first is under way when the others come
        assert not connection.memory.reads
        connection.send(asked[9:])
        assert [await connection.answer() for _ in range(3)] == [good, bad, good]
        connection.send(asked, asked)
        assert not connection.memory.reads
        assert [await connection.answer() for _ in range(2)] == [good, good]
        assert connection.memory.reads and not connection.memory.written

    talk(models, body)


def test_a_known_head_does_not_overtake_what_went_the_long_way(models: Path, image: bytes, gate: Gate) -> None:
    async def body(app: App) -> None:
        connection, asked, long = Talk(app), request(INFER, image + b"x", RAW), request(INFER, image, RAW, "Kdzoo-Prefer: accuracy")
        bad, _ = await connection.ask(asked)
        good, _ = await connection.ask(long)
        with gate.shut(app):
            connection.send(long)
            await gate.holds()
            connection.send(asked)
            assert not connection.memory.written
        assert [await connection.answer() for _ in range(2)] == [good, bad]

    talk(models, body)


def test_a_head_is_not_taken_for_that_of_the_request_behind_it(models: Path, image: bytes, gate: Gate) -> None:
    async def body(app: App) -> None:
        others = [Talk(app), Talk(app)]
        with gate.shut(app):
            for other in others:
                other.send(request(INFER, image, RAW, "X-Other: 1"))
                await gate.holds()
            connection = Talk(app)
            connection.send(request(INFER, image, RAW) + request(INFER.replace(MODEL, OTHER), image, RAW))
            assert (await connection.answer()).startswith(b"HTTP/1.1 503 ")
            assert (await connection.answer()).startswith(b"HTTP/1.1 200 ")
        assert {head.model for head in app.express.heads.values()} == {MODEL}

    talk(models, body, batching=Batching(max_batch=1, threads=1, bound=1))


def test_a_body_that_looks_like_a_request_is_none(models: Path, image: bytes, gate: Gate) -> None:
    """Not even where it belongs to a request that was refused before it came."""

    async def body(app: App) -> None:
        asked = request(INFER, image, RAW)
        smuggler, others = Talk(app), [Talk(app), Talk(app)]
        await smuggler.ask(asked)
        with gate.shut(app):
            for other in others:
                other.send(asked)
                await gate.holds()
            smuggler.send(request(INFER, asked, "X-Other: 1")[: -len(asked)])
            assert (await smuggler.answer()).startswith(b"HTTP/1.1 503 ")
        for other in others:
            await other.answer()
        smuggler.send(asked)
        await asyncio.sleep(0.05)
        assert not smuggler.memory.written, "the body was answered"
        assert (await smuggler.ask(asked))[1]

    talk(models, body, batching=Batching(max_batch=1, threads=1, bound=1))


def test_of_a_full_queue_the_client_hears_at_once_and_it_is_counted(models: Path, image: bytes, gate: Gate) -> None:
    async def body(app: App) -> None:
        asked = request(INFER, image, RAW)
        one, two, three = Talk(app), Talk(app), Talk(app)
        good, _ = await one.ask(asked)
        with gate.shut(app):
            one.send(asked)
            await gate.holds()
            two.send(asked)
            before = counts(app)
            three.send(asked)
            assert three.memory.written.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1\r\n" in three.memory.written
            after = counts(app)
            assert (after["refused"], after["fail"]) == (before["refused"] + 1, before["fail"] + 1)
        assert await one.answer() == await two.answer() == good

    talk(models, body, batching=Batching(max_batch=1, threads=1, bound=1))


def test_of_too_many_requests_one_client_hears_at_once(models: Path, image: bytes, gate: Gate) -> None:
    async def body(app: App) -> None:
        asked = request(INFER, image, RAW)
        one, two = Talk(app), Talk(app)
        good, _ = await one.ask(asked)
        with gate.shut(app):
            one.send(asked)
            two.send(asked)
            assert two.memory.written.startswith(b"HTTP/1.1 429 ")
        assert await one.answer() == good

    talk(models, body, bounds=Bounds(per_client=1))


def test_what_a_client_asked_for_that_went_away_leaves_the_queue(models: Path, image: bytes, gate: Gate) -> None:
    async def body(app: App) -> None:
        asked = request(INFER, image, RAW)
        one, two = Talk(app), Talk(app)
        await one.ask(asked)
        batcher = app.repository.find(MODEL).batcher
        assert batcher is not None
        with gate.shut(app):
            one.send(asked)
            await gate.holds()
            two.send(asked)
            assert batcher.waiting == 1 and app.guard.under_way == 2
            errors: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
            two.connection.connection_lost(None)
            await asyncio.sleep(0.05)
            assert batcher.waiting == 0 and app.guard.under_way == 1
        await one.answer()
        assert not errors and not two.memory.written and not app.guard.under_way and not app.repository.find(MODEL).users

    talk(models, body, batching=Batching(max_batch=1, threads=1))


def test_a_server_that_stops_answers_what_is_under_way_and_ends_the_connection(models: Path, image: bytes, gate: Gate) -> None:
    async def body(app: App) -> None:
        connection, asked = Talk(app), request(INFER, image, RAW)
        await connection.ask(asked)
        with gate.shut(app):
            connection.send(asked)
            app.guard.stopping = True
            connection.connection.shutdown()
            assert not connection.memory.ended
        answer = await connection.answer()
        assert answer.startswith(b"HTTP/1.1 200 ") and b"connection: close\r\n" in answer and connection.memory.ended == "closed"
        other = Talk(app)
        answer, is_short = await other.ask(asked)
        assert not is_short and answer.startswith(b"HTTP/1.1 503 ")

    talk(models, body)


def test_a_known_head_asks_the_package_that_took_the_place_of_the_old_one(models: Path, image: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    shutil.copytree(models / "1", folder / "1")

    async def body(app: App) -> None:
        connection, asked = Talk(app), REQUESTS["binary"](image)
        good, _ = await connection.ask(asked)
        assert (await connection.ask(asked))[1]
        old = app.repository.find(MODEL)
        manifest = folder / "1" / MANIFEST
        manifest.write_bytes(manifest.read_bytes() + b"\n")
        assert await app.repository.load(MODEL)
        assert app.repository.find(MODEL) is not old
        assert await connection.ask(asked) == (good, True)
        assert app.express.readers[MODEL].model is app.repository.find(MODEL), "what was known of the old one may be wrong now"

    with_app(folder, body)


def test_what_nobody_foresaw_is_logged_and_ends_the_connection(
    models: Path, image: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*arguments: object) -> None:
        raise RuntimeError("a secret")

    async def body(app: App) -> None:
        asked = request(INFER, image, RAW)
        for owner, name in ((app.repository.find(MODEL).batcher, "submit"), (express, "write_response")):
            connection = Talk(app)
            await connection.ask(asked)
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, breaks)
                connection.send(asked)
                await asyncio.sleep(0.05)
            said = connection.memory.written
            assert said.startswith(b"HTTP/1.1 500 ") and b"secret" not in said and connection.memory.ended == "closed"
        assert caplog.text.count("RuntimeError: a secret") == 2 and not app.guard.under_way

    talk(models, body)


def test_a_connection_is_kept_while_it_is_used_and_no_longer(models: Path, image: bytes, gate: Gate) -> None:
    async def body(app: App) -> None:
        connection, asked = Talk(app), request(INFER, image, RAW)
        connection.connection.timeout_keep_alive = 0.3  # type: ignore[assignment]
        await connection.ask(asked)
        for _ in range(5):
            await asyncio.sleep(0.1)
            assert (await connection.ask(asked))[1]
        with gate.shut(app):
            connection.send(asked)
            await asyncio.sleep(0.5)
            assert not connection.memory.ended
        await connection.answer()
        await asyncio.sleep(0.2)
        assert not connection.memory.ended
        await asyncio.sleep(0.3)
        assert connection.memory.ended == "aborted"

    talk(models, body)


def test_no_more_heads_are_kept_than_there_is_room_for(models: Path, image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express, "MOST", 2)

    async def body(app: App) -> None:
        connection = Talk(app)
        for number in (1, 2, 3):
            await connection.ask(request(INFER, image, RAW, f"X-Number: {number}"))
        ways = [(await connection.ask(request(INFER, image, RAW, f"X-Number: {number}")))[1] for number in (3, 2, 1)]
        assert ways == [True, True, False] and len(app.express.heads) == 2

    talk(models, body)


def test_nobody_comes_in_by_the_short_way_without_the_token(models: Path, image: bytes) -> None:
    async def body(app: App) -> None:
        for token, status, ways in ((None, 401, 0), ("wrong", 401, 0), ("right", 200, 1)):
            headers = [RAW, f"Authorization: Bearer {token}"] if token else [RAW]
            for _ in range(2):
                connection = Talk(app)
                answer, is_short = await connection.ask(request(INFER, image, *headers))
                assert answer.startswith(b"HTTP/1.1 %d " % status)
            assert is_short == bool(ways) and len(app.express.heads) == ways

    talk(models, body, bounds=Bounds(token="right"))


class Gate:
    """Holds what is computed."""

    def __init__(self) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()

    @contextmanager
    def shut(self, app: App) -> Iterator[None]:
        session = app.repository.find(MODEL).sessions[0]
        everything = session.everything

        def waits(images: Any) -> Any:
            self.reached.set()
            assert self.opened.wait(20)
            return everything(images)

        session.everything = waits  # type: ignore[method-assign]
        try:
            yield
        finally:
            session.everything = everything  # type: ignore[method-assign]
            self.opened.set()

    async def holds(self) -> None:
        """Once something is computed."""
        assert await asyncio.to_thread(self.reached.wait, 20)


@pytest.fixture
def gate() -> Gate:
    return Gate()
