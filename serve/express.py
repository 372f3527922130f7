"""The short way of tensors: past the parser of HTTP, a task and ASGI, where the same head came before. Torch-free.

What a client says before its tensors is the same every time, byte for byte: the parser reads it once, and from then on it is known.
A request goes this way where nothing else is under way on its connection and all of it comes at once; what is out of the ordinary
goes the long way, through `app`. The answers are the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .answer import BINARY, JSON, Headers, complete, in_bytes, refusal_in_bytes
from .door import MODELS, PREFER, Door
from .guard import Guard, timeout_in
from .refusal import Refusal, unforeseen
from .wire import HEADER_LENGTH, Reader, write_response

if TYPE_CHECKING:
    import asyncio

    from .model import Model
    from .repository import Repository
    from .tensors import InferRequest

END = b"\r\n\r\n"
LONGEST = 4096  # bytes of a head that is kept
MOST = 1024  # heads that are kept
SHORT = 64 * 1024  # bytes of a body that may come in pieces
SPECIAL = {b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", PREFER}  # whoever says this goes the long way
LOG = logging.getLogger("kdzoo.serve")


@dataclass(frozen=True)
class Head:
    """What a head says.

    Attributes:
        model: its name. length: of the body. json_length: of the JSON in it, as the client wrote it. timeout: seconds.
        accepts: how the answer may be packed.
    """

    model: str
    length: int
    json_length: str | None
    timeout: float | None
    accepts: bytes


@dataclass
class Errand:
    """A request under way. `began`: in ns. `default`: the headers that every answer has. `answer`: takes an answer, and whether the
    connection ends with it."""

    head: Head
    client: str
    default: Headers
    answer: Callable[[bytes, bool], None]
    began: int


class Express:
    """Knows heads, and answers requests that begin with one of them."""

    def __init__(self, repository: Repository, guard: Guard, door: Door) -> None:
        self.repository, self.guard, self.door = repository, guard, door
        self.heads: dict[bytes, Head] = {}
        self.readers: dict[str, Reader] = {}

    def learn(self, first: bytes, url: bytes, headers: Headers) -> None:
        """Know the head that `first` begins with; the parser found `url` and `headers` in it, and that the connection goes on."""
        if not first.startswith(b"POST " + MODELS):
            return
        raw = first[: first.find(END) + len(END)]
        values = dict(headers)
        length = values.get(b"content-length", b"")
        # As many lines as headers: nothing was folded, or ended in a way that only the parser understands.
        is_plain = len(values) == len(headers) and raw.count(b"\r\n") == raw.count(b"\n") == raw.count(b"\r") == len(headers) + 2
        name, _, verb = url[len(MODELS) :].decode("latin-1").partition("/")
        is_inference = verb == "infer" and name in self.repository.served
        if not (is_plain and is_inference and length.isdigit() and len(raw) <= LONGEST and SPECIAL.isdisjoint(values)):
            return
        try:
            self.guard.admit(url.decode("latin-1"), values)
            timeout = timeout_in(values, self.guard.bounds)
        except Refusal:  # which the long way tells
            return
        if len(self.heads) >= MOST:
            del self.heads[next(iter(self.heads))]
        said = values.get(HEADER_LENGTH.encode())
        json_length = said.decode("latin-1") if said is not None else None
        self.heads[raw] = Head(name, int(length), json_length, timeout, values.get(b"accept-encoding", b""))

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """Head and body, where these bytes are one request that can go this way; of a short body some may be missing: most clients
        send it after the head."""
        start = data.find(END) + len(END)
        head = self.heads.get(data[:start])
        if head is None or self.guard.stopping:
            return None
        missing = head.length - (len(data) - start)
        if missing < 0 or (missing and head.length > SHORT):
            return None
        served = self.repository.served.get(head.model)
        return (head, data[start:]) if served is not None and served.model.ready else None

    def begin(self, errand: Errand, body: bytes) -> asyncio.Future[Any] | None:
        """Queue what `find` found; None where it is answered already. Cancel the future where nobody waits any more."""
        model = self.repository.served[errand.head.model].model
        refusal = self.door.no_room(model, errand.client)
        if refusal is not None:
            errand.answer(refusal_in_bytes(refusal, errand.default), False)
            return None
        assert model.batcher is not None
        try:
            request = self._reader(model).read(body, errand.head.json_length)
            future = model.batcher.submit(request.images, request.timeout or errand.head.timeout)
        except Exception as error:
            self._fail(model, errand, error)
            return None
        model.users += 1
        self.guard.enter(errand.client)
        future.add_done_callback(partial(self._end, model, request, errand))
        return future

    def _reader(self, model: Model) -> Reader:
        reader = self.readers.get(model.name)
        if reader is None or reader.model is not model:  # it was swapped
            reader = self.readers[model.name] = Reader(model)
        return reader

    def _end(self, model: Model, request: InferRequest, errand: Errand, future: asyncio.Future[Any]) -> None:
        model.users -= 1
        self.guard.leave(errand.client)
        if future.cancelled():
            return
        try:
            body, json_length = write_response(model, request, future.result())
            extra = [] if json_length is None else [(HEADER_LENGTH.encode(), b"%d" % json_length)]
            headers, body = complete(body, JSON if json_length is None else BINARY, extra, errand.head.accepts)
        except Exception as error:
            self._fail(model, errand, error)
            return
        self.repository.counters.row(model.name).answered(time.perf_counter_ns() - errand.began)
        errand.answer(in_bytes(200, errand.default, headers, body=body), False)

    def _fail(self, model: Model, errand: Errand, error: Exception) -> None:
        row = self.repository.counters.row(model.name)
        if isinstance(error, Refusal):
            row.add("fail")
            row.add("fail_ns", time.perf_counter_ns() - errand.began)
            errand.answer(refusal_in_bytes(error, errand.default), False)
        else:
            LOG.error("a request to model %s failed", model.name, exc_info=error)
            errand.answer(refusal_in_bytes(unforeseen(), errand.default, close=True), True)
