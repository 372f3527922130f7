"""gRPC: its messages are Triton's, and what stands before a request is what stands there over HTTP."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc", reason="the extra serve is not installed")
pytest.importorskip("starlette", reason="the extra serve is not installed")

from kdzoo.serve.grpc import methods as grpc_methods  # noqa: E402
from kdzoo.serve.grpc.messages import CLASSES, ENUMS, HEALTH_SERVICE, MESSAGES, PACKAGE, POOL, SERVICE  # noqa: E402
from kdzoo.tests import grpc_inside  # noqa: E402
from kdzoo.tests.grpc_inside import Array, Running, asked, is_golden, until  # noqa: E402
from kdzoo.tests.serving import MODEL  # noqa: E402

Code = grpc.StatusCode
models, golden, repository, run = grpc_inside.models, grpc_inside.golden, grpc_inside.repository, grpc_inside.run


# Messages


def theirs() -> Any:
    """The descriptors of Triton's client, by full name."""
    service = pytest.importorskip("tritonclient.grpc.service_pb2", reason="tritonclient is not installed")
    pool = service.DESCRIPTOR.pool
    return pool.FindMessageTypeByName, pool.FindEnumTypeByName, service


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_of_a_message_is_that_of_triton(name: str) -> None:
    found, expected = (_described(find(f"{PACKAGE}.{name}")) for find in (POOL.FindMessageTypeByName, theirs()[0]))
    assert found.items() <= expected.items() and len(found) == len(MESSAGES[name].split())


def _described(message: Any) -> dict[str, tuple[Any, ...]]:
    from google.protobuf.descriptor_pb2 import DescriptorProto

    whole = DescriptorProto()
    message.CopyToProto(whole)
    entries = {
        e.name: tuple((f.name, f.number, f.type, f.type_name) for f in e.field) for e in whole.nested_type if e.options.map_entry
    }
    short = {f.name: f.type_name.rpartition(".")[2] for f in whole.field}
    return {f.name: (f.number, f.type, f.label, short[f.name], entries.get(short[f.name])) for f in whole.field}


@pytest.mark.parametrize("name", ENUMS)
def test_every_value_of_an_enumeration_is_that_of_triton(name: str) -> None:
    found, expected = (find(f"{PACKAGE}.{name}").values_by_name for find in (POOL.FindEnumTypeByName, theirs()[1]))
    assert {key: value.number for key, value in found.items()} == {key: value.number for key, value in expected.items()}


def test_what_a_client_of_triton_writes_is_read_and_written_the_same() -> None:
    service = theirs()[2]
    request = service.ModelInferRequest(model_name="m", model_version="1", id="7", raw_input_contents=[b"12", b"\xff"])
    request.parameters["timeout"].int64_param = 0
    request.parameters["flag"].bool_param = False
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=[1, -1])
    tensor.contents.uint_contents.extend([0, 255])
    request.outputs.add(name="logits").parameters["classification"].int64_param = 3
    ours = CLASSES["ModelInferRequest"].FromString(request.SerializeToString(deterministic=True))
    assert str(ours) == str(request) and ours.SerializeToString(deterministic=True) == request.SerializeToString(deterministic=True)
    assert ours.parameters["flag"].WhichOneof("parameter_choice") == "bool_param"


# What stands before a request


def test_a_token_is_asked_for_by_all_but_health(run: Callable[..., None]) -> None:
    async def scenario(server: Running) -> None:
        assert (await server.call("ServerLive", CLASSES["ServerLiveRequest"]())).live
        assert (await server.call("ServerReady", CLASSES["ServerReadyRequest"]())).ready
        request = CLASSES["ServerMetadataRequest"]()
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "open sesame"),)):
            await server.refused(Code.UNAUTHENTICATED, "Bearer TOKEN", server.call("ServerMetadata", request, metadata=metadata))
        stream = server.stream()
        await server.refused(Code.UNAUTHENTICATED, "Bearer TOKEN", stream.read())
        right = (("authorization", "Bearer open sesame"),)
        assert (await server.call("ServerMetadata", request, metadata=right)).name == "kdzoo"

    run(scenario, token="open sesame")


def test_the_health_that_kubernetes_asks_for_is_told(run: Callable[..., None]) -> None:
    async def scenario(server: Running) -> None:
        async def status(service: str) -> str:
            request = CLASSES["HealthCheckRequest"](service=service)
            answer = await server.call("Check", request, "HealthCheckResponse", HEALTH_SERVICE)
            return str(answer.DESCRIPTOR.enum_types_by_name["ServingStatus"].values_by_number[answer.status].name)

        assert await status("") == await status(SERVICE) == "SERVING"
        server.app.repository.models[0].failure = "broken"
        assert await status("") == "NOT_SERVING"
        assert not (await server.call("ModelReady", CLASSES["ModelReadyRequest"](name=MODEL))).ready
        await server.refused(Code.NOT_FOUND, "no service elsewhere", status("elsewhere"))

    run(scenario)


def test_one_client_has_so_many_requests_under_way_and_no_more(run: Callable[..., None], golden: tuple[Array, Array]) -> None:
    async def scenario(server: Running) -> None:
        first = [server.call("ModelInfer", asked(golden[0][:1])) for _ in range(2)]
        await until(lambda: server.app.guard.under_way == 2)
        await server.refused(
            Code.RESOURCE_EXHAUSTED, "2 requests of 127.0.0.1 are under way", server.call("ModelInfer", asked(golden[0]))
        )
        assert (await server.call("ServerReady", CLASSES["ServerReadyRequest"]())).ready
        server.gate.opened.set()
        assert all([is_golden(await call, golden[1][:1]) for call in first])
        assert server.app.guard.under_way == 0 and server.app.repository.models[0].users == 0

    run(scenario, closed=True, per_client=2)


def test_a_message_that_is_too_large_is_refused_packed_or_not(run: Callable[..., None], golden: tuple[Array, Array]) -> None:
    async def scenario(server: Running) -> None:
        large = asked(np.zeros((200, 16, 16, 3), np.uint8))
        await server.refused(Code.RESOURCE_EXHAUSTED, "larger than max", server.call("ModelInfer", large))
        for packed in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            refused = server.call("ModelInfer", large, compression=packed)
            await server.refused(Code.INVALID_ARGUMENT, "is larger; this server reads 100000", refused)
            assert is_golden(await server.call("ModelInfer", asked(golden[0]), compression=packed), golden[1])
            assert len(zlib.compress(large.SerializeToString())) < 2_000

    run(scenario, max_body=100_000)


def test_bytes_that_are_no_message_are_refused(run: Callable[..., None]) -> None:
    async def scenario(server: Running) -> None:
        for wrong in (b"\xff\xff\xff", b"\x0a\x05ab", b"\x2a\x03\x0a\xff\x01"):
            await server.refused(Code.INVALID_ARGUMENT, "cannot be read as a ModelInferRequest", server.call("ModelInfer", wrong))
        for method in ("ModelMetadata", "RepositoryModelLoad"):
            await server.refused(Code.INVALID_ARGUMENT, f"cannot be read as a {method}Request", server.call(method, b"\x0a\xff"))
        await server.refused(Code.UNIMPLEMENTED, "", server.call("Unheard", b"", "ServerLiveResponse"))

    run(scenario)


def test_a_message_that_does_not_come_is_not_waited_for(run: Callable[..., None], golden: tuple[Array, Array]) -> None:
    async def scenario(server: Running) -> None:
        silent = server.channel.stream_unary(f"/{SERVICE}/ModelInfer", request_serializer=None, response_deserializer=None)()
        await server.refused(Code.DEADLINE_EXCEEDED, "did not come within", silent)
        ended = server.channel.stream_unary(f"/{SERVICE}/ModelInfer", request_serializer=None, response_deserializer=None)()
        await ended.done_writing()
        await server.refused(Code.INVALID_ARGUMENT, "ModelInferRequest is missing", ended)
        assert is_golden(await server.call("ModelInfer", asked(golden[0])), golden[1]) and server.app.guard.under_way == 0

    run(scenario, body_seconds=0.3)


# Tensors


def test_what_is_wrong_with_the_data_of_a_message_is_told(run: Callable[..., None], golden: tuple[Array, Array]) -> None:
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 16, 16, 3]}
    shared = {"shared_memory_region": {"string_param": "here"}}
    numbers = {"uint_contents": [0] * 768}
    wrong: dict[str, dict[str, Any]] = {
        "2 raw input contents for 1 inputs": {"raw_input_contents": [b"", b""]},
        "contents must not be given with raw": {"inputs": [{**image, "contents": numbers}]},
        "holds no data.*uint_contents": {"inputs": [image], "raw_input_contents": []},
        r"do not fit uint8 of shape \[1, 16, 16, 3\]": {
            "inputs": [{**image, "contents": {"uint_contents": [0] * 767}}], "raw_input_contents": [],
        },
        "between 0 and 256": {"inputs": [{**image, "contents": {"uint_contents": [256] + [0] * 767}}], "raw_input_contents": []},
        "input 'image' is in shared memory": {"inputs": [{**image, "parameters": shared}], "raw_input_contents": []},
        "output 'logits' is in shared memory": {"outputs": [{"name": "logits", "parameters": shared}]},
        "the shape of .*'image' must be": {"inputs": [{**image, "shape": [-1, 16, 16, 3]}]},
        "data-type is 'FP16'": {"inputs": [{**image, "datatype": "FP16"}]},
        "'classification' must be": {"outputs": [{"name": "logits", "parameters": {"classification": {"string_param": "2"}}}]},
        "'timeout' must be": {"parameters": {"timeout": {"double_param": 3.0}}},
        "'kdzoo_prefer' must be a text": {"parameters": {"kdzoo_prefer": {"bool_param": True}}},
        "a preference is some of accuracy": {"parameters": {"kdzoo_prefer": {"string_param": "beauty"}}},
    }  # fmt: skip

    async def scenario(server: Running) -> None:
        for words, changes in wrong.items():
            await server.refused(Code.INVALID_ARGUMENT, words, server.call("ModelInfer", asked(golden[0][:1], **changes)))
        overridden = CLASSES["RepositoryModelLoadRequest"](model_name=MODEL, parameters={"config": {"string_param": "{}"}})
        await server.refused(Code.INVALID_ARGUMENT, "config cannot be given", server.call("RepositoryModelLoad", overridden))
        assert server.row["fail"] == len(wrong) - 2 and server.row["success"] == 0  # the last two were never the model's

    run(scenario)


@pytest.mark.parametrize(
    ("peer", "address"),
    [("ipv4:10.0.0.7:5000", "10.0.0.7"), ("ipv6:%5B::1%5D:5000", "::1"), ("ipv6:[fe80::1%25eth0]:1", "fe80::1%eth0")],
)
def test_a_client_is_known_by_its_address(peer: str, address: str) -> None:
    assert grpc_methods.address_of(peer) == address


def test_the_guard_sees_the_token_only() -> None:
    context = SimpleNamespace(
        invocation_metadata=lambda: (("content-length", "9"), ("authorization", "Bearer x"), ("bin-bin", b"\0"))
    )
    assert grpc_methods.headers_of(context) == {b"authorization": b"Bearer x"}
