"""The network that is deployed, what a camera gives in, logits out: as a module and as the graph that it becomes.

`Deployed` is an ordinary module, so the exporter and the parity check read the same words. `specialise` rewrites its graph
where the exporter's and onnxscript's rules leave something:
1. a classifier becomes a 1x1 convolution: TensorRT-RTX refuses a float32 Gemm for compute capability 7.5;
2. it moves in front of its pooling where that is almost free, because then the pooling also does the flattening;
   in a gate (`Linear`, activation, `Linear`, reshape) everything stays `N C 1 1`.
`fold_scale`, for float32, moves the scale of the normalisation into the first convolutions (the mean cannot: their zero padding is
zero *after* it). Narrower types come after that, in files of their own (`half`, `quantize`): everything is folded in float32.

This file imports torch. Shapes: `N` images, `H` `W` space, `C` channels, `K` classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import Tensor, nn

from .half import normalised
from .initializers import add_initializer

Array = np.ndarray[Any, Any]
# A classifier goes in front of its pooling when that adds at most this share to the network's multiplications.
HEAD_SHARE = 0.01
POINTWISE = {"Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Clip", "Tanh", "LeakyRelu", "Elu", "Gelu", "Swish"}


class Deployed(nn.Module):
    """A student with its normalisation inside: `image` uint8 `N H W C` (or float32 `N C H W`, already normalised) to logits.

    Shares the parameters of `student` in float32; `precision="fp16"` takes a copy in half precision. Logits are float32.
    """

    mean_C11: Tensor
    scale_C11: Tensor

    def __init__(
        self,
        student: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input: Literal["uint8", "float"] = "uint8",
        precision: Literal["fp32", "fp16"] = "fp32",
    ) -> None:
        super().__init__()
        self.student = student if precision == "fp32" else copy.deepcopy(student).half()
        self.is_raw = input == "uint8"
        self.dtype = torch.float32 if precision == "fp32" else torch.float16
        # float64 until the last step: 1 / (255 std) is rounded once, not twice.
        mean_C, std_C = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.register_buffer("mean_C11", (mean_C * 255).float()[:, None, None])
        self.register_buffer("scale_C11", (1 / (std_C * 255)).float()[:, None, None])
        self.train(student.training)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits float32 `N K`; of every output, where the student has several."""
        if self.is_raw:
            # contiguous(): a channels-last tensor sends the exporter down its as_strided path (Range, Gather per pooling).
            x_NCHW = image.to(torch.float32).permute(0, 3, 1, 2).contiguous()
            image = (x_NCHW - self.mean_C11) * self.scale_C11
        logits: Tensor | tuple[Tensor, ...] = self.student(image.to(self.dtype))
        return tuple(z_NK.float() for z_NK in logits) if isinstance(logits, tuple) else logits.float()


def specialise(model: ir.Model) -> None:
    """Rewrite the optimised float32 graph of a `Deployed` in place: what every precision starts from."""
    _convolve_classifiers(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    _skip_flattening(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    # The rewrites insert in order, but a value may be replaced by one that is inserted before a later node.
    passes.TopologicalSortPass()(model)


def _constant(value: ir.Value | None) -> Array | None:
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def _insert(graph: ir.Graph, before: ir.Node, x: ir.Value, *steps: tuple[str, Sequence[ir.Value], dict[str, Any]]) -> ir.Value:
    """Insert `steps` (operator, further inputs, attributes), each on the result of the last; returns what comes out."""
    for operator, inputs, attributes in steps:
        node = ir.node(operator, [x, *inputs], attributes)
        graph.insert_before(before, node)
        node.outputs[0].type = x.type
        x = node.outputs[0]
    return x


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Let every user of `old`, the outputs of the graph included, take `new`."""
    new.shape, new.type = old.shape, old.type
    if old.is_graph_output():
        new.name, old.name = old.name, f"{old.name}_before"
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def fold_scale(graph: ir.Graph) -> None:
    """Move the scale of the normalisation into the first convolutions. Not for 16 bits: the raw image would need weights 255 times
    smaller, many of them subnormal."""
    value = normalised(graph)
    scale, users = value.producer(), value.consumers()
    if scale is None or scale.op_type != "Mul" or (scale_C11 := _constant(scale.inputs[1])) is None:
        return
    weights = [_constant(user.inputs[1]) if user.op_type == "Conv" else None for user in users]
    if any(weight is None or weight.shape[1] != len(scale_C11) for weight in weights):
        return
    for user, weight in zip(users, weights, strict=True):
        assert weight is not None and user.inputs[1] is not None
        folded = (weight.astype(np.float64) * scale_C11).astype(np.float32)
        user.replace_input_with(1, add_initializer(graph, f"{user.inputs[1].name}.scaled", folded))
    assert scale.inputs[0] is not None
    _replace(value, scale.inputs[0])


def _convolve_classifiers(graph: ir.Graph) -> None:
    convolutions = [node for node in graph if node.op_type == "Conv"]
    num_macs = sum(math.prod(_dims(node.inputs[1])) * math.prod(_dims(node.outputs[0])[2:]) for node in convolutions)
    for node in list(graph):
        if (affine := _affine(node)) is None or (x := node.inputs[0]) is None:
            continue
        weight_KC, bias_K = affine
        num_classes, num_inputs = weight_KC.shape
        stem = (node.inputs[1].name if node.inputs[1] is not None else None) or "classifier"
        weights = [add_initializer(graph, f"{stem}.conv", weight_KC[:, :, None, None])]
        if bias_K is not None:
            weights.append(add_initializer(graph, f"{stem}.bias", bias_K))
        convolve: Any = ("Conv", weights, {"kernel_shape": [1, 1]})
        flat: Any = ("Flatten", [], {"axis": 1})
        pooled_NCHW = _pooled(x)
        if pooled_NCHW is not None:
            num_positions = math.prod(_dims(pooled_NCHW)[2:])
            if num_classes * num_inputs * (num_positions - 1) <= HEAD_SHARE * num_macs:
                axes = add_initializer(graph, "spatial_axes", np.array([2, 3], dtype=np.int64))
                out = _insert(graph, node, pooled_NCHW, convolve, ("ReduceMean", [axes], {"keepdims": 0}))
            else:
                out = _insert(graph, node, pooled_NCHW, ("GlobalAveragePool", [], {}), convolve, flat)
        else:
            before = x.producer()
            if before is not None and before.op_type in ("Reshape", "Flatten") and _same_batch(before.inputs[0], x):
                x = before.inputs[0]
                assert x is not None
            if _dims(x)[1:] != (num_inputs, 1, 1):
                assert x.shape is not None
                num_images = x.shape[0]
                shape = add_initializer(graph, "pixel_shape", np.array([0, num_inputs, 1, 1], dtype=np.int64))
                x = _insert(graph, node, x, ("Reshape", [shape], {}))
                x.shape = ir.Shape([num_images, num_inputs, 1, 1])
            out = _insert(graph, node, x, convolve, flat)
        last = out.producer()
        pixel = last.inputs[0] if last is not None and last.op_type == "Flatten" else None
        if pixel is not None and x.shape is not None:
            pixel.shape = ir.Shape([x.shape[0], num_classes, 1, 1])
        _replace(node.outputs[0], out)


def _skip_flattening(graph: ir.Graph) -> None:
    """`N C 1 1`, flattened, through activations, back to `N C 1 1`: leave the flattening and its reverse out."""
    for node in list(graph):
        back, end = node.outputs[0], node.inputs[0] if node.inputs else None
        if node.op_type not in ("Reshape", "Unsqueeze") or end is None:
            continue
        inner = [end]
        while len(inner[-1].consumers()) == 1 and (step := inner[-1].producer()) is not None and step.op_type in POINTWISE:
            assert step.inputs[0] is not None
            inner.append(step.inputs[0])
        flat = inner[-1].producer()
        if flat is None or flat.op_type != "Flatten" or len(inner[-1].consumers()) != 1 or len(inner) < 2:
            continue
        pixel = flat.inputs[0]
        if pixel is None or pixel.shape is None or back.shape is None or pixel.shape != back.shape:
            continue
        for value in inner:
            value.shape = back.shape
        _replace(inner[-1], pixel)
        _replace(back, end)


def _dims(value: ir.Value | None) -> tuple[int, ...]:
    """The shape; a dynamic dimension is 0."""
    assert value is not None and value.shape is not None
    return tuple(dim if isinstance(dim, int) else 0 for dim in value.shape)


def _same_batch(first: ir.Value | None, second: ir.Value) -> bool:
    return first is not None and first.shape is not None and second.shape is not None and first.shape[0] == second.shape[0]


def _affine(node: ir.Node) -> tuple[Array, Array | None] | None:
    """Weight `K C` and bias `K` of a Gemm or MatMul that applies constants to `N C`."""
    if node.op_type not in ("Gemm", "MatMul") or (weight := _constant(node.inputs[1])) is None or weight.ndim != 2:
        return None
    if node.op_type == "MatMul":
        return (weight.T, None) if node.inputs[0] is not None and len(_dims(node.inputs[0])) == 2 else None
    attributes = node.attributes
    if attributes.get_int("transA", 0) or any(attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return None
    weight_KC = weight if attributes.get_int("transB", 0) else weight.T
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return weight_KC, None
    bias = _constant(node.inputs[2])
    return None if bias is None else (weight_KC, np.broadcast_to(bias.reshape(-1), (len(weight_KC),)))


def _pooled(x: ir.Value) -> ir.Value | None:
    """The `N C H W` value whose mean over space, flattened, is `x`."""
    node = x.producer()
    if node is not None and node.op_type in ("Reshape", "Flatten", "Squeeze") and _dims(node.inputs[0])[2:] == (1, 1):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type not in ("ReduceMean", "GlobalAveragePool", "AveragePool"):
        return None
    source = node.inputs[0]
    dims = _dims(source)
    if len(dims) != 4 or 0 in dims[1:]:
        return None
    if node.op_type == "ReduceMean":
        axes = _constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return source if axes is not None and sorted(axis % 4 for axis in axes.tolist()) == [2, 3] else None
    if node.op_type == "AveragePool":
        is_global = tuple(node.attributes.get_ints("kernel_shape", ())) == dims[2:]
        return source if is_global and not any(node.attributes.get_ints("pads", ())) else None
    return source
