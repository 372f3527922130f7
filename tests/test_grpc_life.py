"""gRPC starts, is served by several processes, and stops without a lost call."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc", reason="the extra serve is not installed")
pytest.importorskip("starlette", reason="the extra serve is not installed")

from kdzoo.errors import EnvironmentProblem  # noqa: E402
from kdzoo.serve.grpc.messages import CLASSES, SERVICE  # noqa: E402
from kdzoo.serve.grpc.server import start_grpc  # noqa: E402
from kdzoo.serve.repository import Repository  # noqa: E402
from kdzoo.serve.settings import Bounds, Settings  # noqa: E402
from kdzoo.tests import grpc_inside  # noqa: E402
from kdzoo.tests.grpc_inside import Array, Running, asked, is_golden, running, until  # noqa: E402
from kdzoo.tests.serving import MODEL, serve  # noqa: E402

Code = grpc.StatusCode
models, golden, repository, run = grpc_inside.models, grpc_inside.golden, grpc_inside.repository, grpc_inside.run


def test_a_server_that_stops_answers_what_it_has_taken_and_refuses_the_rest(
    run: Callable[..., None], golden: tuple[Array, Array]
) -> None:
    async def scenario(server: Running) -> None:
        taken, stream, idle = server.call("ModelInfer", asked(golden[0])), server.stream(), server.stream()
        await stream.write(asked(golden[0], id="streamed"))
        await until(lambda: server.app.guard.under_way == 2 and len(server.server.methods.readers) == 2)
        server.app.guard.stopping = True
        stopping = asyncio.create_task(server.server.stop(20.0))
        await asyncio.sleep(0.05)
        await server.refused(Code.UNAVAILABLE, "about to stop", server.call("ModelInfer", asked(golden[0])))
        assert not (await server.call("ServerReady", CLASSES["ServerReadyRequest"]())).ready
        await server.refused(Code.UNAVAILABLE, "about to stop", idle.read())
        server.gate.opened.set()
        assert is_golden(await taken, golden[1]) and (await stream.read()).infer_response.id == "streamed"
        await server.refused(Code.UNAVAILABLE, "about to stop", stream.read())
        began = time.monotonic()
        await stopping
        assert time.monotonic() - began < 5

    run(scenario, closed=True)


def test_a_call_that_is_not_answered_within_the_grace_is_counted_as_lost(
    run: Callable[..., None], golden: tuple[Array, Array]
) -> None:
    async def scenario(server: Running) -> None:
        lost, idle = server.call("ModelInfer", asked(golden[0])), server.stream()
        await until(lambda: server.app.guard.under_way == 1 and len(server.server.methods.readers) == 1)
        server.app.guard.stopping = True
        began = time.monotonic()
        await server.server.stop(0.4)
        assert server.server.lost == 1 and time.monotonic() - began < 2
        assert await lost.code() is not Code.OK and await idle.code() is Code.UNAVAILABLE

    run(scenario, closed=True)


def test_a_lost_call_is_told_by_the_exit_code(models: Path) -> None:
    with serve(models, "--branch", 1, "--grace", 1) as server, grpc.insecure_channel(server.grpc) as channel:
        infer = channel.stream_unary(f"/{SERVICE}/ModelInfer", request_serializer=None, response_deserializer=None)
        ended = threading.Event()
        silent = infer.future(iter(ended.wait, True))  # a client that never says what it wants
        ready = channel.unary_unary(
            f"/{SERVICE}/ServerReady",
            request_serializer=CLASSES["ServerReadyRequest"].SerializeToString,
            response_deserializer=CLASSES["ServerReadyResponse"].FromString,
        )
        assert ready(CLASSES["ServerReadyRequest"](), timeout=10).ready
        time.sleep(0.2)
        assert server.stop() == 1 and "1 requests were not answered" in server.said
        ended.set()
        assert silent.code() is not Code.OK


def test_clients_that_ask_without_a_break_are_answered_or_refused_while_a_server_stops(
    models: Path, golden: tuple[Array, Array]
) -> None:
    ends, message = Counter[Any](), asked(golden[0][:1]).SerializeToString()

    def ask(address: str) -> None:
        """Until the server is gone."""
        own = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
        with grpc.insecure_channel(address, options=own) as channel:
            infer = channel.unary_unary(f"/{SERVICE}/ModelInfer", request_serializer=None, response_deserializer=None)
            while True:
                try:
                    infer(message, timeout=20)
                    ends["answered"] += 1
                except grpc.RpcError as error:
                    ends[error.code()] += 1
                    if "about to stop" not in error.details():
                        return

    with serve(models, "--branch", 1, "--threads", 1, "--max-batch", 2) as server:
        clients = [threading.Thread(target=ask, args=(server.grpc,)) for _ in range(24)]
        for client in clients:
            client.start()
        ending = time.monotonic() + 10
        while ends["answered"] < 200 and time.monotonic() < ending:
            time.sleep(0.01)
        assert server.stop() == 0
        for client in clients:
            client.join()
    assert ends["answered"] >= 200 and set(ends) == {"answered", Code.UNAVAILABLE}, ends


def test_a_port_that_is_taken_is_told_and_so_is_a_certificate_that_is_none(repository: Repository) -> None:
    async def twice() -> None:
        async with running(repository, Bounds()) as server:
            with pytest.raises(EnvironmentProblem, match=f"cannot listen at 127.0.0.1:{server.server.port} for gRPC"):
                await start_grpc(server.app, Settings(("",), grpc=server.server.port))
            with pytest.raises(EnvironmentProblem, match="certificate and its key cannot be used"):
                await start_grpc(server.app, Settings(("",), grpc=0, certificate=__file__, key=__file__))

    asyncio.run(twice())


@pytest.mark.skipif(which("openssl") is None, reason="openssl is not installed")
def test_tritons_client_is_served_by_two_workers_over_tls_and_with_a_token(
    models: Path, golden: tuple[Array, Array], tmp_path: Path
) -> None:
    triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
    names = {name: tmp_path / name for name in ("key", "certificate", "token")}
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", names["key"], "-out", names["certificate"]], check=True, capture_output=True)
    names["token"].write_text("sesame")
    tensor = triton.InferInput("image", list(golden[0].shape), "UINT8").set_data_from_numpy(golden[0])
    options = ("--branch", 1, "--workers", 2, "--tls-certificate", names["certificate"], "--tls-key", names["key"])
    with serve(models, *options, "--token-file", names["token"]) as server:
        secret = {"ssl": True, "root_certificates": str(names["certificate"])}
        for _ in range(8):
            own = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own, which any of the workers takes
            with triton.InferenceServerClient(server.grpc, **secret, channel_args=own) as client:
                assert client.is_server_ready()
                result = client.infer(MODEL, [tensor], headers={"authorization": "Bearer sesame"})
                assert np.abs(result.as_numpy("logits") - golden[1]).max() < 1e-4
        with triton.InferenceServerClient(server.grpc, **secret) as client:
            with pytest.raises(triton.InferenceServerException, match="Bearer TOKEN"):
                client.get_inference_statistics(MODEL)
            found = client.get_inference_statistics(MODEL, headers={"authorization": "Bearer sesame"})
        assert found.model_stats[0].inference_stats.success.count == 8
        assert server.stop() == 0, server.said
