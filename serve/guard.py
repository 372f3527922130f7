"""What stands before every request: the token, the size that a body declares, how much one client asks for at once, how much all of
them do, and whether the server is about to stop. All of it is decided before a body is read. Torch-free."""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from .refusal import Reason, Refusal
from .settings import Bounds

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

TIMEOUT = b"kdzoo-timeout-ms"
OPEN = ("/v2/health/live", "/v2/health/ready", "/")  # without a token: what an orchestrator asks, and the page that asks for one


class Guard:
    """Counts clients, and the bytes of bodies that are under way; one for each process."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds, self.stopping, self.held = bounds, False, 0
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

    def hold(self, size: int) -> None:
        """So many more bytes of a body are under way; raises a Refusal where they are too many. Whoever holds them lets them go."""
        if self.held + size > self.bounds.all_bodies:
            raise Refusal(
                Reason.BUSY, f"bodies of {self.held} bytes are under way already; this server holds {self.bounds.all_bodies}"
            )
        self.held += size

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """`hold`, for a while."""
        self.hold(size)
        try:
            yield
        finally:
            self.held -= size

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
