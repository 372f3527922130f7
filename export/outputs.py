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

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.datasets import ImageSplit
    from ..zoo.student import Student
    from .onnx_file import OnnxRunner

    Prepare = Callable[[NDArray[np.uint8]], NDArray[Any]]  # raw images to what the graph takes


def torch_outputs(
    student: Student,
    preprocess: Preprocess,
    images: NDArray[np.uint8] | ImageSplit,
    thresholds: Sequence[float] | None = None,
    batch: int = 500,
) -> dict[str, NDArray[Any]]:
    """By torch in float32, the reference of all parity, for raw images `N H W C`: `logits` `N K` and, of a student with several
    outputs, those of each; or, with the `thresholds` of a cascade, the answer of the exit of every image and the exits, from 1."""
    import numpy as np
    import torch

    from .deployed import Deployed
    from .thresholds import confidence_of, exits_of, so_far

    deployed, names = Deployed(student, mean=preprocess.mean, std=preprocess.std, input="uint8").eval(), student.output_names()

    def run(chunk: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        found = deployed(torch.from_numpy(chunk))
        return {name: z.numpy() for name, z in zip(names, found if isinstance(found, tuple) else (found,), strict=True)}

    with torch.inference_mode():
        outputs = run_outputs(run, in_batches(images, batch), batch)
    if thresholds is None:
        return outputs
    logits_JNK = np.stack(so_far(list(outputs.values())))
    leave = exits_of(np.stack([confidence_of(z) for z in logits_JNK], axis=1), tuple(thresholds))
    return {"logits": logits_JNK[leave, np.arange(len(images))], EXIT: leave + 1}


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


def onnx_outputs(
    runner: OnnxRunner, artifact: Artifact, images: NDArray[np.uint8] | ImageSplit, prepare: Prepare
) -> dict[str, NDArray[Any]]:
    """All outputs of a file for raw images `N H W C`, in batches of its largest size: `logits` `N K`, and what else it has."""
    smallest, _, largest = artifact.batch
    return run_outputs(runner.everything, map(prepare, in_batches(images, largest)), largest, fixed=smallest == largest)


def run_file(
    folder: Path, artifact: Artifact, images: NDArray[np.uint8] | ImageSplit, preprocess: Preprocess
) -> NDArray[np.float32]:
    """Logits `N K` that one ONNX file of a package gives for raw images."""
    from .onnx_file import OnnxRunner

    prepare = partial(as_input, preprocess=preprocess, kind="float" if artifact.input.dtype == "float32" else "uint8")
    logits: NDArray[np.float32] = onnx_outputs(OnnxRunner(folder / artifact.path), artifact, images, prepare)["logits"]
    return logits
