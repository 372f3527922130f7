"""The server as an ASGI application: what stands before a request, inference, uploads of pictures, and what becomes of an error.

The path of inference is taken before any router is asked; the rest (`routes`) is Starlette's. Torch-free, like all of this package.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.routing import Router

from ..errors import KdzooError
from . import describe
from .answer import BINARY, JSON, Headers, Send, refuse, respond, sentence, without_folders
from .body import Body
from .door import Door, client_of
from .express import Express
from .guard import Guard, Receive, Scope, timeout_in
from .pictures import KINDS, Decoder, classify
from .refusal import Reason, Refusal, unforeseen
from .routes import routes
from .settings import Bounds
from .tensors import bad
from .wire import HEADER_LENGTH, read_request, write_response

if TYPE_CHECKING:
    from .model import Model
    from .repository import Repository

MODELS = "/v2/models/"
PREFER = b"kdzoo-prefer"
TOP = 5
LOG = logging.getLogger("kdzoo.serve")

Content = tuple[bytes, bytes, Headers]  # of an answer: body, type, further headers


class App:
    """What uvicorn calls. `notify`: told that another process of this server should look at its packages, too."""

    def __init__(self, repository: Repository, bounds: Bounds, notify: Callable[[], None] = lambda: None) -> None:
        self.repository, self.bounds, self.notify = repository, bounds, notify
        self.guard = Guard(bounds)
        self.door = Door(repository, self.guard)
        self.express = Express(repository, self.guard, self.door)
        self.decoder = Decoder(bounds.max_pixels, repository.batching.bound, repository.batching.threads)
        self.router = Router(routes=routes(self), redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        path, client = scope["path"], client_of(scope)
        posts, has_entered = scope["method"] == "POST", self.door.starts(scope)
        try:
            self.guard.admit(path, headers)
            if posts and not has_entered:
                self.guard.enter(client)
        except Refusal as refusal:
            if has_entered:
                self.guard.leave(client)
            await refuse(send, refusal, close=refusal.reason is not Reason.TOO_MANY)
            return
        scope["app"] = self  # the router raises what it does not find
        try:
            if posts and path.startswith(MODELS) and path.endswith(("/infer", "/classify")):
                await self._post(scope, headers, receive, send)
            else:
                await self.router(scope, receive, send)
        except Refusal as refusal:
            await refuse(send, refusal, close=refusal.reason in (Reason.TOO_LARGE, Reason.TOO_SLOW))
        except HTTPException as error:
            what = f"{error.detail}: {scope['method']} {path:.200}; GET /openapi.json tells what there is"
            extra = [(key.lower().encode(), value.encode()) for key, value in (error.headers or {}).items()]
            await respond(send, sentence(what), JSON, extra, status=error.status_code)
        except KdzooError as error:  # of a package that was to be loaded
            self.repository.say(f"{path:.200}: {error.what}")
            await respond(send, sentence(without_folders(f"{error.what}. {error.hint}".strip())), JSON, [], status=400)
        except ConnectionError:
            pass  # nobody is there to read an answer
        except Exception:
            LOG.exception("a request to %s failed", path)
            await refuse(send, unforeseen(), close=True)
        finally:
            if posts:
                self.guard.leave(client)

    async def _post(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        """Inference, of tensors or of pictures."""
        began = time.perf_counter_ns()
        name, action = split_path(scope["path"])
        query = parse_qs(scope["query_string"].decode("latin-1")) if scope["query_string"] else {}
        prefer = headers.get(PREFER)
        model = self.repository.find(
            name, query.get("branch", [None])[-1], prefer.decode("latin-1") if prefer is not None else None
        )
        row = self.repository.counters.row(model.name)
        watch = scope.get("extensions", {}).get("kdzoo.watch", {}).get("call", _nobody)
        model.users += 1
        given = Body(receive, headers, self.guard)
        try:
            must_be_ready(model)
            if action == "infer":
                body, kind, extra = await self._infer(model, headers, given, watch)
            else:
                body, kind, extra = await self._classify(model, headers, query, scope, given, watch)
        except Refusal:
            row.add("fail")
            row.add("fail_ns", time.perf_counter_ns() - began)
            raise
        finally:
            model.users -= 1
            given.close()
        row.answered(time.perf_counter_ns() - began)  # before the client knows, who may ask for the count next
        await respond(send, body, kind, extra, headers.get(b"accept-encoding", b""))

    async def _infer(self, model: Model, headers: dict[bytes, bytes], given: Body, watch: Callable[[Any], None]) -> Content:
        body = await given.read()
        header = headers.get(HEADER_LENGTH.encode())
        request = read_request(model, body, header.decode("latin-1") if header is not None else None)
        assert model.batcher is not None
        future = model.batcher.submit(request.images, request.timeout or timeout_in(headers, self.bounds))
        watch(future)
        try:
            outputs = await future
        except asyncio.CancelledError:
            raise ConnectionError("the client went away") from None
        answer, length = write_response(model, request, outputs)
        return (answer, JSON, []) if length is None else (answer, BINARY, [(HEADER_LENGTH.encode(), str(length).encode())])

    async def _classify(
        self,
        model: Model,
        headers: dict[bytes, bytes],
        query: dict[str, list[str]],
        scope: Scope,
        given: Body,
        watch: Callable[[Any], None],
    ) -> Content:
        try:
            top = int(query.get("top", [str(TOP)])[-1])
        except ValueError:
            top = 0
        if top < 1:
            raise bad("top must be a number of classes, at least 1")
        pictures = await uploads(await given.read(), headers, scope)
        found = await classify(model, self.decoder, pictures, top, timeout_in(headers, self.bounds), watch)
        return json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"), JSON, []


def split_path(path: str) -> tuple[str, str]:
    """Name and verb of `/v2/models/NAME[/versions/1]/VERB`."""
    parts = path[len(MODELS) :].split("/")
    if len(parts) == 4 and parts[1] == "versions":
        describe.check_version(parts[0], parts[2])
        parts = [parts[0], parts[3]]
    if len(parts) != 2 or not parts[0]:
        raise Refusal(Reason.UNKNOWN, f"there is nothing at {path:.200}")
    return parts[0], parts[1]


def must_be_ready(model: Model) -> None:
    if not model.ready:
        raise Refusal(Reason.BUSY, f"model '{model.name}' is out of service: {model.failure or 'its runtime does not come back'}")


async def uploads(body: bytes, headers: dict[bytes, bytes], scope: Scope) -> list[tuple[str, bytes]]:
    """The pictures of a body, each with a name: the body itself, or every file of a form."""
    kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await form_files(body, scope)
    if kind not in KINDS:
        raise Refusal(Reason.NO_IMAGE, f"send a picture (image/jpeg, image/png, image/webp) or a form with some, not {kind!r:.60}")
    if not body:
        raise bad("the body is empty; it should be a picture")
    return [("the picture", body)]


async def form_files(body: bytes, scope: Scope) -> list[tuple[str, bytes]]:
    from starlette.datastructures import Headers, UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def stream() -> Any:
        yield body

    try:
        form = await MultiPartParser(Headers(scope=scope), stream(), max_files=256, max_fields=16).parse()
    except (MultiPartException, KeyError, ValueError, LookupError) as error:
        raise bad(f"the form cannot be read: {getattr(error, 'message', error)!s:.200}") from None
    uploaded = [each for _, each in form.multi_items() if isinstance(each, UploadFile)]
    files = [(each.filename or "the picture", await each.read()) for each in uploaded]
    await form.close()
    if not files:
        raise bad("the form holds no file")
    return files


def _nobody(future: Any) -> None:
    """Where no connection can be watched."""
