"""Another package takes the place of one without a dropped request; one that is no good does not."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from kdzoo.export.exporter import export
from kdzoo.export.format import Batch, ExportOptions
from kdzoo.export.gates import Gates
from kdzoo.export.package import Package
from kdzoo.serve.app import App
from kdzoo.tests.serve_in_process import ask, with_app
from kdzoo.tests.serving import MODEL, Served, package_in, serve, small_models
from kdzoo.tests.small_packages import quick_exports
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.target import Target

RAW = {"Inference-Header-Content-Length": "0"}
INFER = f"/v2/models/{MODEL}/infer"


@pytest.fixture(scope="module")
def models(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return small_models(once)


@pytest.fixture(scope="module")
def image(models: Path) -> bytes:
    return package_in(models, "1").golden()[0][0].tobytes()


@pytest.fixture(scope="module")
def other_batch(models: Path, once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Branch 1 of the same run, exported with other batch sizes: another package of the same name."""

    def make(folder: Path) -> None:
        run = next(path.parent for path in models.parent.rglob("model.safetensors") if not Package.is_package(path.parent))
        with quick_exports():
            export(
                Checkpoint.open(run), Target.parse("1"), gates=Gates.of(100.0, 0.0), output=folder / "1",
                options=ExportOptions(batch=Batch.parse("1:2:16")), data=models.parent / "colours.npz",
            )  # fmt: skip

    return once("served-other-batch", make) / "1"


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A copy of branch 1, to be replaced."""
    shutil.copytree(models / "1", tmp_path / "models" / "1")
    return tmp_path / "models"


def replace(folder: Path, by: Path) -> None:
    """Put another package in the place of one: what reads it sees the old one or the new one."""
    fresh, old = folder.parent / "fresh", folder.parent / "old"
    shutil.copytree(by, fresh)
    folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old)


def test_another_package_answers_after_load_and_an_unchanged_one_is_left_alone(
    folder: Path, other_batch: Path, image: bytes
) -> None:
    async def body(app: App) -> None:
        before = app.repository.served[MODEL]
        assert (await ask(app, "POST", f"/v2/repository/models/{MODEL}/load")).status == 200
        assert app.repository.served[MODEL] is before
        replace(folder / "1", other_batch)
        assert (await ask(app, "POST", f"/v2/repository/models/{MODEL}/load")).status == 200
        after = app.repository.served[MODEL]
        assert after.digest != before.digest and after.model.chosen.artifact.batch == (1, 2, 16)
        assert (await ask(app, "POST", INFER, image, RAW)).status == 200
        assert before.model.batcher is not None and not any(t.is_alive() for t in before.model.batcher.threads), (
            "the old one is left"
        )
        assert (await ask(app, "POST", "/v2/repository/models/other/load")).status == 404

    with_app(folder, body)


def test_a_body_that_comes_slowly_finds_a_model_after_a_swap(folder: Path, other_batch: Path, image: bytes) -> None:
    async def body(app: App) -> None:
        go_on = asyncio.Event()

        async def slowly() -> dict[str, Any]:
            await go_on.wait()
            return {"type": "http.request", "body": image, "more_body": False}

        slow = asyncio.create_task(ask(app, "POST", INFER, headers=RAW, receive=slowly))
        await asyncio.sleep(0.01)
        replace(folder / "1", other_batch)
        swap = asyncio.create_task(ask(app, "POST", f"/v2/repository/models/{MODEL}/load"))
        old = app.repository.served[MODEL].model
        while app.repository.served[MODEL].model is old:
            await asyncio.sleep(0.01)
        assert (await ask(app, "POST", INFER, image, RAW)).status == 200
        go_on.set()
        assert (await slow).status == 200 and (await swap).status == 200

    with_app(folder, body)


@pytest.mark.parametrize("harm", ["gone", "damaged", "other name"])
def test_a_package_that_is_no_good_leaves_the_old_one_answering(folder: Path, models: Path, image: bytes, harm: str) -> None:
    said: list[str] = []

    async def body(app: App) -> None:
        package = folder / "1"
        if harm == "gone":
            shutil.rmtree(package)
        elif harm == "damaged":
            manifest = package / "manifest.json"
            manifest.write_text(manifest.read_text().replace(": true", ": true "))
            (package / "model.fp32.onnx").write_bytes(b"no graph")
        else:
            replace(package, models / "2")
        answer = await ask(app, "POST", f"/v2/repository/models/{MODEL}/load")
        assert answer.status == 400 and answer.error
        assert str(folder) not in answer.error, "where packages lie is nobody's business"
        await app.repository.reload()
        assert any(line.startswith(f"{MODEL}: not replaced: ") for line in said), "the operator is told"
        assert (await ask(app, "POST", INFER, image, RAW)).status == 200
        assert (await ask(app, "GET", f"/v2/models/{MODEL}/ready")).status == 200

    with_app(folder, body, say=said.append)


@contextmanager
def load_on(server: Served, image: bytes, clients: int = 4) -> Iterator[list[tuple[int, bytes]]]:
    """Clients that ask without a break while the block runs; gives what they were answered."""
    answers: list[tuple[int, bytes]] = []
    end = threading.Event()

    def ask_on() -> None:
        with closing(HTTPConnection(server.http, timeout=20)) as connection:
            while not end.is_set():
                connection.request("POST", INFER, image, RAW)
                response = connection.getresponse()
                answers.append((response.status, response.read()))

    threads = [threading.Thread(target=ask_on) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_a_package_is_replaced_under_load_without_a_dropped_request(
    folder: Path, models: Path, other_batch: Path, image: bytes
) -> None:
    with serve(folder, "--threads", 1) as server, load_on(server, image) as answers:

        def replaced(times: int) -> None:
            until = monotonic() + 15
            while server.said.count("replaced by") < times:
                assert monotonic() < until, server.said
                sleep(0.02)
            enough = len(answers) + 20
            while len(answers) < enough and monotonic() < until:
                sleep(0.02)

        replace(folder / "1", other_batch)
        with closing(HTTPConnection(server.http, timeout=20)) as connection:
            connection.request("POST", f"/v2/repository/models/{MODEL}/load")
            assert connection.getresponse().status == 200
        replaced(1)
        replace(folder / "1", models / "1")
        os.kill(server.process.pid, signal.SIGHUP)
        replaced(2)
    assert len(answers) > 40 and {status for status, _ in answers} == {200}
    assert len({body for _, body in answers}) == 1, "the same image has different answers"
