"""The ONNX emitter: one student in, one graph out that every consumer takes (onnxruntime, TensorRT, TensorRT-RTX).

`deployed.py` says what is deployed and rewrites the exporter's graph; here it is traced once, and written in each precision.
The same student and arguments give the same bytes in any process and folder.

Shapes: `N` images, `H` `W` space, `C` channels, `K` classes. Heavy packages are imported inside the functions.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .. import __version__
from ..errors import GateFailed, UsageError
from .interrupts import interrupted_later
from .onnx_file import OnnxInfo, describe_onnx, seal_onnx, write_graph

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from torch import nn

DEFAULT_OPSET = 20
OPSETS = range(18, 24)
BFLOAT16_OPSET = 22

Precision = Literal["fp32", "fp16", "bf16"]


def export_onnx(
    student: nn.Module,
    path: str | os.PathLike[str],
    *,
    precision: Precision = "fp32",
    metadata: Mapping[str, str] | None = None,
    **how: Any,
) -> OnnxInfo:
    """`trace_onnx`, with the arguments `how`, and `write_onnx` in one."""
    return write_onnx(trace_onnx(student, **how), path, precision, metadata=metadata)


def trace_onnx(
    student: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    height: int,
    width: int,
    batch: tuple[int, int, int] = (1, 8, 64),
    input: Literal["uint8", "float"] = "uint8",
    opset: int | None = None,
) -> ir.Model:
    """The optimised float32 graph of `student` (normalised float32 `N C H W` to logits `N K`, in eval mode), from which every
    precision is written.

    `batch` is `(min, opt, max)`: the batch is the dynamic dimension `N`, unless the three are one number.

    Raises:
        UsageError: an opset that is not supported, a student in training mode. GateFailed: torch cannot export it.
    """
    if (opset := opset or DEFAULT_OPSET) not in OPSETS:
        raise UsageError(f"cannot write ONNX opset {opset}", known=[str(version) for version in OPSETS])
    if student.training:
        raise UsageError("the student is in training mode", hint="call .eval() first")
    with interrupted_later():
        from .deployed import specialise

    with _quiet():
        model = _trace(student, mean, std, (height, width), batch, input, opset)
        specialise(model)
        _pin_names(model)
    return model


def write_onnx(
    model: ir.Model,
    path: str | os.PathLike[str],
    precision: Precision = "fp32",
    *,
    metadata: Mapping[str, str] | None = None,
    keep_float: Collection[str] = (),
) -> OnnxInfo:
    """Write one precision of a traced graph, which stays as it is, to one file, whole or not at all. Nodes named in `keep_float`
    stay float32 in a narrower graph."""
    import onnx_ir as ir

    from .deployed import fold_scale
    from .half import halve

    model = ir.serde.deserialize_model(ir.serde.serialize_model(model))
    if precision == "fp32":
        fold_scale(model.graph)
    else:
        halve(model.graph, precision, keep_float)
    if precision == "bf16":  # the first opset whose convolution takes it; for our operators nothing else has changed since 18
        model.graph.opset_imports[""] = max(model.graph.opset_imports[""], BFLOAT16_OPSET)
    data = seal_onnx(_bare(model, metadata or {}))
    write_graph(path, data)
    return describe_onnx(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on stdout, which belongs to our JSON, and warns about itself."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _trace(
    student: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int],
    batch: tuple[int, int, int],
    input: Literal["uint8", "float"],
    opset: int,
) -> ir.Model:
    """The exporter's graph of the float32 network, optimised: half precision comes later, so that BN folds in float32."""
    import onnx_ir.passes.common as passes
    import torch

    from .deployed import Deployed

    deployed = Deployed(student, mean=mean, std=std, input=input).eval()
    is_static = batch[0] == batch[2]
    num, channels = batch[0] if is_static else 2, len(mean)
    device = next((tensor.device for tensor in student.parameters()), torch.device("cpu"))
    shape = (num, *size, channels) if input == "uint8" else (num, channels, *size)
    image = torch.zeros(shape, dtype=torch.uint8 if input == "uint8" else torch.float32, device=device)
    dynamic = None if is_static else ({0: torch.export.Dim("N")},)
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                deployed,
                (image,),
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=["image"],
                output_names=list(getattr(student, "output_names", lambda: ("logits",))()),
                opset_version=opset,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise GateFailed(
            f"the student cannot be exported to ONNX: {error}",
            hint="its forward may not depend on the values of tensors, nor fix the batch size",
        ) from error
    assert program is not None
    passes.DeduplicateHashedInitializersPass()(program.model)
    return program.model


def _pin_names(model: ir.Model) -> None:
    """Names depend on nothing but the student and the arguments: no source paths, no counters, no time."""
    import onnx_ir.passes.common as passes

    passes.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    graph.name, model.doc_string, model.domain, model.model_version = "kdzoo", None, None, None
    model.producer_name, model.producer_version = "kdzoo", __version__
    for value in list(graph.initializers.values()):
        name = (value.name or "").removeprefix("student.")
        if name not in graph.initializers:
            value.name = name
    outputs = set(graph.outputs)
    for number, node in enumerate(graph):
        node.name = f"{node.op_type}_{number}"
        for position, value in enumerate(node.outputs):
            if value not in outputs:
                value.name = f"{node.name}.{position}"


def _bare(model: ir.Model, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The model without the shapes in between, which every consumer infers, and with our metadata."""
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    model.metadata_props.clear()
    model.metadata_props.update(sorted(metadata.items()))
    proto = ir.serde.serialize_model(model)
    del proto.graph.value_info[:]
    for entry in (*proto.graph.input, *proto.graph.output):
        del entry.metadata_props[:]
    return proto
