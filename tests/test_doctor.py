"""`kdzoo doctor` says what is wrong before a training or an export finds out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdzoo.cli import main
from kdzoo.export import doctor
from kdzoo.export.format import FORMATS
from kdzoo.tests.small_machines import ADA, AMPERE, WHOLE, without


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


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[doctor.Finding]]:
    """`on(**changes)`: what is found on the machine that has everything, but for `changes`."""

    def examine(**changes: Any) -> list[doctor.Finding]:
        monkeypatch.setattr(doctor, "look", lambda: replace(WHOLE, **changes))
        return doctor.examine()

    return examine


@pytest.mark.parametrize("other", ["onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn"])
def test_two_onnxruntimes_at_once_are_a_problem_with_its_cure(other: str, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setattr(doctor, "look", lambda: replace(WHOLE, versions={**WHOLE.versions, other: "1.30.0"}, providers=providers))
    code, document = call()
    assert code == 4
    found = finding(document, "onnxruntime")
    assert found["state"] == "problem"
    assert found["hint"] == f"pip uninstall -y onnxruntime {other} && pip install {other}"


@pytest.mark.parametrize(
    ("changes", "subject", "state", "words"),
    [
        ({}, "gpu 0", "ok", "RTX 3090, compute capability 8.6"),
        ({"gpus": (AMPERE, ADA)}, "gpu 1", "ok", "RTX 4090, compute capability 8.9"),
        ({}, "nvidia driver", "ok", "580.65.06, CUDA up to 13.0"),
        ({"gpus": (), "num_gpus": 0, "driver": None, "cuda": None}, "gpu", "absent", "no NVIDIA GPU or driver"),
        ({"gpus": (), "cuda_error": "CUDA error 803"}, "gpu", "problem", "shows none (CUDA error 803)"),
        ({"gpus": (), "visible": "-1"}, "gpu", "absent", "CUDA_VISIBLE_DEVICES='-1' hides the 1"),
        ({"cuda": (12, 4)}, "tensorrt_rtx", "problem", "made for CUDA 13; the driver runs CUDA up to 12.4"),
        ({"cpu": frozenset({"avx2"})}, "cpu int8", "absent", "int8 files run slower"),
        ({"cpu": frozenset({"avx_vnni"})}, "cpu int8", "ok", "avx_vnni: int8 files run fast"),
        ({"cpu": frozenset()}, "cpu fma", "absent", "without AVX2"),
        ({"arch": "aarch64", "cpu": frozenset({"asimddp"})}, "cpu int8", "ok", "asimddp"),
        ({"arch": "aarch64", "cpu": frozenset({"asimddp"})}, "cpu bf16", "absent", "training is float32"),
        ({"cpu": None, "system": "Windows"}, "instructions", "absent", "Windows on x86_64 does not tell"),
        ({}, "onnxruntime", "ok", "onnxruntime 1.31.1: CPU"),
        ({"versions": without("onnxruntime")}, "onnxruntime", "problem", "not installed"),
        ({"import_error": "ImportError: no DLL"}, "onnxruntime", "problem", "cannot be imported: ImportError: no DLL"),
        ({"versions": without("onnxruntime", onnxruntime__gpu="1.31.1")}, "onnxruntime", "problem", "no CUDA provider"),
        ({}, "processor", "ok", "glibc 2.36"),
    ],
)
def test_what_there_is_and_what_it_means(
    changes: dict[str, Any], subject: str, state: str, words: str, on: Callable[..., list[doctor.Finding]]
) -> None:
    found = [f for f in on(**changes) if f.subject == subject and words in f.detail]
    assert [f.state for f in found] == [state], on(**changes)
    assert state != "problem" or found[0].hint, "a problem without its cure"


def test_onnxruntime_gpu_alone_is_fine(on: Callable[..., list[doctor.Finding]]) -> None:
    found = on(versions=without("onnxruntime", onnxruntime__gpu="1.30.0"), providers=("CUDAExecutionProvider",))
    assert [f.state for f in found if f.subject == "onnxruntime"] == ["ok"]


def test_strict_is_about_a_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(["doctor", "--strict"])
    assert ending.value.code == 2 and "kdzoo doctor PACKAGE --strict" in capsys.readouterr().err


def test_a_missing_core_package_is_a_problem(installed: Callable[..., None], call: Any) -> None:
    installed(safetensors=None)
    code, document = call()
    assert code == 4 and finding(document, "safetensors")["hint"] == "pip install safetensors"


def test_a_missing_extra_is_no_problem(installed: Callable[..., None], call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "host", list)  # the disk of this machine may be full
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
