"""What `/openapi.json` says is true: of every path, of every answer, and of what is refused."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kdzoo.serve.app import App
from kdzoo.serve.guard import OPEN
from kdzoo.serve.refusal import Reason
from kdzoo.serve.routes import routes
from kdzoo.tests.serving import ENTRY, MODEL, TARGETS, Served, serve, small_models

# 504 is the answer to a deadline of a millisecond. What a tensor holds has to fit its shape, which no schema says.
SETTINGS = """
hooks = "unknown_headers"
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 504]
[checks.positive_data_acceptance]
enabled = false
"""
HOOKS = """
import schemathesis

@schemathesis.hook
def filter_case(context, case):  # HTTP lets everybody send headers that a server does not know
    return "x-schemathesis-unknown-property" not in (case.headers or {})
"""
FUZZ_SECONDS = 120
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def served(once: Callable[..., Path]) -> Iterator[Served]:
    with serve(small_models(once)) as running:
        yield running


@pytest.fixture(scope="module")
def document(served: Served) -> dict[str, Any]:
    status, found = ask(served, "GET", "/openapi.json")
    assert status == 200
    return found


def ask(served: Served, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(served.http, timeout=30)
    connection.request(method, path, None if body is None else json.dumps(body), headers or {})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text else None


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(path, method.upper()): found for path, item in document["paths"].items() for method, found in item.items()}


def grey(document: dict[str, Any]) -> dict[str, Any]:
    """The request that is its example."""
    body = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]
    return body["examples"]["grey"]["value"]


def test_it_is_valid_openapi(document: dict[str, Any]) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="pip install openapi-spec-validator")
    validator.validate(document)
    assert document["openapi"] == "3.1.0"


def test_it_describes_every_path_of_the_server_and_no_other(document: dict[str, Any]) -> None:
    app = cast(App, SimpleNamespace(repository=None))
    known = {(route.path, method) for route in routes(app) for method in (route.methods or set()) - {"HEAD"}}
    described = operations(document)
    assert set(described) == known
    names = [found["operationId"] for found in described.values()]
    assert len(set(names)) == len(names)
    for (path, _), found in described.items():
        parameters = [document["components"]["parameters"][p["$ref"].rpartition("/")[2]] for p in found["parameters"]]
        assert {p["name"] for p in parameters if p["in"] == "path"} == set(re.findall(r"\{(\w+)\}", path)), (path, method)


def test_it_knows_every_reason_for_a_refusal_and_what_needs_no_token(document: dict[str, Any]) -> None:
    described = operations(document)
    assert set(document["components"]["responses"]) == {reason.name for reason in Reason}
    infer = set(described["/v2/models/{name}/infer", "POST"]["responses"])
    assert infer == {"200", *(str(reason.status) for reason in Reason)}
    assert {path for (path, _), found in described.items() if found.get("security") == []} == set(OPEN)
    assert {path for (path, _), found in described.items() if "401" not in found["responses"]} == set(OPEN)


def test_the_names_and_examples_in_it_are_answered(document: dict[str, Any], served: Served) -> None:
    parameters = document["components"]["parameters"]
    assert parameters["name"]["schema"]["enum"] == [*served.models, ENTRY]
    assert parameters["branch"]["schema"]["enum"] == list(TARGETS)
    for name in parameters["name"]["schema"]["enum"]:
        assert ask(served, "GET", f"/v2/models/{name}")[0] == 200
        status, answer = ask(served, "POST", f"/v2/models/{name}/versions/1/infer", grey(document), JSON)
        assert status == 200 and answer["outputs"][0]["shape"] == [1, 8], name
    for branch in parameters["branch"]["schema"]["enum"]:
        status, answer = ask(served, "POST", f"/v2/models/{ENTRY}/infer?branch={branch}", grey(document), JSON)
        assert status == 200 and answer["model_name"] == f"{ENTRY}-{branch}"
    for example in parameters["prefer"]["examples"].values():
        assert (
            ask(served, "POST", f"/v2/models/{ENTRY}/infer", grey(document), {**JSON, "Kdzoo-Prefer": example["value"]})[0] == 200
        )


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("", True), ("latency", True), ("accuracy", True), ("max-latency=9999ms", True), ("latency, min-top1=0", True),
        ("max-params=10M max-size=1GB", True), ("speed", False), ("max-latency", False), ("max-latency=", False),
        ("max-speed=3", False),
    ],
)  # fmt: skip
def test_a_preference_is_what_its_pattern_says(document: dict[str, Any], served: Served, text: str, is_one: bool) -> None:
    schema = document["components"]["parameters"]["prefer"]["schema"]
    assert (re.search(schema["pattern"], text) is not None) is is_one
    body = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]
    status, answer = ask(
        served, "POST", f"/v2/models/{MODEL}/infer", body["examples"]["grey"]["value"], {**JSON, "Kdzoo-Prefer": text}
    )
    assert status == (200 if is_one else 400), answer


def test_a_method_that_a_path_does_not_know_is_told_which_it_knows(served: Served) -> None:
    connection = http.client.HTTPConnection(served.http, timeout=30)
    for path, method, allowed in ((f"/v2/models/{MODEL}/infer", "GET", {"POST"}), ("/v2", "POST", {"GET", "HEAD"})):
        connection.request(method, path)
        answer = connection.getresponse()
        assert "error" in json.loads(answer.read())
        assert answer.status == 405 and set(re.split(", *", answer.headers["Allow"])) == allowed
    connection.close()


@pytest.mark.slow
def test_what_schemathesis_makes_of_it_finds_no_failure_of_the_server(served: Served, tmp_path: Path) -> None:
    """Statuses, kinds and shapes of the answers as described, whatever is sent; more of it: `st run` by hand, with all phases."""
    pytest.importorskip("schemathesis", reason="pip install -e '.[dev]'")
    (tmp_path / "settings.toml").write_text(SETTINGS)
    (tmp_path / "unknown_headers.py").write_text(HOOKS)
    start = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    command = [
        sys.executable, "-c", start, "--config-file", "settings.toml", "run", f"http://{served.http}/openapi.json", "--no-color",
        "--seed", "7", "--phases", "examples,coverage", "--exclude-path-regex", "/versions/", "--generation-database", "none",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=FUZZ_SECONDS)
    assert done.returncode == 0, done.stdout[:6000] + done.stderr[-2000:]
    (passed,) = re.findall(r"(\d+) generated, (\d+) passed", done.stdout)
    assert int(passed[0]) > 300 and passed[0] == passed[1], done.stdout[-2000:]
    assert ask(served, "GET", "/v2/health/ready")[0] == 200
