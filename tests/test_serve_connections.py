"""Clients that dawdle, headers without end, and what is no HTTP at all."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdzoo.tests.raw_http import INFER, RAW, everything, head, port_of, talk
from kdzoo.tests.serving import Served, package_in, serve, small_models

# A server whose clients have fractions of a second; no option of the command line is so strict.
IMPATIENT = """
import sys
from kdzoo.serve.settings import Bounds, Settings
from kdzoo.serve.supervisor import Supervisor, listen
listener = listen("127.0.0.1", 0)
bounds = Bounds(max_body=100_000, body_seconds=0.4, header_seconds=0.4)
supervisor = Supervisor(Settings((sys.argv[1],), bounds=bounds, quiet=True), listener, print)
supervisor.start()
print(listener.getsockname()[1], flush=True)
sys.exit(supervisor.run())
"""


@pytest.fixture(scope="module")
def models(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return small_models(once)


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Served]:
    with serve(models, "--branch", "1", "--threads", 1) as answering:
        yield answering


@pytest.fixture(scope="module")
def impatient(models: Path) -> Iterator[int]:
    """The port of a server that waits for nobody."""
    command = [sys.executable, "-c", IMPATIENT, str(models / "1")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def images(models: Path) -> np.ndarray[Any, Any]:
    return package_in(models, "1").golden()[0]


@pytest.mark.parametrize(
    "dribble", [b"", b"POST ", b"POST /v2 HTTP/1.1\r\nHost: t", b"\r\n\r\n"], ids=["nothing", "a word", "a header", "empty lines"]
)
def test_headers_that_do_not_come_are_not_waited_for(impatient: int, dribble: bytes) -> None:
    began = time.monotonic()
    with talk(impatient) as connection:
        connection.sendall(dribble)
        assert everything(connection) == b""
    assert 0.3 < time.monotonic() - began < 3


def test_headers_that_drip_are_not_waited_for(impatient: int) -> None:
    began = time.monotonic()
    with talk(impatient) as connection:
        try:
            for letter in "GET /v2 HTTP/1.1\r\nX-Slow: " + 200 * "a":
                connection.sendall(letter.encode())
                time.sleep(0.02)
        except ConnectionError:
            pass
        everything(connection)
    assert time.monotonic() - began < 3


def test_a_body_that_drips_is_cut_off_with_a_sentence(impatient: int) -> None:
    began = time.monotonic()
    with talk(impatient) as connection:
        connection.sendall(head(content_length=1000))
        connection.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() - began < 3:
            connection.sendall(b"x")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ") and b"did not come" in answer


def test_the_rest_of_a_refused_body_is_not_waited_for_either(impatient: int) -> None:
    began = time.monotonic()
    with talk(impatient) as connection:
        connection.sendall(head("/v2/models/nothing/infer", content_length=5000) + b"x")
        connection.settimeout(0.05)
        pieces, is_open = b"", True
        while is_open and time.monotonic() - began < 4:
            try:
                connection.sendall(b"x")
                piece = connection.recv(65536)
                pieces, is_open = pieces + piece, bool(piece)
            except TimeoutError:
                continue
            except ConnectionError:
                is_open = False
    assert pieces.startswith(b"HTTP/1.1 404 ")
    assert not is_open, "a client keeps a connection by a byte now and then"


def test_a_refused_request_leaves_the_connection_to_the_next_one(server: Served, images: np.ndarray[Any, Any]) -> None:
    with closing(HTTPConnection(server.http, timeout=20)) as connection:
        for path, status in (("/v2/models/nothing/infer", 404), (INFER, 200)):
            connection.request("POST", path, images[:1].tobytes(), RAW)
            response = connection.getresponse()
            response.read()
            assert response.status == status
            assert response.headers.get("Connection") != "close"


@pytest.mark.parametrize("kind", ["one header", "many headers", "a path", "a chunk's trailer"])
def test_headers_without_end_are_refused(server: Served, kind: str) -> None:
    long = 100_000 * "a"
    request = {
        "one header": head(x=long),
        "many headers": head(**{f"x{number}": 100 * "a" for number in range(1000)}),
        "a path": head(f"/v2/{long}"),
        "a chunk's trailer": head(transfer_encoding="chunked") + b"1\r\na\r\n0\r\nx: " + long.encode() + b"\r\n\r\n",
    }[kind]
    with talk(port_of(server)) as connection:
        with suppress(ConnectionError):
            connection.sendall(request)
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 431 ") and b'{"error": "this server reads 65536 bytes of headers"}' in answer


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\n\r\n",
        head(content_length=-5),
        head(content_length="5, 6"),
        head(content_length=5, transfer_encoding="chunked"),
        head(transfer_encoding="chunked") + b"zz\r\n",
        b"GET /v2 HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nX: a\x00b\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_with_a_sentence(server: Served, request_: bytes) -> None:
    with talk(port_of(server)) as connection:
        connection.sendall(request_)
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400 ") and b'{"error": "' in answer, answer


def test_two_requests_at_once_are_answered_in_their_order(server: Served, images: np.ndarray[Any, Any]) -> None:
    body = images[:1].tobytes()
    with talk(port_of(server)) as connection:
        one = head(inference_header_content_length=0, content_length=len(body)) + body
        last = head("/v2/models/nothing/infer", content_length=0, connection="close")
        connection.sendall(one + one + last)
        answer = everything(connection)
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 200, 404]
