"""A checkpoint of toys and the packages made of it: their pictures, what they hold, and what they must compute.

Import it as `kdzoo.tests.small_packages`. The fixtures `toys`, `toy_checkpoint` and `package_of` are made of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdzoo.export import measure_rounds, onnx_graph, tensorrt_build
from kdzoo.tests.small_traces import trace_once
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.catalog import DEFAULT_ENTRY, get_entry
from kdzoo.zoo.checkpoint import Checkpoint, save_checkpoint
from kdzoo.zoo.datasets import LabelledImages
from kdzoo.zoo.manifest import Manifest
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.network import MultiBranch
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.student import target_logits
from kdzoo.zoo.target import Target

CLASSES = tuple(f"class {i}" for i in range(10))
LAYOUT = {
    "README.md", "config.json", "golden/expected.npz", "golden/inputs.npz", "labels.txt", "manifest.json", "metrics.json",
    "model.fp32.onnx", "model.safetensors", "preprocess.json",
}  # fmt: skip


@contextmanager
def quick_exports() -> Iterator[pytest.MonkeyPatch]:
    """Latency is measured in a blink, a student is traced once, and TensorRT's parser, which `test_tensorrt_build` runs, is left
    out."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ROUNDS": 2, "PASSES": 1, "SECONDS": 0.002, "SECONDS_OF_AN_EXIT": 0.001}.items():
            patch.setattr(measure_rounds, name, value)
        patch.setattr(tensorrt_build, "parse_check", lambda onnx: None)
        patch.setattr(onnx_graph, "_trace", trace_once)
        yield patch


def draw_toys() -> LabelledImages:
    """45 soft random pictures."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (45, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    return LabelledImages(images, draw.integers(0, 10, 45), CLASSES, "toy")


def save_toy_checkpoint(folder: Path, toys: LabelledImages, preprocess: Preprocess) -> Checkpoint:
    """An AHBF network of two branches whose BatchNorms have seen the pictures."""
    torch.manual_seed(0)
    config = {"num_branches": 2, "aux": 1}
    method = METHODS.get("ahbf").from_mapping(config)
    network = method.build(BACKBONES.get("resnet20")(), len(CLASSES))
    images = normalised(toys.images, preprocess)
    with torch.no_grad():
        network.train()(images)
        # An untrained network says the same of every image, unless what is common to all is taken away.
        for number, logits_BK in enumerate(network.eval()(images).logits):
            network[network.branches[number].logits][-1].bias.sub_(logits_BK.mean(0))
    stated = {t: {"top1": 77.7, "top5": 99.9, "n": 1234, "split": "test"} for t in network.targets()}
    recipe = {"seed": 0, "epochs": 3}
    manifest = Manifest(
        "ahbf-resnet20-toy", "ahbf", method.settings(), "resnet20", "toy", CLASSES, preprocess, recipe, 3, metrics=stated
    )
    return save_checkpoint(folder, network, manifest, toys)


def bundled() -> Checkpoint:
    """The default entry, which is bundled."""
    folder = get_entry(DEFAULT_ENTRY).folder
    assert folder is not None, "the default entry is not bundled"
    return Checkpoint.open(folder)


def names(folder: Path) -> list[str]:
    """What lies in a folder, one level deep."""
    return sorted(path.name for path in folder.iterdir())


def files_of(folder: Path) -> set[str]:
    """The files in a folder, at any depth."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def normalised(images: np.ndarray[Any, Any], preprocess: Preprocess) -> torch.Tensor:
    """As the training does: (x / 255 - mean) / std, `N C H W`."""
    x = images.astype(np.float64) / 255
    return torch.from_numpy(((x - preprocess.mean) / preprocess.std).transpose(0, 3, 1, 2)).float().contiguous()


def expected_logits(
    network: MultiBranch, target: str, images: np.ndarray[Any, Any], preprocess: Preprocess
) -> np.ndarray[Any, Any]:
    """What the whole network gives for a target."""
    with torch.inference_mode():
        return target_logits(network(normalised(images, preprocess)), Target.parse(target), network.target_branch).numpy()
