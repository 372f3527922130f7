"""The ONNX emitter: one file, the same bytes every time, the same logits as torch, for any batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from kdzoo.errors import EnvironmentProblem, GateFailed, IntegrityError, OutputError, UsageError
from kdzoo.export import onnx_graph
from kdzoo.export.deployed import Deployed
from kdzoo.export.onnx_file import OnnxRunner, check_onnx, describe_onnx, seal_onnx
from kdzoo.export.onnx_graph import export_onnx
from kdzoo.tests import small_students, small_traces
from kdzoo.tests.small_students import (
    MEAN,
    SIZE,
    STD,
    Ensemble,
    Fused,
    Plain,
    Shuffled,
    Unexportable,
    conv_bn,
    eager,
    raw_images,
    seeded,
)

pytestmark = pytest.mark.usefixtures("traced_once")


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "plain.onnx"
    export_onnx(seeded(Plain), path, **SIZE, metadata={"labels": "a b", "branch": "2"})
    return path


@pytest.mark.parametrize("make", [Plain, Ensemble, Fused, Shuffled])
def test_logits_equal_eager_torch_for_any_batch(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    student = seeded(make)
    info = export_onnx(student, tmp_path / "m.onnx", **SIZE)
    check_onnx(tmp_path / "m.onnx")
    run = OnnxRunner(tmp_path / "m.onnx", threads=1)
    assert info.inputs == (("image", "uint8", ("N", 12, 8, 3)),)
    assert info.outputs == (("logits", "float32", ("N", 10)),)
    for num in (1, 3, 64):
        logits, expected = run(raw_images(num)), eager(student, raw_images(num))
        assert logits.shape == (num, 10)
        assert np.abs(logits - expected).max() < 1e-4, f"batch {num}"


def test_deployed_module_equals_the_graph_in_torch() -> None:
    student, images = seeded(Plain), raw_images(4)
    deployed = Deployed(student, mean=MEAN, std=STD)
    with torch.no_grad():
        assert np.abs(deployed(torch.from_numpy(images)).numpy() - eager(student, images)).max() < 1e-4


def test_graph_has_nothing_to_fold_and_no_gemm(exported: Path, tmp_path: Path) -> None:
    assert operators(exported) == [
        *("Cast", "Transpose", "Sub", "Conv", "Relu", "Conv", "Relu", "Add", "GlobalAveragePool", "Conv"),
        *("Flatten", "Tanh", "Mul"),
    ]
    export_onnx(seeded(Fused), tmp_path / "fused.onnx", **SIZE)
    assert not {"BatchNormalization", "Gemm", "MatMul", "Identity", "Shape", "Gather"} & set(operators(tmp_path / "fused.onnx"))


def test_cheap_classifier_comes_before_its_pooling(tmp_path: Path) -> None:
    wide = nn.Sequential(conv_bn(3, 32), conv_bn(32, 32), conv_bn(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))
    export_onnx(wide.eval(), tmp_path / "m.onnx", **SIZE)
    assert operators(tmp_path / "m.onnx")[-3:] == ["Relu", "Conv", "ReduceMean"]


def test_gate_stays_spatial(tmp_path: Path) -> None:
    export_onnx(seeded(Shuffled), tmp_path / "m.onnx", **SIZE)
    names = operators(tmp_path / "m.onnx")
    first = names.index("GlobalAveragePool")
    assert names[first : first + 5] == ["GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid"], names


def test_half_precision_runs_and_is_near(tmp_path: Path) -> None:
    for make in (Plain, Fused, Shuffled):
        student, images = seeded(make), raw_images(64)
        info = export_onnx(student, tmp_path / "m.onnx", **SIZE, precision="fp16")
        check_onnx(tmp_path / "m.onnx")
        logits = OnnxRunner(tmp_path / "m.onnx")(images)
        assert info.outputs[0][1] == "float32" and logits.dtype == np.float32
        expected = eager(student, images)
        assert np.abs(logits - expected).max() < 2e-3 * np.abs(expected).max() + 1e-3
        dtypes = {tensor.data_type for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer if tensor.dims[1:]}
        assert onnx.TensorProto.FLOAT16 in dtypes


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_input_is_normalised_nchw(precision: Any, tmp_path: Path) -> None:
    student = seeded(Plain)
    info = export_onnx(student, tmp_path / "m.onnx", **SIZE, input="float", precision=precision)
    check_onnx(tmp_path / "m.onnx")
    assert info.inputs == (("image", "float32", ("N", 3, 12, 8)),)
    x = np.random.default_rng(0).normal(size=(3, 3, 12, 8)).astype(np.float32)
    with torch.no_grad():
        expected = student(torch.from_numpy(x)).numpy()
    assert np.abs(OnnxRunner(tmp_path / "m.onnx")(x) - expected).max() < (1e-4 if precision == "fp32" else 0.05)


def test_one_number_makes_the_batch_static(tmp_path: Path) -> None:
    student = seeded(Plain)
    info = export_onnx(student, tmp_path / "m.onnx", **SIZE, batch=(3, 3, 3))
    assert (info.inputs[0][2], info.outputs[0][2]) == ((3, 12, 8, 3), (3, 10))
    assert np.abs(OnnxRunner(tmp_path / "m.onnx")(raw_images(3)) - eager(student, raw_images(3))).max() < 1e-4


def test_file_is_single_and_speaks_only_of_us(exported: Path) -> None:
    assert [entry.name for entry in exported.parent.iterdir()] == ["plain.onnx"]
    model = onnx.load(exported)
    keys = [entry.key for entry in model.metadata_props]
    assert keys[:2] == ["branch", "labels"] and len(keys) == 3
    assert describe_onnx(exported).producer == "kdzoo 0.1.0"
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    for foreign in ("torch", "student", Path(small_students.__file__).stem, str(Path.cwd())):
        assert foreign.encode() not in exported.read_bytes(), f"the file names {foreign}"


def test_equal_initialisers_are_stored_once(tmp_path: Path) -> None:
    student = seeded(Ensemble)
    for branch in student.branches[1:]:  # type: ignore[index, union-attr]
        branch.load_state_dict(student.branches[0].state_dict())  # type: ignore[index, union-attr]
    export_onnx(student, tmp_path / "m.onnx", **SIZE)
    stored = [tensor.raw_data for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer if len(tensor.dims) == 4]
    assert len(stored) == len(set(stored))


def test_same_bytes_again(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process; `test_export_package` exports in another process and folder."""
    monkeypatch.setattr(onnx_graph, "_trace", small_traces.trace)
    export_onnx(seeded(Plain), tmp_path / "again.onnx", **SIZE, metadata={"branch": "2", "labels": "a b"})
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes(), "the second export in one process differs"


@pytest.mark.parametrize("damage", ["cut", "cut the checksum", "flip a weight", "flip the end", "text"])
def test_damaged_file_is_an_integrity_error(damage: str, exported: Path, tmp_path: Path) -> None:
    data = bytearray(exported.read_bytes())
    if damage == "flip a weight":
        data[len(data) // 2] ^= 4
    if damage == "flip the end":
        data[-1] ^= 1
    size = len(seal_onnx(onnx.ModelProto()))
    lengths = {"cut": len(data) // 2, "cut the checksum": len(data) - size}
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model" if damage == "text" else bytes(data[: lengths.get(damage, len(data))]))
    with pytest.raises(IntegrityError, match=r"bad\.onnx"):
        check_onnx(bad)


def test_changed_model_can_be_sealed_again(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    model.graph.node[0].name = "first"
    (tmp_path / "changed.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError):
        check_onnx(tmp_path / "changed.onnx")
    (tmp_path / "changed.onnx").write_bytes(seal_onnx(model))
    check_onnx(tmp_path / "changed.onnx")


def test_invalid_graph_fails_the_gate(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    model.graph.node[3].op_type = "Convolute"
    (tmp_path / "invalid.onnx").write_bytes(seal_onnx(model))
    with pytest.raises(GateFailed, match="checker"):
        check_onnx(tmp_path / "invalid.onnx")


def test_failure_leaves_nothing_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(b"old")
    with pytest.raises(GateFailed, match="cannot be exported"):
        export_onnx(Unexportable().eval(), "m.onnx", **SIZE)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        export_onnx(seeded(Plain), "m.onnx", **SIZE)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("m.onnx", b"old")]


def test_wrong_requests_say_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="opset 7") as error:
        export_onnx(seeded(Plain), tmp_path / "m.onnx", **SIZE, opset=7)
    assert "20" in error.value.known
    with pytest.raises(UsageError, match="training mode"):
        export_onnx(Plain(), tmp_path / "m.onnx", **SIZE)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        export_onnx(seeded(Plain), tmp_path / "file" / "m.onnx", **SIZE)


def test_unknown_provider_is_an_environment_problem(exported: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="NoSuchProvider") as error:
        OnnxRunner(exported, providers=("NoSuchProvider",))
    assert "CPUExecutionProvider" in error.value.known


def test_import_needs_no_torch() -> None:
    import kdzoo

    environment = {**os.environ, "PYTHONPATH": str(Path(kdzoo.__path__[0]).parent)}
    script = "import sys, kdzoo.export.onnx_graph; sys.exit(bool({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_tensorrt_rtx_parses_both_precisions(exported: Path, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    export_onnx(seeded(Fused), tmp_path / "fp16.onnx", **SIZE, precision="fp16")
    for path in (exported, tmp_path / "fp16.onnx"):
        log = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(log)
        network = builder.create_network(0)  # a network does not keep its builder alive
        parser = trt.OnnxParser(network, log)
        assert parser.parse(path.read_bytes()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
