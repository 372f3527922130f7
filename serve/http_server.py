"""uvicorn, as a worker runs it: its connections are ours, and so are the signals. Torch-free."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import uvicorn

from .connection import Connection
from .settings import Settings

if TYPE_CHECKING:
    from .app import App

KEEP_ALIVE = 75  # seconds that a connection may be idle
BACKLOG = 2048  # connections that wait to be accepted


class Server(uvicorn.Server):
    """`lost`: requests that were not answered when the grace was over."""

    lost = 0

    def capture_signals(self) -> Any:
        """The worker does."""
        return nullcontext()

    async def _wait_tasks_to_complete(self) -> None:
        try:
            await super()._wait_tasks_to_complete()
        except asyncio.CancelledError:
            express = [each for each in self.server_state.connections if isinstance(each, Connection) and each.errand is not None]
            self.lost = len(self.server_state.tasks) + len(express)
            raise


def http_server(app: App, settings: Settings) -> Server:
    """For `app`, not started yet."""
    Connection.header_seconds, Connection.door, Connection.express = settings.bounds.header_seconds, app.door, app.express
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
        backlog=BACKLOG,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
    )
    return Server(config)
