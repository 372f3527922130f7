"""Every emitted file is measured: it is run on real images, compared with torch, timed. What cannot run here says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, EnvironmentProblem, GateFailed
from ..zoo.manifest import Manifest, host_description
from ..zoo.preprocess import Preprocess
from ..zoo.target import Target
from .benchmark import measure_latency
from .format import ExportOptions
from .package import SCHEMA_VERSION, Artifact
from .parity import compare, in_batches, measure_accuracy, run_over, tolerance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.datasets import ImageSplit
    from ..zoo.student import Student
    from .parity import Runner

    Prepare = Callable[[NDArray[np.uint8]], NDArray[Any]]  # raw images to what the graph takes

Say = Callable[[str], None]


@dataclass
class Measurement:
    """Everything measured for a package.

    Attributes:
        artifacts: by path: parity, accuracy, latency, or `not_run` with the reason.
        student: parameters and multiply-adds. reference: accuracy of the torch student, where labels were at hand.
    """

    student: dict[str, Any]
    reference: dict[str, Any] | None = None
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def reference_top1(self) -> float | None:
        return None if self.reference is None else float(self.reference["top1"])

    def document(self, manifest: Manifest, target: Target) -> dict[str, Any]:
        """The content of `metrics.json`; `training` repeats what the checkpoint says of this target."""
        return {
            "schema_version": SCHEMA_VERSION,
            "entry": manifest.entry,
            "target": str(target),
            "host": host_description(),
            "student": self.student,
            "reference": self.reference,
            "checkpoint": manifest.metrics.get(str(target)),
            "artifacts": self.artifacts,
        }


def torch_logits(
    student: Student, preprocess: Preprocess, images: NDArray[np.uint8] | ImageSplit, batch: int = 500
) -> NDArray[np.float32]:
    """Logits `N K` of raw images `N H W C` by torch in float32: the reference of all parity."""
    import numpy as np
    import torch

    from .deployed import Deployed

    deployed = Deployed(student, mean=preprocess.mean, std=preprocess.std, input="uint8").eval()
    with torch.inference_mode():
        parts = [deployed(torch.from_numpy(chunk)).numpy() for chunk in in_batches(images, batch)]
    return np.concatenate(parts)


def check_classes(split: ImageSplit, classes: Sequence[str], path: Path) -> None:
    """Raises `DataError` where the images at `path` have other classes than the network."""
    if split.classes != tuple(classes):
        raise DataError(
            f"{path} has {len(split.classes)} classes ({', '.join(split.classes[:3])}, ...), "
            f"the network {len(classes)} ({', '.join(classes[:3])}, ...)",
            hint="give the data set that it was trained on; an .npz names its classes in the array 'classes'",
        )


def as_input(images: NDArray[np.uint8], preprocess: Preprocess, kind: str) -> NDArray[Any]:
    """Raw images as the graph takes them: unchanged, or normalised float32 `N C H W`."""
    import numpy as np

    if kind == "uint8":
        return images
    mean, std = np.asarray(preprocess.mean, np.float32), np.asarray(preprocess.std, np.float32)
    return np.ascontiguousarray(((images.astype(np.float32) / 255.0 - mean) / std).transpose(0, 3, 1, 2))


def onnx_logits(
    runner: Runner, artifact: Artifact, images: NDArray[np.uint8] | ImageSplit, prepare: Prepare
) -> NDArray[np.float32]:
    """Logits `N K` of raw images `N H W C` by a file, in batches of its largest size."""
    smallest, _, largest = artifact.batch
    return run_over(runner, map(prepare, in_batches(images, largest)), largest, fixed=smallest == largest)


def measure_package(
    folder: Path,
    student: Student,
    preprocess: Preprocess,
    artifacts: list[Artifact],
    images: ImageSplit,
    labels: NDArray[np.int64] | None,
    options: ExportOptions,
    verify: bool,
    say: Say,
) -> Measurement:
    """Measure every artifact in `folder` on all `images`, and its accuracy where `labels` are given. With `verify` false only sizes
    and counts are noted.

    Raises:
        GateFailed: a file does not load, or gives other results in other batches.
    """
    from ..zoo.profile import profile

    measured = Measurement(asdict(profile(student, preprocess.height, preprocess.width)))
    if not verify:
        measured.artifacts = {a.path: {"not_run": "--no-verify"} for a in artifacts}
        return measured
    say(f"running torch on {len(images)} images")
    reference = torch_logits(student, preprocess, images)
    if labels is not None:
        measured.reference = {**asdict(measure_accuracy(reference, labels)), "split": "test"}
    prepare = partial(as_input, preprocess=preprocess, kind=options.input)
    for artifact in artifacts:
        if artifact.format != "onnx":
            measured.artifacts[artifact.path] = {"not_run": why_not_run(folder, artifact)}
            continue
        say(f"measuring {artifact.path} on {len(images)} images")
        measured.artifacts[artifact.path] = measure_onnx(folder / artifact.path, artifact, images, labels, prepare, reference)
    return measured


def why_not_run(folder: Path, artifact: Artifact) -> str:
    """Why an engine is built here and not run.

    Raises:
        IntegrityError: it is not the engine that its sidecar describes.
    """
    from .engine_sidecar import preflight

    try:
        preflight(folder / artifact.details["sidecar"], folder / artifact.path)
    except EnvironmentProblem as problem:
        return f"built, not run: {problem.what.removeprefix(artifact.path).strip()}"
    return "built, not run: kdzoo does not execute engines yet"


def measure_onnx(
    path: Path,
    artifact: Artifact,
    images: ImageSplit,
    labels: NDArray[np.int64] | None,
    prepare: Prepare,
    reference: NDArray[np.float32],
) -> dict[str, Any]:
    """Check, parse and run one ONNX file: parity, accuracy, the batch range, latency."""
    from .engine_sidecar import installed_version
    from .onnx_graph import OnnxRunner, check_onnx
    from .tensorrt_build import parse_check

    check_onnx(path)
    result: dict[str, Any] = {"checker": "onnx full check, onnxruntime load"}
    if installed_version("tensorrt_rtx") is not None:
        parse_check(path)
        result["checker"] += ", TensorRT-RTX parse"
    runner = OnnxRunner(path)
    logits = onnx_logits(runner, artifact, images, prepare)
    result["parity"] = asdict(compare(logits, reference))
    if labels is not None:
        result["accuracy"] = {**asdict(measure_accuracy(logits, labels)), "split": "test"}
    sizes, inputs = list(dict.fromkeys(artifact.batch)), prepare(images.head(artifact.batch[2]).images)
    exercise_batches(runner, inputs, logits, sizes, artifact)
    result["batches_exercised"] = sizes
    result["latency"] = [asdict(latency(runner, inputs, size)) for size in sizes]
    result["bytes"] = artifact.bytes
    return result


def exercise_batches(
    runner: Runner, inputs: NDArray[Any], logits: NDArray[np.float32], sizes: list[int], artifact: Artifact
) -> None:
    """Raises `GateFailed` unless the smallest, a middle and the largest batch give the logits that the whole run gave."""
    import numpy as np

    allowed = tolerance(artifact.precision, float(np.abs(logits).max()))
    for size in sizes:
        rows = np.arange(size) % len(inputs)
        worst = float(np.abs(runner(inputs[rows]) - logits[rows]).max())
        if not worst <= allowed:
            raise GateFailed(f"{artifact.path} gives other logits in a batch of {size}: they differ by {worst:.3g}")


def latency(runner: Runner, inputs: NDArray[Any], size: int) -> Any:
    """Latency of one batch size on real images."""
    import numpy as np

    chunk = np.ascontiguousarray(inputs[np.arange(size) % len(inputs)])
    return measure_latency(lambda: runner(chunk), size)
