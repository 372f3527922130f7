"""A server that answers what a script says, for clients to be tested against: refusals, cut connections, strange answers.

Import it as `kdzoo.tests.small_server`.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request. `number` counts those before it; `headers` have small letters."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Script = Callable[[Asked], "bytes | None"]  # what is sent; None cuts the connection


class Scripted(socketserver.ThreadingTCPServer):
    """Notes what it was asked, and how many requests were under way at most."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.lock = script, threading.Lock()
        self.asked: list[Asked] = []
        self.under_way = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class Handler(socketserver.StreamRequestHandler):
    server: Scripted

    def handle(self) -> None:
        while line := self.rfile.readline().decode():
            headers = {}
            while (text := self.rfile.readline().decode().strip()) != "":
                name, _, value = text.partition(":")
                headers[name.lower()] = value.strip()
            body = self.rfile.read(int(headers.get("content-length", 0)))
            with self.server.lock:
                asked = Asked(len(self.server.asked), *line.split()[:2], headers, body)
                self.server.asked.append(asked)
                self.server.under_way += 1
                self.server.most = max(self.server.most, self.server.under_way)
            answer = self.server.script(asked)
            with self.server.lock:
                self.server.under_way -= 1
            if answer is None:
                return
            self.wfile.write(answer)


def reply(status: int = 200, document: object = None, body: bytes = b"", **headers: str) -> bytes:
    """An answer as it goes over the wire; underscores of the header names are hyphens."""
    body = body if document is None else json.dumps(document).encode()
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextmanager
def scripted(script: Script) -> Iterator[Scripted]:
    """It answers until the block ends."""
    with Scripted(script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def in_order(*answers: bytes | None) -> Script:
    """The answers one after the other; the last one again and again."""
    return lambda asked: answers[min(asked.number, len(answers) - 1)]
