"""The tracing of a student, which takes seconds, done once for all tests of a run that only need its graph.

What tracing itself does is tested without this, in `test_onnx_graph`, `test_contract`, `test_export`.
"""

from __future__ import annotations

import gc
import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from torch import nn

from kdzoo.export import onnx_graph

folder: Path | None = None  # of the run: what its processes have in common
TRACES: dict[str, bytes] = {}
plain_trace = onnx_graph._trace


@cache
def read_operators_once() -> None:
    """For every graph the exporter parses the sources of its five hundred operators anew, which takes as long as a small graph."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign, assignment]
    ONNXRegistry.from_torchlib(opset_version=onnx_graph.DEFAULT_OPSET)
    gc.collect()
    gc.freeze()  # as after collection, in conftest


def trace(*arguments: Any) -> ir.Model:
    """As `onnx_graph._trace`, which it replaces in every test."""
    read_operators_once()
    return plain_trace(*arguments)


onnx_graph._trace = trace


def digest(student: nn.Module, arguments: tuple[Any, ...]) -> str:
    """Of everything that decides the graph: the class, the layers, how they are wired, the weights, the options."""
    wiring = {name: getattr(student, name, None) for name in ("inputs", "calls", "outputs", "words", "main")}
    found = hashlib.sha256(repr((type(student), student, wiring, arguments)).encode())
    for name, tensor in student.state_dict().items():
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def trace_once(student: nn.Module, *arguments: Any) -> ir.Model:
    """As `onnx_graph._trace`; every caller gets a graph of its own."""
    key = digest(student, arguments)
    if key not in TRACES:
        assert folder is not None, "the fixture `run_folder` says where"
        path = folder / f"trace-{key}.onnx"
        if not path.is_file():
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(ir.serde.serialize_model(trace(student, *arguments)).SerializeToString())
            part.replace(path)
        TRACES[key] = path.read_bytes()
    return ir.serde.deserialize_model(onnx.load_model_from_string(TRACES[key]))
