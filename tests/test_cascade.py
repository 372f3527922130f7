"""A cascade as one file: every image gets the logits of its own exit, alone and in company, and the rest is not computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from kdzoo.export.cascade import nest_file
from kdzoo.export.onnx_file import OnnxRunner, check_onnx
from kdzoo.export.thresholds import confidence_of, exits_of, so_far
from kdzoo.tests.small_cascade import NEVER, OUTPUTS, flat_cascade
from kdzoo.tests.small_students import raw_images


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return flat_cascade(tmp_path_factory.mktemp("flat"))


def files(flat: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Copies, to be nested."""
    return {name: Path(shutil.copy(path, folder)) for name, path in flat.items()}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_image_gets_the_logits_of_its_own_exit(flat: dict[str, Path], precision: str, tmp_path: Path) -> None:
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


def test_what_lies_behind_an_exit_stands_in_the_branch_of_a_condition(flat: dict[str, Path], tmp_path: Path) -> None:
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


def test_thresholds_that_nobody_reaches_give_the_last_exit(flat: dict[str, Path], tmp_path: Path) -> None:
    path, images = files(flat, tmp_path)["fp32"], raw_images(8)
    outputs = OnnxRunner(path).everything(images)
    expected = so_far([outputs[name] for name in OUTPUTS])[-1]
    nest_file(path, (NEVER, NEVER))
    found = OnnxRunner(path).everything(images)
    assert set(found["exit"]) == {3} and np.abs(found["logits"] - expected).max() < 1e-5
