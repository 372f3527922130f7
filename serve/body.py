"""The body of a request as it comes in: so large, so soon, and held against what all bodies may take. Torch-free."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import MutableMapping
from typing import Any

from .guard import Guard, Receive, too_large
from .refusal import Reason, Refusal


class Body:
    """Of one request. Close it when nothing of it is needed any more."""

    def __init__(self, receive: Receive, headers: dict[bytes, bytes], guard: Guard) -> None:
        self.receive, self.headers, self.guard, self.bounds = receive, headers, guard, guard.bounds
        self.held = 0  # bytes

    async def read(self) -> bytes:
        """The whole body, unpacked where it was packed.

        Raises:
            Refusal: it is too large, comes too slowly, cannot be unpacked, or too many are under way. ConnectionError: the client
                went away.
        """
        length = self.headers.get(b"content-length", b"")
        is_declared = length.isdigit()
        if is_declared:
            self._hold(int(length))
        until = asyncio.get_running_loop().time() + self.bounds.body_seconds
        pieces, size, more = [], 0, True
        while more:
            message = await self._next(until)
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self.bounds.max_body:
                raise too_large(self.bounds.max_body)
            if not is_declared:
                self._hold(len(pieces[-1]))
            more = message.get("more_body", False)
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        encoding = self.headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        if encoding in ("", "identity"):
            return body
        unpacked = unpack(body, encoding, self.bounds.max_body)
        self._hold(len(unpacked))
        return unpacked

    def close(self) -> None:
        self.guard.held -= self.held
        self.held = 0

    def _hold(self, size: int) -> None:
        self.guard.hold(size)
        self.held += size

    async def _next(self, until: float) -> MutableMapping[str, Any]:
        try:
            async with asyncio.timeout_at(until):
                message = await self.receive()
        except TimeoutError:
            raise Refusal(Reason.TOO_SLOW, f"the body did not come within {self.bounds.body_seconds:.0f} seconds") from None
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
