"""Export, end to end: every target becomes a package whose files say what torch says, or nothing is left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from kdzoo.errors import DataError, EnvironmentProblem, GateFailed, IntegrityError, KdzooError, OutputError, UnknownName, UsageError
from kdzoo.export import measure, tensorrt_build
from kdzoo.export.card import package_card
from kdzoo.export.engine_sidecar import installed_version
from kdzoo.export.exporter import Gates, check_output, export, load_student
from kdzoo.export.format import Batch, ExportOptions
from kdzoo.export.formats import onnx as onnx_format
from kdzoo.export.onnx_graph import OnnxRunner, describe_onnx, export_onnx, seal_onnx
from kdzoo.export.package import Package
from kdzoo.export.verify import verify_package
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.checkpoint import Checkpoint, save_checkpoint
from kdzoo.zoo.datasets import LabelledImages
from kdzoo.zoo.files import read_json, sha256, write_json
from kdzoo.zoo.manifest import Manifest
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.network import MultiBranch
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.student import logit_nodes, select, target_logits
from kdzoo.zoo.target import Target

CLASSES = tuple(f"class {i}" for i in range(10))
TARGETS = ("target", "1", "2", "fused", "ensemble")
HAS_RTX = installed_version("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not HAS_RTX, reason="tensorrt_rtx is not installed: pip install tensorrt-rtx")
LAYOUT = {
    "README.md", "config.json", "golden/expected.npz", "golden/inputs.npz", "labels.txt", "manifest.json", "metrics.json",
    "model.fp32.onnx", "model.safetensors", "preprocess.json",
}  # fmt: skip
ENGINE = "model.fp32.sm86.trt-rtx.engine"


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Latency is measured in a blink, and TensorRT's parser, which `test_tensorrt_build` runs, is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure_latency", partial(measure.measure_latency, seconds=0.005, min_calls=2))
        patch.setattr(tensorrt_build, "parse_check", lambda onnx: None)
        yield


@pytest.fixture(scope="module")
def split() -> LabelledImages:
    """45 soft random pictures."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (45, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    return LabelledImages(images, draw.integers(0, 10, 45), CLASSES, "toy")


@pytest.fixture(scope="module")
def data(split: LabelledImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, test_images=split.images, test_labels=split.labels, classes=np.array(CLASSES))
    return path


@pytest.fixture(scope="module")
def checkpoint(split: LabelledImages, preprocess: Preprocess, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """An AHBF network of two branches whose BatchNorms have seen the pictures."""
    torch.manual_seed(0)
    config = {"num_branches": 2, "aux": 1}
    method = METHODS.get("ahbf").from_mapping(config)
    network = method.build(BACKBONES.get("resnet20")(), len(CLASSES))
    images = normalised(split.images, preprocess)
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
    return save_checkpoint(tmp_path_factory.mktemp("run") / "checkpoint", network, manifest, split)


@pytest.fixture(scope="module")
def package_of(checkpoint: Checkpoint, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Package]:
    """The package of a target, measured on all images; exported once."""
    folder = tmp_path_factory.mktemp("packages")
    return cache(lambda target: export(checkpoint, Target.parse(target), output=folder / target, data=data))


@pytest.fixture(scope="module")
def second(checkpoint: Checkpoint, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Any]:
    """Branch 1 again, by the command line, in another process and folder, with an engine where one can be built; its stdout."""
    folder = tmp_path_factory.mktemp("elsewhere")
    formats = ["-f", "trt-rtx", "-c", "8.6"] if HAS_RTX else ["-f", "onnx"]
    command = [sys.executable, "-m", "kdzoo", "export", str(checkpoint.folder), "-b", "1", *formats, "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [*command, "--data", str(data), "-o", "again"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"the second export failed: {done.stderr}"
    return Package.open(folder / "again"), done.stdout


@pytest.fixture
def copy(package_of: Callable[[str], Package], tmp_path: Path) -> Package:
    """A package of branch 1 to do harm to."""
    return Package.open(Path(shutil.copytree(package_of("1").folder, tmp_path / "copy")))


@pytest.fixture
def canned(package_of: Callable[[str], Package], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`canned(target)`: from now on the ONNX of every student is the one of `target`."""

    def use(target: str) -> None:
        source = package_of(target).folder / "model.fp32.onnx"
        monkeypatch.setattr(onnx_format, "export_onnx", lambda student, path, **_: describe_onnx(shutil.copyfile(source, path)))

    return use


def files_of(folder: Path) -> set[str]:
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


# --- every target -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_the_onnx_of_every_target_gives_what_the_whole_network_gives(
    target: str, package_of: Callable[[str], Package], checkpoint: Checkpoint, split: LabelledImages
) -> None:
    package = package_of(target)
    expected = expected_logits(checkpoint.network(), target, split.images, package.preprocess)
    logits = OnnxRunner(package.folder / "model.fp32.onnx")(split.images)
    assert np.abs(logits - expected).max() < 1e-4, "look at export.deployed: the graph computes something else"
    assert (logits.argmax(1) == expected.argmax(1)).all()
    assert len(set(expected.argmax(1))) > 1, "the test is void: the network says the same of every image"


@pytest.mark.parametrize("target", TARGETS)
def test_every_tensor_of_the_checkpoint_is_kept_or_listed_as_dropped(
    target: str, package_of: Callable[[str], Package], checkpoint: Checkpoint
) -> None:
    kept, dropped = (package_of(target).document["tensors"][which] for which in ("kept", "dropped"))
    everything = checkpoint.network().state_dict()
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
    assert np.array_equal(measure.torch_logits(load_student(package), package.preprocess, images), logits)


@pytest.mark.parametrize("target", ["fused", "1+3"])
def test_a_student_of_dbfskd_exports_as_the_whole_network_computes_it(
    target: str, make_network: Callable[..., MultiBranch], preprocess: Preprocess, split: LabelledImages, tmp_path: Path
) -> None:
    network, wanted = make_network("dbfskd"), Target.parse(target)
    student = select(network, wanted)
    assert set(student.outputs) == set(logit_nodes(network, wanted))
    path = tmp_path / "model.onnx"
    export_onnx(student, path, mean=preprocess.mean, std=preprocess.std, height=32, width=32)
    expected = expected_logits(network, target, split.images, preprocess)
    logits = OnnxRunner(path)(split.images)
    assert np.abs(logits - expected).max() < 1e-4
    assert (logits.argmax(1) == expected.argmax(1)).all()


# --- what lies in a package ---------------------------------------------------------------------------------------------


def test_a_package_holds_the_files_of_the_design_and_nothing_else(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    assert files_of(package.folder) == LAYOUT
    assert set(package.document["files"]) == LAYOUT - {"manifest.json"}
    assert not [p for p in package.folder.parent.iterdir() if p.name.startswith(".")], "a temporary folder was left"
    assert package.labels == list(CLASSES)
    assert package.folder.stat().st_mode & 0o777 == 0o755


def test_the_manifest_describes_every_artifact(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    (artifact,) = package.artifacts
    path = package.folder / artifact.path
    assert (artifact.sha256, artifact.bytes) == (sha256(path), path.stat().st_size)
    assert (artifact.input.name, artifact.input.dtype, artifact.input.shape) == ("image", "uint8", ("N", 32, 32, 3))
    assert (artifact.output.name, artifact.output.dtype, artifact.output.shape) == ("logits", "float32", ("N", 10))
    assert package.metrics["artifacts"][artifact.path]["batches_exercised"] == [1, 8, 64]
    inside = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(inside["kdzoo.labels"]) == list(CLASSES)
    assert json.loads(inside["kdzoo.preprocess"]) == read_json(package.folder / "preprocess.json")


def test_the_accuracy_of_a_file_is_that_of_its_own_logits(package_of: Callable[[str], Package], split: LabelledImages) -> None:
    package = package_of("2")
    logits = OnnxRunner(package.folder / "model.fp32.onnx")(split.images)
    stated = package.metrics["artifacts"]["model.fp32.onnx"]["accuracy"]
    assert stated["n"] == len(split)
    assert stated["top1"] == pytest.approx(100 * (logits.argmax(1) == split.labels).mean(), abs=1e-3)
    best_five = np.argsort(logits, axis=1)[:, -5:]
    assert stated["top5"] == pytest.approx(100 * (best_five == split.labels[:, None]).any(1).mean(), abs=1e-3)


def test_half_precision_saves_space_and_agrees_with_full(
    checkpoint: Checkpoint, package_of: Callable[[str], Package], data: Path, split: LabelledImages, tmp_path: Path
) -> None:
    options = ExportOptions(precisions=("fp16",))
    package = export(checkpoint, Target.parse("1"), options=options, output=tmp_path / "p", data=data)
    (artifact,), (other,) = package.artifacts, package_of("1").artifacts
    assert artifact.path == "model.fp16.onnx" and artifact.precision == "fp16"
    assert artifact.bytes < 0.7 * other.bytes, "half precision saves no space"
    half, full = (OnnxRunner(p.folder / a.path)(split.images) for p, a in ((package, artifact), (package_of("1"), other)))
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.1


def test_float_input_and_a_fixed_batch_without_data(
    checkpoint: Checkpoint, split: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    options = ExportOptions(input="float", batch=Batch.parse("4"))
    package = export(checkpoint, Target.parse("1"), options=options, say=said.append)
    assert package.folder == Path("ahbf-resnet20-toy-1"), "without --output the folder is <entry>-<target>, here"
    (artifact,) = package.artifacts
    assert (artifact.input.dtype, artifact.input.shape) == ("float32", (4, 3, 32, 32))
    x = normalised(split.images[:4], package.preprocess).numpy()
    expected = expected_logits(checkpoint.network(), "1", split.images[:4], package.preprocess)
    assert np.abs(OnnxRunner(package.folder / artifact.path)(x) - expected).max() < 1e-4

    assert "accuracy" not in package.metrics["artifacts"][artifact.path]
    assert any("--data" in line for line in said), "nobody was told why accuracy is missing"
    card = (package.folder / "README.md").read_text()
    assert "not measured again" in card and "77.70 %" in card and "1,234 images" in card
    assert verify_package(package)["artifacts"][artifact.path]["golden"]["n"] == 8


# --- the same command twice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LAYOUT - {"README.md", "manifest.json", "metrics.json"}))
def test_two_exports_give_the_same_bytes(name: str, package_of: Callable[[str], Package], second: tuple[Package, str]) -> None:
    assert sha256(package_of("1").folder / name) == sha256(second[0].folder / name), f"{name} depends on process, folder or time"


@needs_rtx
def test_two_engines_are_the_same_bytes(second: tuple[Package, str], tmp_path: Path) -> None:
    package, _ = second
    (engine,) = [a for a in package.artifacts if a.path == ENGINE]
    if not engine.details["reproducible"]:
        pytest.skip("addresses cannot be fixed on this machine, and the builder says so")
    path = tmp_path / ENGINE
    request = tensorrt_build.EngineRequest(package.folder / "model.fp32.onnx", path, "tensorrt_rtx", "8.6", (1, 8, 64))
    assert tensorrt_build.build_engine(request).sha256 == engine.sha256


@needs_rtx
def test_an_engine_is_said_to_be_built_and_not_run(second: tuple[Package, str]) -> None:
    package, _ = second
    assert files_of(package.folder) == LAYOUT | {ENGINE, f"{ENGINE}.json"}, "the ONNX stays beside the engine, with a sidecar"
    card = (package.folder / "README.md").read_text()
    assert f"- `{ENGINE}`: built, not run" in card
    (row,) = [line for line in card.splitlines() if line.startswith(f"| `{ENGINE}`")]
    assert "compute capability 8.6" in row and row.count("not measured") == 3
    assert "TensorRT-RTX parse" in package.metrics["artifacts"]["model.fp32.onnx"]["checker"]


def test_json_on_stdout_is_the_manifest_and_the_metrics(second: tuple[Package, str]) -> None:
    package, stdout = second
    document = json.loads(stdout)
    assert document["metrics"] == package.metrics
    assert {key: document[key] for key in package.document} == package.document


# --- gates --------------------------------------------------------------------------------------------------------------

GOOD = {"n": 100, "agreement": 1.0, "max_abs_diff": 1e-5, "nan_count": 0, "largest_logit": 20.0}


@pytest.mark.parametrize(
    ("parity", "top1", "says"),
    [
        ({"nan_count": 3, "max_abs_diff": None}, 50.0, "not finite"),
        ({"agreement": 0.99}, 50.0, "agrees with torch on 99.000 %"),
        ({"max_abs_diff": 0.002}, 50.0, "differ from torch"),
        ({}, 49.0, "1.00 points below torch"),
    ],
)
def test_each_gate_closes(parity: dict[str, Any], top1: float, says: str, package_of: Callable[[str], Package]) -> None:
    (artifact,) = package_of("1").artifacts
    Gates().check(artifact, {"parity": GOOD, "accuracy": {"top1": 49.99}}, 50.0)
    larger = {**GOOD, "max_abs_diff": 0.002, "largest_logit": 100.0}  # rounding grows with the logits
    Gates().check(artifact, {"parity": larger}, 50.0)
    with pytest.raises(GateFailed, match=says):
        Gates().check(artifact, {"parity": {**GOOD, **parity}, "accuracy": {"top1": top1}}, 50.0)


def test_a_file_that_disagrees_with_torch_leaves_nothing_behind(
    checkpoint: Checkpoint, data: Path, canned: Callable[[str], None], tmp_path: Path
) -> None:
    canned("2")
    with pytest.raises(GateFailed, match="agrees with torch"):
        export(checkpoint, Target.parse("1"), output=tmp_path / "p")
    assert list(tmp_path.iterdir()) == []
    canned("1")
    with pytest.raises(GateFailed, match="the gate is -1 points"):
        export(checkpoint, Target.parse("1"), output=tmp_path / "p", data=data, gates=Gates.of(max_drop=-1, min_agreement=None))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("full", ["weights", "golden"])
def test_a_full_disk_leaves_nothing_behind(
    full: str, checkpoint: Checkpoint, canned: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canned("1")

    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if full == "weights":
        monkeypatch.setattr(Path, "write_bytes", no_space)
    else:
        monkeypatch.setattr(np, "savez", no_space)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        export(checkpoint, Target.parse("1"), output=tmp_path / "p", verify=False)
    assert list(tmp_path.iterdir()) == []


def test_without_verification_manifest_and_card_say_so_and_force_replaces_the_whole_folder(
    checkpoint: Checkpoint, canned: Callable[[str], None], tmp_path: Path
) -> None:
    canned("1")
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(OutputError, match="not empty"):
        export(checkpoint, Target.parse("1"), output=folder, verify=False)
    package = export(checkpoint, Target.parse("1"), output=folder, verify=False, force=True)
    assert files_of(folder) == LAYOUT
    assert package.document["verified"] is False
    assert "not verified" in (folder / "README.md").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_force_does_not_replace_what_the_user_stands_in_nor_the_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (Path(), Path(".."), tmp_path, checkpoint.folder, checkpoint.folder.parent, tmp_path / "file"):
        with pytest.raises(OutputError):
            check_output(folder, checkpoint.folder, force=True)
    check_output(tmp_path / "new", checkpoint.folder, force=False)


@pytest.mark.parametrize(
    ("target", "options", "error"),
    [
        ("3", ExportOptions(), UnknownName),
        ("all", ExportOptions(), UsageError),
        ("1", ExportOptions(precisions=("int4",)), UnknownName),
        ("1", ExportOptions(input="bgr"), UnknownName),
        ("1", ExportOptions(opset=3), UsageError),
    ],
)
def test_what_cannot_be_exported_is_told_before_anything_is_written(
    target: str, options: ExportOptions, error: type[KdzooError], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(error):
        export(checkpoint, Target.parse(target), options=options, output=tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


# --- verify -------------------------------------------------------------------------------------------------------------


def test_a_fresh_package_verifies_and_measures_what_it_states(package_of: Callable[[str], Package], data: Path) -> None:
    package = package_of("1")
    found = verify_package(package, data)
    assert found["files"] == len(LAYOUT) - 1
    result = found["artifacts"]["model.fp32.onnx"]
    assert result["accuracy"] == package.metrics["artifacts"]["model.fp32.onnx"]["accuracy"]
    assert result["golden"]["agreement"] == 1.0 and result["golden"]["max_abs_diff"] < 1e-4


@pytest.mark.parametrize("name", sorted(LAYOUT - {"manifest.json"}))
def test_one_flipped_bit_in_any_file_is_found(name: str, copy: Package) -> None:
    path = copy.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=name):
        verify_package(copy)


@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_a_file_that_is_cut_or_gone_is_found(harm: str, copy: Package) -> None:
    path = copy.folder / "model.safetensors"
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        load_student(copy)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        verify_package(copy)


def test_a_consistent_forgery_fails_on_the_golden_images(copy: Package) -> None:
    path = copy.folder / "model.fp32.onnx"
    model = onnx.load(path)
    weights = max(model.graph.initializer, key=lambda tensor: tensor.ByteSize())
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 1.5, weights.name))
    path.write_bytes(seal_onnx(model))
    document = dict(copy.document)
    document["files"][path.name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    write_json(copy.folder / "manifest.json", document)
    with pytest.raises(GateFailed, match="golden logits"):
        verify_package(Package.open(copy.folder))


def test_images_on_which_the_file_is_worse_than_stated_fail_the_gate(copy: Package, split: LabelledImages, tmp_path: Path) -> None:
    logits = OnnxRunner(copy.folder / "model.fp32.onnx")(split.images)
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, test_images=split.images, test_labels=logits.argmin(1), classes=np.array(CLASSES))
    stated = copy.metrics["artifacts"]["model.fp32.onnx"]["accuracy"]["top1"]
    assert stated > 0.02, "the test is void: nothing can be worse"
    with pytest.raises(GateFailed, match=r"top-1 0\.00 % here"):
        verify_package(copy, wrong)


def test_images_of_other_classes_are_refused(copy: Package, checkpoint: Checkpoint, split: LabelledImages, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, test_images=split.images, test_labels=split.labels)
    for use in (
        partial(verify_package, copy),
        lambda data: export(checkpoint, Target.parse("1"), output=tmp_path / "p", data=data),
    ):
        with pytest.raises(DataError, match="10 classes"):
            use(other)


# --- card ---------------------------------------------------------------------------------------------------------------


def test_the_card_is_made_of_the_json_alone(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    read = (package.document, package.metrics, package.artifacts, package.labels)
    assert package_card(*read) == (package.folder / "README.md").read_text(), "the card holds something that the JSON does not"


def test_the_card_states_the_numbers_of_the_json(package_of: Callable[[str], Package]) -> None:
    package = package_of("1")
    (artifact,) = package.artifacts
    metrics = package.metrics
    measured = metrics["artifacts"][artifact.path]
    measured["accuracy"]["top1"], metrics["reference"]["top1"], metrics["student"]["params"] = 12.34, 56.78, 987654
    measured["latency"] = [{"batch": 8, "p50_ms": 1.11, "p90_ms": 2.22, "p99_ms": 3.33, "images_per_s": 4321.0}]
    measured["parity"] = {"n": 4444, "agreement": 0.9876, "max_abs_diff": 0.00033}
    card = package_card(package.document, metrics, package.artifacts, package.labels)
    assert f"| `{artifact.path}` | fp32 | {artifact.bytes:,} |" in card
    for number in ("12.34 %", "56.78 %", "987,654 parameters", "98.76 % of 4,444", "0.00033"):
        assert number in card, f"{number} is in metrics.json and not in the card"
    assert "| model.fp32.onnx | 8 | 1.11 | 2.22 | 3.33 | 4,321 |" in card
    stated = package.metrics["artifacts"][artifact.path]["accuracy"]["top1"]
    assert f"| {stated:.2f} % |" not in card, "the card holds a number from elsewhere"
