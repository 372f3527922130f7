"""Packages of narrower precisions, of a cascade, of all branches, and whole families: each file measured, each refusal alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdzoo.errors import DataError, GateFailed, OutputError, UsageError
from kdzoo.export import evidence
from kdzoo.export.engine_sidecar import gpu_compute_capability, installed_version, read_sidecar
from kdzoo.export.exporter import export
from kdzoo.export.family import FAMILY, PICTURE, Member, export_family, mark_pareto
from kdzoo.export.format import Batch, ExportOptions
from kdzoo.export.gates import Gates
from kdzoo.export.onnx_file import OnnxRunner
from kdzoo.export.package import Package
from kdzoo.export.request import Request
from kdzoo.export.verify import verify_package
from kdzoo.tests.small_packages import quick_exports
from kdzoo.tests.small_runs import recipe_for, train
from kdzoo.train import run_folder
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.datasets import open_split, read_npz
from kdzoo.zoo.target import Target

pytestmark = pytest.mark.slow

SMALL = ExportOptions(precisions=("fp32", "int8"), batch=Batch(1, 4, 16), calibration_images=32)
OPEN = Gates.of(100.0, 0.0)
Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with quick_exports() as patch:
        patch.setattr(run_folder, "draw_curve", lambda *_: False)
        yield


@pytest.fixture(scope="module")
def trained(colours: Path, once: Once) -> Checkpoint:
    """A few steps of DBFSKD, three exits, a quarter of its images held out."""
    torch.manual_seed(0)
    recipe = recipe_for(method="dbfskd", backbone="resnet8", epochs=3, holdout=len(read_npz(colours, "train")) // 4)
    return Checkpoint.open(once("trained", lambda folder: train(recipe, colours, folder / "run")) / "run")


@pytest.fixture(scope="module")
def package(trained: Checkpoint, colours: Path, once: Once) -> Package:
    """The target in float32 and in eight bits."""

    def make(folder: Path) -> Package:
        return export(trained, Target.parse("target"), options=SMALL, gates=OPEN, output=folder / "package", data=colours)

    return Package.open(once("int8", make) / "package")


def test_the_eight_bit_file_is_calibrated_on_training_images_and_measured(package: Package, colours: Path) -> None:
    artifact = package.artifact("onnx", "int8")
    assert artifact.details["calibration"] == {"method": "minmax", "images": 32, "split": "train", "seed": 0}
    assert artifact.details["quantised_layers"] > 3 and len(artifact.details["kept_float32"]) == 1
    assert set(artifact.details["grid_ms"]) == {"unsigned", "signed"}
    measured = package.metrics["artifacts"][artifact.path]
    assert measured["accuracy"]["n"] == len(read_npz(colours, "test")) and measured["latency"]
    assert artifact.bytes < 0.6 * package.artifact("onnx", "fp32").bytes


def test_it_is_verified_against_its_own_golden_logits(package: Package, colours: Path) -> None:
    images, own = package.golden(package.artifact("onnx", "int8"))
    assert np.abs(OnnxRunner(package.folder / "model.int8.onnx")(images) - own).max() < 1e-4
    assert not np.array_equal(own, package.golden()[1])
    assert set(verify_package(package, colours)["artifacts"]) == {"model.fp32.onnx", "model.int8.onnx"}


def test_without_training_images_eight_bits_are_refused(trained: Checkpoint, colours: Path, tmp_path: Path) -> None:
    with np.load(colours) as arrays:
        np.savez(tmp_path / "test.npz", **{name: arrays[name] for name in arrays if not name.startswith("train")})
    with pytest.raises(DataError, match="calibrated on training images"):
        export(trained, Target.parse("1"), options=SMALL, output=tmp_path / "p", data=tmp_path / "test.npz")
    said, request = list[str](), Request(options=SMALL, data=tmp_path / "test.npz")
    with pytest.raises(DataError, match="has no array train_images"):
        export_family(trained, [Target.parse("1")], request, output=tmp_path / "p", say=said.append)
    assert not said and not (tmp_path / "p").exists(), "torch was run before"


def test_layers_are_left_in_float_until_the_loss_is_small_enough(
    trained: Checkpoint, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdzoo.export.int8 import Int8

    monkeypatch.setattr(Int8, "drop", lambda self, kept: 3.0 - len(kept))
    made = export(
        trained, Target.parse("target"), options=SMALL, gates=Gates.of(1.0, 0.0), output=tmp_path / "p", data=colours, refused={}
    )
    details = made.artifact("onnx", "int8").details
    ranked, errors = zip(*((row["layer"], row["error"]) for row in details["sensitivity"]), strict=True)
    assert set(ranked[:2]) < set(details["kept_float32"]) and len(details["kept_float32"]) == 3  # and the classifier
    assert list(errors) == sorted(errors, reverse=True)


def test_a_cascade_leaves_early_and_its_file_does_what_torch_does(trained: Checkpoint, colours: Path, tmp_path: Path) -> None:
    made = export(
        trained, Target.parse("cascade"), options=SMALL, gates=OPEN, output=tmp_path / "c", data=colours, cascade_loss=60.0
    )
    found = made.document["cascade"]
    assert len(found["values"]) == 2 and found["bound"] <= 60.0 and sum(found["shares"]) == pytest.approx(1, abs=1e-5)
    for precision in ("fp32", "int8"):
        artifact = made.artifact("onnx", precision)
        assert artifact.details["outputs"] == ["logits", "exit"]
        exits = made.metrics["artifacts"][artifact.path]["exits"]
        assert sum(exits["shares"].values()) == pytest.approx(1) and set(exits["p50_ms"]) == set(exits["shares"])
        assert exits["agreement"] > 0.9
    verify_package(made, colours)


@pytest.mark.parametrize(
    ("holdout", "formats", "loss", "error", "says"),
    [
        (0, ("onnx",), 1.0, UsageError, "trained on all its training images"),
        (16, ("onnx",), 0.0, GateFailed, "no early exit"),
        (3, ("onnx",), 1.0, GateFailed, "too few"),
    ],
)
def test_a_cascade_that_cannot_be_made_says_why(
    holdout: int, formats: tuple[str, ...], loss: float, error: type[Exception], says: str, colours: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(method="dbfskd", backbone="resnet8", epochs=1, holdout=holdout)
    checkpoint = Checkpoint.open(train(recipe, colours, tmp_path / "run").folder)
    with pytest.raises(error, match=says):
        export(checkpoint, Target.parse("cascade"), formats=formats, output=tmp_path / "c", data=colours, cascade_loss=loss)
    assert not (tmp_path / "c").exists()


def test_a_cascade_in_parts_answers_as_the_nested_file_does(trained: Checkpoint, colours: Path, tmp_path: Path) -> None:
    made = export(
        trained, Target.parse("cascade"), formats=("parts",), options=SMALL, gates=OPEN, output=tmp_path / "c", data=colours,
        cascade_loss=60.0,
    )  # fmt: skip
    whole, parts = (made.artifact(name, "fp32") for name in ("onnx", "parts"))
    measured = made.metrics["artifacts"]
    assert measured[parts.path]["accuracy"] == measured[whole.path]["accuracy"]
    assert measured[parts.path]["exits"]["shares"] == measured[whole.path]["exits"]["shares"]
    assert len(parts.parts) == 3 and {part.path for part in parts.parts} <= set(made.document["files"])
    assert (made.folder / "cascade_driver.py").is_file()
    with np.load(made.folder / "golden/expected.npz") as stored:  # eight bits are far from torch, in parts as well
        assert set(stored) == {"logits", "exit", "model.int8.onnx", "model.int8.parts.json"}
        assert np.abs(stored["model.int8.parts.json"] - stored["model.int8.onnx"]).max() < 0.5
    verify_package(made, colours)


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_the_engines_of_a_cascade_are_those_of_its_parts(trained: Checkpoint, colours: Path, tmp_path: Path) -> None:
    options = ExportOptions(precisions=("int8",), batch=Batch(1, 4, 8), calibration_images=40, capabilities=("8.6",))
    made = export(
        trained, Target.parse("cascade"), formats=("trt-rtx",), options=options, gates=OPEN, output=tmp_path / "c", data=colours,
        cascade_loss=60.0,
    )  # fmt: skip
    by_path = {artifact.path: artifact for artifact in made.artifacts}
    assert set(by_path) == {"model.int8.onnx", "model.int8.trt.parts.json", "model.int8.sm86.trt-rtx.parts.json"}
    engines = by_path["model.int8.sm86.trt-rtx.parts.json"]
    assert [part.details["from"] for part in engines.parts] == [f"model.int8.trt.part{n}.onnx" for n in (1, 2, 3)]
    for part in engines.parts:
        assert read_sidecar(made.folder / part.details["sidecar"]).sha256 == part.sha256
    if gpu_compute_capability() is None:
        assert made.metrics["artifacts"][engines.path]["not_run"].startswith("built, not run")
    verify_package(made, colours)


def test_only_a_cascade_has_parts(trained: Checkpoint, colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only a cascade has parts"):
        export(trained, Target.parse("1"), formats=("parts",), output=tmp_path / "c", data=colours)


def test_all_is_one_file_with_every_branch(trained: Checkpoint, colours: Path, tmp_path: Path) -> None:
    made = export(trained, Target.parse("all"), options=SMALL, gates=OPEN, output=tmp_path / "all", data=colours)
    images, expected = made.golden()
    outputs = OnnxRunner(made.folder / "model.fp32.onnx").everything(images)
    assert set(outputs) == {"logits", "logits_1", "logits_2", "logits_4", "logits_fused"}
    assert np.abs(outputs["logits"] - expected).max() < 1e-4
    with torch.no_grad():
        whole = trained.network()
        preprocess = made.preprocess
        from kdzoo.tests.small_packages import normalised

        logits = whole(normalised(images, preprocess)).logits
    assert np.abs(outputs["logits_1"] - logits[0].numpy()).max() < 1e-4
    measured = made.metrics["artifacts"]["model.fp32.onnx"]["outputs"]
    assert set(measured) == set(outputs) - {"logits"} and all("accuracy" in one for one in measured.values())


def test_a_family_ranks_its_files_and_refuses_one_by_one(trained: Checkpoint, colours: Path, tmp_path: Path) -> None:
    gates = Gates({**OPEN.max_drop, "int8": -200.0}, OPEN.min_agreement)  # no file gains so much
    targets = [Target.parse(text) for text in ("1", "target")]
    request = Request(options=SMALL, gates=gates, data=colours)
    found = export_family(trained, targets, request, output=tmp_path / "family")
    assert set(found.refused) == {"1/model.int8.onnx", "target/model.int8.onnx"}
    assert {member.path for member in found.members} == {"1/model.fp32.onnx", "target/model.fp32.onnx"}
    assert any(member.pareto for member in found.members)
    for target in ("1", "target"):
        opened = Package.open(tmp_path / "family" / target)
        opened.verify_files()
        assert [a.path for a in opened.artifacts] == ["model.fp32.onnx"] and not (opened.folder / "model.int8.onnx").exists()
    assert json.loads((tmp_path / "family" / FAMILY).read_text())["refused"] == found.refused
    assert (tmp_path / "family" / PICTURE).stat().st_size > 1000
    with pytest.raises(OutputError, match="holds a family"):
        export_family(trained, [Target.parse("2")], request, output=tmp_path / "family")
    again = replace(request, force=True, options=replace(SMALL, precisions=("fp32",)))
    more = export_family(trained, [Target.parse("2")], again, output=tmp_path / "family")
    assert {member.target for member in more.members} == {"1", "2", "target"}


def test_torch_runs_once_for_a_family_and_says_what_it_says_of_each_target(
    trained: Checkpoint, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = export(trained, Target.parse("1+2"), gates=OPEN, output=tmp_path / "alone", data=colours)
    request, said, read = Request(gates=OPEN, data=colours), [], []
    monkeypatch.setattr(evidence, "open_split", lambda path, split, *rest: read.append(split) or open_split(path, split, *rest))
    export_family(trained, [Target.parse(t) for t in ("1", "1+2")], request, output=tmp_path / "family", say=said.append)
    assert [line for line in said if line.startswith("running torch")] == ["running torch on 32 images, for all targets"]
    assert read == ["test"], "the images are read once for all targets"
    together = Package.open(tmp_path / "family" / "1+2")
    assert together.metrics["reference"] == alone.metrics["reference"]
    parity = together.metrics["artifacts"]["model.fp32.onnx"]["parity"]
    assert parity["agreement"] == 1.0 and parity["max_abs_diff"] < 1e-4


def test_the_pareto_front_holds_what_nothing_beats() -> None:
    figures = {"slow and good": (5.0, 90.0), "fast": (1.0, 60.0), "beaten": (6.0, 80.0), "as fast, worse": (1.0, 50.0)}
    members = [Member("1", name, "onnx", "fp32", 1, 1, 1, top1, ms) for name, (ms, top1) in figures.items()]
    members.append(Member("1", "not run", "trt-rtx", "fp32", 1, 1, 1, None, None, "no GPU"))
    ranked = mark_pareto(members)
    assert {m.path for m in ranked if m.pareto} == {"slow and good", "fast"}
    assert ranked[-1].path == "not run"
