"""Triton's own client, over HTTP and gRPC, gets from the server what it would get from Triton; a wrong request gets a sentence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient", reason="tritonclient is not installed")

import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from kdzoo.export.triton_config import output
from kdzoo.tests.serving import CASCADE, ENTRY, MODEL, TARGETS, Served, package_in, serve, small_models

Array = np.ndarray[Any, Any]
CODES = {"400": "StatusCode.INVALID_ARGUMENT", "404": "StatusCode.NOT_FOUND", "504": "StatusCode.DEADLINE_EXCEEDED"}


class Triton:
    """A client of either protocol; `wire` is its module."""

    def __init__(self, wire: ModuleType, server: Served) -> None:
        self.wire, self.over_http = wire, wire is triton_http
        self.client = wire.InferenceServerClient(server.http if self.over_http else server.grpc)
        self.as_json = {} if self.over_http else {"as_json": True}

    def tensor(self, images: Array, name: str = "image", datatype: str = "UINT8") -> Any:
        tensor = self.wire.InferInput(name, list(images.shape), datatype)
        tensor.set_data_from_numpy(images)
        return tensor

    def numbers(self, images: Array) -> Any:
        """The same without raw bytes: as JSON, or as numbers in the message."""
        tensor = self.wire.InferInput("image", list(images.shape), "UINT8")
        if self.over_http:
            tensor.set_data_from_numpy(images, binary_data=False)
        else:
            tensor._get_tensor().contents.uint_contents.extend(images.ravel().tolist())
        return tensor

    def output(self, name: str, **options: Any) -> Any:
        return self.wire.InferRequestedOutput(name, **options)

    def refused(self, status: str, words: str, call: Callable[[], Any]) -> None:
        """`call` is answered with this status of HTTP, or its code of gRPC, and a sentence with these words."""
        with pytest.raises(InferenceServerException, match=words) as caught:
            call()
        assert caught.value.status() == (status if self.over_http else CODES[status])


@pytest.fixture(scope="module")
def models(once: Callable[..., Path]) -> Path:
    return small_models(once)


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Served]:
    with serve(models) as served:
        yield served


@pytest.fixture(scope="module", params=[triton_http, triton_grpc], ids=["http", "grpc"])
def triton(server: Served, request: pytest.FixtureRequest) -> Iterator[Triton]:
    triton = Triton(request.param, server)
    yield triton
    triton.client.close()


@pytest.fixture(scope="module")
def golden(models: Path) -> tuple[Array, Array]:
    return package_in(models, "1").golden()


def is_golden(logits: Array, expected: Array) -> bool:
    return bool(logits.dtype == np.float32 and logits.shape == expected.shape and np.abs(logits - expected).max() < 1e-4)


def test_it_is_alive_and_ready_and_so_are_its_models(triton: Triton) -> None:
    client = triton.client
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "2") and not client.is_model_ready("unheard-of")


def test_it_tells_what_it_is_and_what_its_models_take_and_give(triton: Triton) -> None:
    found = triton.client.get_server_metadata(**triton.as_json)
    assert found["name"] == "kdzoo" and {"binary_tensor_data", "classification", "statistics"} <= set(found["extensions"])
    model = triton.client.get_model_metadata(MODEL, **triton.as_json)
    inputs, outputs = ([(t["name"], t["datatype"], list(map(int, t["shape"]))) for t in model[k]] for k in ("inputs", "outputs"))
    assert (model["name"], model["versions"], model["platform"]) == (MODEL, ["1"], "onnxruntime_onnx")
    assert inputs == [("image", "UINT8", [-1, 16, 16, 3])] and outputs == [("logits", "FP32", [-1, 8])]


def test_it_tells_the_configuration_that_triton_would_have(triton: Triton) -> None:
    found = triton.client.get_model_config(MODEL, **triton.as_json)
    config = found if triton.over_http else found["config"]
    assert config["name"] == MODEL and config["max_batch_size"] == 32 and config["default_model_filename"] == "model.fp32.onnx"
    (image,), (logits,) = config["input"], config["output"]
    assert (image["name"], image["data_type"], list(map(int, image["dims"]))) == ("image", "TYPE_UINT8", [16, 16, 3])
    assert (logits["name"], logits["data_type"], list(map(int, logits["dims"]))) == ("logits", "TYPE_FP32", [8])
    assert config["instance_group"][0]["kind"] == "KIND_CPU" and "dynamic_batching" in config


def test_what_it_tells_of_the_exits_of_a_cascade_is_what_it_sends_and_what_triton_is_told(triton: Triton, models: Path) -> None:
    package = package_in(models, "cascade")
    images, _ = package.golden()
    result = triton.client.infer(CASCADE, [triton.tensor(images)])
    for told in triton.client.get_model_metadata(CASCADE, **triton.as_json)["outputs"]:
        sent = result.as_numpy(told["name"]).shape
        assert list(map(int, told["shape"])) == [-1, *sent[1:]] and sent[0] == len(images), told
    found = triton.client.get_model_config(CASCADE, **triton.as_json)
    configured = {each["name"]: each for each in (found if triton.over_http else found["config"])["output"]}
    for name, ours in configured.items():
        exported = output(name, package.artifacts[0], [])
        assert list(map(int, ours["dims"])) == exported["dims"] and ours["data_type"] == exported["data_type"]
        assert ("reshape" in ours) is ("reshape" in exported), "a shape without dimensions is one that Triton reshapes"
    assert "reshape" in configured["exit"]


def test_its_repository_holds_every_branch_and_loads_what_it_holds(triton: Triton) -> None:
    found = triton.client.get_model_repository_index(**triton.as_json)
    listed = found if triton.over_http else found["models"]
    assert {(m["name"], m["version"], m["state"]) for m in listed} == {(f"{ENTRY}-{t}", "1", "READY") for t in TARGETS}
    triton.client.load_model(MODEL)
    assert triton.client.is_model_ready(MODEL)
    triton.refused("404", "unheard-of.*started with", lambda: triton.client.load_model("unheard-of"))


def test_its_statistics_count_what_was_asked(triton: Triton, golden: tuple[Array, Array]) -> None:
    def counted() -> dict[str, int]:
        (model,) = triton.client.get_inference_statistics(MODEL, **triton.as_json)["model_stats"]
        inference = model["inference_stats"]
        return {
            "images": int(model.get("inference_count", 0)),
            **{kind: int(inference[kind].get("count", 0)) for kind in ("success", "fail", "queue", "compute_infer")},
        }

    before = counted()
    for _ in range(3):
        triton.client.infer(MODEL, [triton.tensor(golden[0][:2])])
    with pytest.raises(InferenceServerException):
        triton.client.infer(MODEL, [triton.tensor(golden[0][:2], name="picture")])
    assert {key: count - before[key] for key, count in counted().items()} == {
        "images": 6, "success": 3, "fail": 1, "queue": 3, "compute_infer": 3,
    }  # fmt: skip
    everything = triton.client.get_inference_statistics(**triton.as_json)["model_stats"]
    assert {model["name"] for model in everything} == {f"{ENTRY}-{target}" for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("way", ["raw bytes", "numbers"])
def test_the_logits_are_those_of_the_package(triton: Triton, models: Path, target: str, way: str) -> None:
    images, expected = package_in(models, target).golden()
    tensor = triton.tensor(images) if way == "raw bytes" else triton.numbers(images)
    outputs = [triton.output("logits", binary_data=False)] if triton.over_http and way == "numbers" else None
    result = triton.client.infer(f"{ENTRY}-{target}", [tensor], outputs=outputs, request_id="request 7")
    assert is_golden(result.as_numpy("logits"), expected)
    response = result.get_response()
    told = (
        response if triton.over_http else {"id": response.id, "model_name": response.model_name, "version": response.model_version}
    )
    assert told["id"] == "request 7" and told["model_name"] == f"{ENTRY}-{target}"


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_bodies_may_be_packed(triton: Triton, golden: tuple[Array, Array], packed: str) -> None:
    images, expected = golden
    over_http = {"request_compression_algorithm": packed, "response_compression_algorithm": packed}
    options = over_http if triton.over_http else {"compression_algorithm": packed}
    result = triton.client.infer(MODEL, [triton.tensor(images.repeat(4, axis=0))], **options)
    assert is_golden(result.as_numpy("logits"), expected.repeat(4, axis=0))


def test_only_the_outputs_that_were_asked_for_come_and_in_that_order(triton: Triton, models: Path) -> None:
    images, expected = package_in(models, "cascade").golden()
    result = triton.client.infer(CASCADE, [triton.tensor(images)], outputs=[triton.output("exit"), triton.output("logits")])
    response = result.get_response()
    described = response["outputs"] if triton.over_http else response.outputs
    assert [each["name"] if triton.over_http else each.name for each in described] == ["exit", "logits"]
    assert is_golden(result.as_numpy("logits"), expected) and result.as_numpy("exit").shape == (len(images), 1)
    alone = triton.client.infer(CASCADE, [triton.tensor(images)], outputs=[triton.output("exit")])
    assert alone.as_numpy("logits") is None and (alone.as_numpy("exit") == result.as_numpy("exit")).all()


def test_the_best_classes_come_as_words(triton: Triton, golden: tuple[Array, Array]) -> None:
    images, expected = golden
    result = triton.client.infer(MODEL, [triton.tensor(images)], outputs=[triton.output("logits", class_count=3)])
    found = result.as_numpy("logits")
    assert found.shape == (len(images), 3)
    for row, logits in zip(found, expected, strict=True):
        parts = [text.decode().split(":") for text in row]
        assert [int(index) for _, index, _ in parts] == np.argsort(-logits, kind="stable")[:3].tolist()
        assert all(abs(float(value) - logits[int(index)]) < 1e-4 and label == f"colour {index}" for value, index, label in parts)


def test_many_requests_at_once_each_get_their_own_answer(server: Served, golden: tuple[Array, Array]) -> None:
    images, expected = golden
    with triton_http.InferenceServerClient(server.http, concurrency=8) as client:
        over_http = Triton(triton_http, server)
        waiting = [client.async_infer(MODEL, [over_http.tensor(images[[n % 8]])], request_id=str(n)) for n in range(40)]
        for number, answer in enumerate(waiting):
            result = answer.get_result()
            assert result.get_response()["id"] == str(number) and is_golden(result.as_numpy("logits"), expected[[number % 8]])
    over_grpc, answered = Triton(triton_grpc, server), dict[str, Any]()
    with over_grpc.client as client:

        def callback(result: Any, error: Any) -> None:
            answered[result.get_response().id] = error or result.as_numpy("logits")

        for number in range(40):
            client.async_infer(MODEL, [over_grpc.tensor(images[[number % 8]])], callback, request_id=str(number))
        until = time.monotonic() + 20
        while len(answered) < 40 and time.monotonic() < until:
            time.sleep(0.01)
    assert sorted(map(int, answered)) == list(range(40))
    assert all(is_golden(logits, expected[[int(number) % 8]]) for number, logits in answered.items())


def test_a_request_whose_time_is_over_is_told_so(triton: Triton, golden: tuple[Array, Array]) -> None:
    ask = triton.tensor(golden[0].repeat(4, axis=0))
    triton.refused("504", "no answer within", lambda: triton.client.infer(MODEL, [ask], timeout=1))
    assert triton.client.infer(MODEL, [ask], timeout=20_000_000).as_numpy("logits").shape == (32, 8)


def test_the_branch_that_is_preferred_answers_for_the_entry(triton: Triton, golden: tuple[Array, Array]) -> None:
    ask = [triton.tensor(golden[0])]
    if triton.over_http:
        result = triton.client.infer(ENTRY, ask, query_params={"branch": "2"})
        assert result.get_response()["model_name"] == f"{ENTRY}-2"
        fastest = triton.client.infer(ENTRY, ask, headers={"kdzoo-prefer": "latency"}).get_response()["model_name"]
    else:
        result = triton.client.infer(ENTRY, ask, parameters={"kdzoo_branch": "2"})
        assert result.get_response().model_name == f"{ENTRY}-2"
        fastest = triton.client.infer(ENTRY, ask, parameters={"kdzoo_prefer": "latency"}).get_response().model_name
        triton.refused("400", "kdzoo_branch.*text", lambda: triton.client.infer(ENTRY, ask, parameters={"kdzoo_branch": 2}))
    assert fastest in {f"{ENTRY}-{target}" for target in TARGETS}


def cut(tensor: Any) -> Any:
    """The bytes of a tensor end too early."""
    if hasattr(tensor, "_raw_data"):
        tensor._raw_data = tensor._raw_data[:-7]
        tensor._parameters["binary_data_size"] -= 7
    else:
        tensor._raw_content = tensor._raw_content[:-7]
    return tensor


IMAGES = np.zeros((2, 16, 16, 3), np.uint8)
WRONG: dict[str, tuple[str, Callable[[Triton], tuple[str, list[Any], dict[str, Any]]]]] = {
    "data-type is 'FP32'.*expects 'UINT8'": ("400", lambda t: (MODEL, [t.tensor(IMAGES.astype(np.float32), datatype="FP32")], {})),
    r"shape.*image.*\[-1, 16, 16, 3\].*\[2, 8, 16, 3\]": ("400", lambda t: (MODEL, [t.tensor(IMAGES[:, :8])], {})),
    r"shape.*image.*\[-1, 16, 16, 3\].*\[16, 16, 3\]": ("400", lambda t: (MODEL, [t.tensor(IMAGES[0])], {})),
    "'picture'.*takes 'image'": ("400", lambda t: (MODEL, [t.tensor(IMAGES, name="picture")], {})),
    "expected 1 input but got 2": ("400", lambda t: (MODEL, [t.tensor(IMAGES), t.tensor(IMAGES, name="other")], {})),
    "expected 1 input but got 0": ("400", lambda t: (MODEL, [], {})),
    "size 1529 for input 'image', expecting 1536": ("400", lambda t: (MODEL, [cut(t.tensor(IMAGES))], {})),
    "holds no image": ("400", lambda t: (MODEL, [t.tensor(IMAGES[:0])], {})),
    "batch-size must be <= 32.*got 33": ("400", lambda t: (MODEL, [t.tensor(IMAGES[[0] * 33])], {})),
    "output 'scores'.*it gives logits": ("400", lambda t: (MODEL, [t.tensor(IMAGES)], {"outputs": [t.output("scores")]})),
    "classification.*'exit'": ("400", lambda t: (CASCADE, [t.tensor(IMAGES)], {"outputs": [t.output("exit", class_count=2)]})),
    "unknown model.*'unheard-of'": ("404", lambda t: ("unheard-of", [t.tensor(IMAGES)], {})),
    f"unknown model.*'{MODEL}' version 7": ("404", lambda t: (MODEL, [t.tensor(IMAGES)], {"model_version": "7"})),
    "'timeout' must be a number of microseconds": ("400", lambda t: (MODEL, [t.tensor(IMAGES)], {"timeout": -5})),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_request_is_refused_in_words_that_name_what_is_wrong(triton: Triton, words: str) -> None:
    status, make = WRONG[words]
    name, tensors, options = make(triton)
    triton.refused(status, words, lambda: triton.client.infer(name, tensors, **options))


def test_a_binary_tensor_that_says_it_is_longer_than_the_body_is_refused(server: Served) -> None:
    triton = Triton(triton_http, server)
    with triton.client:
        tensor = triton.tensor(IMAGES)
        tensor._parameters["binary_data_size"] += 64
        triton.refused("400", "size 1600 for input 'image': 1536 bytes are left", lambda: triton.client.infer(MODEL, [tensor]))


@pytest.mark.parametrize("ask", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
def test_nothing_is_told_of_a_model_that_is_not_there(triton: Triton, ask: str) -> None:
    triton.refused("404", "unknown model.*unheard-of", lambda: getattr(triton.client, ask)("unheard-of"))
