"""What no server may take: bodies and pictures without end, clients without a token."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.client import HTTPSConnection
from pathlib import Path
from shutil import which
from ssl import create_default_context
from typing import Any

import numpy as np
import pytest

from kdzoo.tests.raw_http import INFER, RAW, everything, head, port_of, post, talk
from kdzoo.tests.serving import MODEL, Served, package_in, serve, small_models

CLASSIFY = f"/v2/models/{MODEL}/classify"
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def models(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return small_models(once)


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Served]:
    with serve(models, "--branch", "1", "--threads", 1, "--max-pixels", 1) as answering:
        yield answering


@pytest.fixture(scope="module")
def images(models: Path) -> np.ndarray[Any, Any]:
    return package_in(models, "1").golden()[0]


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
