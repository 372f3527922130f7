"""Engines are built ahead of time, byte for byte the same, and are refused before they can do harm. No torch, no GPU."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from kdzoo.errors import EnvironmentProblem, GateFailed, IntegrityError, KdzooError, OutputError, UnknownName, UsageError
from kdzoo.export import engine_sidecar
from kdzoo.export import tensorrt_build as build
from kdzoo.export.machine import Gpu
from kdzoo.tests.small_engines import needs_rtx, request, write_classifier
from kdzoo.tests.small_machines import WHOLE


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[engine_sidecar.EngineInfo, Path, Path]:
    """An engine, its sidecar, and what is known of it."""
    folder = tmp_path_factory.mktemp("built")
    info = build.build_engine(request(folder))
    engine_sidecar.write_sidecar(info, folder / "model.engine.json")
    return info, folder / "model.engine.json", folder / "model.engine"


@pytest.mark.parametrize("text", ["8.6", "86", "sm86", "SM_86", " sm8.6 "])
def test_a_compute_capability_may_be_written_in_three_ways(text: str) -> None:
    assert build.parse_capability(text) == "8.6"


@pytest.mark.parametrize("text", ["9.0", "sm90", "", "6", "ampere", "8.61"])
def test_an_unknown_compute_capability_names_the_known_ones(text: str) -> None:
    with pytest.raises(UnknownName) as caught:
        build.parse_capability(text)
    assert set(caught.value.known) == set(engine_sidecar.RTX_CAPABILITIES)


@needs_rtx
def test_a_rebuild_in_another_folder_is_byte_identical(
    tmp_path: Path, built: tuple[engine_sidecar.EngineInfo, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    info, _, engine = built
    if not info.reproducible:
        pytest.skip("this system does not let a process fix its addresses (personality(2) is forbidden)")
    monkeypatch.setenv("KDZOO_TEST_" + "X" * 3000, "a larger environment")
    folder = tmp_path / "a-folder-with-a-much-longer-name"
    folder.mkdir()
    again = build.build_engine(request(folder))
    assert (folder / "model.engine").read_bytes() == engine.read_bytes(), "the heap of the child depends on its surroundings"
    assert replace(again, build_seconds=None) == replace(info, build_seconds=None)


@needs_rtx
def test_the_header_tells_version_length_and_capability(built: tuple[engine_sidecar.EngineInfo, Path, Path]) -> None:
    info, _, engine = built
    assert info.header["version"] == info.runtime_version == engine_sidecar.installed_version("tensorrt_rtx")
    assert info.header["bytes"] == info.bytes == engine.stat().st_size
    assert info.header["capabilities"] == ["8.6"]
    assert info.input == engine_sidecar.TensorSpec("image", "uint8", ("N", 8, 8, 3))
    assert info.output == engine_sidecar.TensorSpec("logits", "float32", ("N", 10))


@needs_rtx
def test_a_sidecar_comes_back_as_it_was_and_holds_no_time(
    tmp_path: Path, built: tuple[engine_sidecar.EngineInfo, Path, Path]
) -> None:
    info, sidecar, _ = built
    assert engine_sidecar.read_sidecar(sidecar) == replace(info, build_seconds=None)
    engine_sidecar.write_sidecar(replace(info, build_seconds=123.0), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == sidecar.read_bytes()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "1"}', '{"schema": 1, "batch": [1, 8, 64]}'])
def test_a_broken_sidecar_is_an_integrity_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "side.json").write_text(content)
    with pytest.raises(IntegrityError):
        engine_sidecar.read_sidecar(tmp_path / "side.json")


@needs_rtx
@pytest.mark.parametrize("offset", [0, 24, 5000, -1])
def test_preflight_sees_a_flipped_byte(tmp_path: Path, built: tuple[engine_sidecar.EngineInfo, Path, Path], offset: int) -> None:
    _, sidecar, engine = built
    content = bytearray(engine.read_bytes())
    content[offset] ^= 1
    (tmp_path / "model.engine").write_bytes(content)
    with pytest.raises(IntegrityError):
        engine_sidecar.preflight(sidecar, tmp_path / "model.engine")


@needs_rtx
def test_preflight_sees_a_truncated_and_a_missing_engine(
    tmp_path: Path, built: tuple[engine_sidecar.EngineInfo, Path, Path]
) -> None:
    _, sidecar, engine = built
    (tmp_path / "model.engine").write_bytes(engine.read_bytes()[:-1])
    for path in (tmp_path / "model.engine", tmp_path / "absent.engine"):
        with pytest.raises(IntegrityError):
            engine_sidecar.preflight(sidecar, path)


@needs_rtx
def test_preflight_refuses_a_foreign_runtime_version(built: tuple[engine_sidecar.EngineInfo, Path, Path]) -> None:
    info, sidecar, engine = built
    with pytest.raises(EnvironmentProblem, match=r"9\.9\.9") as caught:
        engine_sidecar.preflight(sidecar, engine, replace(WHOLE, versions={"tensorrt_rtx": "9.9.9"}))
    assert f"tensorrt-rtx=={info.runtime_version}" in caught.value.hint


@needs_rtx
@pytest.mark.parametrize(("gpu", "words"), [("8.6", None), ("12.0", "this GPU is 12.0"), (None, "needs an NVIDIA GPU")])
def test_preflight_compares_the_gpu(
    built: tuple[engine_sidecar.EngineInfo, Path, Path], gpu: str | None, words: str | None
) -> None:
    info, sidecar, engine = built
    versions = {"tensorrt_rtx": info.runtime_version}
    machine = replace(WHOLE, versions=versions, gpus=(Gpu("some GPU", gpu),) if gpu else ())
    if words is None:
        engine_sidecar.preflight(sidecar, engine, machine)
        return
    with pytest.raises(EnvironmentProblem, match=words):
        engine_sidecar.preflight(sidecar, engine, machine)


@needs_rtx
def test_a_fixed_batch_needs_no_profile_and_must_be_the_batch_asked_for(tmp_path: Path) -> None:
    write_classifier(tmp_path / "model.onnx", batch=4)
    info = build.build_engine(request(tmp_path, batch=(4, 4, 4), capability="sm120"))
    assert info.input.shape == (4, 8, 8, 3)
    assert info.compute_capability == "12.0"
    with pytest.raises(UsageError, match="fixed batch of 4"):
        build.build_engine(request(tmp_path, batch=(1, 8, 64)))


@needs_rtx
def test_a_portable_engine_covers_every_capability_from_8_0_on(tmp_path: Path) -> None:
    info = build.build_engine(request(tmp_path, capability=None))
    assert info.header["capabilities"] == [name for name in engine_sidecar.RTX_CAPABILITIES if name != "7.5"]


@needs_rtx
def test_a_rejected_graph_is_reported_in_the_parsers_own_words(tmp_path: Path) -> None:
    bad = write_classifier(tmp_path / "bad.onnx", cast_first=False)
    with pytest.raises(GateFailed, match=r"rejects the graph.*UInt8") as caught:
        build.parse_check(bad)
    assert "cudaError" not in caught.value.what, "building needs no CUDA driver: do not blame it"
    build.parse_check(write_classifier(tmp_path / "good.onnx"))


@needs_rtx
def test_turing_refuses_a_float32_gemm_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="FP32 GEMM") as caught:
        build.build_engine(request(tmp_path, capability="7.5"))
    assert "fp16" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@needs_rtx
def test_a_file_that_is_no_onnx_and_a_missing_file_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"noise" * 100)
    with pytest.raises(GateFailed):
        build.parse_check(tmp_path / "noise.onnx")
    with pytest.raises(KdzooError, match="absent"):
        build.parse_check(tmp_path / "absent.onnx")


@pytest.mark.parametrize("runtime", ["tensorrt_rtx", "tensorrt"])
def test_a_missing_package_is_answered_with_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    monkeypatch.setattr(build, "installed_version", lambda _: None)
    with pytest.raises(EnvironmentProblem, match=runtime) as caught:
        build.build_engine(request(tmp_path, runtime=runtime))
    assert caught.value.hint == f"pip install {runtime.replace('_', '-')}"


def test_tensorrt_without_a_gpu_points_to_rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "installed_version", lambda _: "11.0.0")
    monkeypatch.setattr(build, "gpu_compute_capability", lambda: None)
    with pytest.raises(EnvironmentProblem, match="none was found") as caught:
        build.build_engine(request(tmp_path, runtime="tensorrt"))
    assert "trt-rtx" in caught.value.hint


@pytest.mark.parametrize("batch", [(0, 1, 2), (2, 1, 4), (1, 8, 4)])
def test_a_batch_range_out_of_order_is_a_usage_error(tmp_path: Path, batch: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="MIN"):
        build.build_engine(request(tmp_path, batch=batch))


def fail_with(code: int) -> Callable[[int], None]:
    def fsync(_: int) -> None:
        raise OSError(code, os.strerror(code))

    return fsync


@needs_rtx
@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, EnvironmentProblem), (errno.EIO, OutputError)])
def test_a_failed_write_leaves_the_old_engine_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[KdzooError]
) -> None:
    wanted = request(tmp_path)
    wanted.engine.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail_with(code))
    with pytest.raises(kind, match=r"model\.engine"):
        build.build_engine(wanted)
    assert wanted.engine.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.engine", "model.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="uses a shell script as interpreter")
def test_a_builder_that_is_killed_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho 'the last words' >&2\nkill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(build, "installed_version", lambda _: "1.0")
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(EnvironmentProblem, match=r"status -9.*the last words"):
        build.build_engine(request(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "python"]


@pytest.mark.skipif(sys.platform == "win32", reason="uses a shell script as interpreter")
def test_an_engine_that_was_cut_short_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = tmp_path / "python"
    dying.write_text('#!/bin/sh\necho \'{"version": "1.0"}\'\necho half an engine\nkill -9 $$\n')
    dying.chmod(0o755)
    monkeypatch.setattr(build, "installed_version", lambda _: "1.0")
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(EnvironmentProblem, match="status -9"):
        build.build_engine(request(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "python"]


@needs_rtx
def test_a_small_engine_is_built_in_seconds(built: tuple[engine_sidecar.EngineInfo, Path, Path]) -> None:
    info, _, _ = built
    assert info.build_seconds is not None
    assert info.build_seconds < 20, "two seconds is the goal on an idle machine; twenty means something heavy is imported"


def test_importing_the_builder_imports_neither_torch_nor_tensorrt() -> None:
    code = "import sys, json, kdzoo.export.tensorrt_build; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert not {"torch", "onnx", "numpy", "tensorrt", "tensorrt_rtx"} & set(json.loads(answer.stdout))


@needs_rtx
def test_tensorrts_own_talk_reaches_neither_stdout_nor_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(GateFailed):
        build.parse_check(write_classifier(tmp_path / "bad.onnx", cast_first=False))
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="personality(2) is a Linux system call")
def test_a_build_leaves_the_address_randomisation_of_the_caller_as_it_was(tmp_path: Path) -> None:
    def personality() -> int:
        return int(ctypes.CDLL(None).personality(0xFFFFFFFF))

    before = personality()
    with suppress(EnvironmentProblem, GateFailed):
        build.parse_check(write_classifier(tmp_path / "model.onnx"))
    assert personality() == before
