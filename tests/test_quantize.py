"""Eight-bit and sixteen-bit graphs: what is quantised, on which grid, and how near it stays to float32."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from kdzoo.errors import GateFailed, UnknownName
from kdzoo.export import int8
from kdzoo.export.format import Batch, ExportOptions
from kdzoo.export.half import too_large
from kdzoo.export.int8 import Int8
from kdzoo.export.onnx_file import OnnxRunner, check_onnx, load_ir
from kdzoo.export.onnx_graph import export_onnx, trace_onnx, write_onnx
from kdzoo.export.quantize import METHODS, calibrate, quantise
from kdzoo.tests.small_students import SIZE, Ensemble, Fused, Plain, raw_images, seeded
from kdzoo.zoo.datasets import LabelledImages

pytestmark = pytest.mark.usefixtures("traced_once")
STUDENTS = {"plain": Plain, "ensemble": Ensemble, "fused": Fused}


@pytest.fixture(scope="module", params=STUDENTS)
def float32(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(seeded(STUDENTS[request.param]), tmp_path_factory.mktemp("int8") / "m.onnx", **SIZE).path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(seeded(Plain), tmp_path_factory.mktemp("plain") / "m.onnx", **SIZE).path


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_both_grids_give_nearly_the_logits_of_float32(float32: Path, method: str, tmp_path: Path) -> None:
    images = raw_images(64)
    ranges = calibrate(float32, images, method)
    expected, found = OnnxRunner(float32)(images), {}
    for grid in ("unsigned", "signed"):
        made = quantise(float32, ranges, grid)  # type: ignore[arg-type]
        path = write(tmp_path / f"{grid}.onnx", made.data)
        check_onnx(path)
        assert made.layers
        found[grid] = OnnxRunner(path)(images)
        assert np.abs(found[grid] - expected).mean() < 0.1 * expected.std()
    if method == "minmax":  # nothing is cut off, so the grids are the same numbers
        assert np.abs(found["unsigned"] - found["signed"]).max() < 0.02 * np.abs(expected).max()


def test_the_file_says_how_each_activation_is_stored(plain: Path) -> None:
    ranges = calibrate(plain, raw_images(16))
    for grid, kinds in (("unsigned", {TensorProto.UINT8}), ("signed", {TensorProto.INT8})):
        graph = onnx.load_model_from_string(quantise(plain, ranges, grid).data).graph  # type: ignore[arg-type]
        constants = {tensor.name: tensor for tensor in graph.initializer}
        pairs = [node for node in graph.node if node.op_type == "QuantizeLinear"]
        zeros = {node.input[0]: constants[node.input[2]] for node in pairs}
        assert {zero.data_type for zero in zeros.values()} == kinds
        maker = {name: node.op_type for node in graph.node for name in node.output}
        for name, zero in zeros.items():
            positive = ranges[name][0] >= 0  # of these images; behind a ReLU of all
            middle = numpy_helper.to_array(zero).item()
            assert middle == (0 if grid == "signed" or maker.get(name) == "Relu" else middle), name
            assert middle == 0 if grid == "signed" else middle in ((0, 128) if positive else (128,)), name
        for node in graph.node:
            if node.op_type == "Conv" and "int" in node.input[1]:
                weights = constants[f"{node.name}.weight.int"]
                assert weights.data_type == TensorProto.INT8
                assert numpy_helper.to_array(constants[f"{node.name}.weight.scale"]).shape == (weights.dims[0],)


def test_onnxruntime_finds_integer_kernels_for_every_quantised_layer(plain: Path, tmp_path: Path) -> None:
    import onnxruntime

    made = quantise(plain, calibrate(plain, raw_images(16)), "unsigned")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(made.data, options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("QLinearConv") == len(made.layers)
    assert operators.count("Conv") == len(made.kept_float) == 1  # the classifier


def test_a_layer_that_is_kept_stays_float32(plain: Path) -> None:
    ranges = calibrate(plain, raw_images(16))
    first = quantise(plain, ranges, "unsigned").layers[0]
    made = quantise(plain, ranges, "unsigned", [first])
    assert first in made.kept_float and first not in made.layers
    constants = {tensor.name: tensor for tensor in onnx.load_model_from_string(made.data).graph.initializer}
    assert f"{first}.weight.int" not in constants


def test_a_channel_that_is_all_but_dead_keeps_its_bias(tmp_path: Path) -> None:
    student = seeded(Plain)
    student.stem[0].weight.data[0] = 1e-9
    student.stem[1].bias.data[0] = 2.0
    path, images = export_onnx(student, tmp_path / "m.onnx", **SIZE).path, raw_images(32)
    made, expected = quantise(path, calibrate(path, images), "unsigned"), OnnxRunner(path)(images)
    assert np.abs(OnnxRunner(made.data)(images) - expected).mean() < 0.1 * expected.std()


def test_a_graph_of_fixed_batch_is_calibrated_in_its_batches(plain: Path, tmp_path: Path) -> None:
    fixed, images = export_onnx(seeded(Plain), tmp_path / "m.onnx", **SIZE, batch=(4, 4, 4)).path, raw_images(10)
    found, expected = calibrate(fixed, images), calibrate(plain, images)
    assert found.keys() == expected.keys() and all(found[name] == pytest.approx(expected[name], abs=1e-4) for name in found)


def test_what_is_pooled_behind_a_relu_is_known_to_be_positive(tmp_path: Path) -> None:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    student = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), head)
    path = export_onnx(student.eval(), tmp_path / "m.onnx", **SIZE).path
    graph = onnx.load_model_from_string(quantise(path, calibrate(path, raw_images(16)), "unsigned").data).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    maker = {name: node.op_type for node in graph.node for name in node.output}
    pairs = {maker.get(n.input[0]): constants[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"}
    assert numpy_helper.to_array(pairs["MaxPool"]).item() == 0


def test_ranges_that_differ_in_the_last_digits_give_the_same_bytes(plain: Path) -> None:
    ranges = calibrate(plain, raw_images(16))
    elsewhere = {name: (low * (1 + 1e-6), high * (1 + 1e-6)) for name, (low, high) in ranges.items()}
    assert elsewhere != ranges and quantise(plain, elsewhere, "signed").data == quantise(plain, ranges, "signed").data


def test_a_rounded_scale_still_holds_the_range(plain: Path) -> None:
    ranges = calibrate(plain, raw_images(16))
    graph = onnx.load_model_from_string(quantise(plain, ranges, "signed").data).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = {node.input[0]: float(constants[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"}
    for name, scale in pairs.items():
        largest = max(map(abs, ranges[name]))
        assert largest <= 127 * scale * (1 + 1e-6) and 127 * scale <= largest * 1.006


def test_the_same_ranges_give_the_same_bytes(plain: Path) -> None:
    ranges = calibrate(plain, raw_images(16))
    assert quantise(plain, ranges, "unsigned").data == quantise(plain, calibrate(plain, raw_images(16)), "unsigned").data


def test_an_unknown_calibration_is_told_with_the_known_ones(plain: Path) -> None:
    with pytest.raises(UnknownName) as caught:
        calibrate(plain, raw_images(2), "minmx")
    assert caught.value.suggestion == "minmax"


def test_a_node_that_overflows_is_kept_in_float32(tmp_path: Path) -> None:
    student = seeded(Ensemble)
    student.stem[0].weight.data *= 1e5
    student.stem[1].running_var.fill_(1.0)
    model = trace_onnx(student, **SIZE)
    images, float32 = raw_images(8), write_onnx(model, tmp_path / "32.onnx").path
    keep = too_large(calibrate(float32, images, everything=True), model.graph, "fp16")
    assert keep
    mixed = write_onnx(model, tmp_path / "mixed.onnx", "fp16", keep_float=keep).path
    check_onnx(mixed)
    narrow = {name for node in onnx.load(mixed).graph.node if node.name in keep for name in node.input if name.endswith(".fp16")}
    assert not narrow
    expected = OnnxRunner(float32)(images)
    assert np.abs(OnnxRunner(mixed)(images) - expected).max() < 1e-3 * np.abs(expected).max()
    assert not too_large(calibrate(float32, images, everything=True), model.graph, "bf16")


def test_bfloat16_holds_what_float16_cannot(tmp_path: Path) -> None:
    student = seeded(Plain)
    student.stem[0].weight.data *= 1e6
    model = trace_onnx(student, **SIZE)
    with pytest.raises(GateFailed, match="does not fit into fp16"):
        write_onnx(model, tmp_path / "16.onnx", "fp16")
    path = write_onnx(model, tmp_path / "b16.onnx", "bf16").path
    onnx.checker.check_model(onnx.load(path), full_check=True)
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer if tensor.name.endswith(".bf16")}
    assert kinds == {TensorProto.BFLOAT16}
    assert helper.tensor_dtype_to_string(load_ir(path).graph.outputs[0].dtype.value).endswith("FLOAT")  # type: ignore[union-attr]


def graded(signed: float, noise: float) -> dict[str, list[float]]:
    """Twelve rounds, in which `signed` takes a share of the time of `unsigned`, and every third one is disturbed."""
    return {"unsigned": [1.0] * 12, "signed": [signed * (noise if k % 3 == 2 else 1.0) for k in range(12)]}


@pytest.mark.parametrize(
    ("times", "grid"),
    [
        (graded(1.0, 1.0), "unsigned"),
        (graded(0.91, 0.5), "unsigned"),  # a tie that noise once in a while makes look like none
        (graded(0.89, 1.2), "unsigned"),
        (graded(0.7, 1.2), "signed"),
        (graded(2.4, 0.3), "unsigned"),
    ],
)
def test_a_tie_of_the_grids_goes_to_unsigned(
    times: dict[str, list[float]], grid: str, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(int8, "interleave", lambda calls, **_: asked.append(list(calls)) or times)
    images = raw_images(40)
    job = SimpleNamespace(
        training=LabelledImages(images, np.zeros(40, np.int64), ("one",), "noise"), preprocess=None,
        options=ExportOptions(calibration_images=16, batch=Batch(1, 2, 4)), max_drop={"int8": 100.0},
    )  # fmt: skip
    found, milliseconds = Int8(job, plain).fastest()  # type: ignore[arg-type]
    assert found == grid and asked == [["unsigned", "signed"]] and set(milliseconds) == {"unsigned", "signed"}
