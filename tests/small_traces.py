"""The tracing of a student, which takes seconds, done once for all tests of a process that only need its graph.

What tracing itself does is tested without this, in `test_onnx_graph`, `test_contract`, `test_export`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import onnx
import onnx_ir as ir
from torch import nn

from kdzoo.export import onnx_graph

TRACES: dict[str, bytes] = {}
trace = onnx_graph._trace


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
        TRACES[key] = ir.serde.serialize_model(trace(student, *arguments)).SerializeToString()
    return ir.serde.deserialize_model(onnx.load_model_from_string(TRACES[key]))
