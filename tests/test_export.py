"""Export, end to end: every target, precision, input and batch becomes a file that says what torch says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdzoo.export.exporter import export, load_student
from kdzoo.export.format import Batch, ExportOptions
from kdzoo.export.onnx_file import OnnxRunner
from kdzoo.export.onnx_graph import export_onnx
from kdzoo.export.outputs import torch_logits
from kdzoo.export.package import Package
from kdzoo.export.verify import verify_package
from kdzoo.tests.small_packages import expected_logits, normalised
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.datasets import LabelledImages
from kdzoo.zoo.network import MultiBranch
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.student import logit_nodes, select
from kdzoo.zoo.target import Target

TARGETS = ("target", "1", "2", "fused", "ensemble")
pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("target", TARGETS)
def test_the_onnx_of_every_target_gives_what_the_whole_network_gives(
    target: str, package_of: Callable[[str], Package], toy_checkpoint: Checkpoint, toys: LabelledImages
) -> None:
    package = package_of(target)
    expected = expected_logits(toy_checkpoint.network(), target, toys.images, package.preprocess)
    logits = OnnxRunner(package.folder / "model.fp32.onnx")(toys.images)
    assert np.abs(logits - expected).max() < 1e-4, "look at export.deployed: the graph computes something else"
    assert (logits.argmax(1) == expected.argmax(1)).all()
    assert len(set(expected.argmax(1))) > 1, "the test is void: the network says the same of every image"


@pytest.mark.parametrize("target", TARGETS)
def test_every_tensor_of_the_checkpoint_is_kept_or_listed_as_dropped(
    target: str, package_of: Callable[[str], Package], toy_checkpoint: Checkpoint
) -> None:
    kept, dropped = (package_of(target).document["tensors"][which] for which in ("kept", "dropped"))
    everything = toy_checkpoint.network().state_dict()
    assert sorted(kept + dropped) == sorted(everything), "a tensor is in neither list, or in both"
    assert set(load_student(package_of(target)).state_dict()) == set(kept)
    assert dropped, "a student never keeps the counters of BatchNorm"
    if target in ("target", "1"):
        assert not [name for name in kept if name.startswith(("branch2", "fuse", "gate", "classifier2"))]


@pytest.mark.parametrize("target", TARGETS)
def test_the_student_rebuilt_from_config_gives_the_golden_logits_bit_for_bit(
    target: str, package_of: Callable[[str], Package]
) -> None:
    package = package_of(target)
    images, logits = package.golden()
    assert images.shape == (8, 32, 32, 3) and images.dtype == np.uint8
    assert np.array_equal(torch_logits(load_student(package), package.preprocess, images), logits)


@pytest.mark.parametrize("target", ["fused", "1+3"])
def test_a_student_of_dbfskd_exports_as_the_whole_network_computes_it(
    target: str, make_network: Callable[..., MultiBranch], preprocess: Preprocess, toys: LabelledImages, tmp_path: Path
) -> None:
    network, wanted = make_network("dbfskd"), Target.parse(target)
    student = select(network, wanted)
    assert set(student.outputs) == set(logit_nodes(network, wanted).values())
    path = tmp_path / "model.onnx"
    export_onnx(student, path, mean=preprocess.mean, std=preprocess.std, height=32, width=32)
    expected = expected_logits(network, target, toys.images, preprocess)
    logits = OnnxRunner(path)(toys.images)
    assert np.abs(logits - expected).max() < 1e-4
    assert (logits.argmax(1) == expected.argmax(1)).all()


def test_half_precision_saves_space_and_agrees_with_full(
    toy_checkpoint: Checkpoint, package_of: Callable[[str], Package], toys_npz: Path, toys: LabelledImages, tmp_path: Path
) -> None:
    options = ExportOptions(precisions=("fp16",))
    package = export(toy_checkpoint, Target.parse("1"), options=options, output=tmp_path / "p", data=toys_npz)
    (artifact,), (other,) = package.artifacts, package_of("1").artifacts
    assert artifact.path == "model.fp16.onnx" and artifact.precision == "fp16"
    assert artifact.bytes < 0.7 * other.bytes, "half precision saves no space"
    half, full = (OnnxRunner(p.folder / a.path)(toys.images) for p, a in ((package, artifact), (package_of("1"), other)))
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.1


def test_float_input_and_a_fixed_batch_without_data(
    toy_checkpoint: Checkpoint, toys: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    options = ExportOptions(input="float", batch=Batch.parse("4"))
    package = export(toy_checkpoint, Target.parse("1"), options=options, say=said.append)
    assert package.folder == Path("ahbf-resnet20-toy-1"), "without --output the folder is <entry>-<target>, here"
    (artifact,) = package.artifacts
    assert (artifact.input.dtype, artifact.input.shape) == ("float32", (4, 3, 32, 32))
    x = normalised(toys.images[:4], package.preprocess).numpy()
    expected = expected_logits(toy_checkpoint.network(), "1", toys.images[:4], package.preprocess)
    assert np.abs(OnnxRunner(package.folder / artifact.path)(x) - expected).max() < 1e-4

    assert "accuracy" not in package.metrics["artifacts"][artifact.path]
    assert any("--data" in line for line in said), "nobody was told why accuracy is missing"
    card = (package.folder / "README.md").read_text()
    assert "not measured again" in card and "77.70 %" in card and "1,234 images" in card
    assert verify_package(package)["artifacts"][artifact.path]["golden"]["n"] == 8
