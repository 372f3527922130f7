"""Every runtime gives the logits of torch, says on what it ran, and never runs on something else than what was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from kdzoo.errors import EnvironmentProblem, GateFailed, IntegrityError, UnknownName, UsageError
from kdzoo.export import threads
from kdzoo.export.package import PULLED, WEIGHTS, Artifact, Package
from kdzoo.export.runtime import RUNTIMES, RanOn, Session, runtime_for
from kdzoo.export.runtimes import onnxruntime as onnx_runtimes
from kdzoo.export.runtimes import parts as parts_runtime
from kdzoo.export.runtimes.torch import student_of
from kdzoo.export.trials import Choice, find_trials
from kdzoo.zoo.files import write_json

CUDA = "CUDAExecutionProvider"


@pytest.fixture
def package(package_of: Callable[[str], Package]) -> Package:
    return package_of("1")


@pytest.fixture
def file(package: Package) -> Artifact:
    return package.artifact("onnx", "fp32")


@pytest.mark.parametrize(
    ("format", "name"),
    [("onnx", "onnxruntime-cpu"), ("openvino", "openvino"), ("trt", "tensorrt"), ("trt-rtx", "trt-rtx"), ("safetensors", "torch")],
)
def test_every_format_has_the_one_runtime_that_it_is_made_for(format: str, name: str, file: Artifact) -> None:
    runtime, why = runtime_for(replace(file, format=format))
    assert runtime.name == name and format in why and name in why
    assert not runtime.refuses(replace(file, format=format))
    takers = [n for n in RUNTIMES.names() if format in RUNTIMES.get(n).own_formats]
    assert takers == [name]


def test_a_format_without_a_runtime_and_a_misspelt_runtime_are_told(file: Artifact) -> None:
    with pytest.raises(UsageError, match=r"no runtime here is made for model\.fp32\.onnx, a coreml file"):
        runtime_for(replace(file, format="coreml"))
    with pytest.raises(UnknownName) as error:
        RUNTIMES.get("openvin")
    assert error.value.suggestion == "openvino"


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "openvino", "torch"])
def test_a_runtime_gives_the_golden_logits_and_says_on_what_it_ran(name: str, package: Package) -> None:
    pytest.importorskip({"openvino": "openvino"}.get(name, "numpy"))
    runtime = RUNTIMES.get(name)()
    artifact = student_of(package) if name == "torch" else package.artifact("onnx", "fp32")
    images, expected = package.golden()
    before = torch.get_num_threads()
    runtime.check(package.folder, artifact)
    with runtime.open(package.folder, artifact, 1) as session:
        for count in (8, 1, 3):
            assert np.abs(session(images[:count]) - expected[:count]).max() < 1e-4
        assert set(session.everything(images)) == {"logits"}
        ran_on = session.ran_on
    assert (ran_on.runtime, ran_on.threads) == (name, 1) and ran_on.version[0].isdigit()
    assert {"onnxruntime-cpu": "CPUExecutionProvider", "openvino": "CPU, computing in f32", "torch": "cpu"}[name] == ran_on.device
    assert torch.get_num_threads() == before


def test_without_a_number_a_session_gets_the_physical_cores(
    package: Package, file: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtimes, "physical_cores", lambda: 3)
    session = RUNTIMES.get("onnxruntime-cpu")().open(package.folder, file)
    assert session.ran_on.threads == 3
    assert session.runner.session.get_session_options().intra_op_num_threads == 3  # type: ignore[attr-defined]


def test_two_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 6}, raising=False)
    for number, core in enumerate((0, 1, 0, 1)):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "core_id").write_text(f"{core}\n")
        (folder / "physical_package_id").write_text("0\n")
    assert threads.physical_cores() == 3  # two cores of two threads, and one of which nothing is known
    moved: list[list[int]] = []
    monkeypatch.setattr(threads.os, "sched_setaffinity", lambda pid, numbers: moved.append(sorted(numbers)), raising=False)
    with threads.pinned(3) as used:
        assert used == [0, 1, 6]  # other cores before other threads of the same
    assert moved == [[0, 1, 6], [0, 1, 2, 3, 6]]
    with pytest.raises(EnvironmentProblem, match="6 threads cannot be pinned to 5"), threads.pinned(6):
        raise AssertionError("pinned")


class Elsewhere:
    """An onnxruntime session that quietly took the processor, as the real one does where CUDA's libraries do not load."""

    asked: Any = None

    def __init__(self, model: str, options: object, providers: list[str], enable_fallback: int) -> None:
        Elsewhere.asked = (providers, enable_fallback)

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


class NoNode(Elsewhere):
    """The provider is there, and every node went to the processor."""

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="image")]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="logits")]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: [1, 2])]


@pytest.mark.parametrize(
    ("session", "says"),
    [(Elsewhere, f"was asked for {CUDA} and took CPUExecutionProvider"), (NoNode, f"{CUDA} took no node of model.fp32.onnx")],
)
def test_a_silent_fall_back_to_the_processor_is_an_error(
    session: type, says: str, package: Package, file: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(EnvironmentProblem, match=says):
        RUNTIMES.get("onnxruntime-cuda")().open(package.folder, file)
    assert Elsewhere.asked == ([CUDA], 0), "its own fall back prints on stdout"


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_provider_that_cannot_run_is_told_with_the_fix(
    name: str, package: Package, file: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = RUNTIMES.get(name)()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EnvironmentProblem, match=f"has no {runtime.provider}") as error:  # type: ignore[attr-defined]
        runtime.check(package.folder, file)
    assert "pip install 'kdzoo[gpu]'" in error.value.hint
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [runtime.provider])  # type: ignore[attr-defined]
    monkeypatch.setattr(onnx_runtimes, "gpu_compute_capability", lambda: None)
    with pytest.raises(EnvironmentProblem, match="needs an NVIDIA GPU"):
        runtime.check(package.folder, file)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("onnxruntime-cpu", {"precision": "bf16"}, "bfloat16"),
        ("onnxruntime-cuda", {"format": "openvino"}, "runs ONNX files, not openvino"),
        ("onnxruntime-tensorrt", {"details": {"grid": "unsigned"}}, "signed eight-bit activations only"),
        ("openvino", {"format": "trt"}, "not trt"),
        ("openvino", {"precision": "int8", "details": {"outputs": ["logits", "exit"]}}, "behind a condition wrongly"),
        ("tensorrt", {"format": "trt-rtx"}, "engines that it built"),
        ("trt-rtx", {"format": "trt"}, "engines that it built"),
        ("torch", {}, "the student of a package"),
    ],
)
def test_a_runtime_says_which_files_it_never_runs(name: str, changes: dict[str, Any], says: str, file: Artifact) -> None:
    assert says in RUNTIMES.get(name)().refuses(replace(file, **changes))


def test_torch_runs_no_cascade(package: Package) -> None:
    with pytest.raises(UsageError, match="computes every exit"):
        student_of(replace(package, document={**package.document, "target": "cascade"}))


def test_a_student_that_was_not_pulled_is_told_with_the_command(package_copy: Package) -> None:
    (package_copy.folder / WEIGHTS).unlink()
    facts = {"schema_version": 1, "repository": "org/toys", "commit": "c0ffee", "files": ["model.fp32.onnx", "config.json"]}
    write_json(package_copy.folder / PULLED, facts)
    with pytest.raises(UsageError, match=r"torch runs none of these files: the student of .* was not pulled") as error:
        find_trials([package_copy], Choice(runtimes=("torch",)))
    assert error.value.hint == "kdzoo pull org/toys@c0ffee -b 1 --format safetensors"


class Counted(Session):
    """A part that is open until it is closed."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.ran_on, self.inputs = log, RanOn("counted", "1", "nowhere", 1), ("image",)

    def everything(self, inputs: Any) -> Any:
        raise AssertionError("not run")

    def close(self) -> None:
        self.log.append("closed")


@pytest.mark.parametrize(("good", "closed"), [(3, 0), (2, 2)])
def test_a_part_that_does_not_open_closes_those_before_it(
    good: int, closed: int, file: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    def opens(folder: Path, part: Artifact, threads: int | None, *, in_turns: bool) -> Session:
        if part.path == f"part{good}":
            raise EnvironmentProblem("no memory is left")
        return Counted(log)

    monkeypatch.setattr(parts_runtime, "runtime_for", lambda part: (SimpleNamespace(open=opens), ""))
    described = [{**asdict(file), "path": f"part{n}"} for n in range(3)]
    cascade = replace(file, format="parts", details={"parts": described, "thresholds": [0.5, 0.5]})
    runtime = RUNTIMES.get("parts")()
    if good == 3:
        runtime.open(Path(), cascade)
    else:
        with pytest.raises(EnvironmentProblem, match="no memory is left"):
            runtime.open(Path(), cascade)
    assert log == ["closed"] * closed


def test_a_damaged_file_is_refused_before_an_engine_is_loaded(package: Package, file: Artifact) -> None:
    engine = replace(file, path="model.fp32.sm86.trt-rtx.engine", format="trt-rtx", details={"sidecar": "none.json"})
    with pytest.raises(IntegrityError, match=r"none\.json"):
        RUNTIMES.get("trt-rtx")().check(package.folder, engine)
    (package.folder.parent / "broken.onnx").write_bytes(b"\x08\x09 no graph")
    with pytest.raises(GateFailed, match=r"broken\.onnx does not load in onnxruntime"):
        RUNTIMES.get("onnxruntime-cpu")().open(package.folder.parent, replace(file, path="broken.onnx"))


def test_knowing_the_runtimes_costs_no_heavy_import() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt_rtx")
    code = f"""
import json, sys
from kdzoo.export.runtime import RUNTIMES
names = RUNTIMES.names()
print(json.dumps([names, [name for name in {heavy!r} if name in sys.modules]]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, imported = json.loads(done.stdout)
    assert {"onnxruntime-cpu", "openvino", "tensorrt", "trt-rtx", "torch"} <= set(names)
    assert imported == []
