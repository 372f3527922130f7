"""A connection of the load generator: sends bytes that are ready, and tells when the answer to them is complete. It reads no more
of an answer than its status and how long to stay away, which lets one process keep many servers busy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from ..client.transport import asked_wait

if TYPE_CHECKING:
    from ssl import SSLContext


class Owner(Protocol):
    """Who sends over connections."""

    def free(self, connection: Connection) -> None:
        """It is open, and nothing is under way."""

    def answered(self, connection: Connection, status: int) -> None:
        """The answer to what was sent is complete."""

    def lost(self, connection: Connection, exc: Exception | None) -> None:
        """It is closed."""


class Connection(asyncio.Protocol):
    """Attributes:
    began: since when an answer is waited for, 0 where none is. retry_after: seconds that the last answer asked for.
    """

    def __init__(self, owner: Owner) -> None:
        import httptools

        self.owner, self.began, self.retry_after = owner, 0.0, 0.0
        self.parser = httptools.HttpResponseParser(self)
        self.transport: Any = None

    def send(self, request: bytes, began: float) -> None:
        self.began, self.retry_after = began, 0.0
        self.transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.owner.free(self)

    def data_received(self, data: bytes) -> None:
        from httptools import HttpParserError

        try:
            self.parser.feed_data(data)
        except HttpParserError:
            self.transport.abort()  # it speaks something else

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 11 and name.lower() == b"retry-after":
            self.retry_after = asked_wait(value.decode("latin-1")) or 0.0

    def on_message_complete(self) -> None:
        if not self.began:
            return  # nobody has asked
        stays = self.parser.should_keep_alive()
        self.owner.answered(self, self.parser.get_status_code())
        self.began = 0.0
        if stays:
            self.owner.free(self)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.owner.lost(self, exc)


async def connect(owner: Owner, host: str, port: int, tls: SSLContext | None, name: str) -> None:
    """Raises OSError where that fails."""
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: Connection(owner), host, port, ssl=tls, server_hostname=name if tls else None)
