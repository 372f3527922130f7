"""What stands before every request: the token, the length of a body, how much one client asks for, and the end of the server."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdzoo.serve.app import App
from kdzoo.serve.body import Body, unpack
from kdzoo.serve.door import Door
from kdzoo.serve.guard import Guard
from kdzoo.serve.refusal import Reason, Refusal
from kdzoo.serve.settings import BODIES, Bounds
from kdzoo.tests.serve_in_process import Answer, ask, with_app
from kdzoo.tests.serving import MODEL, package_in, small_models

INFER = f"/v2/models/{MODEL}/infer"
RAW = {"Inference-Header-Content-Length": "0"}


@pytest.fixture(scope="module")
def models(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return small_models(once)


@pytest.fixture(scope="module")
def image(models: Path) -> bytes:
    """The raw bytes of one golden image."""
    return package_in(models, "1").golden()[0][0].tobytes()


def read(pieces: list[bytes | None], headers: dict[bytes, bytes] | None = None, **bounds: Any) -> bytes:
    """What is made of a body in pieces; None is one that never comes."""
    left = list(pieces)

    async def receive() -> dict[str, Any]:
        piece = left.pop(0)
        if piece is None:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    return asyncio.run(Body(receive, headers or {}, Guard(Bounds(**bounds))).read())


def refused(reason: Reason, words: str, call: Callable[[], object]) -> None:
    with pytest.raises(Refusal, match=words) as caught:
        call()
    assert caught.value.reason is reason


def test_a_body_that_declares_too_much_is_refused_before_a_byte_of_it_is_read(models: Path) -> None:
    async def nothing_is_read() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def body(app: App) -> None:
        length = {"Content-Length": str(10 * 10**9)}
        for path in (INFER, f"/v2/models/{MODEL}/classify", "/v2/repository/index", "/nowhere"):
            answer = await ask(app, "POST", path, headers=length, receive=nothing_is_read)
            assert answer.status == 413 and answer.headers["connection"] == "close", path
            assert "10000000000 bytes" in answer.error

    with_app(models, body, branches=["1"])


def test_a_body_of_unknown_length_is_cut_at_the_limit() -> None:
    assert read([b"1234", b"5678"], max_body=8) == b"12345678"
    refused(Reason.TOO_LARGE, "reads 8", lambda: read([b"1234", b"5678", b"9", None], max_body=8))


def test_a_body_that_does_not_come_is_waited_for_so_long_and_no_longer() -> None:
    refused(Reason.TOO_SLOW, "did not come", lambda: read([None], body_seconds=0.05))
    refused(Reason.TOO_SLOW, "did not come", lambda: read([b"a", b"b", None], body_seconds=0.05))


def test_a_body_that_drips_is_waited_for_as_a_whole() -> None:
    async def drip() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    refused(Reason.TOO_SLOW, "did not come", lambda: asyncio.run(Body(drip, {}, Guard(Bounds(body_seconds=0.1))).read()))


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_packed_bodies_are_unpacked(pack: Callable[[bytes], bytes]) -> None:
    name = b"gzip" if pack is gzip.compress else b"deflate"
    assert read([pack(b"a body")], {b"content-encoding": name}) == b"a body"


def test_a_packed_bomb_is_refused_without_being_unpacked_as_a_whole() -> None:
    bomb = gzip.compress(bytes(50 * 2**20))
    assert len(bomb) < 100_000
    refused(Reason.TOO_LARGE, "reads 1000000", lambda: unpack(bomb, "gzip", 1_000_000))


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (b"no gzip", "gzip", Reason.BAD),
        (gzip.compress(b"a body")[:-3], "gzip", Reason.BAD),
        (gzip.compress(b"a body") + b"more", "gzip", Reason.BAD),
        (b"", "gzip", Reason.BAD),
        (b"a body", "br", Reason.NO_IMAGE),
        (gzip.compress(b"a body"), "gzip, gzip", Reason.NO_IMAGE),
    ],
    ids=["no gzip", "cut off", "followed by more", "empty", "brotli", "packed twice"],
)
def test_a_packed_body_that_is_broken_is_refused(body: bytes, encoding: str, reason: Reason) -> None:
    refused(reason, "body", lambda: unpack(body, encoding, 1000))


def test_only_who_shows_the_token_is_served(models: Path, image: bytes) -> None:
    async def body(app: App) -> None:
        wrong = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "tok en"}, {"Authorization": "Bearer s3cret-and-more"}]
        for path in (INFER, "/v2", "/metrics", "/openapi.json", "/v2/repository/index", "/nowhere"):
            for headers in wrong:
                answer = await ask(app, "POST" if path == INFER else "GET", path, image, {**RAW, **headers})
                assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer", path
                assert "s3cret" not in answer.body.decode()
        shown = {**RAW, "Authorization": "Bearer s3cret"}
        assert (await ask(app, "POST", INFER, image, shown)).status == 200
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert (await ask(app, "GET", path)).status == 200, "an orchestrator has no token"

    with_app(models, body, bounds=Bounds(token="s3cret"), branches=["1"])


def test_one_client_has_so_many_requests_under_way_and_others_are_not_held_up(models: Path, image: bytes) -> None:
    async def body(app: App) -> None:
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def slowly() -> dict[str, Any]:
            arrived.set()
            await go_on.wait()
            return {"type": "http.request", "body": image, "more_body": False}

        first = [asyncio.create_task(ask(app, "POST", INFER, headers=RAW, receive=slowly)) for _ in range(2)]
        await arrived.wait()
        await asyncio.sleep(0)
        third = await ask(app, "POST", INFER, image, RAW)
        assert third.status == 429 and int(third.headers["retry-after"]) >= 1
        assert "1.2.3.4" in third.error
        assert (await ask(app, "POST", INFER, image, RAW, client="5.6.7.8")).status == 200
        assert (await ask(app, "GET", "/v2/health/live")).status == 200, "what costs nothing is not counted"
        go_on.set()
        assert [(await each).status for each in first] == [200, 200]
        assert (await ask(app, "POST", INFER, image, RAW)).status == 200
        assert app.guard.under_way == 0, "someone was not let go"

    with_app(models, body, bounds=Bounds(per_client=2), branches=["1"])


@pytest.mark.parametrize("is_declared", [True, False])
def test_bodies_under_way_take_so_much_memory_in_all_and_no_more(models: Path, image: bytes, is_declared: bool) -> None:
    """Some clients that send as much as they may: whoever comes then is told to come again."""
    limit = len(image)
    piece = {"Content-Length": str(limit), **RAW} if is_declared else RAW

    async def body(app: App) -> None:
        arrived, go_on = 0, asyncio.Event()

        def dawdles() -> Callable[[], Awaitable[dict[str, Any]]]:
            async def receive() -> dict[str, Any]:
                nonlocal arrived
                arrived += 1
                first, receive.asked = not receive.asked, True  # type: ignore[attr-defined]
                if not first:
                    await go_on.wait()
                return {"type": "http.request", "body": image if first else b"", "more_body": first}

            receive.asked = False  # type: ignore[attr-defined]
            return receive

        asked = [asyncio.create_task(ask(app, "POST", INFER, headers=piece, receive=dawdles())) for _ in range(BODIES)]
        while arrived < 2 * BODIES:
            await asyncio.sleep(0.005)
        assert app.guard.held == app.bounds.all_bodies == BODIES * limit
        answer = await ask(app, "POST", INFER, image, piece)
        assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1 and f"{BODIES * limit} bytes" in answer.error
        go_on.set()
        assert {(await each).status for each in asked} == {200}
        assert (await ask(app, "POST", INFER, image, piece)).status == 200 and app.guard.held == 0

    with_app(models, body, bounds=Bounds(max_body=limit), branches=["1"])


def test_what_a_packed_body_unpacks_to_counts_as_well() -> None:
    guard = Guard(Bounds(max_body=1000))
    guard.hold(7500)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": gzip.compress(bytes(900)), "more_body": False}

    body = Body(receive, {b"content-encoding": b"gzip"}, guard)
    refused(Reason.BUSY, "under way already", lambda: asyncio.run(body.read()))
    body.close()
    assert guard.held == 7500


def test_a_server_that_is_about_to_stop_refuses_and_is_not_ready(models: Path, image: bytes) -> None:
    async def body(app: App) -> None:
        app.guard.stopping = True
        answer = await ask(app, "POST", INFER, image, RAW)
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert (await ask(app, "GET", "/v2/health/live")).status == 200
        assert (await ask(app, "GET", "/v2/health/ready")).status == 503

    with_app(models, body, branches=["1"])


def test_who_went_away_is_not_answered_and_is_not_counted_any_more(models: Path, image: bytes) -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def body(app: App) -> None:
        answer: Answer = await ask(app, "POST", INFER, headers=RAW, receive=gone)
        assert answer.status == 0 and app.guard.under_way == 0

    with_app(models, body, branches=["1"])


def test_an_error_of_ours_is_logged_and_tells_the_client_nothing(
    models: Path, image: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(app: App) -> None:
        def broken(*_: Any) -> None:
            raise ZeroDivisionError("in /home/somebody/secret.py")

        app.repository.find = broken  # type: ignore[method-assign]
        answer = await ask(app, "POST", INFER, image, RAW)
        assert answer.status == 500
        assert not any(word in answer.body.decode() for word in ("secret", "Traceback", "ZeroDivision", ".py"))
        assert app.guard.under_way == 0

    with_app(models, body, branches=["1"])
    assert "secret.py" in caplog.text, "the operator learns nothing either"


def door(waiting: int, *, bound: int = 4, per_client: int = 64, **bounds: Any) -> tuple[Door, Any, list[str]]:
    """A door before one model; with its queue and what was counted."""
    counted: list[str] = []
    batcher = SimpleNamespace(
        waiting=waiting, coming=0, bound=bound, row=SimpleNamespace(add=counted.append),
        full=lambda: Refusal(Reason.BUSY, "the queue is full"),
    )  # fmt: skip
    model = SimpleNamespace(ready=True, batcher=batcher)
    repository: Any = SimpleNamespace(served={"m": SimpleNamespace(model=model)})
    return Door(repository, Guard(Bounds(per_client=per_client, **bounds))), batcher, counted


def scope_of(**headers: str) -> dict[str, Any]:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"headers": given, "client": ("1.2.3.4", 1)}


def test_inference_for_a_full_queue_is_refused_at_the_door() -> None:
    at_the_door, _, counted = door(waiting=4)
    refusal = at_the_door.refuses(scope_of(), b"POST", b"/v2/models/m/infer")
    assert refusal is not None and refusal.reason is Reason.BUSY
    assert counted == ["refused", "fail"]


def test_the_door_counts_those_whose_turn_has_not_come() -> None:
    at_the_door, batcher, _ = door(waiting=2)
    entered = []
    for _ in range(2):
        scope = scope_of()
        assert at_the_door.refuses(scope, b"POST", b"/v2/models/m/infer") is None
        at_the_door.enters(scope)
        entered.append(scope)
    assert at_the_door.refuses(scope_of(), b"POST", b"/v2/models/m/classify") is not None, "two wait and two come: it is full"
    assert at_the_door.guard.under_way == 2
    assert [at_the_door.starts(scope) for scope in (*entered, scope_of())] == [True, True, False]
    assert batcher.coming == 0
    assert at_the_door.refuses(scope_of(), b"POST", b"/v2/models/m/infer") is None


def test_the_door_refuses_a_client_that_asks_for_too_much() -> None:
    at_the_door, _, _ = door(waiting=0, per_client=1)
    scope = scope_of()
    assert at_the_door.refuses(scope, b"POST", b"/v2/models/m/infer") is None
    at_the_door.enters(scope)
    refusal = at_the_door.refuses(scope_of(), b"POST", b"/v2/models/m/infer")
    assert refusal is not None and refusal.reason is Reason.TOO_MANY


@pytest.mark.parametrize(
    ("method", "url", "headers"),
    [
        (b"GET", b"/v2/models/m/infer", {}),
        (b"POST", b"/v2/models/other/infer", {}),
        (b"POST", b"/v2/models/m/ready", {}),
        (b"POST", b"/v2/models/m/infer?branch=2", {}),
        (b"POST", b"/v2/models/m/infer", {"kdzoo_prefer": "latency"}),
        (b"POST", b"/v2/models/m/infer", {"content_length": "99999999999"}),
        (b"POST", b"/v2/models/%FF%00/infer", {}),
    ],
)
def test_what_the_door_does_not_know_is_left_to_the_application(method: bytes, url: bytes, headers: dict[str, str]) -> None:
    assert door(waiting=4)[0].refuses(scope_of(**headers), method, url) is None


def test_the_door_tells_nothing_to_who_has_no_token() -> None:
    at_the_door, _, _ = door(waiting=4, token="s3cret")
    assert at_the_door.refuses(scope_of(), b"POST", b"/v2/models/m/infer") is None, "the application asks for the token"
    shown = scope_of(authorization="Bearer s3cret")
    assert at_the_door.refuses(shown, b"POST", b"/v2/models/m/infer") is not None
