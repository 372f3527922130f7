"""A cascade as one ONNX graph per exit, for runtimes that cannot wait behind a condition. `cascade_driver` runs them.

Part 1 reads `image`; every further part reads what it needs of the parts before it, and `before`, the answer so far. Each gives
`logits`, the answer so far, and all but the last `confidence`, the largest softmax probability of it. Torch-free.

Shapes: `N` images, `K` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .cascade import segments_of
from .thresholds import share_of

if TYPE_CHECKING:
    import onnx


def split(model: onnx.ModelProto, num_exits: int) -> list[onnx.ModelProto]:
    """The parts of a flat graph with the logits of `num_exits` branches, which stays as it is."""
    import onnx
    from onnx import TensorProto, helper

    whole = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = onnx.ModelProto()
    graph.CopyFrom(whole)
    flat = segments_of(graph.graph)
    assert len(flat.segments) == num_exits
    kinds = {value.name: value for value in (*whole.graph.input, *whole.graph.value_info)}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    made = [{name for node in nodes for name in node.output} for nodes in flat.segments]
    read = [{name for node in nodes for name in node.input if name} - set(tensors) for nodes in flat.segments]
    last = whole.graph.output[-1].type.tensor_type.shape
    batch, classes = last.dim[0].dim_param or last.dim[0].dim_value, last.dim[1].dim_value
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])
    before = helper.make_tensor_value_info("before", TensorProto.FLOAT, [batch, classes])
    confidence = helper.make_tensor_value_info("confidence", TensorProto.FLOAT, [batch])

    parts = []
    for j, nodes in enumerate(flat.segments):
        is_last = j == num_exits - 1
        later = set().union(*read[j + 1 :])
        inputs = [kinds[name] for name in kinds if name in read[j] - made[j]]
        carried = [kinds[name] for name in kinds if name in made[j] & later]
        own, constants = answer(flat.logits[j], j, is_last)
        used = {name for node in (*nodes, *own) for name in node.input}
        part = onnx.ModelProto()
        part.CopyFrom(model)
        del part.graph.node[:], part.graph.initializer[:], part.graph.input[:], part.graph.output[:], part.graph.value_info[:]
        part.graph.node.extend([*nodes, *own])
        part.graph.initializer.extend([*(tensor for name, tensor in tensors.items() if name in used), *constants])
        part.graph.input.extend([*inputs, *([before] if j else [])])
        part.graph.output.extend([logits, *([] if is_last else [confidence]), *carried])
        part.metadata_props.add(key="kdzoo.part", value=f"{j + 1} of {num_exits}")
        onnx.checker.check_model(part, full_check=True)
        parts.append(part)
    return parts


def answer(here: str, j: int, is_last: bool) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes, and their constants, that make the answer so far of exit `j`, from 0, out of its own logits `here`."""
    import numpy as np
    from onnx import helper, numpy_helper

    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def add(operator: str, inputs: Sequence[str], out: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, list(inputs), [out], out, **attributes))
        return out

    def constant(name: str, value: object) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), f"exit.{name}"))
        return f"exit.{name}"

    if j:
        difference = add("Sub", [here, "before"], "exit.difference")
        step = add("Mul", [difference, constant("share", np.float32(share_of(j)))], "exit.step")
        add("Add", ["before", step], "logits")
    else:
        add("Identity", [here], "logits")
    if not is_last:
        add("Softmax", ["logits"], "exit.softmax", axis=1)
        add("ReduceMax", ["exit.softmax", constant("axis", np.array([1], np.int64))], "confidence", keepdims=0)
    return nodes, constants
