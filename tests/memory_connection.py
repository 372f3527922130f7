"""A connection of the server without a socket: bytes go in, bytes come out, in the process of the test.

Import it as `kdzoo.tests.memory_connection`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.server import ServerState

from kdzoo.serve.app import App
from kdzoo.serve.connection import Connection
from kdzoo.serve.http_server import http_server
from kdzoo.serve.settings import Settings

END = b"\r\n\r\n"
DATE = (b"date", b"Sat, 21 Nov 2026 21:00:00 GMT")


class Memory(asyncio.Transport):
    """Keeps what is written to it. `ended`: how it was closed."""

    def __init__(self) -> None:
        super().__init__({"peername": ("1.2.3.4", 5), "sockname": ("127.0.0.1", 80)})
        self.written, self.ended, self.reads = b"", "", True
        self.came = asyncio.Event()

    def write(self, data: Any) -> None:
        self.written += data
        self.came.set()

    def is_closing(self) -> bool:
        return bool(self.ended)

    def close(self) -> None:
        self.ended = self.ended or "closed"
        self.came.set()

    def abort(self) -> None:
        self.ended = "aborted"
        self.came.set()

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.came.set()


class Talk:
    """One connection with `app`."""

    def __init__(self, app: App) -> None:
        config = http_server(app, Settings(())).config
        config.load()
        state = ServerState()
        state.default_headers = [DATE]
        self.memory = Memory()
        self.connection = Connection(config, state, {}, asyncio.get_running_loop())
        self.connection.connection_made(self.memory)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.data_received(piece)

    async def answer(self) -> bytes:
        """The next one, whole."""
        while (length := self._length()) is None or len(self.memory.written) < length:
            assert not self.memory.ended, f"the connection was {self.memory.ended} after {self.memory.written!r:.200}"
            self.memory.came.clear()
            await asyncio.wait_for(self.memory.came.wait(), 10)
        answer, self.memory.written = self.memory.written[:length], self.memory.written[length:]
        return answer

    async def ask(self, *pieces: bytes) -> tuple[bytes, bool]:
        """The answer to a request, and whether it went the short way."""
        cycle = self.connection.cycle
        self.send(*pieces)
        answer = await self.answer()
        return answer, self.connection.cycle is cycle

    def _length(self) -> int | None:
        head, end, _ = self.memory.written.partition(END)
        lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        return len(head) + len(END) + lengths[0] if end else None


def request(path: str, body: bytes, *headers: str, method: str = "POST", version: str = "1.1") -> bytes:
    """A request, as a client writes it."""
    lines = [f"{method} {path} HTTP/{version}", "Host: test", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + END + body
