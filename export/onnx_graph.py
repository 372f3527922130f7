"""The ONNX emitter: one student in, one file out that every consumer takes (onnxruntime, TensorRT, TensorRT-RTX).

`deployed.py` says what is deployed and rewrites the exporter's graph; here it becomes bytes, a file, and a running session.
The same student and arguments give the same bytes in any process and folder. The last entry of `metadata_props` is a
checksum of all bytes before it, so a file proves itself without its manifest.

Shapes: `N` images, `H` `W` space, `C` channels, `K` classes. Heavy packages are imported inside the functions.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import __version__
from ..errors import EnvironmentProblem, GateFailed, IntegrityError, UsageError
from ..zoo.files import write_bytes

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir
    from torch import nn

DEFAULT_OPSET = 20
OPSETS = range(18, 24)
MAX_BYTES = 1_500_000_000
CHECKSUM = "kdzoo.sha256_of_all_before"

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxInfo:
    """What was written; `inputs` and `outputs` are `(name, dtype, shape)`, a dynamic dimension is its name."""

    path: Path
    opset: int
    ir_version: int
    nodes: int
    inputs: tuple[tuple[str, str, Dims], ...]
    outputs: tuple[tuple[str, str, Dims], ...]
    bytes: int
    sha256: str
    producer: str


def export_onnx(
    student: nn.Module,
    path: str | os.PathLike[str],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    height: int,
    width: int,
    batch: tuple[int, int, int] = (1, 8, 64),
    input: Literal["uint8", "float"] = "uint8",
    precision: Literal["fp32", "fp16"] = "fp32",
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> OnnxInfo:
    """Write `student` (normalised float32 `N C H W` to logits `N K`, in eval mode) to one ONNX file, whole or not at all.

    `batch` is `(min, opt, max)`: the batch is the dynamic dimension `N`, unless the three are one number.
    """
    if (opset := opset or DEFAULT_OPSET) not in OPSETS:
        raise UsageError(f"cannot write ONNX opset {opset}", known=[str(version) for version in OPSETS])
    if student.training:
        raise UsageError("the student is in training mode", hint="call .eval() first")
    from .deployed import specialise

    with _quiet():
        model = _trace(student, mean, std, (height, width), batch, input, opset)
        specialise(model, precision)
        data = seal_onnx(_pinned(model, metadata or {}))
    if len(data) > MAX_BYTES:
        raise UsageError(f"the graph has {len(data)} bytes; a single file holds {MAX_BYTES}", hint="use fp16")
    write_bytes(Path(path), data)
    return describe_onnx(path)


def describe_onnx(path: str | os.PathLike[str]) -> OnnxInfo:
    """Read what a file says about itself."""
    import onnx

    data = _read(path)
    model = _parse(path, data)

    def spec(value: onnx.ValueInfoProto) -> tuple[str, str, Dims]:
        tensor = value.type.tensor_type
        dims = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        return value.name, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), dims

    return OnnxInfo(
        path=Path(path),
        opset=next(entry.version for entry in model.opset_import if not entry.domain),
        ir_version=model.ir_version,
        nodes=len(model.graph.node),
        inputs=tuple(map(spec, model.graph.input)),
        outputs=tuple(map(spec, model.graph.output)),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        producer=f"{model.producer_name} {model.producer_version}",
    )


def check_onnx(path: str | os.PathLike[str]) -> None:
    """The checksum, the full checker with shape inference, a load in onnxruntime."""
    import onnx
    import onnxruntime

    model = _parse(path, _read(path))
    try:
        onnx.checker.check_model(model, full_check=True)
        OnnxRunner(path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateFailed(f"{path} fails the ONNX checker: {error}") from error
    except onnxruntime.capi.onnxruntime_pybind11_state.OrtException as error:
        raise GateFailed(f"{path} does not load in onnxruntime: {error}") from error


class OnnxRunner:
    """An onnxruntime session tuned for latency; `threads=None` takes the physical cores."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        import onnxruntime

        if missing := [name for name in providers if name not in onnxruntime.get_available_providers()]:
            raise EnvironmentProblem(
                f"onnxruntime has no {' or '.join(missing)}",
                known=onnxruntime.get_available_providers(),
                hint="install onnxruntime-gpu for the CUDA and TensorRT providers",
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.fspath(path), options, providers=list(providers))
        self.input = self.session.get_inputs()[0].name

    def __call__(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Logits float32 `N K` of images uint8 `N H W C` (or float32 `N C H W`, where the graph was exported so)."""
        logits: np.ndarray[Any, Any] = self.session.run(None, {self.input: images})[0]
        return logits


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
                output_names=["logits"],
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


def _pinned(model: ir.Model, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """What is serialised depends on nothing but the student and the arguments: no source paths, no counters, no time."""
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    passes.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    graph.name, model.doc_string, model.domain, model.model_version = "kdzoo", None, None, None
    model.producer_name, model.producer_version = "kdzoo", __version__
    model.metadata_props.clear()
    model.metadata_props.update(sorted(metadata.items()))
    for value in list(graph.initializers.values()):
        name = (value.name or "").removeprefix("student.")
        if name not in graph.initializers:
            value.name = name
    outputs = set(graph.outputs)
    for number, node in enumerate(graph):
        node.name = f"{node.op_type}_{number}"
        for position, value in enumerate(node.outputs):
            if value not in outputs:
                # Every consumer infers the shapes in between.
                value.name, value.shape, value.type = f"{node.name}.{position}", None, None
    proto = ir.serde.serialize_model(model)
    # What is left are the shapes of constants, known anyway, with the exporter's notes.
    del proto.graph.value_info[:]
    for entry in (*proto.graph.input, *proto.graph.output):
        del entry.metadata_props[:]
    return proto


def seal_onnx(model: onnx.ModelProto) -> bytes:
    """The bytes of a model with their checksum behind them; a checksum from before is replaced."""
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != CHECKSUM]
    del model.metadata_props[:]
    for key, value in kept:
        model.metadata_props.add(key=key, value=value)
    body: bytes = model.SerializeToString(deterministic=True)
    return body + _seal(body)


def _seal(body: bytes) -> bytes:
    import onnx

    # Protobuf messages concatenate: a model with one metadata entry, behind the body, adds that entry to it.
    seal = onnx.ModelProto()
    seal.metadata_props.add(key=CHECKSUM, value=hashlib.sha256(body).hexdigest())
    data: bytes = seal.SerializeToString(deterministic=True)
    return data


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _parse(path: str | os.PathLike[str], data: bytes) -> onnx.ModelProto:
    """A whole and unchanged file, or IntegrityError. Files of other producers carry no checksum; they only have to parse."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise IntegrityError(f"{path} is damaged or is not ONNX", hint="export or download it again") from error
    size = len(_seal(b""))
    is_sealed = model.producer_name == "kdzoo" or any(entry.key == CHECKSUM for entry in model.metadata_props)
    # Cut at a field boundary, protobuf still parses: a model without outputs or opset is a damaged file too.
    if not model.graph.output or not model.opset_import or (is_sealed and data[-size:] != _seal(data[:-size])):
        raise IntegrityError(f"{path} is damaged, or was changed after its export", hint="export or download it again")
    return model
