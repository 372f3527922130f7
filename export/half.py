"""Sixteen bits: a float32 graph becomes one that computes in float16 or bfloat16 between a float32 start and float32 logits.

Torch-free. The image is normalised in float32, then cast; nodes that cannot stand the narrow type (float16 ends at 65,504) are kept
in float32, each between casts of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from ..errors import GateFailed
from .initializers import add_initializer

Sixteen = Literal["fp16", "bf16"]
DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
LARGEST = {"fp16": 65504.0, "bf16": 3.3e38}
MARGIN = 0.5  # a value above this share of the largest number is too near to it: other images give larger ones
# Inputs that stay float32 in any graph: (operator, position).
FLOAT32_INPUTS = {("Resize", 1), ("Resize", 2)}


def normalised(graph: ir.Graph) -> ir.Value:
    """The value that enters the student."""
    value = graph.inputs[0]
    if value.dtype == ir.DataType.FLOAT:
        return value
    for operator in ("Cast", "Transpose", "Sub", "Mul"):
        users = value.consumers()
        if len(users) == 1 and users[0].op_type == operator:
            value = users[0].outputs[0]
    return value


def too_large(ranges: Mapping[str, tuple[float, float]], graph: ir.Graph, precision: Sixteen) -> tuple[str, ...]:
    """Names of the nodes of `graph` whose results come too near to the largest number of the type, by their float32 `ranges`."""
    limit = MARGIN * LARGEST[precision]

    def large(value: ir.Value | None) -> bool:
        low, high = ranges.get(value.name or "", (0.0, 0.0)) if value is not None else (0.0, 0.0)
        return max(-low, high) > limit

    body = _body(graph)
    return tuple(node.name or "" for node in body if any(map(large, (*node.inputs, *node.outputs))))


def halve(graph: ir.Graph, precision: Sixteen, keep_float: Collection[str] = ()) -> None:
    """Rewrite `graph` in place; the nodes named in `keep_float` go on computing in float32.

    Raises:
        GateFailed: a constant is larger than the type can hold.
    """
    narrow = DTYPES[precision]
    entry, body = normalised(graph), _body(graph)
    outputs = list(graph.outputs)
    narrowed: dict[str, ir.Value] = {}
    floats = {value for node in body for value in (*node.inputs, *node.outputs) if value is not None and _is_float(value)}
    kept = {node for node in body if node.name in keep_float}
    for node in body:
        if node in kept:
            continue
        for position, value in enumerate(node.inputs):
            if value is None or (array := _float_constant(value)) is None or (node.op_type, position) in FLOAT32_INPUTS:
                continue
            assert value.name is not None
            if value.name not in narrowed:
                narrowed[value.name] = _narrow_constant(graph, value.name, array, precision)
            node.replace_input_with(position, narrowed[value.name])
        if node.op_type == "Cast" and node.attributes.get_int("to") == ir.DataType.FLOAT.value:
            node.attributes.add(ir.AttrInt64("to", narrow.value))
        for value in node.outputs:
            if _is_float(value):
                value.type = ir.TensorType(narrow)
    produced = {value: node not in kept for node in body for value in node.outputs if value in floats}
    for value, is_narrow in {entry: False, **produced}.items():  # casts where the two sides meet
        users = [(user, at) for user, at in value.uses() if user in body and (user not in kept) != is_narrow]
        if users:
            to = ir.DataType.FLOAT if is_narrow else narrow
            cast = _cast(graph, value, to, before=min((user for user, _ in users), key=body.index))
            for user, at in users:
                user.replace_input_with(at, cast)
    for logits in outputs:
        if not produced.get(logits, False):
            continue
        cast_node = ir.node("Cast", [logits], {"to": ir.DataType.FLOAT.value}, name=f"{logits.name}.float")
        graph.append(cast_node)
        out = cast_node.outputs[0]
        out.shape, out.type = logits.shape, ir.TensorType(ir.DataType.FLOAT)
        out.name, logits.name = logits.name, f"{logits.name}_half"
        graph.outputs[outputs.index(logits)] = out


def _body(graph: ir.Graph) -> list[ir.Node]:
    """The nodes behind the normalisation of the image."""
    before, node = set(), normalised(graph).producer()
    while node is not None:
        before.add(node)
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return [node for node in graph if node not in before]


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, None) and value.const_value is None


def _float_constant(value: ir.Value) -> np.ndarray[Any, Any] | None:
    array = value.const_value.numpy() if value.const_value is not None else None
    return array if array is not None and array.dtype == np.float32 else None


def _narrow_constant(graph: ir.Graph, name: str, array: np.ndarray[Any, Any], precision: Sixteen) -> ir.Value:
    if not np.abs(array).max(initial=0.0) <= LARGEST[precision]:
        raise GateFailed(f"{name} does not fit into {precision}", hint="use fp32")
    return add_initializer(graph, f"{name}.{precision}", array.astype(DTYPES[precision].numpy()), DTYPES[precision])


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType, before: ir.Node) -> ir.Value:
    node = ir.node("Cast", [value], {"to": to.value}, name=f"{value.name}.to_{to.name.lower()}")
    graph.insert_before(before, node)
    out = node.outputs[0]
    out.name, out.shape, out.type = node.name, value.shape, ir.TensorType(to)
    return out
