"""Every emitted file is measured: it is run on real images, compared with torch, timed. What cannot run here says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, EnvironmentProblem, GateFailed
from ..zoo.manifest import Manifest, host_description
from ..zoo.preprocess import Preprocess
from ..zoo.target import Target
from .benchmark import measure_latency
from .cascade import EXIT
from .format import ExportOptions
from .outputs import as_input, onnx_outputs, torch_outputs
from .package import SCHEMA_VERSION, Artifact
from .parity import compare, measure_accuracy, tolerance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.datasets import ImageSplit
    from ..zoo.student import Student
    from .outputs import Prepare
    from .parity import Runner

Say = Callable[[str], None]
DIFFERENT = 256  # images that latency is measured over


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


def check_classes(split: ImageSplit, classes: Sequence[str], path: Path) -> None:
    """Raises `DataError` where the images at `path` have other classes than the network."""
    if split.classes != tuple(classes):
        raise DataError(
            f"{path} has {len(split.classes)} classes ({', '.join(split.classes[:3])}, ...), "
            f"the network {len(classes)} ({', '.join(classes[:3])}, ...)",
            hint="give the data set that it was trained on; an .npz names its classes in the array 'classes'",
        )


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
    thresholds: Sequence[float] | None = None,
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
    reference = torch_outputs(student, preprocess, images, thresholds)
    if labels is not None:
        measured.reference = {**asdict(measure_accuracy(reference["logits"], labels)), "split": "test"}
    prepare = partial(as_input, preprocess=preprocess, kind=options.input)
    for artifact in artifacts:
        if reason := why_not_run(folder, artifact):
            measured.artifacts[artifact.path] = {"not_run": reason}
            continue
        say(f"measuring {artifact.path} on {len(images)} images")
        measured.artifacts[artifact.path] = measure_onnx(folder / artifact.path, artifact, images, labels, prepare, reference)
    mark_dominated(measured.artifacts)
    return measured


def mark_dominated(measured: dict[str, dict[str, Any]]) -> None:
    """Note in `dominated_by` which file is at least as accurate and at least as fast in the smallest batch, and better in one."""
    figures = {
        path: (result["accuracy"]["top1"], -result["latency"][0]["p50_ms"])
        for path, result in measured.items()
        if "accuracy" in result and "latency" in result
    }
    for path, (top1, speed) in figures.items():
        better = [p for p, (a, s) in figures.items() if a >= top1 and s >= speed and (a, s) != (top1, speed)]
        if better:
            measured[path]["dominated_by"] = max(better, key=lambda p: figures[p])


def why_not_run(folder: Path, artifact: Artifact) -> str:
    """Why a file is made here and not run; "" where it is run.

    Raises:
        IntegrityError: an engine is not the one that its sidecar describes.
    """
    from .engine_sidecar import preflight

    if artifact.format == "onnx":
        return "made for TensorRT, not run: onnxruntime does not compute in bfloat16 here" if artifact.precision == "bf16" else ""
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
    reference: dict[str, NDArray[Any]],
) -> dict[str, Any]:
    """Check, parse and run one ONNX file: parity, accuracy, the batch range, latency; every output; where images leave."""
    from .engine_sidecar import installed_version
    from .onnx_file import OnnxRunner, check_onnx
    from .tensorrt_build import parse_check

    check_onnx(path)
    for_engine = artifact.runtime != "onnxruntime"
    result: dict[str, Any] = {"checker": "onnx full check, onnxruntime load"}
    takes_uint8 = artifact.precision == "int8" and not for_engine  # TensorRT takes signed activations only
    if installed_version("tensorrt_rtx") is not None and not takes_uint8:
        parse_check(path)
        result["checker"] += ", TensorRT-RTX parse"
    runner = OnnxRunner(path)
    outputs = onnx_outputs(runner, artifact, images, prepare)
    logits = outputs["logits"]
    if EXIT in outputs:  # a confidence at its threshold may fall to either side
        same = outputs[EXIT] == reference[EXIT]
        result["parity"] = asdict(compare(logits[same], reference["logits"][same]))
        result["exits"] = describe_exits(runner, artifact.batch[0], images, prepare, outputs[EXIT], float(same.mean()))
    else:
        result["parity"] = asdict(compare(logits, reference["logits"]))
    if labels is not None:
        result["accuracy"] = {**asdict(measure_accuracy(logits, labels)), "split": "test"}
    for name in (name for name in outputs if name not in ("logits", EXIT)):
        own = {"parity": asdict(compare(outputs[name], reference[name]))}
        if labels is not None:
            own["accuracy"] = {**asdict(measure_accuracy(outputs[name], labels)), "split": "test"}
        result.setdefault("outputs", {})[name] = own
    sizes, inputs = list(dict.fromkeys(artifact.batch)), prepare(images.head(max(artifact.batch[2], DIFFERENT)).images)
    exercise_batches(runner, inputs, logits, sizes, artifact)
    result["batches_exercised"] = sizes
    if not for_engine:
        result["latency"] = [asdict(latency(runner, inputs, size)) for size in sizes]
    result["bytes"] = artifact.bytes
    return result


def describe_exits(
    runner: Runner, batch: int, images: ImageSplit, prepare: Prepare, exits_N: NDArray[np.int64], agreement: float
) -> dict[str, Any]:
    """Where images leave a cascade, and what a batch of one that leaves there takes: proof that the rest is not computed.

    `agreement` is the share of images that leave where they do in torch.
    """
    import numpy as np

    used = [int(number) for number in np.unique(exits_N)]
    first = {number: images.take(np.flatnonzero(exits_N == number)[:1]).head(1).images for number in used}
    chosen = {number: prepare(image).repeat(batch, axis=0) for number, image in first.items()}
    times = {number: measure_latency(lambda x=x: runner(x), 1).p50_ms for number, x in chosen.items()}  # type: ignore[misc]
    shares = {str(number): round(float((exits_N == number).mean()), 6) for number in used}
    return {"shares": shares, "p50_ms": {str(n): t for n, t in times.items()}, "agreement": agreement}


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
    """Latency of one batch size on real images, other ones in every call."""
    import numpy as np

    count = max(1, min(len(inputs), DIFFERENT) // size)
    chunks = cycle([np.ascontiguousarray(inputs[np.arange(k * size, (k + 1) * size) % len(inputs)]) for k in range(count)])
    return measure_latency(lambda: runner(next(chunks)), size)
