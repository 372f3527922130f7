"""The examples of CONTRIBUTING.md are files that work: each is put where a contributor would put it, then trained and exported."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import kdzoo.zoo.backbones
import kdzoo.zoo.methods
from kdzoo.train.recipe import Recipe
from kdzoo.train.reporter import Silent
from kdzoo.train.run import run_training
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.registry import Registry
from kdzoo.zoo.student import select
from kdzoo.zoo.target import Target

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)


@pytest.fixture
def contributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two examples as modules of the packages that the registries discover; gone again afterwards."""
    found: list[tuple[Registry[object], str]] = []
    for registry, package, name, text in (
        (BACKBONES, kdzoo.zoo.backbones, "tiny", EXAMPLES[0]),
        (METHODS, kdzoo.zoo.methods, "mutual", EXAMPLES[1]),
    ):
        registry.names()  # everything else is discovered first
        folder = tmp_path / registry.kind
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        importlib.invalidate_caches()
        registry.discover()
        found.append((registry, name))
    yield
    for registry, name in found:
        registry._things.pop(name)


@pytest.mark.parametrize("example", EXAMPLES, ids=["backbone", "method"])
def test_an_example_is_about_thirty_lines(example: str) -> None:
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 30


def test_a_new_backbone_and_a_new_method_train_prune_and_export(contributed: None, tmp_path: Path) -> None:
    from kdzoo.export.exporter import export
    from kdzoo.export.onnx_file import OnnxRunner

    assert "tiny" in BACKBONES.names()
    assert "mutual" in METHODS.names()
    rng = np.random.default_rng(0)
    data = tmp_path / "toy.npz"
    images, labels = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8), np.arange(40) % 4
    np.savez(data, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    recipe = Recipe("mutual", "tiny", "toy", epochs=1, batch_size=20, method_config={"num_peers": 3})
    result = run_training("mutual-tiny-toy", recipe, data=data, output=tmp_path / "run", reporter=Silent())
    assert set(result.metrics) == {"target", "1", "2", "3", "ensemble"}

    checkpoint = Checkpoint.open(tmp_path / "run")
    network = checkpoint.network()
    student = select(network, Target.parse("2"))
    assert set(student) == {"trunk", "peer2", "classifier2"}, "a student holds the nodes that its branch needs, and no others"

    package = export(checkpoint, Target.parse("2"), output=tmp_path / "package", data=data)
    logits = OnnxRunner(package.folder / "model.fp32.onnx")(images[:8])
    with torch.no_grad():
        expected = network(normalised(images[:8], recipe)).logits[1].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def normalised(images: np.ndarray, recipe: Recipe) -> torch.Tensor:
    x = (images / 255.0 - np.array(recipe.mean)) / np.array(recipe.std)
    return torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))
