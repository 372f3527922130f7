"""`kdzoo.Client` with a real server: the same answers in whatever form an image is given, in order; wrong names and bad images."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdzoo
from kdzoo.errors import DataError, UnknownName, UsageError
from kdzoo.export.package import Package
from kdzoo.serve.client import transport
from kdzoo.tests.serving import CASCADE, ENTRY, MODEL, TARGETS, package_in, serve, small_models

Call = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def models(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return small_models(once)


@pytest.fixture(scope="module")
def url(models: Path) -> Iterator[str]:
    with serve(models) as served:
        yield f"http://{served.http}"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[kdzoo.Client]:
    with kdzoo.Client(url) as client:
        yield client


@pytest.fixture(scope="module")
def golden(models: Path) -> tuple[Any, Any]:
    """Images of the model's own size, and the logits that torch gave for them."""
    return package_in(models, "1").golden()


@pytest.fixture(scope="module")
def toy_package(package_of: Callable[[str], Package]) -> Package:
    """A network whose answers differ from image to image."""
    return package_of("1")


@pytest.fixture(scope="module")
def toy_client(toy_package: Package) -> Iterator[kdzoo.Client]:
    with serve(toy_package.folder) as served, kdzoo.Client(f"http://{served.http}") as client:
        yield client


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(transport.time, "sleep", slept.append)
    return slept


def test_logits_are_those_of_torch(toy_client: kdzoo.Client, toy_package: Package) -> None:
    images, expected = toy_package.golden()
    assert np.abs(expected - expected[:1]).max() > 0.1, "the test needs images with different answers"
    assert np.abs(toy_client.infer(images) - expected).max() < 1e-4
    alone = toy_client.infer(images[1])
    assert alone.shape == (1, 10) and np.abs(alone - expected[1:2]).max() < 1e-4


def test_many_images_are_answered_in_their_order(toy_client: kdzoo.Client, toy_package: Package, tmp_path: Path) -> None:
    golden, logits = toy_package.golden()
    order = np.random.default_rng(0).integers(0, len(golden), 70)
    images: list[Any] = list(golden[order])
    for k in range(0, 70, 3):
        images[k] = tmp_path / f"{k}.png"
        Image.fromarray(golden[order[k]]).save(images[k])
    assert len(set(logits.argmax(1))) > 2, "the test needs images of several classes"
    assert [each.best.index for each in toy_client.classify(images, top=1)] == logits.argmax(1)[order].tolist()
    assert np.abs(toy_client.infer(golden[order]) - logits[order]).max() < 1e-4


def test_an_image_has_the_same_classes_in_every_form(
    client: kdzoo.Client, models: Path, golden: tuple[Any, Any], tmp_path: Path
) -> None:
    pixels, expected = golden[0][0], golden[1][0]
    labels = package_in(models, "1").labels
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    forms = [path, str(path), path.read_bytes(), Image.fromarray(pixels), pixels]
    found = client.classify(forms, branch="1", top=3)
    assert len({prediction.classes for prediction in found}) == 1, "a form of the image gave other classes"
    shares = np.exp(expected - expected.max())
    assert [c.index for c in found[0].classes] == np.argsort(-expected)[:3].tolist()
    assert found[0].best.probability == pytest.approx(float(shares.max() / shares.sum()), abs=1e-4)
    assert [c.name for c in found[0].classes] == [labels[c.index] for c in found[0].classes]
    assert [client.classify(form, branch="1", top=3) for form in forms] == [[each] for each in found]


def test_an_array_of_another_size_is_scaled_as_a_picture_is(client: kdzoo.Client, golden: tuple[Any, Any], tmp_path: Path) -> None:
    large = golden[0][0].repeat(3, axis=0).repeat(2, axis=1)
    Image.fromarray(large).save(tmp_path / "large.png")
    assert client.classify(large) == client.classify(tmp_path / "large.png")


def test_a_turned_photograph_is_classified_upright(client: kdzoo.Client, golden: tuple[Any, Any], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(golden[0][0]).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as picture:
        assert client.classify(picture) == client.classify(tmp_path / "turned.png")


def test_the_asynchronous_client_says_the_same(client: kdzoo.Client, url: str, golden: tuple[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(golden[0][0]).save(path)
    images = [*golden[0], path]

    async def ask() -> tuple[Any, ...]:
        async with kdzoo.AsyncClient(url) as other:
            with pytest.raises(UnknownName):
                await other.classify(images, branch="3")
            return (
                await other.classify(images),
                (await other.infer(golden[0])).tolist(),
                await other.metadata(),
                await other.models(),
                await other.ready(),
            )

    here = (client.classify(images), client.infer(golden[0]).tolist(), client.metadata(), client.models(), client.ready())
    assert asyncio.run(ask()) == here


def test_branch_and_preference_pick_the_model(client: kdzoo.Client, golden: tuple[Any, Any]) -> None:
    images = golden[0][:2]
    assert {each.model for each in client.classify(images, branch="2")} == {f"{ENTRY}-2"}
    with pytest.raises(UsageError, match="nearest"):
        client.classify(images, prefer="max-params=1")
    assert client.metadata(branch="2")["name"] == f"{ENTRY}-2" and client.metadata(CASCADE)["name"] == CASCADE


def test_a_cascade_tells_the_exit(client: kdzoo.Client, golden: tuple[Any, Any], tmp_path: Path) -> None:
    Image.fromarray(golden[0][0]).save(tmp_path / "a.png")
    found = client.classify([golden[0][0], tmp_path / "a.png"], branch="cascade")
    assert found[0] == found[1] and found[0].exit in (1, 2, 3)
    assert client.classify(golden[0], branch="1")[0].exit is None


def test_what_is_served_is_told_and_a_wrong_name_says_so(url: str, client: kdzoo.Client, golden: tuple[Any, Any]) -> None:
    assert sorted((m.name, m.entry, m.target) for m in client.models()) == sorted((f"{ENTRY}-{t}", ENTRY, t) for t in TARGETS)
    assert client.ready() and client.ready(MODEL) and not client.ready("nobody")
    with kdzoo.Client(url, model="tset-entry") as wrong, pytest.raises(UnknownName) as raised:
        wrong.infer(golden[0])
    assert raised.value.suggestion == ENTRY and MODEL in raised.value.known
    with pytest.raises(UnknownName) as raised:
        client.classify(golden[0], branch="3")
    assert raised.value.known == tuple(sorted(TARGETS))


def test_a_refusal_names_the_image_and_says_why(client: kdzoo.Client, golden: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for images, error, words in (
        ([golden[0][0], tmp_path / "text.png"], UsageError, "text.png.*cannot be decoded"),
        ([golden[0][0], b"no picture"], UsageError, "image 2.*cannot be decoded"),
        (tmp_path / "missing.png", DataError, "missing.png does not exist"),
        (tmp_path, DataError, "cannot be read"),
        (golden[0].astype(float), UsageError, "array float64"),
        ([3], UsageError, "type int"),
    ):
        with pytest.raises(error, match=words):
            client.classify(images)
    with pytest.raises(UsageError, match="takes UINT8 of shape N 16 16 3, not float64"):
        client.infer(golden[0].astype(float))
    with pytest.raises(UsageError, match="takes UINT8 of shape N 16 16 3, not uint8 of shape"):
        client.infer(golden[0][:, :8])
    assert client.classify([]) == []


def test_predict_says_the_same_with_a_server_as_without(call: Call, url: str, models: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    for name in ("a.png", "b.png"):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / name)
    here = json.loads(call("predict", models / "1", "a.png", "b.png", "--top", 3, "--json")[0])
    there = json.loads(call("predict", "--url", url, "a.png", "b.png", "--branch", 1, "--top", 3, "--json")[0])
    for one, other in zip(here, there, strict=True):
        assert one["image"] == other["image"]
        assert [c["class"] for c in one["classes"]] == [c["class"] for c in other["classes"]]
        assert [c["probability"] for c in one["classes"]] == pytest.approx([c["probability"] for c in other["classes"]], abs=2e-6)
    assert f"answers with {MODEL}" in call("predict", "--url", url, "--branch", "1", "a.png")[1]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("predict", 2, "SOURCE"),
        ("predict somewhere a.png --prefer accuracy --model m", 2, "only with --url"),
        ("predict --url http://127.0.0.1:1", 2, "IMAGES"),
        ("predict --url http://127.0.0.1:1 a.png", 5, "cannot be reached"),
        ("predict --url 127.0.0.1:1 a.png", 2, "as in http://localhost:8000"),
    ],
)
def test_predict_says_what_is_wrong(words: str, code: int, sentence: str, call: Call, capfd: Any, waits: list[float]) -> None:
    with pytest.raises(SystemExit) as raised:
        call(*words.split())
    assert raised.value.code == code and sentence in capfd.readouterr().err


def test_the_client_costs_nothing_until_it_is_asked_for() -> None:
    program = (
        "import sys, kdzoo; found = {'numpy', 'httpx2', 'kdzoo.serve'} & set(sys.modules); assert not found, found; "
        "kdzoo.Client('http://127.0.0.1:1'); found = {'torch', 'onnx', 'onnxruntime', 'starlette'} & set(sys.modules); "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
