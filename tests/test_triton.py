"""A Triton model repository: its configurations are what Triton's schema takes, its files are those of the packages, and it is
whole or not there. `test_triton_core` runs it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdzoo.errors import IntegrityError, OutputError, UnknownName, UsageError
from kdzoo.export import cascade_driver
from kdzoo.export.cascade import nest_file
from kdzoo.export.cascade_parts import split
from kdzoo.export.onnx_file import OnnxRunner, load_onnx, seal_onnx, write_graph
from kdzoo.export.package import Package
from kdzoo.export.triton import TritonOptions, TritonRepository, write_triton
from kdzoo.export.triton_config import Place, configuration, to_text
from kdzoo.export.triton_python import TritonPythonModel
from kdzoo.tests.small_cascade import flat_cascade
from kdzoo.tests.small_packages import quick_exports
from kdzoo.tests.small_students import raw_images
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.files import read_json, sha256, write_json

PackageOf = Callable[[str], Package]
ENGINE, RTX = "model.fp16.sm86.tensorrt.engine", "model.fp16.sm86.trt-rtx.engine"


def read_config(text: str) -> Any:
    """As Triton reads it: every field must be one of its schema."""
    pytest.importorskip("tritonclient.grpc", reason="the schema comes with tritonclient: pip install 'tritonclient[grpc]'")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def config_of(repository: TritonRepository, name: str) -> Any:
    return read_config((repository.folder / name / "config.pbtxt").read_text(encoding="utf-8"))


def with_engines(package: Package, *names: str) -> Package:
    """The same package that tells of engines, too; they are no engines, and nothing here loads them."""
    manifest = read_json(package.folder / "manifest.json")
    for name in names:
        (package.folder / name).write_bytes(b"vtrt" + name.encode())
        (package.folder / f"{name}.json").write_bytes(b"{}")
        kind = name.split(".")[3]
        runtime = kind.replace("trt-", "tensorrt_")
        manifest["artifacts"].append({
            **manifest["artifacts"][0], "path": name, "format": kind, "precision": "fp16", "runtime": runtime,
            "runtime_version": "11.0", "compute_capability": "8.6", "sha256": sha256(package.folder / name),
            "details": {"sidecar": f"{name}.json", "from": "model.fp32.onnx"},
        })  # fmt: skip
        for each in (name, f"{name}.json"):
            manifest["files"][each] = {"bytes": (package.folder / each).stat().st_size, "sha256": sha256(package.folder / each)}
    write_json(package.folder / "manifest.json", manifest)
    return Package.open(package.folder)


@pytest.mark.parametrize("backend", ["auto", "python"])
def test_every_model_is_whole_and_its_configuration_is_of_tritons_schema(
    backend: str, package_of: PackageOf, tmp_path: Path
) -> None:
    packages = [package_of("1"), package_of("all")]
    repository = write_triton(packages, tmp_path / "models", TritonOptions(backend, instances=3))
    assert [model.name for model in repository.models] == [package.name for package in packages]
    for package, model in zip(packages, repository.models, strict=True):
        folder = repository.folder / model.name
        config = config_of(repository, model.name)
        assert config.name == model.name and config.backend == {"auto": "onnxruntime"}.get(backend, backend)
        assert config.max_batch_size == 64 and list(config.dynamic_batching.preferred_batch_size) == [8, 64]
        policy = config.dynamic_batching.default_queue_policy
        assert policy.max_queue_size and policy.default_timeout_microseconds, "requests could wait without end"
        (image,) = config.input
        assert (image.name, image.data_type, list(image.dims)) == ("image", 2, [32, 32, 3]), "TYPE_UINT8 is 2"
        expected = package.artifacts[0].details.get("outputs", ["logits"])
        assert [output.name for output in config.output] == expected
        assert all(list(output.dims) == [10] and output.label_filename == "labels.txt" for output in config.output)
        assert [(group.kind, group.count) for group in config.instance_group] == [(2, 3)], "KIND_CPU is 2"
        assert (folder / "1" / config.default_model_filename).is_file()
        assert (folder / "labels.txt").read_text().splitlines() == package.labels
        source = folder / "1" / (config.parameters["file"].string_value or config.default_model_filename)
        assert sha256(source) == package.artifacts[0].sha256, "not the file that was measured"
        image_bytes = package.golden()[0][:1].tobytes()
        for warm_up in config.model_warmup:
            assert (folder / "warmup" / warm_up.inputs["image"].input_data_file).read_bytes() == image_bytes
        assert {warm_up.batch_size for warm_up in config.model_warmup} == {1, 8, 64}


def test_engines_of_tensorrt_come_first_and_those_of_rtx_are_left_out(package_copy: Package, tmp_path: Path) -> None:
    package = with_engines(package_copy, ENGINE, RTX)
    repository = write_triton([package], tmp_path / "models")
    assert [(model.name, model.place.backend) for model in repository.models] == [
        (package.name, "tensorrt"),
        (f"{package.name}-fp32", "onnxruntime"),
    ]
    config = config_of(repository, package.name)
    assert (config.backend, config.default_model_filename, config.instance_group[0].kind) == ("tensorrt", "model.plan", 1)
    assert (repository.folder / package.name / "1" / "model.plan").read_bytes() == (package.folder / ENGINE).read_bytes()
    assert "tensorrt 11.0" in (repository.folder / package.name / "config.pbtxt").read_text()
    (reason,) = repository.left_out.values()
    assert RTX in next(iter(repository.left_out)) and "TensorRT-RTX" in reason


def test_a_name_holds_no_sign_that_triton_would_have_to_decode(package_copy: Package, tmp_path: Path) -> None:
    manifest = package_copy.folder / "manifest.json"
    write_json(manifest, {**read_json(manifest), "target": "1+2"})
    (model,) = write_triton([Package.open(package_copy.folder)], tmp_path / "models").models
    assert model.name == "ahbf-resnet20-toy-1-2"


def test_a_fixed_batch_is_a_dimension_unless_the_python_backend_fills_it_up(package_of: PackageOf) -> None:
    artifact = replace(package_of("1").artifacts[0], batch=(4, 4, 4))

    def config(backend: str) -> Any:
        return read_config(to_text(configuration("m", artifact, ["logits"], Place(backend), {})))

    fixed, filled = config("onnxruntime"), config("python")
    assert (fixed.max_batch_size, list(fixed.input[0].dims), list(fixed.output[0].dims)) == (0, [4, 32, 32, 3], [4, 10])
    assert not fixed.HasField("dynamic_batching"), "Triton gathers nothing for a model without a batch"
    assert (filled.max_batch_size, list(filled.input[0].dims)) == (4, [32, 32, 3])


def test_the_exit_of_a_cascade_is_a_tensor_that_triton_takes(package_of: PackageOf) -> None:
    text = to_text(configuration("m", package_of("1").artifacts[0], ["logits", "exit"], Place("onnxruntime"), {}), ["a note"])
    exit = read_config(text).output[1]
    assert (list(exit.dims), exit.HasField("reshape"), list(exit.reshape.shape)) == ([1], True, [])
    assert text.startswith("# a note\n")


def test_strings_of_any_signs_come_through(package_of: PackageOf) -> None:
    name = 'a "b" \\ ü\n1+2'
    assert (
        read_config(to_text(configuration(name, package_of("1").artifacts[0], ["logits"], Place("python"), {"k": name}))).name
        == name
    )


def test_what_triton_cannot_run_and_what_is_unknown_is_told(package_of: PackageOf, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tensorrt backend runs tensorrt files, not onnx"):
        write_triton([package_of("1")], tmp_path / "models", TritonOptions("tensorrt"))
    with pytest.raises(UsageError, match="there is none of int8"):
        write_triton([package_of("1")], tmp_path / "models", TritonOptions(precisions=("int8",)))
    with pytest.raises(UnknownName):
        TritonOptions("onnx")
    assert not (tmp_path / "models").exists()


def test_a_damaged_file_leaves_nothing_behind(package_of: PackageOf, package_copy: Package, tmp_path: Path) -> None:
    file = package_copy.folder / package_copy.artifacts[0].path
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    place = tmp_path / "out"
    with pytest.raises(IntegrityError):
        write_triton([package_of("all"), package_copy], place / "models")
    assert not place.exists() or not list(place.iterdir())


def test_what_stands_there_is_kept_unless_it_is_forced(package_of: PackageOf, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "mine").mkdir(parents=True)
    with pytest.raises(OutputError, match="not empty"):
        write_triton([package_of("1")], folder)
    assert (folder / "mine").is_dir()
    write_triton([package_of("1")], folder, force=True)
    assert [path.name for path in folder.iterdir()] == [package_of("1").name]
    with pytest.raises(OutputError, match="is or holds the package"):
        write_triton([package_of("1")], package_of("1").folder, force=True)


class FakeTriton:
    """What the Python backend gives a model: tensors and responses."""

    class InferenceResponse(SimpleNamespace):
        def __init__(self, output_tensors: list[Any], error: Any = None) -> None:
            super().__init__(tensors=output_tensors, error=error)

    TritonError = str

    @staticmethod
    def Tensor(name: str, array: Any) -> tuple[str, Any]:  # noqa: N802  # it is Triton's
        return name, array

    @staticmethod
    def get_input_tensor_by_name(request: dict[str, Any], name: str) -> Any:
        return SimpleNamespace(as_numpy=lambda: request[name])


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TritonPythonModel]:
    """`stub(folder, file, outputs)`: starts a model as Triton's stub does, which can import what lies in its folder."""

    def start(folder: Path, file: str, *outputs: str) -> TritonPythonModel:
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", FakeTriton)  # type: ignore[arg-type]
        monkeypatch.syspath_prepend(folder)
        parameters = {"file": {"string_value": file}, "threads": {"string_value": "1"}}
        config = json.dumps({"parameters": parameters, "output": [{"name": name} for name in outputs]})
        place = {"model_repository": str(folder.parent), "model_version": folder.name}
        model = TritonPythonModel()
        model.initialize({"model_config": config, **place, "model_instance_kind": "CPU"})
        return model

    return start


@pytest.fixture
def python_model(package_of: PackageOf, stub: Callable[..., TritonPythonModel], tmp_path: Path) -> TritonPythonModel:
    folder = tmp_path / "1"
    folder.mkdir()
    shutil.copy(package_of("1").folder / "model.fp32.onnx", folder)
    return stub(folder, "model.fp32.onnx", "logits")


def test_the_parts_of_a_cascade_answer_as_the_nested_graph_does(stub: Callable[..., TritonPythonModel], tmp_path: Path) -> None:
    folder, images = tmp_path / "1", raw_images(24)
    folder.mkdir()
    flat = flat_cascade(tmp_path)["fp32"]
    paths = [folder / f"part{number}.onnx" for number in (1, 2, 3)]
    for path, part in zip(paths, split(load_onnx(flat), 3), strict=True):
        write_graph(path, seal_onnx(part))
    middle = float(np.median(OnnxRunner(paths[0]).everything({"image": images})["confidence"]))
    thresholds = [middle, middle]
    write_json(folder / "all.parts.json", {"thresholds": thresholds, "parts": [{"path": path.name} for path in paths]})
    shutil.copy(cascade_driver.__file__, folder)
    nest_file(flat, thresholds)
    expected = OnnxRunner(flat).everything(images)
    assert len(set(expected["exit"])) > 1, "nothing to tell the exits by"
    responses = stub(folder, "all.parts.json", "logits", "exit").execute([{"image": images[:5]}, {"image": images[5:]}])
    found = [dict(response.tensors) for response in responses]
    np.testing.assert_array_equal(np.concatenate([each["exit"] for each in found]), expected["exit"])
    np.testing.assert_allclose(np.concatenate([each["logits"] for each in found]), expected["logits"], atol=1e-4)


def test_requests_that_were_gathered_get_their_own_answers(python_model: TritonPythonModel, package_of: PackageOf) -> None:
    images, logits = package_of("1").golden()
    responses = python_model.execute([{"image": images[:1]}, {"image": images[1:4]}, {"image": images[4:]}])
    found = [dict(response.tensors)["logits"] for response in responses]
    assert [len(array) for array in found] == [1, 3, len(images) - 4]
    np.testing.assert_allclose(np.concatenate(found), logits, atol=1e-4)


def test_a_fixed_batch_is_filled_up(python_model: TritonPythonModel, package_of: PackageOf) -> None:
    images, logits = package_of("1").golden()
    python_model.fixed_batch, seen = 6, []
    compute = python_model.files[0]

    def spy(known: dict[str, Any]) -> dict[str, Any]:
        seen.append(len(known["image"]))
        return compute(known)

    spy.inputs = compute.inputs  # type: ignore[attr-defined]
    python_model.files = [spy]  # type: ignore[list-item]
    (response,) = python_model.execute([{"image": images[:2]}])
    assert seen == [6]
    np.testing.assert_allclose(dict(response.tensors)["logits"], logits[:2], atol=1e-4)


def test_every_request_is_told_of_a_failure(python_model: TritonPythonModel) -> None:
    wrong = np.zeros((1, 32, 32, 4), np.uint8)
    responses = python_model.execute([{"image": wrong}, {"image": wrong}])
    assert [bool(response.error) for response in responses] == [True, True]
    assert "could not be computed" in responses[0].error


def test_the_command_line_writes_it_beside_the_packages(
    call: Callable[..., tuple[str, str]], toy_checkpoint: Checkpoint, toys_npz: Path, tmp_path: Path
) -> None:
    with quick_exports():
        options = ("--data", toys_npz, "-b", "1", "-o", "out", "--triton", "models", "--json")
        document = json.loads(call("export", toy_checkpoint.folder, *options)[0])
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["ahbf-resnet20-toy-1"]
    assert [model["name"] for model in document["triton"]["models"]] == ["ahbf-resnet20-toy-1"]
    with pytest.raises(SystemExit) as ending:
        call("export", toy_checkpoint.folder, "-o", "same", "--triton", "same")
    assert ending.value.code == 2 and not (tmp_path / "same").exists(), "told only after the export"
