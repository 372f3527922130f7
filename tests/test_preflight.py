"""Every way in which a file and a machine do not fit is seen before anything is loaded, and told with what mends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kdzoo.errors import EnvironmentProblem, IntegrityError
from kdzoo.export.engine_sidecar import preflight
from kdzoo.export.machine import Gpu, Machine
from kdzoo.export.package import Package
from kdzoo.export.preflight import DAMAGED, NOT_HERE, RUNS, RUNS_NOT, Verdict, judge
from kdzoo.tests.small_machines import (
    ADA,
    AMPERE,
    HOPPER,
    WHOLE,
    Made,
    engine,
    onnx_file,
    openvino_file,
    package_with,
    reseal,
    without,
)
from kdzoo.tests.small_packages import bundled
from kdzoo.zoo.catalog import DEFAULT_ENTRY
from kdzoo.zoo.files import write_json

Harm = Callable[[Package], Package | None]


@dataclass(frozen=True)
class Row:
    """`case` of a file on the machine that has everything, but for `machine`; `harm` is done to the package before.

    `what` and `hint` are words that the user must be told, `instead` the file that he is sent to.
    """

    case: str
    made: Made
    state: str
    what: str
    hint: str
    machine: dict[str, Any]
    harm: Harm | None = None
    instead: str = "model.fp32.onnx"


def row(
    case: str, made: Made, state: str, what: str, hint: str, *, harm: Harm | None = None, instead: str | None = None, **m: Any
) -> Row:
    beside = "model.fp32.onnx" if state in (RUNS_NOT, DAMAGED) else ""
    return Row(case, made, state, what, hint, m, harm, beside if instead is None else instead)


def change(content: Callable[[bytes], bytes | None], suffix: str = "", *, sealed: bool = False) -> Harm:
    """Rewrite, or remove, the last file of the package, or the one beside it that ends with `suffix`."""

    def harm(package: Package) -> Package | None:
        artifact = package.described[-1]
        name = next((name for name in artifact.companions if name.endswith(suffix)), "") if suffix else artifact.path
        path = package.folder / name
        new = content(path.read_bytes())
        path.unlink() if new is None else path.write_bytes(new)
        return reseal(package) if sealed else None

    return harm


def newer_sidecar(package: Package) -> Package:
    name = package.described[-1].companions[0]
    (package.folder / name).write_text('{"schema": 99, "from": "the future"}')
    return reseal(package)


def not_pulled(package: Package) -> None:
    (package.folder / "model.fp16.trt-rtx.engine").unlink()
    facts = {"schema_version": 1, "repository": "org/name", "commit": "abc123", "files": ["model.fp32.onnx"]}
    write_json(package.folder / "pulled.json", facts)


def of_new_format(package: Package) -> Package:
    document = dict(package.document)
    document["artifacts"][-1]["format"] = "hologram"
    write_json(package.folder / "manifest.json", document)
    return Package.open(package.folder)


RTX, TRT = engine(), engine("tensorrt")
AGAIN, UINT8 = "kdzoo export toy-entry -b 3 -p fp16 -f", {"grid": "unsigned"}
NO_GPU: dict[str, Any] = {"gpus": (), "num_gpus": 0}
ENGINES = [
    # the package
    row("runtime-missing", RTX, RUNS_NOT, "tensorrt_rtx is not installed", "pip install 'tensorrt-rtx==1.7.1.116'",
        versions=without("tensorrt", "tensorrt_cu13", "tensorrt_rtx", "tensorrt_rtx_cu13")),
    row("runtime-missing", TRT, RUNS_NOT, "tensorrt is not installed", "pip install 'tensorrt==11.0.0'",
        versions=without("tensorrt", "tensorrt_cu13", "tensorrt_rtx", "tensorrt_rtx_cu13")),
    row("other-tensorrt", RTX, RUNS_NOT, "installed is tensorrt 11.0.0, which cannot read it",
        "pip install 'tensorrt-rtx==1.7.1.116'",
        versions=without("tensorrt_rtx", "tensorrt_rtx_cu13")),
    row("other-tensorrt", TRT, RUNS_NOT, "installed is tensorrt_rtx 1.7.1.116", "pip install 'tensorrt==11.0.0'",
        versions=without("tensorrt", "tensorrt_cu13")),
    row("runtime-version", RTX, RUNS_NOT, "built by tensorrt_rtx 1.7.1.116; installed is 1.8.0", f"{AGAIN} trt-rtx",
        versions=without(tensorrt_rtx="1.8.0")),
    row("runtime-version", TRT, RUNS_NOT, "built by tensorrt 11.0.0; installed is 11.1.0", f"{AGAIN} tensorrt",
        versions=without(tensorrt="11.1.0")),
    row("", engine("tensorrt", compatible=("version",)), RUNS, "", "", versions=without(tensorrt="11.1.0")),
    row("runtime-version", engine("tensorrt", compatible=("version",)), RUNS_NOT, "installed is 10.9.0",
        "pip install 'tensorrt==11.0.0'",
        versions=without(tensorrt="10.9.0")),
    # the system
    row("other-system", TRT, RUNS_NOT, "built on Linux x86_64 and runs nowhere else; this is Windows x86_64", f"{AGAIN} tensorrt",
        system="Windows"),
    row("", RTX, RUNS, "", "", system="Windows"),
    row("no-nvidia-system", RTX, RUNS_NOT, "no driver for macOS", "", system="Darwin", arch="aarch64"),
    # driver and GPU
    row("no-driver", RTX, RUNS_NOT, "needs an NVIDIA GPU and none was found", "there is no NVIDIA driver: install it",
        driver=None, cuda=None, **NO_GPU),
    row("no-gpu", RTX, RUNS_NOT, "the driver 580.65.06 shows none (CUDA error 803)", "nvidia-smi", cuda_error="CUDA error 803",
        **NO_GPU),
    row("gpu-hidden", RTX, RUNS_NOT, "CUDA_VISIBLE_DEVICES='' hides the 2", "unset CUDA_VISIBLE_DEVICES", gpus=(), num_gpus=2,
        visible=""),
    row("driver-too-old", RTX, RUNS_NOT, "made for CUDA 13; the driver 550.54.15 runs CUDA up to 12.4", "driver 580 or newer",
        driver="550.54.15", cuda=(12, 4)),
    row("driver-too-old", TRT, RUNS_NOT, "made for CUDA 13", "pip install 'tensorrt-cu12==11.0.0'", cuda=(12, 4)),
    row("gpu-capability", RTX, RUNS_NOT, "for compute capability 8.6; this GPU is 8.9 (RTX 4090)", f"{AGAIN} trt-rtx -c 8.9",
        gpus=(ADA,)),
    row("gpu-capability", RTX, RUNS_NOT, "this GPU is 9.0", f"pip install tensorrt && {AGAIN} tensorrt", gpus=(HOPPER,)),
    row("gpu-capability", TRT, RUNS_NOT, "this GPU is 8.9", f"{AGAIN} tensorrt -o NEW on this machine", gpus=(ADA,)),
    row("gpu-capability", engine(capability=None), RUNS_NOT, "8.0 or newer; this GPU is 7.5", "-c 7.5", gpus=(Gpu("T4", "7.5"),)),
    row("", engine(capability=None), RUNS, "", "", gpus=(ADA,)),
    row("", engine("tensorrt", compatible=("hardware",)), RUNS, "", "", gpus=(HOPPER,)),
    row("gpu-capability", engine("tensorrt", compatible=("hardware",)), RUNS_NOT, "this GPU is 7.5", "", gpus=(Gpu("T4", "7.5"),)),
    row("other-gpu", RTX, RUNS_NOT, "this GPU is 8.9, and GPU 1 (RTX 3090) is 8.6", "CUDA_VISIBLE_DEVICES=1 before",
        gpus=(ADA, AMPERE)),
    row("other-gpu", RTX, RUNS_NOT, "GPU 1 (RTX 3090) is 8.6", "CUDA_VISIBLE_DEVICES=5 before", gpus=(ADA, AMPERE), visible="2,5"),
    # the files
    row("missing", RTX, DAMAGED, "is missing", "pull it again", harm=change(lambda old: None)),
    row("truncated", RTX, DAMAGED, "has 255 bytes, its manifest says 256", "copy it again", harm=change(lambda old: old[:-1])),
    row("changed", RTX, DAMAGED, "(sha256)", "copy it again", harm=change(lambda old: old[:-1] + b"x")),
    row("missing", RTX, DAMAGED, "engine.json is missing", "pull it again", harm=change(lambda old: None, ".json")),
    row("not-its-sidecar", RTX, DAMAGED, "sha256 is", "again", harm=change(lambda old: old[:-1] + b"x", sealed=True)),
    row("not-its-sidecar", engine(name="other.engine", bytes=7), DAMAGED, "which is other.engine: length is 256", "again"),
    row("not-its-sidecar", RTX, DAMAGED, "no sidecar of an engine", "again", harm=change(lambda old: b"[]", ".json", sealed=True)),
    row("not-its-sidecar", engine(runtime_version="1'; rm -r x; '"), DAMAGED, "it takes a version, digits and dots", "again"),
    row("not-its-sidecar", engine(compatible=(5,)), DAMAGED, "compatible[0] cannot be 5", "again"),
    row("not-its-sidecar", engine(header=None), DAMAGED, "header cannot be None", "again"),
    row("not-its-sidecar", engine(magic=b"\x7fELF"), DAMAGED, "no engine of TensorRT-RTX", "export it again"),
    row("sidecar-newer", RTX, RUNS_NOT, "has schema 99; this kdzoo reads up to", "pip install --upgrade kdzoo", harm=newer_sidecar),
]  # fmt: skip
OTHERS = [
    # ONNX
    row("onnxruntime-missing", onnx_file("fp16"), RUNS_NOT, "onnxruntime, which is not installed", "pip install onnxruntime",
        versions=without("onnxruntime"), instead=""),
    row("onnxruntime-double", onnx_file("fp16"), RUNS, "onnxruntime and onnxruntime-gpu are installed together",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
        versions=without(onnxruntime__gpu="1.31.1"), providers=("CUDAExecutionProvider", "CPUExecutionProvider")),
    row("onnxruntime-broken", onnx_file("fp16"), RUNS_NOT, "cannot be imported: ImportError: DLL", "pip install --force-reinstall",
        import_error="ImportError: DLL load failed", imported=None, providers=None, instead=""),
    row("opset-too-new", onnx_file("fp16", opset=23), RUNS_NOT, "has opset 23; onnxruntime 1.22.1 loads up to 22", "--opset 22",
        imported="1.22.1"),
    row("ir-too-new", onnx_file("fp16", ir_version=11), RUNS_NOT, "has IR version 11; onnxruntime 1.22.1 loads up to 10",
        "pip install --upgrade onnxruntime", imported="1.22.1"),
    row("onnxruntime-too-old", onnx_file("fp16"), RUNS_NOT, "onnxruntime 1.17.3 is older than 1.19", "--upgrade", imported="1.17.3",
        instead=""),
    row("bfloat16", onnx_file("bf16"), RUNS_NOT, "bfloat16", "kdzoo export toy-entry -b 3 -p bf16 -f trt"),
    row("for-tensorrt", onnx_file("int8", for_engine=True), RUNS, "to build TensorRT engines of", "-p int8 -f trt",
        instead="model.fp32.onnx"),
    row("no-int8-instructions", onnx_file("int8", **UINT8), RUNS, "(VNNI): model.int8.onnx runs slower", "",
        cpu=frozenset({"avx2"}), instead="model.fp32.onnx"),
    row("no-int8-instructions", onnx_file("int8", **UINT8), RUNS, "(dotprod)", "", arch="aarch64", cpu=frozenset({"asimd"}),
        instead="model.fp32.onnx"),
    row("", onnx_file("int8", **UINT8), RUNS, "", "", arch="aarch64", cpu=frozenset({"asimddp"})),
    row("", onnx_file("int8", **UINT8), RUNS, "", "", system="Darwin", cpu=None),
    row("no-cuda-provider", onnx_file("fp16"), RUNS, "onnxruntime-gpu is installed, and", "pip install onnxruntime-gpu",
        versions=without("onnxruntime", onnxruntime__gpu="1.31.1")),
    row("gpu-runtime-without-gpu", onnx_file("fp16"), RUNS, "it computes on the processor", "nvidia-smi",
        versions=without("onnxruntime", onnxruntime__gpu="1.31.1"), providers=("CUDAExecutionProvider",), **NO_GPU),
    row("float16-on-old-gpu", onnx_file("fp16"), RUNS, "(GTX 1080, compute capability 6.1) computes float16 slower", "",
        providers=("CUDAExecutionProvider",), gpus=(Gpu("GTX 1080", "6.1"),), instead="model.fp32.onnx"),
    row("driver-too-old", onnx_file("fp16"), RUNS, "CUDA up to 11.8; onnxruntime needs 12", "driver 525",
        providers=("CUDAExecutionProvider",), cuda=(11, 8)),
    row("fixed-batch", onnx_file("fp16", batch=(4, 4, 4)), RUNS, "takes exactly 4 images in a call",
        f"{AGAIN} onnx --batch 1:8:64"),
    # OpenVINO
    row("openvino-missing", openvino_file(), RUNS_NOT, "OpenVINO, which is not installed", "pip install 'openvino>=2025.2'",
        versions=without("openvino")),
    row("openvino-too-old", openvino_file(), RUNS_NOT, "installed is 2024.6.0", "--upgrade 'openvino>=2025.2'",
        versions=without(openvino="2024.6.0")),
    row("openvino-older", openvino_file(), RUNS, "written by OpenVINO 2026.4.1", "--upgrade openvino",
        versions=without(openvino="2025.4")),
    row("missing", openvino_file(), DAMAGED, "openvino.bin is missing", "pull it again", harm=change(lambda old: None, ".bin")),
    row("no-bfloat16", openvino_file("bf16"), RUNS_NOT, "computes in bfloat16", "-p fp32 -f openvino", cpu=frozenset({"avx2"})),
    row("no-int8-instructions", openvino_file("int8"), RUNS, "VNNI", "", cpu=frozenset({"avx2"}), instead="model.fp32.onnx"),
    # any
    row("not-pulled", RTX, NOT_HERE, "was not pulled", "kdzoo pull org/name@abc123 -b 3 -f trt-rtx -p fp16", harm=not_pulled),
    row("unknown-format", onnx_file("fp16"), RUNS_NOT, "no runtime of hologram", "pip install --upgrade kdzoo", harm=of_new_format),
]  # fmt: skip
ROWS = [*ENGINES, *OTHERS]


def judged(row: Row, folder: Path) -> tuple[Package, Verdict, Machine]:
    package = package_with(folder, onnx_file(), row.made)
    package = (row.harm and row.harm(package)) or package
    machine = replace(WHOLE, **row.machine)
    return package, judge(package, machine)[-1], machine


@pytest.mark.parametrize(
    "made", [RTX, TRT, *map(onnx_file, ("fp32", "fp16", "int8")), *map(openvino_file, ("fp32", "bf16", "int8"))]
)
def test_the_machine_that_has_everything_runs_every_file(made: Made, tmp_path: Path) -> None:
    (verdict,) = judge(package_with(tmp_path / "p", made), WHOLE)
    assert (verdict.state, verdict.obstacles, verdict.instead) == (RUNS, (), ""), "every row below is void"
    assert verdict.runtime.split()[1] in WHOLE.versions.values()


@pytest.mark.parametrize("row", ROWS, ids=[f"{n}-{each.case or 'fits'}" for n, each in enumerate(ROWS)])
def test_a_mismatch_is_named_with_what_mends_it(row: Row, tmp_path: Path) -> None:
    package, verdict, _ = judged(row, tmp_path / "p")
    assert verdict.state == row.state, verdict
    cases = {obstacle.case: obstacle for obstacle in verdict.obstacles}
    assert list(cases) == ([row.case] if row.case else []), "one mismatch, one finding"
    if row.case:
        assert row.what in cases[row.case].what and row.hint in cases[row.case].hint, cases[row.case]
    assert verdict.instead == row.instead
    assert judge(package, WHOLE)[0].state == RUNS, "the file beside it is judged for itself"


@pytest.mark.parametrize("row", ENGINES, ids=[f"{n}-{each.case or 'fits'}" for n, each in enumerate(ENGINES)])
def test_preflight_raises_what_the_doctor_says_of_an_engine(row: Row, tmp_path: Path) -> None:
    package, verdict, machine = judged(row, tmp_path / "p")
    sidecar, file = package.folder / f"{verdict.path}.json", package.folder / verdict.path
    if verdict.state == RUNS:
        preflight(sidecar, file, machine)
        return
    with pytest.raises(IntegrityError if verdict.state == DAMAGED else EnvironmentProblem) as caught:
        preflight(sidecar, file, machine)
    if verdict.state == RUNS_NOT:
        assert caught.value.what == verdict.obstacles[0].what
        said = caught.value.hint, verdict.obstacles[0].hint.replace(" -p fp16", "")
        assert said[0] == said[1], "the manifest beside the engine is read for the command"


ADAS, UNKNOWN = replace(WHOLE, gpus=(ADA,)), "what it was cut from, sha256 000000000000"


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ({}, f"kdzoo export RUN -b 3 -p fp16 -f trt-rtx -c 8.9 -o NEW (RUN: {UNKNOWN})"),
        ({"given": "org/name@abc"}, "kdzoo export org/name@abc -b 3 -p fp16 -f trt-rtx -c 8.9 -o NEW"),
        ({"given": "x; rm"}, "kdzoo export 'x; rm' -b 3 -p fp16 -f trt-rtx -c 8.9 -o NEW"),
        ({"entry": True}, f"kdzoo export RUN -b 3 -p fp16 -f trt-rtx -c 8.9 -o NEW (RUN: {UNKNOWN})"),
        ({"entry": True, "weights": True}, f"kdzoo export {DEFAULT_ENTRY} -b 3 -p fp16 -f trt-rtx -c 8.9 -o NEW"),
    ],
)
def test_the_command_names_only_what_has_the_weights(source: dict[str, Any], command: str, tmp_path: Path) -> None:
    package = package_with(tmp_path / "p", RTX)
    document = package.document
    document["source"] = {"weights_sha256": "0" * 64, "epochs": 1, **source}
    if document["source"].pop("entry", None):
        document["entry"] = DEFAULT_ENTRY
    if document["source"].pop("weights", None):
        document["source"]["weights_sha256"] = bundled().manifest.files["model.safetensors"]["sha256"]
    (obstacle,) = judge(Package(package.folder, document), ADAS)[0].obstacles
    assert obstacle.hint == command


def test_an_engine_alone_is_told_of_in_words(tmp_path: Path) -> None:
    package = package_with(tmp_path / "p", RTX)
    (package.folder / "manifest.json").unlink()
    path = package.folder / "model.fp16.trt-rtx.engine"
    with pytest.raises(EnvironmentProblem) as caught:
        preflight(package.folder / f"{path.name}.json", path, ADAS)
    assert caught.value.hint.endswith("-o NEW (RUN and BRANCH: what it was cut from)")


def test_the_matrix_is_as_wide_as_it_claims() -> None:
    assert len({each.case for each in ROWS if each.case}) >= 30
