"""A small classifier as ONNX and the request for an engine of it; no torch. Import it as `kdzoo.tests.small_engines`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdzoo.export import tensorrt_build as build
from kdzoo.export.engine_sidecar import installed_version

HAS_RTX = installed_version("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not HAS_RTX, reason="tensorrt_rtx is not installed: pip install tensorrt-rtx")


def write_classifier(path: Path, *, batch: int | str = "N", cast_first: bool = True) -> Path:
    """`image` uint8 N 8 8 3 -> cast, transpose, 3x3 convolution, mean, Gemm -> `logits` float32 N 10."""
    rng = np.random.default_rng(0)
    weights = {"kernel": (16, 3, 3, 3), "bias": (16,), "matrix": (10, 16), "offset": (10,)}
    initializers = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    cast, transpose = {"to": TensorProto.FLOAT}, {"perm": [0, 3, 1, 2]}
    first, second = (("Cast", cast), ("Transpose", transpose)) if cast_first else (("Transpose", transpose), ("Cast", cast))
    nodes = [
        helper.make_node(first[0], ["image"], ["a"], name="first", **first[1]),
        helper.make_node(second[0], ["a"], ["b"], **second[1]),
        helper.make_node("Conv", ["b", "kernel", "bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["c", "axes"], ["d"], keepdims=0),
        helper.make_node("Gemm", ["d", "matrix", "offset"], ["logits"], transB=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, 8, 8, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])
    graph = helper.make_graph(nodes, "classifier", [image], [logits], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def request(folder: Path, **changes: object) -> build.EngineRequest:
    graph = folder / "model.onnx"
    if not graph.exists():
        write_classifier(graph)
    default = build.EngineRequest(graph, folder / "model.engine", "tensorrt_rtx", "8.6", (1, 8, 64))
    return replace(default, **changes)  # type: ignore[arg-type]
