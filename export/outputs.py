"""What torch, and what an emitted file, say of images. Torch is imported only where it is asked.

Shapes: `N` images, `H` `W` space, `C` channels, `K` classes, `J` exits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..zoo.preprocess import Preprocess
from .cascade import EXIT
from .package import Artifact
from .parity import in_batches, run_outputs
from .runtime import runtime_for
from .torch_answers import node_logits, student_outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.datasets import ImageSplit
    from ..zoo.student import Student
    from .runtime import Session

    Prepare = Callable[[NDArray[np.uint8]], NDArray[Any]]  # raw images to what the graph takes


def torch_outputs(
    student: Student,
    preprocess: Preprocess,
    images: NDArray[np.uint8] | ImageSplit,
    thresholds: Sequence[float] | None = None,
) -> dict[str, NDArray[Any]]:
    """What torch gives for raw images `N H W C`: see `student_outputs`."""
    return student_outputs(student, node_logits(student, student.outputs, preprocess, images), thresholds)


def torch_logits(student: Student, preprocess: Preprocess, images: NDArray[np.uint8] | ImageSplit) -> NDArray[np.float32]:
    """The `logits` of `torch_outputs`."""
    logits: NDArray[np.float32] = torch_outputs(student, preprocess, images)["logits"]
    return logits


def as_input(images: NDArray[np.uint8], preprocess: Preprocess, kind: str) -> NDArray[Any]:
    """Raw images as the graph takes them: unchanged, or normalised float32 `N C H W`."""
    import numpy as np

    if kind == "uint8":
        return images
    mean, std = np.asarray(preprocess.mean, np.float32), np.asarray(preprocess.std, np.float32)
    return np.ascontiguousarray(((images.astype(np.float32) / 255.0 - mean) / std).transpose(0, 3, 1, 2))


def file_outputs(
    session: Session, artifact: Artifact, images: NDArray[np.uint8] | ImageSplit, prepare: Prepare
) -> dict[str, NDArray[Any]]:
    """All outputs of a file for raw images `N H W C`, in batches of its largest size: `logits` `N K`, and what else it has."""
    smallest, _, largest = artifact.batch
    return run_outputs(session.everything, map(prepare, in_batches(images, largest)), smallest)


def same_exit(found: dict[str, NDArray[Any]], reference: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Which images leave a cascade at the same exit in both, so that their logits can be compared; all, where there are no exits.
    A confidence that lies at its threshold may fall to either side."""
    import numpy as np

    if EXIT not in found or EXIT not in reference:
        return np.ones(len(found["logits"]), bool)
    return found[EXIT] == reference[EXIT]


def run_file_outputs(
    folder: Path, artifact: Artifact, images: NDArray[np.uint8] | ImageSplit, preprocess: Preprocess
) -> dict[str, NDArray[Any]]:
    """All outputs that one file of a package gives for raw images, in the runtime that it is made for."""
    prepare = partial(as_input, preprocess=preprocess, kind="float" if artifact.input.dtype == "float32" else "uint8")
    runtime, _ = runtime_for(artifact)
    with runtime.open(folder, artifact) as session:
        return file_outputs(session, artifact, images, prepare)


def run_file(
    folder: Path, artifact: Artifact, images: NDArray[np.uint8] | ImageSplit, preprocess: Preprocess
) -> NDArray[np.float32]:
    """The logits `N K` of `run_file_outputs`."""
    logits: NDArray[np.float32] = run_file_outputs(folder, artifact, images, preprocess)["logits"]
    return logits
