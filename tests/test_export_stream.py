"""A test split that is decoded batch by batch is measured like one in memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdzoo.export import evidence, exporter, measure_rounds, verify
from kdzoo.export.format import Batch, ExportOptions
from kdzoo.export.measure import measure_package
from kdzoo.export.outputs import torch_logits, torch_outputs
from kdzoo.tests.small_packages import save_toy_checkpoint
from kdzoo.zoo.datasets import EncodedImages, LabelledImages, open_split, read_split
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.target import Target

pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.slow]


def test_a_streamed_split_gives_the_figures_of_one_in_memory_and_is_never_decoded_as_a_whole(
    toys: LabelledImages, preprocess: Preprocess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """45 pictures that are scaled by the short side; the last batch of six is filled up."""
    checkpoint = save_toy_checkpoint(tmp_path / "checkpoint", toys, replace(preprocess, resize=36))
    for name in toys.classes:
        (tmp_path / "data" / name).mkdir(parents=True)
    for number, (pixels, label) in enumerate(zip(toys.images, toys.labels, strict=True)):
        Image.fromarray(pixels).resize((50, 40)).save(tmp_path / "data" / toys.classes[label] / f"{number}.png")
    split = read_split(tmp_path / "data", "test", checkpoint.manifest.preprocess)

    decode = EncodedImages.decode

    def decode_few(self: EncodedImages, workers: int = 0) -> LabelledImages:
        assert len(self) <= exporter.NUM_GOLDEN, "more than the golden images and a batch are in memory at once"
        return decode(self, workers)

    monkeypatch.setattr(EncodedImages, "decode", decode_few)
    for module in (evidence, verify):
        monkeypatch.setattr(module, "open_split", partial(open_split, lazy=True))
    for module, name in ((exporter, "PROBED"), (measure_rounds, "SAMPLE")):
        monkeypatch.setattr(module, name, exporter.NUM_GOLDEN)
    options = ExportOptions(input="float", batch=Batch.parse("6"))
    package = exporter.export(checkpoint, Target.parse("1"), options=options, output=tmp_path / "package", data=tmp_path / "data")
    student, found = exporter.load_student(package), package.metrics
    artifacts, labels = package.artifacts, split.labels
    measured = measure_package(
        package.folder, student, package.preprocess, artifacts, split, labels, options,
        torch_outputs(student, package.preprocess, split), lambda line: None,
    )  # fmt: skip
    for one in (found["artifacts"][artifacts[0].path], measured.artifacts[artifacts[0].path]):
        assert one.pop("latency")
    assert found["artifacts"] == measured.artifacts and found["reference"] == measured.reference
    assert found["reference"]["n"] == 45 and found["artifacts"][artifacts[0].path]["parity"]["n"] == 45
    verified = verify.verify_package(package, tmp_path / "data")["artifacts"][artifacts[0].path]
    assert verified["accuracy"] == found["artifacts"][artifacts[0].path]["accuracy"]

    images, logits = package.golden()
    assert package.preprocess.resize == 36 and np.array_equal(images, split.images[:8])
    assert np.array_equal(logits, torch_logits(student, package.preprocess, split.images[:8]))
