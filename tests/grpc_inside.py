"""A server for gRPC in the process of a test, so that its queue can be looked at and its session can be held up.

Import it as `kdzoo.tests.grpc_inside`. A test module that wants its fixtures gives them its own names: `run = grpc_inside.run`.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from kdzoo.serve.app import App
from kdzoo.serve.counters import Counters
from kdzoo.serve.grpc.messages import CLASSES, SERVICE
from kdzoo.serve.grpc.server import GrpcServer, start_grpc
from kdzoo.serve.repository import Repository
from kdzoo.serve.settings import Batching, Bounds, Settings, Wishes
from kdzoo.tests.serving import MODEL, package_in, small_models

Array = np.ndarray[Any, Any]
Scenario = Callable[["Running"], Awaitable[None]]


class Gate:
    """A session that waits until it is opened, and fails where it is told to."""

    def __init__(self, session: Any) -> None:
        self.session, self.opened, self.error = session, threading.Event(), None
        self.entered = threading.Event()

    def everything(self, images: Array) -> dict[str, Array]:
        self.entered.set()
        assert self.opened.wait(20)
        if self.error is not None:
            raise self.error
        found: dict[str, Array] = self.session.everything(images)
        return found


@dataclass
class Running:
    """A server in this process, and a channel to it. `row`: what it counts of its model."""

    app: App
    server: GrpcServer
    channel: Any
    gate: Gate

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        batcher = self.app.repository.models[0].batcher
        assert batcher is not None
        return batcher.waiting

    @property
    def row(self) -> dict[str, int]:
        return self.app.repository.counters.total(MODEL).counts

    def call(self, method: str, request: Any, kind: str = "", service: str = SERVICE, **options: Any) -> Any:
        """`request`: a message, or bytes."""
        stub = self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=CLASSES[kind or f"{method}Response"].FromString,
        )
        return stub(request, **options)

    def stream(self, **options: Any) -> Any:
        stub = self.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=CLASSES["ModelStreamInferResponse"].FromString,
        )
        return stub(**options)

    async def refused(self, code: Any, words: str, call: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is code and re.search(words, caught.value.details() or "")


@asynccontextmanager
async def running(repository: Repository, bounds: Bounds, closed: bool = False, **settings: Any) -> AsyncIterator[Running]:
    model = repository.models[0]
    real = model.sessions
    gate = Gate(real[0])
    if not closed:
        gate.opened.set()
    model.sessions, model.failure = [gate], ""  # type: ignore[list-item]
    repository.start(Counters([MODEL], repository.max_batch))
    app = App(repository, bounds)
    server = await start_grpc(app, replace(Settings(("",), bounds=bounds, grpc=0), **settings))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.max_send_message_length", -1)]) as channel:
            yield Running(app, server, channel, gate)
    finally:
        gate.opened.set()
        await server.server.stop(0)
        app.decoder.close()
        assert model.batcher is not None
        await model.batcher.close()
        model.sessions = real


@pytest.fixture(scope="module")
def models(once: Callable[..., Path]) -> Path:
    return small_models(once)


@pytest.fixture(scope="module")
def golden(models: Path) -> tuple[Array, Array]:
    return package_in(models, "1").golden()


@pytest.fixture(scope="module")
def repository(models: Path) -> Iterator[Repository]:
    opened = Repository([str(models)], ["1"], Wishes(), Batching(threads=1))
    yield opened
    opened.models[0].sessions[0].close()


@pytest.fixture
def run(repository: Repository) -> Callable[..., None]:
    """`run_with` of a repository."""
    return partial(run_with, repository)


def run_with(repository: Repository, scenario: Scenario, *, closed: bool = False, **bounds: Any) -> None:
    """A scenario with a server of its own; `closed`: nothing is computed at first."""

    async def whole() -> None:
        async with running(repository, Bounds(**bounds), closed) as server:
            async with asyncio.timeout(25):
                await scenario(server)

    asyncio.run(whole())


def asked(images: Array, **changes: Any) -> Any:
    """A `ModelInferRequest` with raw bytes."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": images.shape}
    whole = {"model_name": MODEL, "inputs": [tensor], "raw_input_contents": [images.tobytes()]}
    return CLASSES["ModelInferRequest"](**{**whole, **changes})


def logits_of(response: Any) -> Array:
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(response.outputs[0].shape)


def is_golden(response: Any, expected: Array) -> bool:
    return bool(np.abs(logits_of(response) - expected).max() < 1e-4)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)
