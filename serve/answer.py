"""Answers over HTTP: a body, packed where that is worth it, or a sentence. Torch-free."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from .refusal import Reason, Refusal

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SMALL = 1024  # bytes; a smaller answer is not packed
JSON, BINARY = b"application/json", b"application/octet-stream"


async def respond(
    send: Send, body: bytes, kind: bytes, extra: list[tuple[bytes, bytes]], accepts: bytes = b"", status: int = 200
) -> None:
    """One answer; packed where the client takes that and it is worth it."""
    headers = [(b"content-type", kind), *extra]
    if len(body) >= SMALL and b"gzip" in accepts:
        packer = zlib.compressobj(1, wbits=31)
        body = packer.compress(body) + packer.flush()
        headers.append((b"content-encoding", b"gzip"))
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, refusal: Refusal, *, close: bool = False) -> None:
    """A sentence, and nothing of what happened inside."""
    extra = [(b"connection", b"close")] if close else []
    await respond(send, sentence(refusal.what), JSON, [*extra, *_retry(refusal)], status=refusal.reason.status)


def in_bytes(refusal: Refusal, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The same with all that HTTP puts around it, where no application was asked; `headers` go with it."""
    body = _said_often(refusal.what)
    status = HTTPStatus(refusal.reason.status)
    given = [*headers, (b"content-type", JSON), *_retry(refusal), (b"content-length", b"%d" % len(body))]
    lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode()), *(b": ".join(header) for header in given)]
    return b"\r\n".join([*lines, b"", body])


def sentence(what: str) -> bytes:
    return json.dumps({"error": what}, ensure_ascii=False).encode("utf-8", "replace")  # half a surrogate pair is no UTF-8


_said_often = lru_cache(256)(sentence)


def without_folders(what: str) -> str:
    """Files by their names alone: where they lie is nobody's business."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/:;,'\"]+/)*", "", what)


def _retry(refusal: Refusal) -> list[tuple[bytes, bytes]]:
    extra = [(b"www-authenticate", b"Bearer")] if refusal.reason is Reason.NO_TOKEN else []
    return [*extra, (b"retry-after", str(refusal.retry_after).encode())] if refusal.reason.later else extra
