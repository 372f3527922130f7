"""A thousand requests that are nearly right: each is refused in words, and the server answers afterwards as it did before."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdzoo.tests.serving import MODEL, Served, package_in, serve, small_models

INFER, CLASSIFY = f"/v2/models/{MODEL}/infer", f"/v2/models/{MODEL}/classify"
RAW = {"Inference-Header-Content-Length": "0"}
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def models(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return small_models(once)


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Served]:
    with serve(models, "--branch", "1", "--threads", 1) as answering:
        yield answering


@pytest.fixture(scope="module")
def images(models: Path) -> np.ndarray[Any, Any]:
    return package_in(models, "1").golden()[0]


def logits(server: Served, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with closing(HTTPConnection(server.http, timeout=20)) as connection:
        connection.request("POST", INFER, images.tobytes(), RAW)
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        start = int(response.headers["Inference-Header-Content-Length"])
        return np.frombuffer(body[start:], np.float32).reshape(len(images), -1)


def broken_requests(images: np.ndarray[Any, Any], draw: random.Random) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Without end: what a client, a proxy or an attacker might make of a right request."""
    picture = BytesIO()
    Image.fromarray(images[0]).save(picture, "PNG")
    jpeg = BytesIO()
    Image.fromarray(images[0]).save(jpeg, "JPEG")
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *images.shape[1:]]}
    as_json = json.dumps({"id": "1", "inputs": [{**tensor, "data": images[:1].tolist()}]}).encode()
    start = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": images[0].size}}]}).encode()
    right = [
        (INFER, as_json, {}),
        (INFER, start + images[:1].tobytes(), {"Inference-Header-Content-Length": str(len(start))}),
        (INFER, images[:2].tobytes(), RAW),
        (INFER, gzip.compress(as_json), {"Content-Encoding": "gzip"}),
        (CLASSIFY, picture.getvalue(), PNG),
        (CLASSIFY, jpeg.getvalue(), {"Content-Type": "image/jpeg"}),
        (CLASSIFY + "?top=3", _form(picture.getvalue(), jpeg.getvalue()), {"Content-Type": "multipart/form-data; boundary=b"}),
    ]
    values: list[Any] = [
        None, True, -1, 0, 1, 255, 256, 1.5, 10**30, 10**400, 1e308, "", "image", "\ud800", "UINT8", "FP32", [], [[]], [1, 2], {},
        {"a": 1}, "x" * 5000, [2**31], [-1], float("nan"), [[1], [1, 2]],
    ]  # fmt: skip
    names = [
        "id", "inputs", "outputs", "parameters", "name", "datatype", "shape", "data", "binary_data_size", "binary_data", "timeout",
        "classification", "binary_data_output",
    ]  # fmt: skip
    headers: dict[str, list[str]] = {
        "Inference-Header-Content-Length": ["-1", "0", "1", "abc", "9" * 30, "", "5.0", "²"],
        "Content-Type": ["", "image/png", "image/gif", "text/html", "multipart/form-data", "multipart/form-data; boundary=",
                         "multipart/form-data; boundary=b; charset=utf-7", "multipart/form-data; boundary=" + "b" * 300],
        "Content-Encoding": ["gzip", "deflate", "br", "identity", "GZIP", "gzip, gzip"],
        "Kdzoo-Timeout-Ms": ["0", "-1", "abc", "9" * 40, "1e3", "5000"],
        "Kdzoo-Prefer": ["accuracy", "latency", "max-latency=x", "min-top1=1e999", "max-latency=-1ms", "=", "\xff"],
        "Accept-Encoding": ["gzip", "*", ""],
        "Authorization": ["Bearer x", "\xff"],
        "Content-Length": ["1", "5"],
        "Expect": ["100-continue"],
        "Connection": ["close", "upgrade", "keep-alive, x"],
        "Upgrade": ["websocket", "h2c"],
    }  # fmt: skip
    paths = [
        INFER, CLASSIFY, f"{CLASSIFY}?top=0", f"{CLASSIFY}?top=abc", f"{CLASSIFY}?top=" + "9" * 5000, f"{INFER}?branch=1",
        f"{INFER}?branch=%00", f"{INFER}?branch=9", f"{INFER}?&&&=%", f"/v2/models/{MODEL}/versions/2/infer",
        f"/v2/models/{MODEL}/versions//infer", "/v2/models//infer", "/v2/models/%2e%2e%2f/infer", "/v2/models/%ff%fe/infer",
        f"/v2/models/{MODEL}/x/infer", "/v2/repository/index", "/v2/repository/models/x/load", f"/v2/models/{MODEL}", "/metrics",
        "/v2/models/%ED%A0%80/infer", "//", "/" + "a/" * 200,
    ]  # fmt: skip

    def changed(node: Any) -> Any:
        """The same document with something in it that is something else."""
        if draw.random() < 0.15:
            return draw.choice(values)
        if isinstance(node, dict):
            more = {draw.choice(names): draw.choice(values)} if draw.random() < 0.3 else {}
            return {key: changed(value) for key, value in node.items() if draw.random() > 0.1} | more
        if isinstance(node, list) and len(node) < 5:
            return [changed(each) for each in node]
        return node

    while True:
        path, body, given = draw.choice(right)
        given = dict(given)
        kind = draw.randrange(7)
        if kind == 0:  # bytes that fell over
            scratch = bytearray(body)
            for _ in range(draw.randint(1, 30)):
                scratch[draw.randrange(len(scratch))] = draw.randrange(256)
            body = bytes(scratch)
        elif kind == 1:
            body = body[: draw.randrange(len(body))]
        elif kind == 2:
            body = draw.randbytes(draw.choice([0, 1, 10, 1000, 100_000]))
        elif kind == 3:
            body = json.dumps(changed(json.loads(as_json))).encode()
        elif kind == 4:  # the document before raw tensors
            document = json.dumps(changed(json.loads(start))).encode()
            path, body, given = INFER, document + images[:1].tobytes(), {"Inference-Header-Content-Length": str(len(document))}
        elif kind == 5:
            path = draw.choice(paths)
        for _ in range(draw.choice([0, 1, 2]) if kind != 6 else 3):
            name = draw.choice(list(headers))
            given[name] = draw.choice(headers[name])
        yield path, body, given


def _form(*files: bytes) -> bytes:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="f"; filename="{number}.png"\r\n\r\n'.encode() + data + b"\r\n"
        for number, data in enumerate(files)
    ]
    return b"".join(parts) + b"--b--\r\n"


def test_a_thousand_broken_requests_are_refused_and_the_server_goes_on(server: Served, images: np.ndarray[Any, Any]) -> None:
    draw, statuses = random.Random(0), dict[int, int]()
    before = logits(server, images)
    broken = broken_requests(images, draw)
    connection = HTTPConnection(server.http, timeout=20)
    for number in range(1000):
        path, body, headers = next(broken)
        method = draw.choice(["POST"] * 20 + ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
        if int(headers.get("Content-Length", 0)) > len(body):
            del headers["Content-Length"]  # the server would wait for the rest
        ends = "Content-Length" in headers or "Upgrade" in headers  # what follows would be another request
        if ends:
            connection.close()
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value.encode("latin-1"))
            if "Content-Length" not in headers:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            status, answer = response.status, response.read()
        except (ConnectionError, HTTPException):
            connection.close()
            status, answer = 0, b""
        statuses[status] = statuses.get(status, 0) + 1
        about = f"request {number}: {method} {path:.200} {headers} {body[:200]!r}: {answer[:300]!r}"
        assert status < 500, about
        assert not any(word in answer for word in (b"Traceback", b".py", b'File "', b"site-packages")), about
        if status >= 400:
            assert json.loads(answer)["error"], about
        if ends:
            connection.close()
    connection.close()
    assert statuses.get(0, 0) == 0, f"{statuses}: connections ended without an answer"
    assert sum(count for status, count in statuses.items() if status >= 400) > 500, statuses
    assert np.array_equal(logits(server, images), before)
    assert "Traceback" not in server.said
