"""What is refused, of one precision, of a family, of a request: it leaves nothing behind, and the rest stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdzoo.cli import main
from kdzoo.errors import BadValue, GateFailed, KdzooError, OutputError, UnknownName
from kdzoo.export import exporter, family, tensorrt_build
from kdzoo.export.candidates import packages_in
from kdzoo.export.evidence import gather_evidence
from kdzoo.export.family import BEFORE, FAMILY, Family, Member, export_family
from kdzoo.export.format import ExportOptions
from kdzoo.export.formats import tensorrt
from kdzoo.export.package import Package
from kdzoo.export.publish import gather
from kdzoo.export.request import Request
from kdzoo.tests.small_packages import names
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.files import write_json
from kdzoo.zoo.target import Target


class Maker:
    """Writes one file, or half of one."""

    def __init__(self, name: str, fails: bool = False) -> None:
        self.name, self.fails = name, fails
        self.from_onnx, self.engines = name != "onnx", name == "engine"

    def emit(self, job: Any, precision: str) -> list[str]:
        (job.folder / f"{self.name}.{precision}").touch()
        if self.fails and precision == "fp16":
            raise GateFailed(f"{self.name} cannot hold it")
        return [f"{self.name}.{precision}"]


@pytest.mark.parametrize(
    ("fails", "thresholds", "gone"),
    [
        ("onnx", None, {"onnx", "openvino", "parts", "engine"}),
        ("openvino", None, {"openvino"}),
        ("parts", (0.5,), {"parts", "engine"}),
        ("engine", (0.5,), {"engine"}),
    ],
)
def test_a_format_that_fails_takes_along_what_is_made_from_it_and_nothing_else(
    fails: str, thresholds: tuple[float, ...] | None, gone: set[str], tmp_path: Path
) -> None:
    makers: list[Any] = [Maker(name, name == fails) for name in ("onnx", "openvino", "parts", "engine")]
    (tmp_path / "labels.txt").touch()
    job: Any = SimpleNamespace(folder=tmp_path, options=ExportOptions(precisions=("fp16", "fp32")), thresholds=thresholds)
    refused: dict[str, str] = {}
    made = exporter.emit(job, makers, refused, lambda line: None)
    assert set(refused) == {f"{name} fp16" for name in gone} and refused[f"{fails} fp16"] == f"{fails} cannot hold it"
    assert {"labels.txt", *map(str, made)} == {*names(tmp_path)}
    assert len(made) == 8 - len(gone)
    with pytest.raises(GateFailed, match="cannot hold it"):
        exporter.emit(job, makers, None, lambda line: None)


@pytest.fixture
def shelf(package_of: Callable[[str], Package], tmp_path: Path) -> Path:
    """A package, and what an export and a replacement that were killed have left."""
    for name in ("1", ".1.part", ".1.old"):
        shutil.copytree(package_of("1").folder, tmp_path / "family" / name)
    return tmp_path / "family"


def test_a_package_of_before_is_no_member_where_its_target_was_refused_now(
    shelf: Path, toy_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, refused: dict[str, str], **__: Any) -> None:
        refused["model.fp32.onnx"] = "too far"
        raise GateFailed("no file of target 1 passed its gates: too far")

    other = Package.open(Path(shutil.copytree(shelf / "1", shelf / "2")))
    write_json(other.folder / "manifest.json", {**other.document, "target": "2"})
    monkeypatch.setattr(family, "export", fails)
    monkeypatch.setattr(family, "draw_pareto", lambda *_: True)
    found = export_family(toy_checkpoint, [Target.parse("1")], Request(force=True, verify=False), output=shelf)
    assert [member.path for member in found.members] == ["2/model.fp32.onnx"]
    assert found.refused == {"1/model.fp32.onnx": "too far", "1": "no file of target 1 passed its gates"}
    assert not Package.is_package(shelf / "1") and [p.folder.name for p in packages_in(shelf)] == ["2"], "it looks like a new one"
    assert Package.open(shelf / BEFORE / "1").verify_files()
    with pytest.raises(OutputError, match="is a package"):
        export_family(toy_checkpoint, [Target.parse("1")], Request(force=True), output=shelf / "2")
    shutil.copytree(shelf / BEFORE / "1", shelf / "1")
    monkeypatch.setattr(family, "PICTURE", "no picture")
    with pytest.raises(GateFailed, match="no file passed its gates"):
        export_family(toy_checkpoint, [Target.parse(t) for t in ("1", "2")], Request(force=True, verify=False), output=shelf)
    assert sorted(path.name for path in (shelf / BEFORE).iterdir()) == ["1", "2", FAMILY]
    assert not (shelf / FAMILY).exists() and not list(packages_in(shelf))


def test_what_a_killed_export_left_is_not_published(shelf: Path) -> None:
    found = gather(shelf, lambda line: None)
    assert {name.split("/")[0] for name in found.files} == {"1", "manifest.json", "README.md"}


def test_with_a_refused_file_the_command_gives_one_document_and_code_3(
    toy_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    member = Member("1", "1/model.fp32.onnx", "onnx", "fp32", 1, 1, 1, 50.0, 1.0)
    refused = {"1/model.int8.onnx": "it is crooked"}
    made = Family(tmp_path, (member,), refused, {"host": "here", "refused": refused})
    monkeypatch.setattr(family, "export_family", lambda *_, **__: made)
    with pytest.raises(SystemExit) as ending:
        main(["family", str(toy_checkpoint.folder), "--json"])
    out, err = capsys.readouterr()
    assert ending.value.code == 3 and json.loads(out)["refused"] == refused
    assert "kdzoo: 1 files are there; refused: it is crooked. Next: --max-drop" in err


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"options": ExportOptions(int8_grid="sigend")}, UnknownName, "unknown int8 grid 'sigend'"),
        ({"cascade_loss": float("nan")}, BadValue, "'cascade_loss' cannot be nan"),
        ({"cascade_loss": -1.0}, BadValue, r"'cascade_loss' cannot be -1\.0"),
    ],
)
def test_settings_are_checked_without_the_command_line_too(
    changes: dict[str, Any], error: type[KdzooError], says: str, toy_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        replace(Request(), **changes).check(toy_checkpoint, {Target.parse("1"): tmp_path / "p"})


def test_parity_is_only_promised_where_it_is_measured(
    toy_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDZOO_DATA", raising=False)
    for verify, lines in ((True, 1), (False, 0)):
        said: list[str] = []
        gathered = gather_evidence(toy_checkpoint, Request(verify=verify), [Target.parse("1")], said.append)
        assert gathered.labels is None and gathered.training is None and len(gathered.images)
        assert len([line for line in said if "Parity is measured" in line]) == len(said) == lines


@pytest.mark.parametrize(
    ("gpu", "asked", "resolved"), [("8.6", "86", "tensorrt"), ("9.0", "sm90", "tensorrt"), ("9.0", "8.6", "trt-rtx")]
)
def test_a_gpu_is_the_same_however_it_is_written_and_tensorrt_builds_for_any(
    gpu: str, asked: str, resolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tensorrt, tensorrt_build):
        monkeypatch.setattr(module, "gpu_compute_capability", lambda: gpu)
        monkeypatch.setattr(module, "installed_version", lambda name: "11.0.0")
    options = ExportOptions(capabilities=(asked,))
    cls, _ = tensorrt.AnyTensorRT.resolve(options)
    assert cls.name == resolved
    if resolved == "tensorrt":
        cls().check(options)
