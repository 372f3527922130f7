"""Constants of a graph. Torch-free."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray[Any, Any], dtype: ir.DataType | None = None) -> ir.Value:
    """A new constant of the graph; `name` is made unique by counting. `dtype` is for types that NumPy lacks."""
    taken, unique, count = graph.initializers, name, 0
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    tensor = ir.tensor(np.array(array, order="C"), dtype=dtype, name=unique)
    value = ir.Value(name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
