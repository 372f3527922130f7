"""A cascade as one ONNX graph: the branches one after the other, each behind an `If` that asks whether the one before was sure.

Torch-free. It starts from the flat graph with the logits of every branch, in whatever precision; an exit answers with the weighted
mean of those so far (`thresholds`). In a batch every image gets the answer of its own exit, the same as alone; what lies behind an
exit is computed only where some image of the batch needs it. A second output, `exit`, int64 `N`, counts from 1.

Shapes: `N` images, `K` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .onnx_file import load_onnx, seal_onnx, write_graph
from .thresholds import share_of

if TYPE_CHECKING:
    import onnx

EXIT = "exit"
LAST = "logits_last"  # in the flat graph, those of the last branch


def nest_file(path: Path, thresholds: Sequence[float]) -> None:
    """Rewrite the flat graph at `path` as a cascade."""
    model = load_onnx(path)
    nest(model, thresholds)
    write_graph(path, seal_onnx(model))


def nest(model: onnx.ModelProto, thresholds: Sequence[float]) -> None:
    """Rewrite the graph in place. Its outputs are `logits_1`, `logits_2`, .. and, of the last exit, `logits`; one threshold for
    each but the last."""
    import onnx
    from onnx import TensorProto, helper

    graph = model.graph
    outputs = list(graph.output)
    classes = outputs[-1].type.tensor_type.shape
    parts = segments_of(graph)
    nodes, tensors, (answer, number) = parts.level(0, list(thresholds), "")
    nodes += [helper.make_node("Identity", [answer], ["logits"]), helper.make_node("Identity", [number], [EXIT])]
    batch = classes.dim[0].dim_param or classes.dim[0].dim_value
    del graph.node[:], graph.initializer[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes.dim[1].dim_value])
    graph.output.extend([logits, helper.make_tensor_value_info(EXIT, TensorProto.INT64, [batch])])
    onnx.checker.check_model(model)


def segments_of(graph: onnx.GraphProto) -> Segments:
    """What every exit of a flat graph adds. Its nodes are changed: the name `logits` belongs to the answer of the whole."""
    for node in graph.node:
        for k, name in enumerate(node.output):
            if name == "logits":
                node.output[k] = LAST
    names = [value.name for value in graph.output[:-1]] + [LAST]
    return Segments(list(graph.node), {tensor.name: tensor for tensor in graph.initializer}, names)


@dataclass
class Segments:
    """The flat graph, cut into what every exit adds."""

    nodes: list[onnx.NodeProto]
    tensors: dict[str, onnx.TensorProto]
    logits: list[str]
    segments: list[list[onnx.NodeProto]] = field(init=False)

    def __post_init__(self) -> None:
        maker = {name: node for node in self.nodes for name in node.output}
        place = {id(node): k for k, node in enumerate(self.nodes)}
        done: set[int] = set()
        self.segments = []
        for name in self.logits:
            needed: dict[int, onnx.NodeProto] = {}
            pending = [name]
            while pending:
                node = maker.get(pending.pop())
                if node is not None and id(node) not in needed and id(node) not in done:
                    needed[id(node)] = node
                    pending.extend(node.input)
            self.segments.append(self._own_dequantisers(sorted(needed.values(), key=lambda node: place[id(node)]), maker, done))
            done |= set(needed)

    def _own_dequantisers(
        self, nodes: list[onnx.NodeProto], maker: dict[str, onnx.NodeProto], done: set[int]
    ) -> list[onnx.NodeProto]:
        """An integer kernel needs its DequantizeLinear in the same graph: copies of those that an earlier exit made."""
        import onnx

        copies: dict[str, onnx.NodeProto] = {}
        for node in nodes:
            for k, name in enumerate(node.input):
                source = maker.get(name)
                if source is None or source.op_type != "DequantizeLinear" or id(source) not in done:
                    continue
                if name not in copies:
                    copy = onnx.NodeProto()
                    copy.CopyFrom(source)
                    copy.name = copy.output[0] = f"{name}.again{len(self.segments) + 1}"
                    copies[name] = copy
                node.input[k] = copies[name].output[0]
        return [*copies.values(), *nodes]

    def level(
        self, j: int, thresholds: list[float], before: str
    ) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], tuple[str, str]]:
        """Nodes and constants of exit `j` and of everything behind it, and the names of logits and of the exit of every image.
        `before` names the answer of the exit before."""
        import numpy as np
        from onnx import helper, numpy_helper

        nodes, here = list(self.segments[j]), self.logits[j]
        constants: list[Any] = []
        used = {name for node in nodes for name in node.input}
        # What deeper levels share with this one they find here.
        own = [self.tensors.pop(name) for name in sorted(used & set(self.tensors))]

        def constant(name: str, array: Any) -> str:
            constants.append(numpy_helper.from_array(np.asarray(array), f"exit{j + 1}.{name}"))
            return f"exit{j + 1}.{name}"

        def add(operator: str, *inputs: str, **attributes: Any) -> str:
            out = f"exit{j + 1}.{operator}_{len(nodes)}"
            nodes.append(helper.make_node(operator, list(inputs), [out], out, **attributes))
            return out

        if before:
            share = constant("share", np.float32(share_of(j)))
            here = add("Add", before, add("Mul", add("Sub", here, before), share))
        rows = add("Shape", here, start=0, end=1)
        number = add("Expand", constant("number", np.array([j + 1], np.int64)), rows)
        answer = here
        if j < len(thresholds):
            limit = constant("threshold", np.float32(thresholds[j]))
            axis = constant("axis", np.array([1], np.int64))
            confidence = add("ReduceMax", add("Softmax", here, axis=1), axis, keepdims=0)
            sure = add("GreaterOrEqual", confidence, limit)
            everyone = add("GreaterOrEqual", add("ReduceMin", confidence, keepdims=0), limit)
            inner, tensors, (deeper, deeper_number) = self.level(j + 1, thresholds, here)
            mixed, mixed_number = f"exit{j + 1}.mixed", f"exit{j + 1}.mixed_number"
            inner += [
                helper.make_node("Unsqueeze", [sure, axis], [f"{mixed}.sure"], f"{mixed}.sure"),
                helper.make_node("Where", [f"{mixed}.sure", here, deeper], [mixed], mixed),
                helper.make_node("Where", [sure, number, deeper_number], [mixed_number], mixed_number),
            ]
            stay = [helper.make_node("Identity", [name], [f"{name}.stay"], f"{name}.stay") for name in (here, number)]
            leave = _subgraph(f"leave{j + 1}", stay, [f"{here}.stay", f"{number}.stay"], [])
            go_on = _subgraph(f"behind{j + 1}", inner, [mixed, mixed_number], tensors)
            answer, number = f"exit{j + 1}.logits", f"exit{j + 1}.exit"
            nodes.append(helper.make_node("If", [everyone], [answer, number], f"exit{j + 1}", then_branch=leave, else_branch=go_on))
        return nodes, [*own, *constants], (answer, number)


def _subgraph(name: str, nodes: Sequence[Any], outputs: Sequence[str], tensors: Sequence[Any]) -> Any:
    from onnx import TensorProto, helper

    kinds = (TensorProto.FLOAT, TensorProto.INT64)
    values = [helper.make_tensor_value_info(out, kind, None) for out, kind in zip(outputs, kinds, strict=True)]
    return helper.make_graph(list(nodes), name, [], values, list(tensors))
