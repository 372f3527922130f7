"""A small cascade: its graph before it is nested."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from kdzoo.export.onnx_file import write_graph
from kdzoo.export.onnx_graph import trace_onnx, write_onnx
from kdzoo.export.quantize import calibrate, quantise
from kdzoo.tests.small_students import SIZE, conv_bn, raw_images
from kdzoo.zoo.network import IMAGE, MultiBranch
from kdzoo.zoo.student import select
from kdzoo.zoo.target import Target

OUTPUTS = ("logits_1", "logits_2", "logits")
NEVER = 2.0  # a threshold: no probability reaches it


def flat_cascade(folder: Path) -> dict[str, Path]:
    """Three exits along a chain of stages, logits of different sureness, in float32 and in eight bits; not nested yet."""
    torch.manual_seed(0)
    network, node = MultiBranch(), IMAGE
    for number, (inputs, outputs) in enumerate(((3, 8), (8, 16), (16, 24)), start=1):
        node = network.add(f"stage{number}", conv_bn(inputs, outputs, 2), node)
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 10))
        nn.init.normal_(head[-1].weight, 0, 4.0)
        network.add_branch(node, head)
    network.target_branch = 3
    student = select(network.eval(), Target.parse("cascade"))
    assert student.output_names() == OUTPUTS
    path = write_onnx(trace_onnx(student, **SIZE), folder / "fp32.onnx").path
    write_graph(folder / "int8.onnx", quantise(path, calibrate(path, raw_images(32)), "unsigned").data)
    return {"fp32": path, "int8": folder / "int8.onnx"}
