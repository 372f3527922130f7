"""`kdzoo doctor` says what is wrong before a training or an export finds out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdzoo.cli import main
from kdzoo.export import doctor
from kdzoo.export.format import FORMATS


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`installed(name=version or None)` changes what is installed."""
    real = doctor.library_versions

    def change(**versions: str | None) -> None:
        changes = {name.replace("__", "-"): version for name, version in versions.items()}

        def found(*names: str) -> dict[str, str]:
            everything: dict[str, Any] = {**real(*names), **{n: v for n, v in changes.items() if n in names}}
            return {name: version for name, version in everything.items() if version is not None}

        monkeypatch.setattr(doctor, "library_versions", found)

    return change


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[int, dict[str, Any]]]:
    def run() -> tuple[int, dict[str, Any]]:
        code = 0
        try:
            main(["doctor", "--json"])
        except SystemExit as ending:
            assert isinstance(ending.code, int)
            code = ending.code
        return code, json.loads(capsys.readouterr().out)

    return run


def finding(document: dict[str, Any], subject: str) -> dict[str, Any]:
    (found,) = [f for f in document["findings"] if f["subject"] == subject and f["state"] != "ok"]
    return found


def test_both_onnxruntimes_at_once_are_a_problem_with_its_cure(installed: Callable[..., None], call: Any) -> None:
    installed(onnxruntime="1.30.0", onnxruntime__gpu="1.30.0")
    code, document = call()
    assert code == 4
    found = finding(document, "onnxruntime")
    assert found["state"] == "problem" and "pip uninstall -y onnxruntime onnxruntime-gpu" in found["hint"]


def test_onnxruntime_gpu_alone_is_fine(installed: Callable[..., None], call: Any) -> None:
    installed(onnxruntime=None, onnxruntime__gpu="1.30.0")
    _, document = call()
    assert [f["state"] for f in document["findings"] if f["subject"] == "onnxruntime"] == ["ok"]


def test_a_missing_core_package_is_a_problem(installed: Callable[..., None], call: Any) -> None:
    installed(safetensors=None)
    code, document = call()
    assert code == 4 and finding(document, "safetensors")["hint"] == "pip install safetensors"


def test_a_missing_extra_is_no_problem(installed: Callable[..., None], call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "machine", list)
    installed(matplotlib=None)
    code, document = call()
    assert code == 0 and finding(document, "matplotlib")["hint"] == "pip install matplotlib"


def test_every_format_is_judged(call: Any) -> None:
    _, document = call()
    assert {f["subject"] for f in document["findings"]} >= {f"--format {name}" for name in FORMATS.names()}


@pytest.mark.parametrize("there", [True, False])
def test_data_is_looked_for_where_export_looks(there: bool, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDZOO_DATA", raising=False)
    if there:
        (tmp_path / "data" / "cifar-100-python").mkdir(parents=True)
    _, document = call()
    (found,) = [f for f in document["findings"] if f["subject"] == "cifar100"]
    assert (found["state"], "--data" in found["hint"]) == (("ok", False) if there else ("absent", True))


def test_the_table_is_narrow_enough_to_read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("disk", "problem", "0.1 GB free", "free some space")])
    with pytest.raises(SystemExit) as ending:
        main(["doctor"])
    out, err = capsys.readouterr()
    assert (ending.value.code, err) == (4, "")
    assert [line.split() for line in out.splitlines()[2:]] == [
        ["disk", "problem", "0.1", "GB", "free"], ["->", "free", "some", "space"],
    ]  # fmt: skip
