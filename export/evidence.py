"""The images that an export stands on: to measure its files, to calibrate them, to find the thresholds of a cascade."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..zoo.checkpoint import Checkpoint
from ..zoo.datasets import EncodedImages, ImageSplit, find_data, held_out, open_split
from ..zoo.target import Target
from .measure import check_classes
from .outputs import torch_outputs
from .thresholds import Answers, Thresholds, find_thresholds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.student import Student

Say = Callable[[str], None]


def evidence(checkpoint: Checkpoint, data: Path | None, say: Say) -> tuple[ImageSplit, NDArray[np.int64] | None]:
    """Real images to compare on: the test split, with its labels, where it is at hand.

    Raises:
        DataError: the user named data that does not exist or has other classes.
    """
    manifest = checkpoint.manifest
    try:
        path = find_data(manifest.dataset, data)
    except DataError:
        if data is not None:
            raise
        samples = checkpoint.samples()
        say(
            f"the test images of {manifest.dataset} are not at hand, so accuracy is not measured again; --data names them. "
            f"Parity is measured on the {len(samples)} images that the checkpoint carries"
        )
        return samples, None
    split = open_split(path, "test", manifest.preprocess)
    check_classes(split, manifest.classes, path)
    return split, split.labels


def training_images(checkpoint: Checkpoint, data: Path | None) -> ImageSplit | None:
    """The training images, for calibration; None where they are not at hand."""
    manifest = checkpoint.manifest
    try:
        split = open_split(find_data(manifest.dataset, data), "train", manifest.preprocess, dataset=manifest.dataset, lazy=True)
    except DataError:
        return None
    check_classes(split, manifest.classes, Path(split.source))
    return split


def find_exits(checkpoint: Checkpoint, student: Student, training: ImageSplit | None, limit: float, say: Say) -> Thresholds:
    """The thresholds of a cascade, from the training images that the run has held out.

    Raises:
        DataError: they are not at hand. GateFailed: no early exit loses as little as `limit`.
    """
    from ..zoo.profile import profile
    from ..zoo.student import Several, select

    assert isinstance(student, Several)
    manifest = checkpoint.manifest
    count = manifest.recipe["holdout"]
    if training is None:
        raise DataError("the thresholds of a cascade are found on training images, and none are at hand", hint="--data names them")
    held = held_out(training, count)[1]
    images = held.decode() if isinstance(held, EncodedImages) else held
    say(f"finding thresholds on {len(images)} images that training has not seen")
    outputs = torch_outputs(student, manifest.preprocess, images.images)
    network, size = checkpoint.network(), (manifest.preprocess.height, manifest.preprocess.width)
    so_far = ["+".join(student.words[: j + 1]) for j in range(len(student.words))]
    macs = [profile(select(network, Target.parse(text)), *size).macs for text in so_far]
    found = find_thresholds(Answers.of(list(outputs.values()), images.labels, macs), limit)
    say(
        f"exits take {', '.join(f'{100 * share:.0f} %' for share in found.shares)} of the images, "
        f"{100 * (1 - found.macs / macs[-1]):.0f} % fewer multiply-adds; top-1 {found.loss:+.2f} points lost, "
        f"at most {found.bound:.2f} with 95 %"
    )
    return found
