"""Calls of gRPC: streams, deadlines, calls that nobody waits for, failures, and the way to stop."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc", reason="the extra serve is not installed")
pytest.importorskip("starlette", reason="the extra serve is not installed")

from kdzoo.errors import EnvironmentProblem  # noqa: E402
from kdzoo.serve.grpc import methods as grpc_methods  # noqa: E402
from kdzoo.serve.grpc.messages import CLASSES  # noqa: E402
from kdzoo.serve.grpc.server import start_grpc  # noqa: E402
from kdzoo.serve.repository import Repository  # noqa: E402
from kdzoo.serve.settings import Batching, Bounds, Settings, Wishes  # noqa: E402
from kdzoo.tests import grpc_inside  # noqa: E402
from kdzoo.tests.grpc_inside import Array, Running, asked, is_golden, running, until  # noqa: E402
from kdzoo.tests.serving import MODEL, package_in, serve, small_models  # noqa: E402

Code = grpc.StatusCode


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
    return partial(grpc_inside.run, repository)


# Streams


def test_a_stream_answers_in_order_and_a_refusal_is_one_of_its_answers(
    run: Callable[..., None], golden: tuple[Array, Array]
) -> None:
    async def scenario(server: Running) -> None:
        images, expected = golden
        stream, count = server.stream(), 3 * grpc_methods.AHEAD

        async def ask() -> None:
            for number in range(count):
                changes = {"model_name": "unheard-of"} if number % 7 == 3 else {}
                await stream.write(asked(images[[number % 8]], id=str(number), **changes))
            await stream.done_writing()

        asking = asyncio.create_task(ask())
        for number in range(count):
            answer = await stream.read()
            assert answer.infer_response.id == str(number)
            if number % 7 == 3:
                assert "unknown model: 'unheard-of'" in answer.error_message
            else:
                assert not answer.error_message and is_golden(answer.infer_response, expected[[number % 8]])
                assert answer.infer_response.parameters["triton_final_response"].bool_param
        assert await stream.read() is grpc.aio.EOF and await stream.code() is Code.OK
        await asking
        assert server.app.guard.under_way == 0 and not server.server.methods.readers

    run(scenario)


def test_a_stream_waits_where_too_much_is_under_way_and_leaves_nothing_behind(
    run: Callable[..., None], golden: tuple[Array, Array]
) -> None:
    async def scenario(server: Running) -> None:
        stream = server.stream()
        for _ in range(2 * grpc_methods.AHEAD):
            await stream.write(asked(golden[0][:1]))
        await until(lambda: server.app.guard.under_way == grpc_methods.AHEAD)
        await asyncio.sleep(0.1)
        assert server.app.guard.under_way == grpc_methods.AHEAD
        stream.cancel()
        await until(lambda: server.app.guard.under_way == 0)
        assert server.waiting == 0 and server.row["cancelled"] == grpc_methods.AHEAD

    run(scenario, closed=True)


def test_tritons_client_streams(run: Callable[..., None], golden: tuple[Array, Array]) -> None:
    triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")

    def ask(port: int) -> list[tuple[Any, Any]]:
        answers: list[tuple[Any, Any]] = []
        tensor = triton.InferInput("image", list(golden[0].shape), "UINT8").set_data_from_numpy(golden[0])
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            client.start_stream(lambda result, error: answers.append((result, error)))
            for number in range(5):
                version = "9" if number == 2 else ""
                client.async_stream_infer(MODEL, [tensor], request_id=str(number), model_version=version)
            client.stop_stream()
        return answers

    async def scenario(server: Running) -> None:
        answers = await asyncio.to_thread(ask, server.server.port)
        assert len(answers) == 5 and "version 9 is not found" in str(answers[2][1])
        for number in (0, 1, 3, 4):
            result = answers[number][0]
            assert result.get_response().id == str(number) and np.abs(result.as_numpy("logits") - golden[1]).max() < 1e-4

    run(scenario)


# Deadlines, cancelled calls, failures


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_a_call_that_nobody_waits_for_leaves_the_queue(run: Callable[..., None], golden: tuple[Array, Array], how: str) -> None:
    async def scenario(server: Running) -> None:
        first = server.call("ModelInfer", asked(golden[0]))
        await until(server.gate.entered.is_set)
        second = server.call("ModelInfer", asked(golden[0]), timeout=0.3 if how == "deadline" else None)
        await until(lambda: server.waiting == len(golden[0]) or second.done())
        if how == "cancelled":
            second.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await second
        assert await second.code() is (Code.CANCELLED if how == "cancelled" else Code.DEADLINE_EXCEEDED)
        await until(lambda: server.waiting == 0 and server.app.guard.under_way == 1)
        assert server.row["cancelled"] + server.row["late"] == 1
        server.gate.opened.set()
        assert is_golden(await first, golden[1]) and server.row["executions"] == 1

    run(scenario, closed=True)


def test_patience_ends_a_call_be_it_the_servers_or_what_the_request_says(
    run: Callable[..., None], golden: tuple[Array, Array]
) -> None:
    async def scenario(server: Running) -> None:
        await server.refused(Code.DEADLINE_EXCEEDED, "no answer within 200 ms", server.call("ModelInfer", asked(golden[0])))
        hasty = asked(golden[0], parameters={"timeout": {"int64_param": 50_000}})
        await server.refused(Code.DEADLINE_EXCEEDED, "no answer within 50 ms", server.call("ModelInfer", hasty, timeout=20))
        assert server.row["late"] == server.row["fail"] == 2

    run(scenario, closed=True, timeout=0.2)


def test_of_a_failure_inside_only_a_sentence_is_told(
    run: Callable[..., None], golden: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    async def scenario(server: Running) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(grpc_methods, "write_response", broken)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await server.call("ModelInfer", asked(golden[0]))
            assert caught.value.code() is Code.INTERNAL and "log says more" in (caught.value.details() or "")
            assert "secret" not in (caught.value.details() or "") and "secret" in caplog.text
        server.gate.error = RuntimeError("secret")
        monkeypatch.setattr(server.app.repository, "_failed", lambda model, error: None)
        await server.refused(
            Code.INTERNAL,
            "^the runtime failed on these images; the server's log says more$",
            server.call("ModelInfer", asked(golden[0])),
        )
        server.app.repository.models[0].failure = "RuntimeError"
        await server.refused(Code.UNAVAILABLE, "out of service", server.call("ModelInfer", asked(golden[0])))
        assert server.row["fail"] == 3

    run(scenario)


# The way to stop, and to start


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
