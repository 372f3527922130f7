"""Models are found by name, by branch and by preference; one whose runtime fails or hangs is out of service, and that is told."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from kdzoo.errors import UsageError
from kdzoo.export.runtime import RanOn, Session
from kdzoo.serve.app import App
from kdzoo.serve.repository import Repository
from kdzoo.serve.settings import Batching, Wishes
from kdzoo.tests.serve_in_process import ask, with_app
from kdzoo.tests.serving import CASCADE, ENTRY, MODEL, TARGETS, package_in, small_models

RAW = {"Inference-Header-Content-Length": "0"}
INFER = f"/v2/models/{MODEL}/infer"


@pytest.fixture(scope="module")
def models(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return small_models(once)


@pytest.fixture(scope="module")
def image(models: Path) -> bytes:
    return package_in(models, "1").golden()[0][0].tobytes()


async def name_of(app: App, model: str, query: str = "", **headers: str) -> str:
    """The name of the model that answers, or the sentence of the refusal."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    size = app.repository.models[0].input.shape
    body = bytes(int(np.prod([int(side) for side in size[1:]])))
    answer = await ask(app, "POST", f"/v2/models/{model}/infer", body, {**RAW, **given}, query=query)
    if answer.status != 200:
        return f"{answer.status} {answer.error}"
    length = int(answer.headers["inference-header-content-length"])
    name: str = json.loads(answer.body[:length])["model_name"]
    return name


def test_a_name_an_entry_and_a_branch_find_their_model(models: Path) -> None:
    async def body(app: App) -> None:
        assert sorted(app.repository.served) == sorted(f"{ENTRY}-{target}" for target in TARGETS)
        assert await name_of(app, MODEL) == MODEL
        assert await name_of(app, ENTRY, "branch=2") == f"{ENTRY}-2"
        assert await name_of(app, MODEL, "branch=cascade") == CASCADE
        assert (await name_of(app, ENTRY)).startswith(ENTRY)
        for wrong in ("nothing", f"{ENTRY}-9"):
            assert MODEL in (told := await name_of(app, wrong)) and told.startswith("404")
        assert (await name_of(app, ENTRY, "branch=7")).startswith("404 no branch '7'")
        assert (await name_of(app, ENTRY, "branch=1%2F2")).startswith("400")
        for path in (f"/v2/models/{ENTRY}/ready", f"/v2/models/{MODEL}/versions/1"):
            assert (await ask(app, "GET", path)).status == 200
        assert (await ask(app, "GET", f"/v2/models/{MODEL}/versions/2")).status == 404

    with_app(models, body)


def test_a_preference_picks_the_branch_by_its_card(models: Path) -> None:
    async def body(app: App) -> None:
        candidates = {name: each.candidate for name, each in app.repository.served.items()}
        best = max(candidates, key=lambda name: candidates[name].top1 or 0)
        fastest = min(candidates, key=lambda name: candidates[name].latency_ms or 1e9)
        top1 = {name: candidate.top1 for name, candidate in candidates.items()}
        assert top1[await name_of(app, ENTRY, kdzoo_prefer="accuracy")] == top1[best]
        assert await name_of(app, ENTRY, kdzoo_prefer="latency") == fastest
        found = await name_of(app, ENTRY, kdzoo_prefer=f"max-latency={candidates[fastest].latency_ms}ms")
        assert found == fastest, "only the fastest is within its own time"
        assert top1[await name_of(app, ENTRY, kdzoo_prefer=f"latency, min-top1={top1[best]}")] == top1[best]
        assert (await name_of(app, ENTRY, kdzoo_prefer="min-top1=101")).startswith("400")
        told = await name_of(app, ENTRY, kdzoo_prefer="max-latency=0.000001ms")
        assert told.startswith("400 no branch that is served is within") and "nearest" in told
        told = await name_of(app, ENTRY, kdzoo_prefer="speed")
        assert told.startswith("400 a preference is some of accuracy, latency") and "'speed'" in told

    with_app(models, body)


def test_two_packages_of_one_name_are_refused(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "1", tmp_path / "models" / "1")
    with pytest.raises(UsageError, match=rf"{MODEL} is in .* and in "):
        Repository([str(models), str(tmp_path / "models")], [], Wishes(), Batching(threads=1))


def test_a_runtime_that_fails_is_out_of_service_until_it_was_opened_anew(
    models: Path, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Session):
        ran_on, inputs, shareable = RanOn("broken", "1", "nowhere", 1), ("image",), True

        def everything(self, inputs: Any) -> dict[str, Any]:
            raise RuntimeError("device lost at /dev/secret")

    said, go_on = list[str](), threading.Event()

    async def body(app: App) -> None:
        repository = app.repository
        opened = repository._open

        def slowly(*words: Any) -> Any:
            assert go_on.wait(10)
            return opened(*words)

        monkeypatch.setattr(repository, "_open", slowly)
        model = repository.served[MODEL].model
        assert model.batcher is not None
        await model.batcher.close()
        model.sessions = [Broken()]
        repository._start(model)
        answer = await ask(app, "POST", INFER, image, RAW)
        assert answer.status == 500 and "secret" not in answer.error
        for path in ("/v2/health/ready", f"/v2/models/{MODEL}/ready"):
            assert (await ask(app, "GET", path)).status == 503
        assert (await ask(app, "GET", "/v2/health/live")).status == 200
        answer = await ask(app, "POST", INFER, image, RAW)
        assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
        assert "secret" not in answer.body.decode(), "what the runtime says is for the operator"
        (index,) = (await ask(app, "POST", "/v2/repository/index")).json
        assert index["state"] == "UNAVAILABLE"
        go_on.set()
        until = monotonic() + 10
        while (await ask(app, "GET", "/v2/health/ready")).status != 200:
            assert monotonic() < until, "the model does not come back"
            await asyncio.sleep(0.01)
        assert (await ask(app, "POST", INFER, image, RAW)).status == 200

    with_app(models, body, branches=["1"], say=said.append)
    assert any("device lost" in line for line in said)


def test_a_runtime_that_hangs_is_not_ready(models: Path, image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(app: App) -> None:
        batcher = app.repository.served[MODEL].model.batcher
        assert batcher is not None
        monkeypatch.setattr(batcher, "longest_call", lambda: 1e3)
        assert (await ask(app, "GET", "/v2/health/ready")).status == 503
        answer = await ask(app, "POST", INFER, image, RAW)
        assert answer.status == 503 and "does not come back" in answer.error

    with_app(models, body, branches=["1"])
