"""`kdzoo.Client` with a server that does harm, or is another's: patience, errors that say what to do, the protocol alone."""

from __future__ import annotations

import asyncio
import json
import time
from email.utils import formatdate
from typing import Any

import numpy as np
import pytest

import kdzoo
from kdzoo.errors import HubError, UnknownName, UsageError
from kdzoo.serve.client import transport
from kdzoo.serve.client.answers import Answer
from kdzoo.serve.client.transport import Failure, Way
from kdzoo.tests.small_server import Asked, in_order, reply, scripted

TRITON = {
    "name": "m",
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 4, 4, 3]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(transport.time, "sleep", slept.append)
    return slept


def triton(asked: Asked) -> bytes | None:
    """A server of the protocol that knows nothing of kdzoo, and answers in plain JSON: class 2, always."""
    if asked.path == "/v2/models/m":
        return reply(document=TRITON)
    if asked.path == "/v2/repository/index":
        return reply(document=[{"name": "m", "state": "READY"}])
    if not asked.path.endswith("/infer"):
        return reply(404, {"error": "not found"})
    document = json.loads(asked.body[: int(asked.headers["inference-header-content-length"])])
    count = document["inputs"][0]["shape"][0]
    output: dict[str, Any] = {"name": "logits", "datatype": "FP32", "shape": [count, 3], "data": [0.0, 0.5, 2.0] * count}
    if "outputs" in document:
        assert document["outputs"] == [{"name": "logits", "parameters": {"classification": 3}}]
        output |= {"datatype": "BYTES", "data": ["2.0:2:blue", "0.5:1:green", "0.0:0:red"] * count}
    return reply(document={"model_name": "m", "outputs": [output]})


def test_a_busy_server_is_asked_again_when_it_says_so(waits: list[float]) -> None:
    busy = reply(503, {"error": "full"}, Retry_After="2")
    with scripted(in_order(busy, reply(429, {"error": "too many"}), reply(document=TRITON))) as server:
        assert kdzoo.Client(server.url, "m").metadata()["name"] == "m"
    assert len(server.asked) == 3
    assert 2.0 <= waits[0] <= 3.0, "it waits as long as it was told to, and a little more"
    assert 0.1 <= waits[1] <= 0.4, "it is not told how long, and waits twice as long as for the first try"


def test_patience_has_an_end(waits: list[float]) -> None:
    with scripted(in_order(reply(503, {"error": "the queue is full"}, Retry_After="1"))) as server:
        with pytest.raises(HubError, match="the queue is full") as raised:
            kdzoo.Client(server.url, "m", retries=2).metadata()
        assert raised.value.exit_code == 5 and len(server.asked) == 3 and len(waits) == 2
    with scripted(in_order(reply(503, {"error": "gone for long"}, Retry_After="3600"))) as server:
        with pytest.raises(HubError, match="gone for long"):
            kdzoo.Client(server.url, "m").metadata()
        assert len(server.asked) == 1, "nobody waits for an hour without being told"


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (reply(400, {"error": "wrong shape"}), UsageError, "wrong shape"),
        (reply(413, {"error": "the body is larger"}), UsageError, "larger"),
        (reply(401, {"error": "this server asks for a token"}), HubError, "asks for a token"),
        (reply(500, {"error": "it broke"}), HubError, "failed.*it broke"),
        (reply(504, {"error": "too late"}), HubError, "too late"),
        (reply(301, Location="http://elsewhere"), UsageError, "http://elsewhere"),
        (reply(body=b"<html>welcome</html>"), HubError, "Open Inference Protocol"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", HubError, "127.0.0.1"),
    ],
)
def test_what_another_try_would_not_help_is_an_error_at_once(
    answer: bytes, error: type[Exception], words: str, waits: list[float]
) -> None:
    with scripted(in_order(answer)) as server, pytest.raises(error, match=words):
        kdzoo.Client(server.url, "m", retries=0).metadata()
    assert len(server.asked) == 1 and not waits


def test_a_cut_connection_is_opened_again(waits: list[float]) -> None:
    half = reply(document=TRITON)[:-20]

    def script(asked: Asked) -> bytes | None:
        return None if asked.number == 0 else reply(document=TRITON)

    with scripted(script) as server:
        assert kdzoo.Client(server.url, "m").metadata()["name"] == "m"
        assert len(server.asked) == 2
    with scripted(lambda asked: half) as server, pytest.raises(HubError, match="said nothing"):
        kdzoo.Client(server.url, "m", retries=1, timeout=0.3).metadata()


def test_silence_is_an_error_after_the_timeout_and_not_tried_again() -> None:
    def script(asked: Asked) -> bytes | None:
        time.sleep(1.0)
        return None

    with scripted(script) as server:
        began = time.perf_counter()
        with pytest.raises(HubError, match=r"said nothing for 0\.2 seconds"):
            kdzoo.Client(server.url, "m", timeout=0.2).metadata()
        assert time.perf_counter() - began < 0.9 and len(server.asked) == 1
        assert server.asked[0].headers["kdzoo-timeout-ms"] == "200", "the server need not compute what nobody waits for"


def test_nobody_there_is_said_plainly(waits: list[float]) -> None:
    nobody = kdzoo.Client("http://127.0.0.1:1")
    assert nobody.ready() is False
    with pytest.raises(HubError, match="cannot be reached") as raised:
        nobody.models()
    assert "kdzoo serve" in raised.value.hint and len(waits) == 3


def test_a_server_of_the_protocol_alone_will_do() -> None:
    images = np.zeros((20, 4, 4, 3), np.uint8)
    with scripted(triton) as server:
        client = kdzoo.Client(server.url)
        assert [(each.name, each.ready, each.entry) for each in client.models()] == [("m", True, None)]
        assert client.infer(images).tolist() == [[0.0, 0.5, 2.0]] * 20
        found = client.classify(images, top=2)
        assert [[c.name for c in each.classes] for each in found] == [["blue", "green"]] * 20
        with pytest.raises(UnknownName, match="unknown model 'n'"):
            kdzoo.Client(server.url, "n").metadata()
        with pytest.raises(UsageError, match="takes no pictures"):
            client.classify(np.zeros((9, 9, 3), np.uint8))


def test_several_models_need_a_name() -> None:
    def script(asked: Asked) -> bytes | None:
        many = [{"name": "m", "state": "READY"}, {"name": "n", "state": "READY"}]
        return reply(document=many) if asked.path.endswith("index") else reply(404, {"error": "no"})

    with scripted(script) as server, pytest.raises(UsageError, match="several models") as raised:
        kdzoo.Client(server.url).metadata()
    assert raised.value.known == ("m", "n")


def test_no_more_requests_than_wished_go_at_the_same_time() -> None:
    def script(asked: Asked) -> bytes | None:
        time.sleep(0.02)
        classes = [{"class": asked.body.decode(), "index": 0, "probability": 1.0}]
        return reply(document={"model_name": "m", "predictions": [{"classes": classes}]})

    names = [str(k).encode() for k in range(24)]
    expected = [name.decode() for name in names]

    async def ask(url: str) -> list[Any]:
        async with kdzoo.AsyncClient(url, "m", concurrency=4) as client:
            return await client.classify(names)

    with scripted(script) as server:
        assert [each.best.name for each in kdzoo.Client(server.url, "m", concurrency=4).classify(names)] == expected
        assert 2 <= server.most <= 4
    with scripted(script) as server:
        assert [each.best.name for each in asyncio.run(ask(server.url))] == expected
        assert 2 <= server.most <= 4


def test_the_token_is_shown() -> None:
    with scripted(in_order(reply(document=TRITON))) as server:
        kdzoo.Client(server.url, "m", token="secret").metadata()
    assert server.asked[0].headers["authorization"] == "Bearer secret"
    with pytest.raises(UsageError):
        kdzoo.Client("http://127.0.0.1:1", token="a\r\nb")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://", "http://localhost?x=1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="not the address of a server"):
        kdzoo.Client(url)


def test_clients_do_not_come_back_together() -> None:
    way = Way("http://localhost", retries=3)
    for outcome in (Answer(503, {"retry-after": "1"}), Failure("cut", again=True)):
        waits = [way.wait(outcome, 1) for _ in range(50)]
        assert len(set(waits)) > 40 and None not in waits


def test_a_date_to_come_back_at_is_understood() -> None:
    found = transport.asked_wait(formatdate(time.time() + 20, usegmt=True))
    assert found is not None and 17 <= found <= 21
    assert transport.asked_wait("soon") is None
