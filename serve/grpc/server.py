"""gRPC beside HTTP: listening, and the way to stop. The methods are in `methods`."""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import EnvironmentProblem
from .messages import HEALTH_SERVICE, SERVICE
from .methods import CHECK, Methods, serialized

if TYPE_CHECKING:
    from ..app import App
    from ..settings import Settings

WORDS = 0.3  # seconds in which a stopping server still refuses in words, at least
QUIET, HUSH = 0.05, 1.0  # seconds without a new call, in which it can stop to listen; for which it is waited at most
FAREWELL = 1.0  # seconds in which the last refusals are sent
STREAMS = 128  # calls of a connection that are open at once, at least; its client holds back more of them by itself
DEAD_MS, DEAF_MS = 60_000, 20_000  # a connection is asked for a sign of life after this, and given up without one after that


class GrpcServer:
    """What runs, at `port`. `lost`: calls that were not answered when the grace was over."""

    def __init__(self, server: Any, methods: Methods, port: int) -> None:
        self.server, self.methods, self.port, self.lost = server, methods, port, 0

    async def stop(self, grace: float) -> None:
        """Refuse what is new, in words; answer what was taken, within `grace` seconds. What is not counts as `lost`.

        gRPC's library cancels calls that come in the moment in which it stops to listen. So the last ones are not refused before
        that: clients that ask again and again wait for their answer then, and nothing comes."""
        loop, methods = asyncio.get_running_loop(), self.methods
        began = loop.time()
        for reader in methods.readers:
            reader.cancel()
        await asyncio.sleep(min(WORDS, grace))
        while methods.under_way and loop.time() - began < grace:
            await asyncio.sleep(QUIET / 4)
        self.lost = methods.under_way
        methods.held, methods.last, hushed = asyncio.Event(), loop.time(), loop.time()
        while not self.lost and loop.time() - methods.last < QUIET and loop.time() - hushed < HUSH:
            await asyncio.sleep(QUIET / 4)
        ending = loop.create_task(self.server.stop(0.0 if self.lost else FAREWELL))
        await asyncio.sleep(0)  # now it does not listen any more
        methods.held.set()
        while not ending.done():
            await asyncio.sleep(QUIET)
            gc.collect()  # for gRPC's library a refused call is over when Python has cleared it away
        await ending


async def start_grpc(app: App, settings: Settings) -> GrpcServer:
    """Listen, in the event loop that runs.

    Raises:
        EnvironmentProblem: the address is taken, or the certificate cannot be used.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a client that breaks off is no news
    import grpc
    import grpc.aio

    options = {
        "grpc.max_receive_message_length": settings.bounds.max_body, "grpc.max_send_message_length": -1,
        "grpc.per_message_decompression": 0, "grpc.so_reuseport": int(settings.workers > 1),
        "grpc.max_concurrent_streams": max(STREAMS, 2 * settings.bounds.per_client),
        "grpc.keepalive_time_ms": DEAD_MS, "grpc.keepalive_timeout_ms": DEAF_MS,
    }  # fmt: skip
    server = grpc.aio.server(options=tuple(options.items()))
    methods = Methods(app)
    by_service: dict[str, dict[str, Any]] = {SERVICE: {}, HEALTH_SERVICE: {}}
    for name, answer in methods.all().items():
        handler = grpc.stream_unary_rpc_method_handler(methods.one(name, answer), response_serializer=serialized)
        by_service[HEALTH_SERVICE if name == CHECK else SERVICE][name] = handler
    by_service[SERVICE]["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(methods.stream, response_serializer=serialized)
    server.add_generic_rpc_handlers(tuple(grpc.method_handlers_generic_handler(*each) for each in by_service.items()))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc}"
    try:
        if settings.certificate and settings.key:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.certificate, settings.key)
            pair = (Path(settings.key).read_bytes(), Path(settings.certificate).read_bytes())
            port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            port = server.add_insecure_port(address)
    except OSError as error:
        raise EnvironmentProblem(
            f"the certificate and its key cannot be used: {error}", hint="two PEM files that belong together"
        ) from None
    except RuntimeError:
        raise EnvironmentProblem(
            f"cannot listen at {address} for gRPC", hint="another --grpc-port, or stop what listens there; 0 takes a free one"
        ) from None
    await server.start()
    return GrpcServer(server, methods, port)
