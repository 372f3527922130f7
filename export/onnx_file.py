"""An ONNX file: what it says of itself, its checksum, a running session of it.

The last entry of `metadata_props` of ours is a checksum of all bytes before it, so a file proves itself without its manifest.

Shapes: `N` images, `H` `W` space, `C` channels, `K` classes. Heavy packages are imported inside the functions.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentProblem, GateFailed, IntegrityError, UsageError
from ..zoo.files import write_bytes

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir

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


def describe_onnx(path: str | os.PathLike[str]) -> OnnxInfo:
    """Read what a file says about itself."""
    import onnx

    data = _read(path)
    model = _parse(path, data)

    def spec(value: onnx.ValueInfoProto) -> tuple[str, str, Dims]:
        tensor = value.type.tensor_type
        dims = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        try:
            return value.name, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), dims
        except KeyError:
            raise IntegrityError(f"{path}: {value.name} is no tensor of numbers", hint="export or download it again") from None

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is None:
        raise IntegrityError(f"{path} does not say which opset of ONNX it is in", hint="export or download it again")

    return OnnxInfo(
        path=Path(path),
        opset=opset,
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

    model = _parse(path, _read(path))
    try:
        onnx.checker.check_model(model, full_check=True)
        OnnxRunner(path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateFailed(f"{path} fails the ONNX checker: {error}") from error
    except load_errors() as error:
        raise GateFailed(f"{path} does not load in onnxruntime: {error}") from error


def load_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises for a graph that it does not take: one class for each of its codes, and no class above them."""
    import onnxruntime

    state = vars(onnxruntime.capi.onnxruntime_pybind11_state)
    return tuple(each for each in state.values() if isinstance(each, type) and issubclass(each, Exception))


class OnnxRunner:
    """An onnxruntime session tuned for latency, of a file or of its bytes; `threads=None` takes the physical cores.

    onnxruntime takes the processor where a provider fails; here the first of `providers` runs, or it is an `EnvironmentProblem`.
    `in_turns`: threads do not spin after a call. `nodes`: with `count_nodes`, how many nodes went to which provider, where
    onnxruntime can tell.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | bytes,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        *,
        in_turns: bool = False,
        count_nodes: bool = False,
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
        if in_turns:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if count_nodes:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        model = path if isinstance(path, bytes) else os.fspath(path)
        # Its own fallback would print on stdout and go on without the provider.
        self.session = onnxruntime.InferenceSession(model, options, providers=list(providers), enable_fallback=0)
        if (running := self.session.get_providers()[0]) != providers[0]:
            raise EnvironmentProblem(
                f"onnxruntime was asked for {providers[0]} and took {running}",
                hint="its libraries of CUDA, cuDNN or TensorRT do not load: kdzoo doctor",
            )
        self.input = self.session.get_inputs()[0].name
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.nodes: Counter[str] = Counter()
        if count_nodes and hasattr(self.session, "get_provider_graph_assignment_info"):  # older ones cannot tell
            for part in self.session.get_provider_graph_assignment_info():
                self.nodes[part.ep_name] += len(part.get_nodes())

    def __call__(self, images: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Logits float32 `N K` of images uint8 `N H W C` (or float32 `N C H W`, where the graph was exported so)."""
        logits: np.ndarray[Any, Any] = self.session.run(["logits"], self._feeds(images))[0]
        return logits

    def everything(self, images: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """All outputs by name."""
        return dict(zip(self.outputs, self.session.run(self.outputs, self._feeds(images)), strict=True))

    def _feeds(self, images: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        return images if isinstance(images, dict) else {self.input: images}


def load_onnx(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """A whole and unchanged file, to be rewritten."""
    return _parse(path, _read(path))


def load_ir(path: str | os.PathLike[str]) -> ir.Model:
    """As `load_onnx`, in the form in which graphs are rewritten."""
    import onnx_ir as ir

    return ir.serde.deserialize_model(load_onnx(path))


def write_graph(path: str | os.PathLike[str], data: bytes) -> None:
    """A sealed graph to one file; raises `UsageError` where it is too large for one."""
    if len(data) > MAX_BYTES:
        raise UsageError(f"the graph has {len(data)} bytes; a single file holds {MAX_BYTES}", hint="use fp16")
    write_bytes(Path(path), data)


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
