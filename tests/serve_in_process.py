"""The application of the server without a socket: called as a server of ASGI would, in the process of the test.

Import it as `kdzoo.tests.serve_in_process`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdzoo.serve.app import App
from kdzoo.serve.counters import Counters
from kdzoo.serve.repository import Repository
from kdzoo.serve.settings import Batching, Bounds, Wishes


@dataclass
class Answer:
    """What the application sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        sentence: str = self.json["error"]
        return sentence


async def ask(
    app: App,
    method: str,
    path: str,
    body: bytes | Sequence[bytes] = b"",
    headers: dict[str, str] | None = None,
    *,
    query: str = "",
    client: str = "1.2.3.4",
    receive: Callable[[], Awaitable[dict[str, Any]]] | None = None,
) -> Answer:
    """One request. `body`: in one piece or in several."""
    pieces = [body] if isinstance(body, bytes) else list(body)
    given = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": given,
        "client": (client, 1), "server": ("test", 80), "scheme": "http", "http_version": "1.1", "root_path": "",
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def from_pieces() -> dict[str, Any]:
        if not pieces:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive or from_pieces, send)
    if not sent:
        return Answer(0, {}, b"")  # nobody was there
    start, *rest = sent
    names = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], names, b"".join(message.get("body", b"") for message in rest))


def with_app(
    folder: Path,
    body: Callable[[App], Awaitable[None]],
    *,
    bounds: Bounds | None = None,
    batching: Batching | None = None,
    wishes: Wishes | None = None,
    branches: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Run `body` with the application that serves all packages in `folder`."""

    async def whole() -> None:
        batching_ = batching or Batching(max_batch=8, threads=1)
        repository = Repository([str(folder)], branches, wishes or Wishes(), batching_, say)
        repository.start(Counters(list(repository.served), repository.max_batch))
        app = App(repository, bounds or Bounds())
        try:
            await asyncio.wait_for(body(app), 30)
        finally:
            app.decoder.close()
            await repository.close()

    asyncio.run(whole())
