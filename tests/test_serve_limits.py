"""What no server may take: bodies, pictures and headers without end, clients that dawdle."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from shutil import which
from ssl import create_default_context
from typing import Any

import numpy as np
import pytest

from kdzoo.tests.serving import MODEL, Served, package_in, serve, small_models

INFER, CLASSIFY = f"/v2/models/{MODEL}/infer", f"/v2/models/{MODEL}/classify"
RAW = {"Inference-Header-Content-Length": "0"}
PNG = {"Content-Type": "image/png"}
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
    with serve(models, "--branch", "1", "--threads", 1, "--max-pixels", 1) as answering:
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


def post(server: Served, path: str, body: Any, headers: dict[str, str]) -> tuple[int, bytes]:
    with closing(HTTPConnection(server.http, timeout=20)) as connection:
        connection.request("POST", path, body, headers, encode_chunked=headers.get("Transfer-Encoding") == "chunked")
        response = connection.getresponse()
        return response.status, response.read()


@contextmanager
def talk(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def port_of(server: Served) -> int:
    return int(server.http.partition(":")[2])


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes; a reset counts as the end."""
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionError:
        pass
    return b"".join(pieces)


def head(path: str = INFER, **headers: object) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def bomb(width: int, height: int, bits: int = 8) -> bytes:
    """A picture in PNG of nothing but zeros, never as a whole in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(9), []
    row = bytes(1 + (width * bits + 7) // 8)
    for _ in range(height):
        rows.append(packer.compress(row))
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", b"".join(rows) + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_ten_gigabytes_are_refused_at_once_and_the_client_that_goes_on_sending_can_read_why(server: Served) -> None:
    began = time.monotonic()
    with talk(port_of(server)) as connection:
        connection.sendall(head(content_length=10 * 10**9))
        sent = 0
        try:
            while sent < 20 * 2**20:
                sent += connection.send(bytes(2**16))
        except ConnectionError:
            pass  # it may stop to listen after a while
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"10000000000 bytes" in answer
    assert time.monotonic() - began < 8


@pytest.mark.skipif(which("curl") is None, reason="curl is not installed")
def test_curl_reads_why_a_large_file_is_refused(server: Served, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(10 * 10**9)  # of holes: it takes no room
    command = ["curl", "-s", "-S", "-m", "20", "-w", "%{http_code}", "-H", "Expect:", "-X", "POST", "-T", str(large)]
    done = subprocess.run([*command, f"http://{server.http}{INFER}"], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("413") and "this server reads" in done.stdout, done


def test_a_body_of_unknown_length_is_refused_at_the_limit(server: Served) -> None:
    with talk(port_of(server)) as connection:
        connection.sendall(head(transfer_encoding="chunked"))
        piece = b"%x\r\n" % 2**20 + bytes(2**20) + b"\r\n"
        with suppress(ConnectionError):
            for _ in range(40):
                connection.sendall(piece)
        assert everything(connection).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_unpacks_to_too_much_is_refused(server: Served) -> None:
    packed = gzip.compress(bytes(200 * 2**20), 9)
    assert len(packed) < 250_000
    began = time.monotonic()
    status, body = post(server, INFER, packed, {"Content-Encoding": "gzip"})
    assert status == 413 and b"this server reads" in body and time.monotonic() - began < 5


@pytest.mark.parametrize(("width", "height", "bits"), [(40_000, 40_000, 1), (12_000, 9_000, 8), (1_001, 1_000, 8)])
def test_a_small_file_of_many_pixels_is_refused_undecoded(server: Served, width: int, height: int, bits: int) -> None:
    data = bomb(width, height, bits)
    assert len(data) < 250_000
    form = b"--b\r\nContent-Disposition: form-data; name=f; filename=p.png\r\n\r\n" + data + b"\r\n--b--\r\n"
    for body, kind in ((data, "image/png"), (form, "multipart/form-data; boundary=b")):
        began = time.monotonic()
        status, answer = post(server, CLASSIFY, body, {"Content-Type": kind})
        assert status == 413 and time.monotonic() - began < 1, answer


def test_a_picture_at_the_limit_is_answered(server: Served) -> None:
    status, body = post(server, CLASSIFY, bomb(1000, 1000), PNG)
    assert status == 200 and len(json.loads(body)["predictions"]) == 1


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


@pytest.mark.skipif(which("openssl") is None, reason="openssl is not installed")
def test_tls_and_a_token_keep_others_out(models: Path, images: np.ndarray[Any, Any], tmp_path: Path) -> None:
    certificate, key, token = tmp_path / "c.pem", tmp_path / "k.pem", tmp_path / "token"
    token.write_text("s3cret\n")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True,
    )  # fmt: skip
    with serve(models / "1", "--tls-certificate", certificate, "--tls-key", key, "--token-file", token) as server:
        trusted = create_default_context(cafile=str(certificate))
        for shown, status in (("Bearer s3cret", 200), ("Bearer other", 401), ("", 401)):
            with closing(HTTPSConnection(server.http, timeout=20, context=trusted)) as connection:
                connection.request("POST", INFER, images[:1].tobytes(), {**RAW, "Authorization": shown})
                response = connection.getresponse()
                assert response.status == status, response.read()
        with closing(HTTPSConnection(server.http, timeout=20, context=trusted)) as connection:
            connection.request("GET", "/v2/health/ready")
            assert connection.getresponse().status == 200
        with talk(port_of(server)) as plain:
            plain.sendall(head(content_length=0))
            assert b"200 OK" not in everything(plain)
        with talk(port_of(server)) as raw, trusted.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
            connection.sendall(head(content_length=10**10, authorization="Bearer s3cret") + bytes(2**20))
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        with talk(port_of(server)) as raw, trusted.wrap_socket(raw, server_hostname="127.0.0.1"):
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 10, "it waits for a client that does nothing"
