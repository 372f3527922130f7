"""The images that an export stands on: to measure its files, to calibrate them, to find the thresholds of a cascade."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..zoo.checkpoint import Checkpoint
from ..zoo.datasets import EncodedImages, ImageSplit, find_data, held_out, open_split
from ..zoo.target import Target
from .measure import check_classes
from .outputs import torch_outputs
from .request import Request, no_training
from .thresholds import Answers, Thresholds, find_thresholds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.student import Student
    from .torch_answers import NodeLogits

Say = Callable[[str], None]


@dataclass(frozen=True)
class Evidence:
    """Read once for all targets of a checkpoint.

    Attributes:
        images, labels: to compare on: the test split, or the images that the checkpoint carries, which have no labels.
        training: the training images, where they are needed.
        answers: what the whole network says of `images`, by node, where torch was run for several targets at once.
    """

    images: ImageSplit
    labels: NDArray[np.int64] | None
    training: ImageSplit | None = None
    answers: NodeLogits | None = None


def gather_evidence(checkpoint: Checkpoint, request: Request, targets: Iterable[Target], say: Say) -> Evidence:
    """The images that an export of `targets` needs.

    Raises:
        DataError: the user named data that does not exist or has other classes; training images are needed and not at hand.
    """
    what = request.needs_training(targets)
    training = training_images(checkpoint, request.data, what) if what else None
    return Evidence(*compared_images(checkpoint, request, say), training)


def compared_images(checkpoint: Checkpoint, request: Request, say: Say) -> tuple[ImageSplit, NDArray[np.int64] | None]:
    """The test split with its labels; where it is not at hand, the images of the checkpoint."""
    manifest, data = checkpoint.manifest, request.data
    try:
        path = find_data(manifest.dataset, data)
    except DataError:
        if data is not None:
            raise
        samples = checkpoint.samples()
        if request.verify:
            say(
                f"the test images of {manifest.dataset} are not at hand, so accuracy is not measured again; --data names them. "
                f"Parity is measured on the {len(samples)} images that the checkpoint carries"
            )
        return samples, None
    split = open_split(path, "test", manifest.preprocess)
    check_classes(split, manifest.classes, path)
    return split, split.labels


def training_images(checkpoint: Checkpoint, data: Path | None, what: str) -> ImageSplit:
    """The training images. Raises `DataError`, saying `what` they are needed for, where they are not at hand."""
    manifest = checkpoint.manifest
    try:
        split = open_split(find_data(manifest.dataset, data), "train", manifest.preprocess, dataset=manifest.dataset, lazy=True)
    except DataError as error:
        raise no_training(what, error) from None
    check_classes(split, manifest.classes, Path(split.source))
    return split


def find_exits(checkpoint: Checkpoint, student: Student, training: ImageSplit, limit: float, say: Say) -> Thresholds:
    """The thresholds of a cascade, from the training images that the run has held out.

    Raises:
        GateFailed: no early exit loses as little as `limit`.
    """
    from ..zoo.profile import profile
    from ..zoo.student import Several, select

    assert isinstance(student, Several)
    manifest = checkpoint.manifest
    count = manifest.recipe["holdout"]
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
