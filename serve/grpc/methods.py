"""The Open Inference Protocol v2 over gRPC, as Triton speaks it: health, metadata, configuration, statistics, index, load, and
inference, one by one and in a stream. What stands before a request, and what is said about a wrong one, is the same as over HTTP.

No request is read before its client was let in: every method is a stream to gRPC's library, and most take one message of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from google.protobuf.message import DecodeError

from ...errors import KdzooError
from .. import describe
from ..app import must_be_ready
from ..body import unpack
from ..guard import OPEN
from ..refusal import Reason, Refusal
from ..tensors import bad
from .messages import CLASSES, SERVICE
from .wire import FINAL, plain, read_request, text_of, write_response

if TYPE_CHECKING:
    from ..app import App
    from ..model import Model

    Answer = Callable[[Any, Any], Awaitable[Any]]

LOG = logging.getLogger("kdzoo.serve")
AHEAD = 32  # requests of a stream that are under way; its client waits to send more
CHECK = "Check"
# How gzip and zlib begin, and none of these messages. gRPC's library is told to leave them packed: before 1.85 it unpacks whatever
# comes, to the gigabytes of a bomb, and looks at the size after that.
PACKED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
BRANCH, PREFER = "kdzoo_branch", "kdzoo_prefer"  # request parameters: what `?branch=` and `Kdzoo-Prefer` are over HTTP


class Methods:
    """Of both services.

    Attributes:
        readers: of the streams that are open. under_way: calls that were let in and are not answered yet.
        held: set by who stops the server: refusals wait for it. last: when one was to be told.
    """

    def __init__(self, app: App) -> None:
        self.app, self.repository, self.guard, self.bounds = app, app.repository, app.guard, app.bounds
        self.readers: set[asyncio.Task[None]] = set()
        self.under_way = 0
        self.held: asyncio.Event | None = None
        self.last = 0.0

    def all(self) -> dict[str, Answer]:
        """Those with one request and one answer, by name."""
        own = (
            self.server_live, self.server_ready, self.model_ready, self.server_metadata, self.model_metadata, self.model_config,
            self.model_statistics, self.repository_index, self.repository_model_load, self.model_infer, self.check,
        )  # fmt: skip
        return {body.__name__.title().replace("_", ""): body for body in own}

    def one(self, name: str, answer: Answer) -> Answer:
        """What gRPC's library calls for a method: lets its client in, reads its request, and tells what it was refused for."""
        kind = CLASSES["HealthCheckRequest" if name == CHECK else f"{name}Request"]
        path = OPEN[0] if name in ("ServerLive", "ServerReady", CHECK) else name
        counted = name in ("ModelInfer", "RepositoryModelLoad")

        async def call(_: Any, context: Any) -> Any:
            client = address_of(context.peer())
            try:
                self.guard.admit(path, headers_of(context))
                if counted:
                    self.guard.enter(client)
                self.under_way += 1
                try:
                    message = await self._first(context)
                    with self.guard.holding(len(message)):
                        return await answer(parsed(kind, message, self.bounds.max_body), context)
                finally:
                    self.under_way -= 1
                    if counted:
                        self.guard.leave(client)
            except Exception as error:
                await self._refuse(context, refusal_of(error))

        return call

    async def _refuse(self, context: Any, refusal: Refusal) -> None:
        """End a call with a sentence, at once or when the server has stopped to listen; does not come back."""
        if self.held is not None:
            self.last = asyncio.get_running_loop().time()
            await self.held.wait()
        await abort(context, refusal)

    async def _first(self, context: Any) -> Any:
        """The bytes of the only message."""
        try:
            async with asyncio.timeout(self.bounds.body_seconds):
                return await context.read()
        except TimeoutError:
            raise Refusal(Reason.TOO_SLOW, f"the message did not come within {self.bounds.body_seconds:.0f} seconds") from None

    def model_of(self, request: Any) -> Model:
        describe.check_version(request.name, request.version)
        return self.repository.find(request.name)

    async def server_live(self, request: Any, context: Any) -> Any:
        return CLASSES["ServerLiveResponse"](live=True)

    async def server_ready(self, request: Any, context: Any) -> Any:
        return CLASSES["ServerReadyResponse"](ready=self._is_ready())

    async def check(self, request: Any, context: Any) -> Any:
        """gRPC's own question for health, which Kubernetes asks."""
        if request.service not in ("", SERVICE):
            raise Refusal(Reason.UNKNOWN, f"there is no service {request.service:.80} here but {SERVICE}")
        return CLASSES["HealthCheckResponse"](status="SERVING" if self._is_ready() else "NOT_SERVING")

    def _is_ready(self) -> bool:
        return not self.guard.stopping and all(model.ready for model in self.repository.models)

    async def model_ready(self, request: Any, context: Any) -> Any:
        """Of a model that is not here it is said that it is not ready, as Triton does."""
        try:
            ready = self.model_of(request).ready
        except Refusal:
            ready = False
        return CLASSES["ModelReadyResponse"](ready=ready)

    async def server_metadata(self, request: Any, context: Any) -> Any:
        return CLASSES["ServerMetadataResponse"](**describe.server_metadata())

    async def model_metadata(self, request: Any, context: Any) -> Any:
        return CLASSES["ModelMetadataResponse"](**describe.model_metadata(self.model_of(request)))

    async def model_config(self, request: Any, context: Any) -> Any:
        return CLASSES["ModelConfigResponse"](config=describe.model_config(self.model_of(request), self.repository.batching))

    async def model_statistics(self, request: Any, context: Any) -> Any:
        models = [self.model_of(request)] if request.name else self.repository.models
        counted = [describe.model_statistics(model, self.repository.counters) for model in models]
        return CLASSES["ModelStatisticsResponse"](model_stats=counted)

    async def repository_index(self, request: Any, context: Any) -> Any:
        models = describe.repository_index(self.repository)
        return CLASSES["RepositoryIndexResponse"](models=[m for m in models if m["state"] == "READY" or not request.ready])

    async def repository_model_load(self, request: Any, context: Any) -> Any:
        if request.parameters:
            raise bad(f"a model is loaded as its package says; {', '.join(sorted(request.parameters))} cannot be given")
        if await self.repository.load(request.model_name):
            self.app.notify()
        return CLASSES["RepositoryModelLoadResponse"]()

    async def model_infer(self, request: Any, context: Any) -> Any:
        began = time.perf_counter_ns()
        describe.check_version(request.model_name, request.model_version)
        parameters = plain(request.parameters)
        model = self.repository.find(request.model_name, text_of(parameters, BRANCH), text_of(parameters, PREFER))
        row = self.repository.counters.row(model.name)
        model.users += 1
        try:
            must_be_ready(model)
            asked = read_request(model, request)
            assert model.batcher is not None
            outputs = await model.batcher.submit(asked.images, self._timeout(asked.timeout, context.time_remaining()))
            response = write_response(model, asked, outputs)
        except Exception:
            row.add("fail")
            row.add("fail_ns", time.perf_counter_ns() - began)
            raise
        finally:
            model.users -= 1
        row.answered(time.perf_counter_ns() - began)
        return response

    def _timeout(self, *given: float | None) -> float | None:
        """Seconds: what the client gives, else the server's own."""
        return min((each for each in given if each is not None), default=self.bounds.timeout or None)

    async def stream(self, _: Any, context: Any) -> None:
        """Inference in a stream: answers in the order of the requests, and a refusal is the answer to its request only."""
        client, room, answers = address_of(context.peer()), asyncio.Semaphore(AHEAD), asyncio.Queue[asyncio.Task[Any] | None]()
        try:
            self.guard.admit("ModelStreamInfer", headers_of(context))
        except Refusal as refusal:
            await self._refuse(context, refusal)

        async def read() -> None:
            from grpc.aio import EOF

            try:
                while (message := await context.read()) is not EOF:
                    await room.acquire()
                    answers.put_nowait(asyncio.create_task(self._streamed(message, client, context)))
            finally:
                answers.put_nowait(None)

        reader = asyncio.create_task(read())
        self.readers.add(reader)
        self.under_way += 1
        try:
            while (answer := await answers.get()) is not None:
                await context.write(await answer)
                room.release()
        finally:
            self.under_way -= 1
            self.readers.discard(reader)
            reader.cancel()
            while not answers.empty():
                if (answer := answers.get_nowait()) is not None:
                    answer.cancel()
        if reader.cancelled():  # by who stops the server
            await abort(context, Refusal(Reason.BUSY, "this server is about to stop"))
        await reader

    async def _streamed(self, message: bytes, client: str, context: Any) -> Any:
        """The answer to a message of a stream, or why there is none."""
        kind, request_id = CLASSES["ModelStreamInferResponse"], ""
        try:
            self.guard.enter(client)
            try:
                with self.guard.holding(len(message)):
                    request = parsed(CLASSES["ModelInferRequest"], message, self.bounds.max_body)
                    request_id = request.id
                    response = await self.model_infer(request, context)
            finally:
                self.guard.leave(client)
        except Exception as error:
            return kind(error_message=refusal_of(error).what, infer_response={"id": request_id})
        response.parameters[FINAL].bool_param = True
        return kind(infer_response=response)


def parsed(kind: Any, message: Any, limit: int) -> Any:
    """A message that was packed or not; raises a Refusal where the bytes are none of this kind."""
    if not isinstance(message, bytes):
        raise bad(f"a {kind.DESCRIPTOR.name} is missing")
    try:
        return kind.FromString(unpack(message, "gzip", limit) if message.startswith(PACKED) else message)
    except DecodeError:
        raise bad(f"the message cannot be read as a {kind.DESCRIPTOR.name}") from None


def serialized(message: Any) -> bytes:
    return message.SerializeToString()


def refusal_of(error: Exception) -> Refusal:
    """What the client is told; of what nobody expected only that it happened."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, KdzooError):
        return bad(f"{error.what}. {error.hint}".strip())
    LOG.exception("gRPC", exc_info=error)
    return Refusal(Reason.FAILED, "the server failed on this request; its log says more")


async def abort(context: Any, refusal: Refusal) -> None:
    """End a call with a sentence; does not come back."""
    import grpc

    later = (("grpc-retry-pushback-ms", str(1000 * refusal.retry_after)),) if refusal.reason.later else ()
    await context.abort(grpc.StatusCode[refusal.reason.grpc], refusal.what, later)


def headers_of(context: Any) -> dict[bytes, bytes]:
    """Of the metadata, what the guard looks at."""
    found = {key: value for key, value in context.invocation_metadata() if key == "authorization"}
    return {key.encode(): value.encode() if isinstance(value, str) else value for key, value in found.items()}


def address_of(peer: str) -> str:
    """`ipv4:10.0.0.7:5000`, `ipv6:%5B::1%5D:5000`: the address, as HTTP has it."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
