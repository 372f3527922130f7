"""Answers over HTTP: a body, packed where that is worth it, or a sentence. Torch-free."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from functools import cache, lru_cache
from http import HTTPStatus
from typing import Any

from .refusal import Reason, Refusal

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

SMALL = 1024  # bytes; a smaller answer is not packed
JSON, BINARY = b"application/json", b"application/octet-stream"


async def respond(send: Send, body: bytes, kind: bytes, extra: Headers, accepts: bytes = b"", status: int = 200) -> None:
    """One answer, as `complete` makes it."""
    headers, body = complete(body, kind, extra, accepts)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def complete(body: bytes, kind: bytes, extra: Headers, accepts: bytes = b"") -> tuple[Headers, bytes]:
    """Headers and body of an answer; packed where the client takes that and it is worth it."""
    headers = [(b"content-type", kind), *extra]
    if len(body) >= SMALL and b"gzip" in accepts:
        packer = zlib.compressobj(1, wbits=31)
        body = packer.compress(body) + packer.flush()
        headers.append((b"content-encoding", b"gzip"))
    headers.append((b"content-length", b"%d" % len(body)))
    return headers, body


async def refuse(send: Send, refusal: Refusal, *, close: bool = False) -> None:
    """A sentence, and nothing of what happened inside."""
    await respond(send, sentence(refusal.what), JSON, _beside(refusal, close), status=refusal.reason.status)


def in_bytes(status: int, *headers: Headers, body: bytes) -> bytes:
    """An answer with all that HTTP puts around it, where no server of ASGI does that."""
    lines = [b"%b: %b\r\n" % header for part in headers for header in part]
    return b"".join((_status_line(status), *lines, b"\r\n", body))


def refusal_in_bytes(refusal: Refusal, headers: Headers, *, close: bool = False) -> bytes:
    """The same for a refusal; `headers` go with it."""
    own, body = complete(_said_often(refusal.what), JSON, _beside(refusal, close))
    return in_bytes(refusal.reason.status, headers, own, body=body)


@cache
def _status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())


def sentence(what: str) -> bytes:
    return json.dumps({"error": what}, ensure_ascii=False).encode("utf-8", "replace")  # half a surrogate pair is no UTF-8


_said_often = lru_cache(256)(sentence)


def without_folders(what: str) -> str:
    """Files by their names alone: where they lie is nobody's business."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/:;,'\"]+/)*", "", what)


def _beside(refusal: Refusal, close: bool) -> Headers:
    """The headers that go with a refusal."""
    beside = [(b"connection", b"close")] if close else []
    if refusal.reason is Reason.NO_TOKEN:
        beside.append((b"www-authenticate", b"Bearer"))
    if refusal.reason.later:
        beside.append((b"retry-after", b"%d" % refusal.retry_after))
    return beside
