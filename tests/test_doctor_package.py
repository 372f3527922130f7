"""`kdzoo doctor PACKAGE`: what of a package runs here, and how the command ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdzoo.cli import main
from kdzoo.export import doctor
from kdzoo.export.package import Package
from kdzoo.export.publish import push
from kdzoo.export.pull import pull
from kdzoo.tests.small_machines import ADA, WHOLE, engine, onnx_file, package_with
from kdzoo.zoo.files import write_json
from kdzoo.zoo.reference import Reference

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """`ask(words..., **changes)`: exit code, stdout and stderr of `kdzoo doctor` on a machine that is WHOLE but for `changes`."""

    def run(*words: object, **changes: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(doctor, "look", lambda: replace(WHOLE, **changes))
        code = 0
        try:
            main(["doctor", *map(str, words)])
        except SystemExit as ending:
            code = int(ending.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("made", "words", "changes", "code"),
    [
        ((onnx_file(), engine()), (), {}, 0),
        ((onnx_file(), engine()), ("--strict",), {}, 0),
        ((onnx_file(), engine()), (), {"gpus": (ADA,)}, 0),
        ((onnx_file(), engine()), ("--strict",), {"gpus": (ADA,)}, 4),
        ((engine(),), (), {"gpus": (ADA,)}, 4),
        ((onnx_file(),), ("--strict",), {"cpu": frozenset()}, 0),
    ],
)
def test_it_ends_well_where_a_file_runs_and_strictly_where_all_do(
    made: Any, words: tuple[str, ...], changes: dict[str, Any], code: int, ask: Ask, tmp_path: Path
) -> None:
    package_with(tmp_path / "p", *made)
    assert ask(tmp_path / "p", *words, **changes)[0] == code


def test_a_damaged_file_ends_with_6_and_the_others_are_judged_all_the_same(ask: Ask, tmp_path: Path) -> None:
    package = package_with(tmp_path / "p", onnx_file(), engine())
    path = package.folder / "model.fp16.trt-rtx.engine"
    path.write_bytes(path.read_bytes()[:100])
    code, out, _ = ask(package.folder, "--json")
    document = json.loads(out)
    assert (code, document["runs"], document["damaged"]) == (6, 1, 1)
    assert [f["state"] for f in document["files"]] == ["runs", "damaged"]
    assert "has 100 bytes, its manifest says 256" in document["files"][1]["obstacles"][0]["what"]


def test_the_table_says_what_is_wrong_what_to_do_and_what_to_use_instead(ask: Ask, tmp_path: Path) -> None:
    package_with(tmp_path / "p", onnx_file(), onnx_file("fp16"), engine())
    code, out, err = ask(tmp_path / "p", gpus=(ADA,))
    lines = [line.strip() for line in out.splitlines()[4:]]
    assert lines == [
        "model.fp16.trt-rtx.engine  does not run  tensorrt_rtx 1.7.1.116",
        "model.fp16.trt-rtx.engine is for compute capability 8.6; this GPU is 8.9 (RTX 4090)",
        "-> kdzoo export toy-entry -b 3 -p fp16 -f trt-rtx -c 8.9 -o NEW",
        "-> or use model.fp16.onnx beside it",
    ]
    assert (code, err) == (0, "2 of 3 files can run here\n")


def test_json_describes_the_machine_and_every_file(ask: Ask, tmp_path: Path) -> None:
    package_with(tmp_path / "p", onnx_file(), engine())
    code, out, _ = ask(tmp_path / "p", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["machine"]["gpus"] == ["RTX 3090, compute capability 8.6"] and document["machine"]["cuda"] == "13.0"
    assert document["files"][0] == {
        "package": str(tmp_path / "p"), "path": "model.fp32.onnx", "format": "onnx", "precision": "fp32", "state": "runs",
        "runtime": "onnxruntime 1.31.1", "obstacles": [], "instead": "",
    }  # fmt: skip


def test_a_folder_of_packages_is_judged_as_a_whole(ask: Ask, tmp_path: Path) -> None:
    for name in ("1", "2"):
        package_with(tmp_path / "family" / name, onnx_file())
    code, out, err = ask(tmp_path / "family")
    assert code == 0 and "2 of 2 files" in err
    assert f"{tmp_path}/family/1/model.fp32.onnx" in out and f"{tmp_path}/family/2/model.fp32.onnx" in out


def test_a_package_of_a_newer_kdzoo_is_an_environment_problem(ask: Ask, tmp_path: Path) -> None:
    package = package_with(tmp_path / "p", onnx_file())
    write_json(package.folder / "manifest.json", {**package.document, "schema_version": 99})
    code, _, err = ask(package.folder)
    assert code == 4 and "schema version 99" in err and "pip install --upgrade kdzoo" in err


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ({}, 2, "holds no package"),
        ({"kind": "checkpoint", "schema_version": 1}, 6, "checkpoint"),
        ({"kind": "package"}, 6, "schema"),
    ],
)
def test_what_is_no_package_is_refused(content: dict[str, Any], code: int, words: str, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    if content:
        write_json(tmp_path / "x" / "manifest.json", content)
    found, _, err = ask(tmp_path / "x")
    assert found == code and words in err


def test_a_package_that_export_wrote_runs_where_it_was_written(package_of: Callable[[str], Package], ask: Ask) -> None:
    code, out, _ = ask(package_of("1").folder, "--strict", "--json")
    assert code == 0 and [f["state"] for f in json.loads(out)["files"]] == ["runs"]


def test_what_is_published_is_judged_and_what_was_not_pulled_is_told_with_the_command(
    package_of: Callable[[str], Package], ask: Ask, tmp_path: Path
) -> None:
    place = f"file://{tmp_path}/org/name"
    push(package_of("1").folder, place)
    code, out, _ = ask(place, "--json")
    assert code == 0 and [f["state"] for f in json.loads(out)["files"]] == ["runs"]
    pull(Reference.parse(place), formats=("safetensors",), output=tmp_path / "here")
    code, out, _ = ask(tmp_path / "here")
    assert code == 4 and "not here" in out and "-b 1 -f onnx -p fp32" in out


@pytest.mark.parametrize(("field", "value"), [("details", []), ("batch", [1]), ("precision", 16), ("input", None)])
def test_a_manifest_that_cannot_be_ends_with_6_and_its_field(field: str, value: object, ask: Ask, tmp_path: Path) -> None:
    package = package_with(tmp_path / "p", onnx_file())
    package.document["artifacts"][0][field] = value
    write_json(package.folder / "manifest.json", package.document)
    code, _, err = ask(package.folder)
    assert code == 6 and f"artifacts[0].{field} cannot be" in err


def test_nothing_of_a_package_is_loaded(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    package_with(tmp_path / "p", onnx_file(), engine())
    for name in ("onnxruntime", "tensorrt", "tensorrt_rtx", "openvino", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    assert ask(tmp_path / "p")[0] == 0
