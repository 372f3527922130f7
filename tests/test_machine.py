"""What the machine says is read as it is meant, and nothing that is broken on it can break us."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdzoo.export import machine
from kdzoo.export.machine import Gpu, Machine
from kdzoo.tests.small_machines import WHOLE

X86 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU part\t: 0xd40\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  gcc 11.4.0\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs@x)  Sun Jul 27 07:21:56 UTC 2025\n"


class Driver:
    """libcuda of two GPUs."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
        number._obj.value = 12040
        return 0

    def cuDeviceGetCount(self, number: Any) -> int:  # noqa: N802
        number._obj.value = 2
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = f"GPU {device.value}".encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8 + device.value, 76: 6}[attribute]
        return 0


@pytest.mark.parametrize(("text", "wanted"), [(X86, {"fpu", "avx2", "avx512_vnni"}), (ARM, {"fp", "asimd", "asimddp", "i8mm"})])
def test_the_flags_of_the_first_processor_are_read(
    text: str, wanted: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    assert machine.cpu_flags() == wanted


@pytest.mark.parametrize(("text", "wanted"), [(CLOSED, "550.54.15"), (OPEN, "580.65.06"), ("", None)])
def test_the_version_of_the_driver_is_read(text: str, wanted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "version")
    assert machine.driver_version() == wanted


def test_every_gpu_of_the_driver_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert machine.ask_cuda() == ((Gpu("GPU 0", "8.6"), Gpu("GPU 1", "9.6")), (12, 4), "")


def test_a_driver_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(status=803))
    assert machine.ask_cuda() == ((), (12, 4), "CUDA error 803")


def test_without_what_linux_tells_there_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CPU_INFO", "DRIVER"):
        monkeypatch.setattr(machine, name, tmp_path / "absent")
    assert (machine.cpu_flags(), machine.driver_version()) == (None, None)
    assert replace(WHOLE, cpu=None).fast_int8 is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "ImportError: libcudart.so.12"),
        ("import os; os.abort()", "status -6"),
        ("x = 1", "has no attribute '__version__'"),
    ],
)
def test_an_onnxruntime_that_cannot_be_imported_is_told_and_harms_nobody(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = machine.with_providers(replace(WHOLE, imported=None, providers=None))
    assert words in found.import_error and found.providers is None


@pytest.mark.parametrize("place", ["", "here"])
def test_a_module_in_the_folder_one_stands_in_is_not_run(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text(f"open({str(tmp_path / 'RUN')!r}, 'w')\n")
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'RUN')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path) if place else "")  # as `python -m` and `python -c` have it
    found = machine.with_providers(machine.this_machine())
    assert not (tmp_path / "RUN").exists() and found.providers and not found.import_error


def test_a_process_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "executable", "/nowhere/python")
    found = machine.with_providers(replace(WHOLE, imported=None, providers=None))
    assert found.import_error == "no process could be started for it: No such file or directory"


def test_the_providers_are_those_of_onnxruntime() -> None:
    import onnxruntime

    found = machine.with_providers(machine.this_machine())
    assert found.providers == tuple(onnxruntime.get_available_providers()) and found.imported == onnxruntime.__version__


@pytest.mark.parametrize(("versions", "wanted"), [({"tensorrt_cu12": "10.9"}, "10.9"), ({"tensorrt_rtx": "1.7"}, None)])
def test_tensorrt_is_found_for_whichever_cuda_it_is_made(versions: dict[str, str], wanted: str | None) -> None:
    assert Machine("Linux", "x86_64", versions=versions).version_of("tensorrt") == wanted
