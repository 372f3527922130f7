"""Every emitted file is measured: it is run on real images, compared with torch, timed. What cannot run here says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, EnvironmentProblem, GateFailed
from ..zoo.manifest import Manifest, host_description
from ..zoo.preprocess import Preprocess
from ..zoo.target import Target
from .cascade import EXIT
from .format import ExportOptions
from .measure_rounds import FileTimes, further_rounds
from .outputs import as_input, file_outputs, same_exit
from .package import SCHEMA_VERSION, Artifact
from .parity import compare, measure_accuracy, tolerance
from .runtime import runtime_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.datasets import ImageSplit
    from ..zoo.student import Student
    from .outputs import Prepare
    from .runtime import Session

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
    reference: dict[str, NDArray[Any]] | None,
    say: Say,
    refused: dict[str, str] | None = None,
) -> Measurement:
    """Measure every artifact in `folder` on all `images`, and its accuracy where `labels` are given. Without a `reference`, what
    torch gives for them, only sizes and counts are noted. What cannot be measured is noted in `refused` or, without it, raised; a
    file that its runtime does not load or run here after all, as `not_run`.

    Raises:
        GateFailed: a file does not load, or gives other results in other batches.
    """
    from ..zoo.profile import profile

    measured = Measurement(asdict(profile(student, preprocess.height, preprocess.width)))
    if reference is None:
        measured.artifacts = {a.path: {"not_run": "--no-verify"} for a in artifacts}
        return measured
    if labels is not None:
        measured.reference = {**asdict(measure_accuracy(reference["logits"], labels)), "split": "test"}
    prepare, timed = partial(as_input, preprocess=preprocess, kind=options.input), dict[str, FileTimes]()
    for artifact in artifacts:
        if reason := why_not_run(folder, artifact):
            measured.artifacts[artifact.path] = {"not_run": reason}
            continue
        say(f"measuring {artifact.path} on {len(images)} images")
        with noted(artifact, measured, refused):
            found, times = measure_file(folder, artifact, images, labels, prepare, reference)
            measured.artifacts[artifact.path] = found
            if times is not None:
                timed[artifact.path] = times
    for artifact in further_rounds([artifact for artifact in artifacts if artifact.path in timed]):
        with noted(artifact, measured, refused), runtime_for(artifact)[0].open(folder, artifact) as session:
            timed[artifact.path].round(session)
    for path, times in timed.items():
        if "parity" in (found := measured.artifacts.get(path, {})):  # it came through every round
            found["latency"] = times.latency(found["runtime"]["threads"])
            if "exits" in found:
                found["exits"]["p50_ms"] = times.of_exits()
    return measured


@contextmanager
def noted(artifact: Artifact, measured: Measurement, refused: dict[str, str] | None) -> Iterator[None]:
    """What goes wrong in here is noted, as `measure_package` says."""
    try:
        yield
    except GateFailed as error:
        if refused is None:
            raise
        refused[artifact.path] = error.what
        measured.artifacts.pop(artifact.path, None)
    except EnvironmentProblem as problem:
        if artifact.format == "onnx":  # it runs wherever kdzoo does: something else is wrong
            raise
        measured.artifacts[artifact.path] = {"not_run": not_run(artifact, problem)}


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
        IntegrityError: it is not the file that was described.
    """
    runtime, _ = runtime_for(artifact)
    if reason := runtime.refuses(artifact):
        return f"made for TensorRT, not run: {reason}"
    if artifact.format == "onnx":
        return ""
    try:
        runtime.check(folder, artifact)
    except EnvironmentProblem as problem:
        return not_run(artifact, problem)
    return ""


def not_run(artifact: Artifact, problem: EnvironmentProblem) -> str:
    """What is noted of a file that this machine made and cannot run."""
    return f"built, not run: {problem.what.removeprefix(artifact.path).strip()}"


def measure_file(
    folder: Path,
    artifact: Artifact,
    images: ImageSplit,
    labels: NDArray[np.int64] | None,
    prepare: Prepare,
    reference: dict[str, NDArray[Any]],
) -> tuple[dict[str, Any], FileTimes | None]:
    """Check and run one file in its own runtime: parity, accuracy, the batch range; every output; where images leave. With it the
    first round of its latency (`measure_rounds`); None for what is made for another runtime.

    Raises:
        GateFailed: it does not load, or gives other results in other batches.
    """
    runtime, _ = runtime_for(artifact)
    for_engine = artifact.format == "onnx" and artifact.runtime != "onnxruntime"
    result: dict[str, Any] = {"checker": check_graph(folder / artifact.path, artifact, for_engine)}
    with runtime.open(folder, artifact) as session:
        outputs = file_outputs(session, artifact, images, prepare)
        same = same_exit(outputs, reference)
        result["parity"] = asdict(compare(outputs["logits"][same], reference["logits"][same]))
        if EXIT in outputs:
            result["exits"] = describe_exits(outputs[EXIT], float(same.mean()))
        if labels is not None:
            result["accuracy"] = {**asdict(measure_accuracy(outputs["logits"], labels)), "split": "test"}
        for name in (name for name in outputs if name not in ("logits", EXIT)):
            own = {"parity": asdict(compare(outputs[name], reference[name]))}
            if labels is not None:
                own["accuracy"] = {**asdict(measure_accuracy(outputs[name], labels)), "split": "test"}
            result.setdefault("outputs", {})[name] = own
        sizes, inputs = list(dict.fromkeys(artifact.batch)), prepare(images.head(artifact.batch[2]).images)
        exercise_batches(session, inputs, outputs, sizes, artifact)
        result["batches_exercised"] = sizes
        result["runtime"] = asdict(session.ran_on)
        times = None if for_engine else FileTimes(sizes, images, prepare, outputs.get(EXIT))
        if times is not None:
            times.round(session)
    result["bytes"] = artifact.bytes
    return result, times


def check_graph(path: Path, artifact: Artifact, for_engine: bool) -> str:
    """What was checked of a file before it is run: all that its format has a checker for. Raises `GateFailed`."""
    from .engine_sidecar import installed_version
    from .onnx_file import check_onnx
    from .tensorrt_build import parse_check

    if artifact.format != "onnx":
        return f"{artifact.runtime} load"
    check_onnx(path)
    takes_uint8 = artifact.precision == "int8" and not for_engine  # TensorRT takes signed activations only
    if installed_version("tensorrt_rtx") is None or takes_uint8:
        return "onnx full check, onnxruntime load"
    parse_check(path)
    return "onnx full check, onnxruntime load, TensorRT-RTX parse"


def describe_exits(exits_N: NDArray[np.int64], agreement: float) -> dict[str, Any]:
    """Where images leave a cascade; `agreement` is the share of them that leave where they do in torch. What they take is measured
    with the latency, as `p50_ms`: proof that the rest is not computed."""
    import numpy as np

    shares = {str(number): round(float((exits_N == number).mean()), 6) for number in np.unique(exits_N)}
    return {"shares": shares, "p50_ms": {}, "agreement": agreement}


def exercise_batches(
    session: Session, inputs: NDArray[Any], whole: dict[str, NDArray[Any]], sizes: list[int], artifact: Artifact
) -> None:
    """Raises `GateFailed` unless the smallest, a middle and the largest batch give the logits that the whole run gave.

    An image whose confidence lies at a threshold of a cascade may leave elsewhere in another batch; one may, and one of a hundred.
    """
    import numpy as np

    logits = whole["logits"]
    allowed, elsewhere = tolerance(artifact.precision, float(np.abs(logits).max())), 0
    for size in sizes:
        rows = np.arange(size) % len(inputs)
        expected = {name: values[rows] for name, values in whole.items()}
        found = session.everything(inputs[rows])
        same = same_exit(found, expected)
        elsewhere += int((~same).sum())
        worst = float(np.abs(found["logits"] - expected["logits"])[same].max(initial=0.0))
        if not worst <= allowed:
            raise GateFailed(f"{artifact.path} gives other logits in a batch of {size}: they differ by {worst:.3g}")
    if elsewhere > max(1, sum(sizes) // 100):
        raise GateFailed(f"{artifact.path} lets {elsewhere} of {sum(sizes)} images leave at another exit in other batches")
