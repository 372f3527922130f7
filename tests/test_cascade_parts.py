"""A cascade in parts: the driver gives what the nested graph gives, and calls no part for images that have left."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kdzoo.export import cascade_driver
from kdzoo.export.cascade import nest_file
from kdzoo.export.cascade_driver import run_cascade
from kdzoo.export.cascade_parts import split
from kdzoo.export.onnx_file import OnnxRunner, load_onnx, seal_onnx
from kdzoo.export.thresholds import confidence_of, so_far
from kdzoo.tests.small_cascade import NEVER, OUTPUTS, flat_cascade
from kdzoo.tests.small_students import raw_images


class Part:
    """A part in onnxruntime, which notes how many images it was given."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.runner = OnnxRunner(seal_onnx(model))
        self.inputs = [value.name for value in model.graph.input]
        self.seen: list[int] = []

    def __call__(self, known: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        self.seen.append(len(next(iter(known.values()))))
        session = self.runner.session
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, known), strict=True))


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return flat_cascade(tmp_path_factory.mktemp("flat"))


def parts_of(path: Path) -> list[Part]:
    return [Part(model) for model in split(load_onnx(path), 3)]


def middling(path: Path, images: np.ndarray[Any, Any]) -> tuple[float, ...]:
    """Thresholds that some of the images reach and some do not."""
    outputs = OnnxRunner(path).everything(images)
    answers = so_far([outputs[name] for name in OUTPUTS])
    return tuple(float(np.median(confidence_of(z)) + 1e-4) for z in answers[:2])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("count", [48, 1])
def test_the_parts_answer_as_the_nested_graph_does(flat: dict[str, Path], precision: str, count: int, tmp_path: Path) -> None:
    images = raw_images(48)
    thresholds, path = middling(flat[precision], images), Path(shutil.copy(flat[precision], tmp_path))
    nest_file(path, thresholds)
    nested, parts = OnnxRunner(path), parts_of(flat[precision])
    for start in range(0, 48 if count > 1 else 8, count):
        expected = nested.everything(images[start : start + count])
        logits, exits = run_cascade(parts, thresholds, images[start : start + count])
        assert (exits == expected["exit"]).all() and np.abs(logits - expected["logits"]).max() < 1e-4
    if count > 1:
        assert set(exits) == {1, 2, 3}


def test_a_part_gets_only_the_images_that_are_not_sure_yet(flat: dict[str, Path]) -> None:
    parts, images = parts_of(flat["fp32"]), raw_images(48)
    _, exits = run_cascade(parts, middling(flat["fp32"], images), images)
    assert [part.seen for part in parts] == [[48], [(exits > 1).sum()], [(exits > 2).sum()]]


@pytest.mark.parametrize(("thresholds", "exit"), [((0.0, 0.0), 1), ((NEVER, 0.0), 2), ((NEVER, NEVER), 3)])
def test_parts_behind_the_last_image_are_not_called(flat: dict[str, Path], thresholds: Sequence[float], exit: int) -> None:
    parts = parts_of(flat["fp32"])
    _, exits = run_cascade(parts, thresholds, raw_images(5))
    assert set(exits) == {exit} and [len(part.seen) for part in parts] == [1] * exit + [0] * (3 - exit)


def test_a_part_reads_what_the_one_before_it_gives_and_holds_nothing_twice(flat: dict[str, Path]) -> None:
    models = split(load_onnx(flat["fp32"]), 3)
    given = {value.name for value in models[0].graph.output}
    for model in models[1:]:
        needed = {value.name for value in model.graph.input} - {"before"}
        assert len(needed) == 1 and needed <= given
        given |= {value.name for value in model.graph.output}
    convolutions = [sum(node.op_type == "Conv" for node in model.graph.node) for model in models]
    assert convolutions == [2, 2, 2]  # a stage and a classifier each
    filters = [tensor.name for model in models for tensor in model.graph.initializer if len(tensor.dims) == 4]
    assert len(filters) == len(set(filters)) == 6


def test_the_driver_needs_numpy_only() -> None:
    source = Path(cascade_driver.__file__).read_text(encoding="utf-8")
    assert [line for line in source.splitlines() if line.startswith(("import", "from"))] == ["import numpy as np"]
