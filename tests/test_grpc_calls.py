"""Calls of gRPC: streams, deadlines, calls that nobody waits for, failures, and the way to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc", reason="the extra serve is not installed")
pytest.importorskip("starlette", reason="the extra serve is not installed")

from kdzoo.serve.grpc import methods as grpc_methods  # noqa: E402
from kdzoo.tests import grpc_inside  # noqa: E402
from kdzoo.tests.grpc_inside import Array, Running, asked, is_golden, until  # noqa: E402
from kdzoo.tests.serving import MODEL  # noqa: E402

Code = grpc.StatusCode
models, golden, repository, run = grpc_inside.models, grpc_inside.golden, grpc_inside.repository, grpc_inside.run


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
