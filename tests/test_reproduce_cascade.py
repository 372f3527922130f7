"""A cascade comes out again as it did: its parts, their driver, and the engines that are built of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdzoo.export.exporter import export
from kdzoo.export.format import Batch, ExportOptions
from kdzoo.export.formats.parts import DRIVER
from kdzoo.export.gates import Gates
from kdzoo.export.package import Package
from kdzoo.export.recorded import Recorded
from kdzoo.export.reproduce import DIFFERS, NOT_COMPARED, NOT_MADE, SAME, choose, compare_files, reproduce
from kdzoo.tests.small_engines import needs_rtx
from kdzoo.tests.small_packages import quick_exports
from kdzoo.tests.small_runs import recipe_for, train
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.target import Target

OPEN = Gates.of(100.0, 0.0)
PART = "model.int8.part{}.sm86.trt-rtx.engine"
ENGINES = "model.int8.sm86.trt-rtx.parts.json"


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with quick_exports():
        yield


@pytest.fixture(scope="module")
def trained(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.manual_seed(0)
    recipe = recipe_for(method="dbfskd", backbone="resnet8", epochs=1, holdout=16)
    return Checkpoint.open(train(recipe, colours, tmp_path_factory.mktemp("trained") / "run").folder)


def cascade(trained: Checkpoint, colours: Path, folder: Path, formats: tuple[str, ...], precision: str) -> Package:
    options = ExportOptions((precision,), Batch(1, 4, 8), calibration_images=16, int8_grid="unsigned", capabilities=("8.6",))
    return export(
        trained, Target.parse("cascade"), formats=formats, options=options, gates=OPEN, output=folder, data=colours,
        cascade_loss=100.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def package(trained: Checkpoint, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return cascade(trained, colours, tmp_path_factory.mktemp("cascade") / "package", ("onnx", "parts"), "fp32")


@pytest.mark.slow
def test_one_file_and_parts_come_out_the_same_together_and_alone(trained: Checkpoint, package: Package, colours: Path) -> None:
    record, source = Recorded.of(package), str(trained.folder)
    again = reproduce(record, source=source, data=colours)
    assert {line.state for line in again.lines} == {SAME} and DRIVER in {line.what for line in again.lines}
    alone = reproduce(record, source=source, data=colours, formats=("onnx",))
    assert {line.state for line in alone.lines} == {SAME}
    assert not [line.what for line in alone.lines if "part" in line.what or line.what == DRIVER]


def test_without_images_no_part_is_made(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = Recorded.of(package)
    chosen, problems, _ = choose(record, (), (), None)
    lines = compare_files(record, None, chosen, problems, {})
    parts = {name for name in record.files if "part" in name or name == DRIVER}
    assert len(parts) == 5 and {line.what for line in lines if line.state == NOT_MADE} == {"model.fp32.onnx", *parts}


def with_engines(package: Package, runtime: str) -> Recorded:
    """The record of a package that has engines of its parts, too, in eight bits."""
    (whole, listed) = package.document["artifacts"]
    signed = {**listed, "path": "model.int8.trt.parts.json", "precision": "int8"}
    made = {"runtime": runtime, "compute_capability": "8.6", "precision": "int8"}
    details = {"reproducible": runtime == "tensorrt_rtx"}
    parts: list[Any] = [
        {**whole, **made, "path": PART.format(n), "format": "trt-rtx", "details": {**details, "sidecar": f"{PART.format(n)}.json"}}
        for n in (1, 2, 3)
    ]
    engines = {**listed, **made, "path": ENGINES, "details": {**listed["details"], "parts": parts}}
    artifacts = [whole, signed, engines]
    names = [ENGINES, signed["path"], *(name for part in parts for name in (part["path"], part["details"]["sidecar"]))]
    files = {**package.document["files"], **{name: {"sha256": "0" * 64, "bytes": 1} for name in names}}
    return Recorded.of(Package(package.folder, {**package.document, "artifacts": artifacts, "files": files}))


@pytest.mark.parametrize(("runtime", "format"), [("tensorrt_rtx", "trt-rtx"), ("tensorrt", "tensorrt")])
def test_engines_in_parts_and_the_signed_parts_come_from_the_format_of_the_engines(
    package: Package, runtime: str, format: str
) -> None:
    record = with_engines(package, runtime)
    assert record.made_formats == {"model.fp32.onnx": "onnx", "model.int8.trt.parts.json": format, ENGINES: format}
    assert record.request((format,), ("int8",), None).options.capabilities == ("8.6",)


@pytest.mark.parametrize(("runtime", "state"), [("tensorrt_rtx", DIFFERS), ("tensorrt", NOT_COMPARED)])
def test_engines_that_are_never_built_twice_alike_are_not_compared(package: Package, runtime: str, state: str) -> None:
    record = with_engines(package, runtime)
    built = {ENGINES, *(name.format(n) for n in (1, 2, 3) for name in (PART, f"{PART}.json"))}
    others = {name: {**facts, "sha256": "1" * 64} if name in built | {DRIVER} else facts for name, facts in record.files.items()}
    lines = {line.what: line for line in compare_files(record, replace(record, files=others), record.made_formats, {}, {})}
    assert {name for name, line in lines.items() if line.state == state} - {DRIVER} == built
    assert lines[DRIVER].state == DIFFERS and lines["model.int8.trt.parts.json"].state == SAME
    gone = {name: facts for name, facts in others.items() if name != ENGINES}
    lines = {line.what: line for line in compare_files(record, replace(record, files=gone), record.made_formats, {}, {})}
    assert (lines[ENGINES].state, lines[ENGINES].why) == (DIFFERS, "was not written")


@pytest.mark.slow
@needs_rtx
def test_the_engines_of_a_cascade_come_out_the_same(trained: Checkpoint, colours: Path, tmp_path: Path) -> None:
    made = cascade(trained, colours, tmp_path / "package", ("trt-rtx",), "int8")
    again = reproduce(Recorded.of(made), source=str(trained.folder), data=colours, formats=("trt-rtx",))
    lines = {line.what: line.state for line in again.lines}
    assert set(lines.values()) == {SAME} and {ENGINES, *(PART.format(n) for n in (1, 2, 3))} <= lines.keys()
