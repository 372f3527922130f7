"""Eight-bit integers: a float32 graph and the ranges of its activations become a graph with explicit Q/DQ pairs. Torch-free.

One calibration serves every runtime, because both variants of the file stand on the same grid: the scale of an activation is its
largest magnitude over 127.
- `signed`: int8 around zero, for TensorRT, which takes nothing else. Biases stay float32.
- `unsigned`: uint8, for onnxruntime, whose kernels on x86 want it. What cannot be negative (it comes out of a ReLU) has zero point
  0, all else 128; the same reals are representable, but above the calibrated range, where the unsigned side does not saturate yet.
Weights are int8 per output channel, symmetric.

What is quantised: convolutions, additions, concatenations and pooling, and between them nothing is left in float. The classifiers,
and whatever comes behind the last convolutions, stay float32: quantised logits would tie.

Shapes: `N` images, `C` channels, `K` classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UnknownName
from .onnx_file import load_ir, seal_onnx

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

Grid = Literal["signed", "unsigned"]
Ranges = Mapping[str, tuple[float, float]]
METHODS = ("minmax", "percentile", "entropy")
STEPS = 180  # of the scales of activations, for every factor of e: each is at most 0.6 % above the one before
CHUNK = 50  # images that a calibrator holds all activations of at once
QUANTISED = {"Conv", "Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool"}
# What is not negative whatever comes in, and what is not where its inputs are not.
POSITIVE = {"Relu", "Sigmoid", "HardSigmoid", "Softmax"}
PASSES_SIGN = {
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "ReduceMean",
    "Concat",
    "QuantizeLinear",
    "DequantizeLinear",
    "Reshape",
    "Flatten",
    "Transpose",
    "Add",
    "Mul",
}


@dataclass(frozen=True)
class Quantised:
    """A quantised graph as bytes, and the convolutions in it that were and that were not quantised."""

    data: bytes
    layers: tuple[str, ...]
    kept_float: tuple[str, ...]


def calibrate(
    path: Path, inputs: NDArray[Any], method: str = "minmax", *, everything: bool = False
) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of the activations of the float32 graph at `path` over `inputs`, by onnxruntime's calibrators: of
    those that would be quantised, or of everything.

    Args:
        inputs: images as the graph takes them; training images, for the test split must not decide how a file is made.
        method: `minmax`, or `percentile` (99.99 %) or `entropy` (least Kullback-Leibler divergence), which cut outliers off.

    Raises:
        UnknownName: no such method.
    """
    if method not in METHODS:
        raise UnknownName("calibration method", method, METHODS)
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self, images: NDArray[Any]) -> None:
            self.left: Iterator[NDArray[Any]] = iter([images])

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            images = next(self.left, None)
            return None if images is None else {name: images}

    graph = load_ir(path).graph
    fixed = isinstance(size := _first_dimension(graph), int)
    chunk = size if isinstance(size, int) else CHUNK
    name, operators = graph.inputs[0].name or "", {node.op_type for node in graph}
    kind = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile, "entropy": CalibrationMethod.Entropy}
    with tempfile.TemporaryDirectory() as scratch:
        calibrator = create_calibrator(
            path, sorted(operators if everything else QUANTISED | POSITIVE), calibrate_method=kind[method],
            augmented_model_path=str(Path(scratch) / "calibrate.onnx"),
        )  # fmt: skip
        calibrator.set_execution_providers(["CPUExecutionProvider"])
        for start in range(0, len(inputs), chunk):  # a graph of fixed batch gets its last one filled up with what it has seen
            calibrator.collect_data(
                Reader(inputs[np.arange(start, start + chunk) % len(inputs)] if fixed else inputs[start : start + chunk])
            )
        found = calibrator.compute_data()
    wanted = list(found.data) if everything else [value.name or "" for value in _to_quantise(graph, ())]
    return {key: tuple(np.asarray(bound).item() for bound in found[key].range_value) for key in wanted}


def _first_dimension(graph: ir.Graph) -> object:
    """The batch of the graph: a number, where it is fixed."""
    shape = graph.inputs[0].shape
    return shape[0] if shape is not None else None


def quantise(path: Path, ranges: Ranges, grid: Grid, keep_float: Collection[str] = ()) -> Quantised:
    """The float32 graph at `path` with Q/DQ pairs; the convolutions named in `keep_float` stay as they are."""
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    model = load_ir(path)
    graph = model.graph
    nodes = _quantised_nodes(graph, keep_float)
    scales: dict[str, np.ndarray[Any, Any]] = {}
    for value in _to_quantise(graph, keep_float):
        assert value.name is not None
        scales[value.name] = _scale(*ranges[value.name])
        _insert_pair(graph, value, scales[value.name], grid)
    for node in nodes:
        if node.op_type == "Conv":
            _quantise_weights(graph, node, scales, grid)
    passes.TopologicalSortPass()(model)
    layers = [node.name or "" for node in graph if node.op_type == "Conv"]
    done = {node.name for node in nodes}
    data = seal_onnx(ir.serde.serialize_model(model))
    return Quantised(data, tuple(n for n in layers if n in done), tuple(n for n in layers if n not in done))


def _quantised_nodes(graph: ir.Graph, keep_float: Collection[str]) -> list[ir.Node]:
    """The nodes that compute in integers: those of the list above in front of another convolution."""
    feeds: set[ir.Node] = set()  # has a convolution behind it
    for node in reversed(list(graph)):
        users = [user for value in node.outputs for user in value.consumers()]
        if any(user in feeds or user.op_type == "Conv" for user in users):
            feeds.add(node)
    result = []
    for node in graph:
        constants = [value is not None and value.const_value is not None for value in node.inputs]
        fits = not constants[0] and all(constants[1:]) if node.op_type == "Conv" else not any(constants)
        if node.op_type in QUANTISED and node in feeds and fits and node.name not in keep_float:
            result.append(node)
    return result


def _to_quantise(graph: ir.Graph, keep_float: Collection[str]) -> list[ir.Value]:
    """The activations that get a Q/DQ pair, in order: what a quantised node reads and gives, behind a ReLU if one follows."""
    found: dict[ir.Value, None] = {}
    for node in _quantised_nodes(graph, keep_float):
        for value in node.inputs:
            if value is not None and value.const_value is None:
                found[value] = None
        out = node.outputs[0]
        users = out.consumers()
        if len(users) == 1 and users[0].op_type == "Relu":
            out = users[0].outputs[0]
        found[out] = None
    return list(found)


def _scale(low: float, high: float) -> np.ndarray[Any, Any]:
    """The scale of an activation, rounded up to the next e^(k/180): other processors, which add in another order and calibrate to
    ranges that differ in the last digits, give the same file.

    Powers of e, because two of them have no simple ratio unless they are equal. Between scales of few bits the sums of a residual
    network often fall half-way between two integers, where the kernels of the two grids round differently: with 8 bits they gave
    2 % of the images of a ResNet-32 other classes, with these 0.2 %.
    """
    import numpy as np

    largest = max(abs(low), abs(high))
    return np.array(np.exp(np.ceil(np.log(largest / 127) * STEPS) / STEPS) if largest > 0 else 1.0, np.float32)


def is_positive(value: ir.Value) -> bool:
    """Whether a tensor cannot hold negative numbers, whatever the image is."""
    node = value.producer()
    if node is None:
        return False
    if node.op_type in PASSES_SIGN:
        return all(inp is None or inp.const_value is not None or is_positive(inp) for inp in node.inputs) and not (
            node.op_type in ("Add", "Mul") and any(inp is None or inp.const_value is not None for inp in node.inputs)
        )
    return node.op_type in POSITIVE


def _insert_pair(graph: ir.Graph, value: ir.Value, scale: np.ndarray[Any, Any], grid: Grid) -> None:
    import numpy as np
    import onnx_ir as ir

    from .initializers import add_initializer

    zero = np.int8(0) if grid == "signed" else np.uint8(0 if is_positive(value) else 128)
    users = list(value.uses())
    grids = [add_initializer(graph, f"{value.name}.{key}", array) for key, array in (("scale", scale), ("zero", np.array(zero)))]
    quantised = ir.node("QuantizeLinear", [value, *grids], name=f"{value.name}.q")
    quantised.outputs[0].name = f"{value.name}.quantised"
    back = ir.node("DequantizeLinear", [quantised.outputs[0], *grids], name=f"{value.name}.dq")
    back.outputs[0].name = f"{value.name}.dequantised"
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, [quantised, back])
    else:
        graph.insert_before(users[0].node, [quantised, back])
    for user, position in users:
        user.replace_input_with(position, back.outputs[0])


def _quantise_weights(graph: ir.Graph, node: ir.Node, scales: Mapping[str, np.ndarray[Any, Any]], grid: Grid) -> None:
    """Weights int8 per output channel; on the unsigned grid the bias int32 in units of both scales, as integer kernels add it."""
    import numpy as np

    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None and node.inputs[0] is not None
    array = weight.const_value.numpy()
    largest_K = np.abs(array.reshape(len(array), -1)).max(axis=1)
    scale_K = np.where(largest_K > 0, largest_K / 127, 1.0).astype(np.float32)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    source = (node.inputs[0].name or "").removesuffix(".dequantised")
    if bias is not None and bias.const_value is not None:  # a channel that is all but dead must not lose its bias to 32 bits
        scale_K = np.maximum(scale_K, np.abs(bias.const_value.numpy()) / (2**30 * scales[source])).astype(np.float32)
    column = scale_K.reshape(-1, *[1] * (array.ndim - 1))
    integers = np.clip(np.rint(array / column), -127, 127).astype(np.int8)
    _dequantise(graph, node, 1, integers, scale_K)
    if bias is None or grid == "signed":
        return
    assert bias.const_value is not None
    units_K = (scales[source] * scale_K).astype(np.float32)
    limit = 2**31 - 1
    rounded = np.clip(np.rint(bias.const_value.numpy().astype(np.float64) / units_K), -limit, limit).astype(np.int32)
    _dequantise(graph, node, 2, rounded, units_K)


def _dequantise(
    graph: ir.Graph, node: ir.Node, position: int, integers: np.ndarray[Any, Any], scale_K: np.ndarray[Any, Any]
) -> None:
    """Input `position` of `node` comes out of a DequantizeLinear of constants, per output channel."""
    import numpy as np
    import onnx_ir as ir

    from .initializers import add_initializer

    old = node.inputs[position]
    assert old is not None
    stem = f"{node.name}.{('x', 'weight', 'bias')[position]}"
    zero = np.zeros(len(scale_K), integers.dtype)
    parts = [add_initializer(graph, f"{stem}.{key}", a) for key, a in (("int", integers), ("scale", scale_K), ("zero", zero))]
    back = ir.node("DequantizeLinear", parts, {"axis": 0}, name=f"{stem}.dq")
    back.outputs[0].name = f"{stem}.dequantised"
    graph.insert_before(node, back)
    node.replace_input_with(position, back.outputs[0])
    if not old.consumers() and (old.name or "") in graph.initializers:
        del graph.initializers[old.name or ""]
