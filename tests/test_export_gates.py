"""What an export refuses, and that nothing is left behind then."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdzoo.errors import EnvironmentProblem, GateFailed, KdzooError, OutputError, UnknownName, UsageError
from kdzoo.export.exporter import export
from kdzoo.export.format import ExportOptions
from kdzoo.export.formats import onnx as onnx_format
from kdzoo.export.gates import Gates
from kdzoo.export.onnx_file import describe_onnx
from kdzoo.export.package import Package
from kdzoo.export.request import check_output
from kdzoo.tests.small_packages import LAYOUT, files_of
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.target import Target

pytestmark = pytest.mark.usefixtures("quick")
GOOD = {"n": 100, "agreement": 1.0, "max_abs_diff": 1e-5, "nan_count": 0, "largest_logit": 20.0}


@pytest.fixture
def canned(package_of: Callable[[str], Package], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`canned(target)`: from now on the ONNX of every student is the one of `target`."""

    def use(target: str) -> None:
        source = package_of(target).folder / "model.fp32.onnx"
        monkeypatch.setattr(onnx_format, "write_onnx", lambda graph, path, *_, **__: describe_onnx(shutil.copyfile(source, path)))

    return use


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
    toy_checkpoint: Checkpoint, toys_npz: Path, canned: Callable[[str], None], tmp_path: Path
) -> None:
    canned("2")
    with pytest.raises(GateFailed, match="agrees with torch"):
        export(toy_checkpoint, Target.parse("1"), output=tmp_path / "p")
    assert list(tmp_path.iterdir()) == []
    canned("1")
    with pytest.raises(GateFailed, match="the gate is -1 points"):
        export(
            toy_checkpoint, Target.parse("1"), output=tmp_path / "p", data=toys_npz, gates=Gates.of(max_drop=-1, min_agreement=None)
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("full", ["weights", "golden"])
def test_a_full_disk_leaves_nothing_behind(
    full: str, toy_checkpoint: Checkpoint, canned: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canned("1")

    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if full == "weights":
        monkeypatch.setattr(Path, "write_bytes", no_space)
    else:
        monkeypatch.setattr(np, "savez", no_space)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        export(toy_checkpoint, Target.parse("1"), output=tmp_path / "p", verify=False)
    assert list(tmp_path.iterdir()) == []


def test_without_verification_manifest_and_card_say_so_and_force_replaces_the_whole_folder(
    toy_checkpoint: Checkpoint, canned: Callable[[str], None], tmp_path: Path
) -> None:
    canned("1")
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(OutputError, match="not empty"):
        export(toy_checkpoint, Target.parse("1"), output=folder, verify=False)
    package = export(toy_checkpoint, Target.parse("1"), output=folder, verify=False, force=True)
    assert files_of(folder) == LAYOUT
    assert package.document["verified"] is False
    assert "not verified" in (folder / "README.md").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_force_does_not_replace_what_the_user_stands_in_nor_the_checkpoint(
    toy_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (Path(), Path(".."), tmp_path, toy_checkpoint.folder, toy_checkpoint.folder.parent, tmp_path / "file"):
        with pytest.raises(OutputError):
            check_output(folder, toy_checkpoint.folder, force=True)
    check_output(tmp_path / "new", toy_checkpoint.folder, force=False)


@pytest.mark.parametrize(
    ("target", "options", "error"),
    [
        ("3", ExportOptions(), UnknownName),
        ("all-targets", ExportOptions(), UsageError),
        ("1", ExportOptions(precisions=("int4",)), UnknownName),
        ("1", ExportOptions(input="bgr"), UnknownName),
        ("1", ExportOptions(opset=3), UsageError),
    ],
)
def test_what_cannot_be_exported_is_told_before_anything_is_written(
    target: str, options: ExportOptions, error: type[KdzooError], toy_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(error):
        export(toy_checkpoint, Target.parse(target), options=options, output=tmp_path / "p")
    assert list(tmp_path.iterdir()) == []
