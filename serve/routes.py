"""All that is not inference: health, metadata, statistics, the repository, metrics, the page; the Open Inference Protocol v2 with
the extensions of Triton. Torch-free."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import describe
from .body import Body
from .tensors import bad
from .wire import read_parameters

if TYPE_CHECKING:
    from .app import App
    from .model import Model


def routes(app: App) -> list[Route]:
    """All that is not inference."""
    repository = app.repository

    def model_of(request: Request) -> Model:
        name = unquote(request.path_params["name"])
        describe.check_version(name, request.path_params.get("version", ""))
        return repository.find(name, request.query_params.get("branch"))

    def live(request: Request) -> Response:
        return Response(status_code=200)

    def ready(request: Request) -> Response:
        is_ready = not app.guard.stopping and all(model.ready for model in repository.models)
        return Response(status_code=200 if is_ready else 503)

    def server(request: Request) -> Response:
        return JSONResponse(describe.server_metadata())

    def model_ready(request: Request) -> Response:
        return Response(status_code=200 if model_of(request).ready and not app.guard.stopping else 503)

    def metadata(request: Request) -> Response:
        return JSONResponse(describe.model_metadata(model_of(request)))

    def config(request: Request) -> Response:
        return JSONResponse(describe.model_config(model_of(request), repository.batching))

    def statistics(request: Request) -> Response:
        models = [model_of(request)] if "name" in request.path_params else repository.models
        return JSONResponse({"model_stats": [describe.model_statistics(model, repository.counters) for model in models]})

    async def index(request: Request) -> Response:
        return JSONResponse(describe.repository_index(repository))

    async def load(request: Request) -> Response:
        with closing(Body(request.receive, dict(request.scope["headers"]), app.guard)) as body:
            given = await body.read()
        if given.strip() not in (b"", b"{}") and read_parameters(given):
            raise bad("a package is loaded as it is on disk: leave the parameters out")
        if await repository.load(unquote(request.path_params["name"])):
            app.notify()
        return JSONResponse({})

    def cards(request: Request) -> Response:
        return JSONResponse([describe.model_card(model) for model in repository.models])

    def metrics(request: Request) -> Response:
        from .metrics import CONTENT_TYPE, exposition

        return Response(exposition(repository), media_type=CONTENT_TYPE)

    def openapi(request: Request) -> Response:
        from .schema import document

        return JSONResponse(document(repository))

    def page(request: Request) -> Response:
        from .page import read_page

        found = read_page()
        headers = {"content-security-policy": found.policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
        return Response(found.html, headers=headers, media_type="text/html; charset=utf-8")

    async def taken(request: Request) -> Response:
        raise AssertionError("the application answers this before it asks its router, which only knows what is no POST")

    ones = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    both: list[tuple[str, Any]] = [("", metadata), ("/ready", model_ready), ("/config", config), ("/stats", statistics)]
    named = [Route(f"{one}{tail}", off_loop(body)) for one in ones for tail, body in both]
    inference = [Route(f"{one}/{verb}", taken, methods=["POST"]) for one in ones for verb in ("infer", "classify")]
    get = {
        "/": page, "/v2": server, "/v2/health/live": live, "/v2/health/ready": ready, "/v2/models/stats": statistics,
        "/v2/kdzoo/models": cards, "/metrics": metrics, "/openapi.json": openapi,
    }  # fmt: skip
    return [
        *(Route(path, off_loop(body)) for path, body in get.items()),
        *named,
        *inference,
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", load, methods=["POST"]),
    ]


def off_loop(body: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
    """Starlette gives plain functions to threads; these are too short for that."""

    async def call(request: Request) -> Response:
        return body(request)

    return call
