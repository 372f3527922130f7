"""HTTP written out, as no client would. Import it as `kdzoo.tests.raw_http`."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any

from kdzoo.tests.serving import MODEL, Served

INFER = f"/v2/models/{MODEL}/infer"
RAW = {"Inference-Header-Content-Length": "0"}


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
