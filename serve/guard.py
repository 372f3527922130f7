"""What stands before every request: the token, the size that a body declares, how much one client asks for at once, and whether the
server is about to stop. All of it is decided before a body is read. Torch-free."""

from __future__ import annotations

import asyncio
import hmac
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .refusal import Reason, Refusal
from .settings import Bounds

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

TIMEOUT = b"kdzoo-timeout-ms"
OPEN = ("/v2/health/live", "/v2/health/ready", "/")  # without a token: what an orchestrator asks, and the page that asks for one


class Guard:
    """Counts clients; one for each process."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds, self.stopping = bounds, False
        self.clients: Counter[str] = Counter()
        self.expected = f"Bearer {bounds.token}".encode() if bounds.token else None

    def admit(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Raises a Refusal for a request that is not even read."""
        given = headers.get(b"authorization", b"")
        if self.expected is not None and path not in OPEN and not hmac.compare_digest(given, self.expected):
            raise Refusal(Reason.NO_TOKEN, "this server asks for a token: send the header 'Authorization: Bearer TOKEN'")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self.bounds.max_body:
            raise too_large(self.bounds.max_body, int(length[:20]))
        if self.stopping and path not in OPEN:
            raise Refusal(Reason.BUSY, "this server is about to stop")

    def check(self, client: str) -> None:
        """Raises a Refusal where this client has too many requests under way."""
        if self.clients[client] >= self.bounds.per_client:
            raise Refusal(Reason.TOO_MANY, f"{self.bounds.per_client} requests of {client} are under way already")

    def enter(self, client: str) -> None:
        """A request of this client begins; raises a Refusal as `check` does."""
        self.check(client)
        self.clients[client] += 1

    def leave(self, client: str) -> None:
        self.clients[client] -= 1
        if not self.clients[client]:
            del self.clients[client]

    @property
    def under_way(self) -> int:
        return self.clients.total()


def timeout_in(headers: dict[bytes, bytes], bounds: Bounds) -> float | None:
    """Seconds for an answer: from the client's header, or the server's own."""
    text = headers.get(TIMEOUT)
    if text is None:
        return bounds.timeout or None
    if not text.isdigit() or not int(text[:12]) > 0:
        what = f"Kdzoo-Timeout-Ms must be a number of milliseconds, not {text.decode('latin-1')!r:.40}"
        raise Refusal(Reason.BAD, what)
    return int(text[:12]) / 1000


def too_large(limit: int, size: int | None = None) -> Refusal:
    has = f"has {size} bytes" if size is not None else "is larger"
    return Refusal(Reason.TOO_LARGE, f"the body {has}; this server reads {limit}")


async def read_body(receive: Receive, headers: dict[bytes, bytes], bounds: Bounds) -> bytes:
    """The whole body, unpacked where it was packed.

    Raises:
        Refusal: it is too large, comes too slowly, or cannot be unpacked. ConnectionError: the client went away.
    """
    message = await _next(receive, bounds)
    if not message.get("more_body"):
        body: bytes = message.get("body", b"")
    else:
        pieces, size = [message.get("body", b"")], len(message.get("body", b""))
        until = asyncio.get_running_loop().time() + bounds.body_seconds
        while message.get("more_body"):
            message = await _next(receive, bounds, until)
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > bounds.max_body:
                raise too_large(bounds.max_body)
        body = b"".join(pieces)
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    return body if encoding in ("", "identity") else unpack(body, encoding, bounds.max_body)


async def _next(receive: Receive, bounds: Bounds, until: float | None = None) -> MutableMapping[str, Any]:
    try:
        async with asyncio.timeout_at(until) if until is not None else asyncio.timeout(bounds.body_seconds):
            message = await receive()
    except TimeoutError:
        raise Refusal(Reason.TOO_SLOW, f"the body did not come within {bounds.body_seconds:.0f} seconds") from None
    if message["type"] == "http.disconnect":
        raise ConnectionError("the client went away")
    return message


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """A gzip or deflate body, up to `limit` bytes."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Refusal(Reason.NO_IMAGE, f"a body can be packed with gzip or deflate, not {encoding!r:.40}")
    unpacker = zlib.decompressobj(wbits=47)  # finds out whether it is gzip or zlib
    try:
        data = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refusal(Reason.BAD, f"the body cannot be unpacked: {error}") from None
    if len(data) > limit:
        raise too_large(limit)
    if not unpacker.eof or unpacker.unused_data:
        raise Refusal(Reason.BAD, "the packed body is cut off, or something follows it")
    return data
