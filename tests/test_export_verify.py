"""`kdzoo verify`: every damage to a package is found, and a file that is worse than stated fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kdzoo.errors import DataError, GateFailed, IntegrityError
from kdzoo.export.exporter import export, load_student
from kdzoo.export.onnx_file import OnnxRunner, seal_onnx
from kdzoo.export.package import Package
from kdzoo.export.verify import verify_package
from kdzoo.tests.small_machines import reseal
from kdzoo.tests.small_packages import CLASSES, LAYOUT
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.datasets import LabelledImages
from kdzoo.zoo.target import Target


def test_a_fresh_package_verifies_and_measures_what_it_states(package_of: Callable[[str], Package], toys_npz: Path) -> None:
    package = package_of("1")
    found = verify_package(package, toys_npz)
    assert found["files"] == len(LAYOUT) - 1
    result = found["artifacts"]["model.fp32.onnx"]
    assert result["accuracy"] == package.metrics["artifacts"]["model.fp32.onnx"]["accuracy"]
    assert result["golden"]["agreement"] == 1.0 and result["golden"]["max_abs_diff"] < 1e-4


@pytest.mark.parametrize("name", sorted(LAYOUT - {"manifest.json"}))
def test_one_flipped_bit_in_any_file_is_found(name: str, package_copy: Package) -> None:
    path = package_copy.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=name):
        verify_package(package_copy)


@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_a_file_that_is_cut_or_gone_is_found(harm: str, package_copy: Package) -> None:
    path = package_copy.folder / "model.safetensors"
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        load_student(package_copy)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        verify_package(package_copy)


def test_a_consistent_forgery_fails_on_the_golden_images(package_copy: Package) -> None:
    path = package_copy.folder / "model.fp32.onnx"
    model = onnx.load(path)
    weights = max(model.graph.initializer, key=lambda tensor: tensor.ByteSize())
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 1.5, weights.name))
    path.write_bytes(seal_onnx(model))
    with pytest.raises(GateFailed, match=r"golden logits: the largest difference is .*; 0\.001 are allowed"):
        verify_package(reseal(package_copy))


def test_images_on_which_the_file_is_worse_than_stated_fail_the_gate(
    package_copy: Package, toys: LabelledImages, tmp_path: Path
) -> None:
    logits = OnnxRunner(package_copy.folder / "model.fp32.onnx")(toys.images)
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, test_images=toys.images, test_labels=logits.argmin(1), classes=np.array(CLASSES))
    stated = package_copy.metrics["artifacts"]["model.fp32.onnx"]["accuracy"]["top1"]
    assert stated > 0.02, "the test is void: nothing can be worse"
    with pytest.raises(GateFailed, match=r"top-1 0\.00 % here"):
        verify_package(package_copy, wrong)


def test_images_of_other_classes_are_refused(
    package_copy: Package, toy_checkpoint: Checkpoint, toys: LabelledImages, tmp_path: Path
) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, test_images=toys.images, test_labels=toys.labels)
    for use in (
        partial(verify_package, package_copy),
        lambda data: export(toy_checkpoint, Target.parse("1"), output=tmp_path / "p", data=data),
    ):
        with pytest.raises(DataError, match="10 classes"):
            use(other)
