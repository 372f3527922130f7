"""A cascade as one file: every image gets the logits of its own exit, alone and in company, and the rest is not computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from kdzoo.export.cascade import nest_file
from kdzoo.export.onnx_file import OnnxRunner, check_onnx, write_graph
from kdzoo.export.onnx_graph import trace_onnx, write_onnx
from kdzoo.export.quantize import calibrate, quantise
from kdzoo.export.thresholds import NEVER, confidence_of, exits_of, so_far
from kdzoo.tests.small_students import SIZE, conv_bn, raw_images
from kdzoo.zoo.network import IMAGE, MultiBranch
from kdzoo.zoo.student import select
from kdzoo.zoo.target import Target

OUTPUTS = ("logits_1", "logits_2", "logits")


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three exits along a chain of stages, logits of different sureness; not nested yet."""
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
    return write_onnx(trace_onnx(student, **SIZE), tmp_path_factory.mktemp("flat") / "flat.onnx").path


def files(flat: Path, folder: Path) -> dict[str, Path]:
    """The flat graph in float32 and in eight bits."""
    made = quantise(flat, calibrate(flat, raw_images(32)), "unsigned")
    write_graph(folder / "int8.onnx", made.data)
    (folder / "fp32.onnx").write_bytes(flat.read_bytes())
    return {"fp32": folder / "fp32.onnx", "int8": folder / "int8.onnx"}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_image_gets_the_logits_of_its_own_exit(flat: Path, precision: str, tmp_path: Path) -> None:
    path, images = files(flat, tmp_path)[precision], raw_images(48)
    outputs = OnnxRunner(path).everything(images)
    answers = so_far([outputs[name] for name in OUTPUTS])
    confidence = np.stack([confidence_of(z) for z in answers], axis=1)
    thresholds = tuple(float(t) for t in np.median(confidence[:, :2], axis=0) + 1e-4)
    nest_file(path, thresholds)
    check_onnx(path)
    leave, run = exits_of(confidence, thresholds), OnnxRunner(path)
    assert set(leave) == {0, 1, 2}
    expected = np.stack(answers)[leave, np.arange(48)]
    found = run.everything(images)
    assert (found["exit"] == leave + 1).all() and np.abs(found["logits"] - expected).max() < 1e-4
    for i in range(12):
        alone = run.everything(images[i : i + 1])
        assert alone["exit"][0] == leave[i] + 1 and np.abs(alone["logits"][0] - expected[i]).max() < 1e-4


def test_what_lies_behind_an_exit_stands_in_the_branch_of_a_condition(flat: Path, tmp_path: Path) -> None:
    path = files(flat, tmp_path)["fp32"]
    nest_file(path, (0.5, 0.5))
    graph, found = onnx.load(path).graph, []
    while True:
        found.append([node.op_type for node in graph.node].count("Conv"))
        condition = next((node for node in graph.node if node.op_type == "If"), None)
        if condition is None:
            break
        bodies = {attribute.name: attribute.g for attribute in condition.attribute}
        assert not [n for n in bodies["then_branch"].node if n.op_type != "Identity"]
        graph = bodies["else_branch"]
    assert found == [2, 2, 2]  # a stage and a classifier each


def test_thresholds_that_nobody_reaches_give_the_last_exit(flat: Path, tmp_path: Path) -> None:
    path, images = files(flat, tmp_path)["fp32"], raw_images(8)
    outputs = OnnxRunner(path).everything(images)
    expected = so_far([outputs[name] for name in OUTPUTS])[-1]
    nest_file(path, (NEVER, NEVER))
    found = OnnxRunner(path).everything(images)
    assert set(found["exit"]) == {3} and np.abs(found["logits"] - expected).max() < 1e-5
