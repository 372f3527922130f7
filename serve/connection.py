"""A connection, as uvicorn has it, with what it lacks: it waits for headers so long and no longer, and takes so many bytes of them;
it lets go of a request that nobody waits for any more; it says no at once where a task would say no later, and knows a shorter way
for tensors; and a client that was refused can read why before the rest of its body is thrown away."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .answer import refusal_in_bytes
from .express import Errand
from .guard import Scope
from .refusal import Reason, Refusal

if TYPE_CHECKING:
    from .door import Door
    from .express import Express, Head

MOST_HEADERS = 64 * 1024  # bytes
TOGETHER = 0.02  # seconds between head and body of a request for the short way, at most
LINGER = 2.0  # seconds in which the rest of a refused body is thrown away


class Lingering:
    """The transport of a connection. Closed while a body still comes in, it first says that no more is sent: a connection that is
    closed with unread bytes is reset, and the client would never read the answer."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self.transport, self.connection, self.loop = transport, connection, connection.loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def is_closing(self) -> bool:
        return self.connection.throws_away or self.transport.is_closing()

    def close(self) -> None:
        connection = self.connection
        if not connection.is_unread() or self.is_closing():
            self.transport.close()
            if not self.transport.can_write_eof():
                self.loop.call_later(LINGER, self._end)
            return
        connection.throw_away()
        if self.transport.can_write_eof():  # TLS cannot: its client knows from the length where the answer ends
            self.transport.write_eof()
        self.transport.resume_reading()
        self.loop.call_later(LINGER, self.transport.abort)

    def _end(self) -> None:
        """Of TLS: it waits for the client to say good-bye, too, and clients that keep connections for later do not."""
        if self.transport.get_write_buffer_size():
            self.loop.call_later(LINGER, self._end)
        else:
            self.transport.abort()


class Connection(HttpToolsProtocol):
    """See above. What is the same for all connections of a process is set once.

    Attributes:
        header_seconds: for the headers of a request, and for the rest of a body that nobody reads.
        door: asked as soon as the headers of a request are there. express: asked before, and shown the headers.
    """

    header_seconds: ClassVar[float] = 10.0
    door: ClassVar[Door | None] = None
    express: ClassVar[Express | None] = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.throws_away = False  # whatever comes
        self.skips_body = False  # of a request that was refused at once
        self.is_broken = False  # what came is no HTTP
        self.is_in_headers = False
        self.is_in_message = False  # as the parser sees it
        self.num_headers = 0
        self.first = b""  # what came in one piece with the beginning of a message
        self.errand: Errand | None = None  # a request on the short way
        self.is_last = False  # the connection ends with its answer
        self.part = b""  # of a request for the short way; the rest is under way
        self.early = b""  # what came before its answer was sent
        self.answered_at = 0.0  # by the loop's clock
        self.patience: asyncio.TimerHandle | None = None
        self.pending: asyncio.Future[Any] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = Lingering(transport, self)  # type: ignore[assignment]
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose_patience()
        self._unset_keepalive_if_required()
        if self.pending is not None and not self.pending.done():
            self.pending.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.throws_away:
            return
        if self.errand is not None:
            self.early += data
            self.flow.pause_reading()
            return
        had_part, data, self.part = bool(self.part), self.part + data, b""
        is_next = not self.is_in_message and self._is_idle() and not self.flow.write_paused
        found = self.express.find(data) if self.express is not None and is_next else None
        if found is not None and len(found[1]) < found[0].length:
            self.part = data
            if not had_part:
                self._lose_patience()
                self.patience = self.loop.call_later(TOGETHER, self._go_long)
            return
        if found is not None:
            self._go_express(*found)
        else:
            self._go_long(data)

    def _go_long(self, data: bytes = b"") -> None:
        """All that came is the parser's."""
        data, self.part = self.part + data, b""
        self.first = b"" if self.is_in_message else data
        super().data_received(data)
        # Headers, nothing but empty lines, or the body of a request that is answered: none may go on for ever.
        waits = self.is_in_headers or (self.timeout_keep_alive_task is None and self._is_idle())
        if waits and self.patience is None:
            self._be_patient()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.is_in_message = True
        self.num_headers = 0
        self.is_in_headers = True
        self.scope["extensions"] = {"kdzoo.watch": {"call": self._watch}}

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._lose_patience()
        self.is_in_headers = False
        first, self.first = self.first, b""
        if self.door is None or not self._may_be_refused():
            super().on_headers_complete()
            return
        if self.express is not None and first:
            self.express.learn(first, self.url, self.headers)
        refusal = self.door.refuses(cast(Scope, self.scope), self.parser.get_method(), self.url)
        if refusal is None:
            super().on_headers_complete()
            self.door.enters(cast(Scope, self.scope))
        else:
            self.skips_body = True
            self.transport.write(refusal_in_bytes(refusal, self.server_state.default_headers))

    def on_body(self, body: bytes) -> None:
        if not self.skips_body:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self.is_in_message = False
        is_answered = self._is_idle()
        if not self.skips_body:
            super().on_message_complete()
        self.skips_body = False
        if is_answered and self.cycle is not None:
            self.cycle.more_body = False
        if is_answered and not self.throws_away:  # the body was read, and the next request may take its time
            self._lose_patience()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        if self.throws_away:
            self.pipeline.clear()
        else:
            super().on_response_complete()

    def shutdown(self) -> None:
        if self.part:
            self._lose_patience()
            self._go_long()
        if self.errand is not None:
            self.is_last = True
            self.errand.default = [*self.errand.default, (b"connection", b"close")]
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """The short way does not wind this clock up again for every request."""
        left = self.timeout_keep_alive - (0 if self.errand is not None or self.part else self.loop.time() - self.answered_at)
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            self.transport.abort()  # a client that reads nothing would hold what is still to be sent

    def send_400_response(self, msg: str) -> None:
        self.is_broken = True
        is_long = self.num_headers > MOST_HEADERS
        what = f"this server reads {MOST_HEADERS} bytes of headers" if is_long else "this is no HTTP request that can be read"
        reason = Reason.LONG_HEADERS if is_long else Reason.BAD
        self.transport.write(refusal_in_bytes(Refusal(reason, what), self.server_state.default_headers, close=True))
        self.transport.close()

    def is_unread(self) -> bool:
        """Whether the client may still send what nobody reads."""
        return self.is_broken or self.skips_body or bool(self.early) or (self.cycle is not None and self.cycle.more_body)

    def throw_away(self) -> None:
        """Read no more of what comes; who waits for it is told that the client is gone."""
        self.throws_away = True
        self._lose_patience()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _may_be_refused(self) -> bool:
        """Whether an answer can be written here and now, and the connection goes on after it."""
        plain = self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive() and not self.parser.should_upgrade()
        return plain and self._is_idle() and not self.expect_100_continue

    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        return (self.cycle is None or self.cycle.response_complete) and not self.pipeline and self.errand is None

    def _go_express(self, head: Head, body: bytes) -> None:
        assert self.express is not None
        self._lose_patience()
        client, default = self.client[0] if self.client else "", self.server_state.default_headers
        self.errand = Errand(head, client, default, self._answer, time.perf_counter_ns())
        self.pending = self.express.begin(self.errand, body)

    def _answer(self, answer: bytes, ends: bool) -> None:
        """The end of the short way."""
        self.errand = None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.transport.write(answer)
        if ends or self.is_last:
            self.transport.close()
            return
        self.answered_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if self.early:
            early, self.early = self.early, b""
            self.flow.resume_reading()
            self.data_received(early)

    def _count(self, size: int) -> None:
        self.num_headers += size
        if self.num_headers > MOST_HEADERS:
            raise ValueError("too many bytes of headers")  # the parser ends, and calls for `send_400_response`

    def _be_patient(self) -> None:
        self.patience = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _lose_patience(self) -> None:
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None

    def _watch(self, pending: asyncio.Future[Any]) -> None:
        """Cancel this as soon as the client goes away."""
        self.pending = pending
        if self.parser is None:  # it is gone already
            pending.cancel()
