"""Export: cut the student out of a checkpoint, write its files, prove every one of them, and leave a package or nothing.

The order: student, weights, ONNX, engines, golden files, measurements, gates, manifest, card. All of it happens in a temporary
folder that takes its name at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, GateFailed, OutputError, UnknownName, UsageError
from ..zoo.checkpoint import WEIGHTS, Checkpoint, describe_files
from ..zoo.datasets import ImageSplit, find_data, open_split
from ..zoo.files import new_folder, sha256, write_bytes, write_json
from ..zoo.manifest import command_line, git_commit, library_versions
from ..zoo.target import Target
from .card import package_card
from .format import FORMATS, PRECISIONS, ExportOptions, Format, Job
from .measure import check_classes, measure_package
from .package import (
    CARD,
    CONFIG,
    GOLDEN_EXPECTED,
    GOLDEN_INPUTS,
    LABELS,
    METRICS,
    PREPROCESS,
    Artifact,
    Package,
    write_manifest,
)
from .parity import tolerance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.student import Student

LIBRARIES = ("kdzoo", "torch", "onnx", "onnxscript", "onnxruntime", "tensorrt_rtx", "tensorrt", "safetensors", "numpy")
NUM_GOLDEN = 8
Say = Callable[[str], None]


@dataclass(frozen=True)
class Gates:
    """What a file must not fall below. `max_drop`: points of top-1 against torch; `min_agreement`: share of equal argmax."""

    max_drop: dict[str, float] = field(default_factory=lambda: {"fp32": 0.02, "fp16": 0.1})
    min_agreement: dict[str, float] = field(default_factory=lambda: {"fp32": 0.9999, "fp16": 0.99})

    @classmethod
    def of(cls, max_drop: float | None, min_agreement: float | None) -> Gates:
        """The defaults, but for what is given."""
        default = cls()
        return cls(
            default.max_drop if max_drop is None else dict.fromkeys(PRECISIONS, max_drop),
            default.min_agreement if min_agreement is None else dict.fromkeys(PRECISIONS, min_agreement),
        )

    def check(self, artifact: Artifact, measured: dict[str, Any], reference_top1: float | None) -> None:
        """Raises `GateFailed` where a measured file is too far from torch."""
        parity, precision = measured["parity"], artifact.precision
        if parity["nan_count"]:
            raise GateFailed(f"{artifact.path} gives {parity['nan_count']} logits that are not finite", hint="try --precision fp32")
        if parity["agreement"] < self.min_agreement[precision]:
            raise GateFailed(
                f"{artifact.path} agrees with torch on {100 * parity['agreement']:.3f} % of {parity['n']} images, "
                f"the gate is {100 * self.min_agreement[precision]:.3f} %",
                hint="--min-agreement moves the gate",
            )
        allowed = tolerance(precision, parity["largest_logit"])
        if parity["max_abs_diff"] > allowed:
            raise GateFailed(
                f"{artifact.path} gives logits that differ from torch by up to {parity['max_abs_diff']:.3g}, "
                f"at most {allowed:.3g} is right for {precision}"
            )
        accuracy = measured.get("accuracy")
        if accuracy is not None and reference_top1 is not None:
            drop = reference_top1 - accuracy["top1"]
            if drop > self.max_drop[precision] + 1e-9:
                raise GateFailed(
                    f"{artifact.path} has top-1 {accuracy['top1']:.2f} %, {drop:.2f} points below torch; "
                    f"the gate is {self.max_drop[precision]} points",
                    hint="--max-drop moves the gate",
                )


def export(
    checkpoint: Checkpoint,
    target: Target,
    *,
    formats: tuple[str, ...] = ("onnx",),
    options: ExportOptions | None = None,
    gates: Gates | None = None,
    output: Path | None = None,
    force: bool = False,
    data: Path | None = None,
    verify: bool = True,
    say: Say = lambda line: None,
) -> Package:
    """Write the package of one target and give it back, opened.

    Args:
        output: the folder of the package; by default `<entry>-<target>` here.
        data: the images that accuracy is measured on; by default wherever `find_data` finds them. Where there are none, parity is
            measured on the images that the checkpoint carries, accuracy is not, and manifest and card say so.
        say: takes the lines of talk.

    Raises:
        UnknownName, UsageError, OutputError, DataError: the request cannot be met as it stands.
        EnvironmentProblem: a package, a GPU or disk space is missing.
        GateFailed: a file is too far from torch; nothing is left behind.
    """
    options, gates = options or ExportOptions(), gates or Gates()
    manifest = checkpoint.manifest
    unknown = [p for p in options.precisions if p not in PRECISIONS]
    if unknown:
        raise UnknownName("precision", unknown[0], PRECISIONS)
    if options.input not in ("uint8", "float"):
        raise UnknownName("input", options.input, ["uint8", "float"])
    makers = resolve_formats(formats, options, say)
    folder = output or Path(f"{manifest.entry}-{target}")
    check_output(folder, checkpoint.folder, force)

    student, kept, dropped = cut(checkpoint, target)
    images, labels = evidence(checkpoint, data, say)
    options_used = {"batch": list(options.batch.sizes), "input": options.input, "opset": options.opset}
    description = {
        "entry": manifest.entry,
        "target": str(target),
        "method": manifest.method,
        "backbone": manifest.backbone,
        "dataset": manifest.dataset,
        "source": {
            "weights_sha256": manifest.files[WEIGHTS]["sha256"],
            "epochs": manifest.epochs,
        },
        "tensors": {"kept": kept, "dropped": dropped},
        "options": options_used,
        "verified": verify,
    }
    metadata = {
        "kdzoo.entry": manifest.entry,
        "kdzoo.target": str(target),
        "kdzoo.labels": json.dumps(list(manifest.classes), ensure_ascii=False),
        "kdzoo.preprocess": json.dumps(manifest.preprocess.to_dict(), sort_keys=True),
        "kdzoo.input": options.input,
        "kdzoo.source_sha256": description["source"]["weights_sha256"],  # type: ignore[index]
    }
    with new_folder(folder) as part:
        write_student(part, student, checkpoint, target)
        write_json(part / PREPROCESS, manifest.preprocess.to_dict())
        write_bytes(part / LABELS, ("\n".join(manifest.classes) + "\n").encode())
        artifacts: list[Artifact] = []
        job = Job(student, part, manifest.preprocess, options, metadata)
        for precision in options.precisions:
            for maker in makers:
                say(f"writing {maker.name} {precision}")
                artifacts += maker.emit(job, precision)
        write_golden(part, student, images.head(NUM_GOLDEN).images, manifest.preprocess)
        measured = measure_package(part, student, manifest.preprocess, artifacts, images, labels, options, verify, say)
        if verify:
            for artifact in artifacts:
                if artifact.path in measured.artifacts and "parity" in measured.artifacts[artifact.path]:
                    gates.check(artifact, measured.artifacts[artifact.path], measured.reference_top1)
        metrics = measured.document(manifest, target)
        write_json(part / METRICS, metrics)
        provenance = {
            "command": command_line(),
            "git_commit": git_commit(),
            "versions": library_versions(*LIBRARIES),
            "training": manifest.provenance,
        }
        document = {
            **description,
            "gates": {"max_drop": gates.max_drop, "min_agreement": gates.min_agreement},
            "provenance": provenance,
        }
        card = package_card(document, metrics, artifacts, list(manifest.classes))
        write_bytes(part / CARD, card.encode())
        write_manifest(part, {**document, "files": describe_files(part)}, artifacts)
    return Package.open(folder)


def check_output(folder: Path, source: Path, force: bool) -> None:
    """Raises `OutputError` where a new package may not take the place of what stands at `folder`."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file", hint="name a folder with --output")
    for kept, what in ((Path.cwd(), "the folder you are in"), (source, "the checkpoint")):
        if kept.resolve().is_relative_to(folder.resolve()):
            raise OutputError(f"{folder} is or holds {what} and cannot be replaced", hint="name another folder with --output")
    if any(folder.iterdir()) and not force:
        raise OutputError(f"{folder} is not empty", hint="name another folder with --output, or replace it with --force")


def resolve_formats(names: tuple[str, ...], options: ExportOptions, say: Say) -> list[Format]:
    """The makers of the wanted formats, each checked against this machine; the ONNX first, because engines are made from it."""
    makers: dict[str, Format] = {}
    for name in names:
        cls, why = FORMATS.get(name).resolve(options)
        if why:
            say(f"{name} -> {why}")
        makers[cls.name] = cls()
    if any(maker.from_onnx for maker in makers.values()):
        makers = {"onnx": FORMATS.get("onnx")(), **makers}
    for maker in makers.values():
        maker.check(options)
    return sorted(makers.values(), key=lambda maker: maker.from_onnx)


def cut(checkpoint: Checkpoint, target: Target) -> tuple[Student, list[str], list[str]]:
    """The student of a target, with the names of the tensors that it keeps and that it drops."""
    from ..zoo.student import select, split_tensors

    if target.word == "all":
        raise UsageError("'all' is one package per target", hint="export the targets one by one")
    network = checkpoint.network()
    student = select(network, target)
    kept, dropped = split_tensors(network, student)
    return student, kept, dropped


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


def write_student(folder: Path, student: Student, checkpoint: Checkpoint, target: Target) -> None:
    """`model.safetensors` and the `config.json` that rebuilds the student (`load_student`)."""
    from safetensors.torch import save

    manifest = checkpoint.manifest
    write_bytes(folder / WEIGHTS, save({n: t.contiguous() for n, t in student.state_dict().items()}))
    config = {
        "method": manifest.method,
        "method_config": manifest.method_config,
        "backbone": manifest.backbone,
        "num_classes": len(manifest.classes),
        "target": str(target),
        "weights_sha256": sha256(folder / WEIGHTS),
    }
    write_json(folder / CONFIG, config)


def load_student(package: Package) -> Student:
    """The student of a package, its files checked, in float32 and evaluation mode."""
    from ..zoo.checkpoint import check_file
    from ..zoo.student import rebuild_student

    for name in (CONFIG, WEIGHTS):
        check_file(package.folder / name, package.document["files"].get(name))
    return rebuild_student(package.folder / CONFIG, package.folder / WEIGHTS)


def write_golden(folder: Path, student: Student, images: NDArray[np.uint8], preprocess: Any) -> None:
    """Eight raw images and the logits that torch gives for them, so that any consumer can prove its own pipeline."""
    import numpy as np

    from .measure import torch_logits

    (folder / GOLDEN_INPUTS).parent.mkdir()
    np.savez(folder / GOLDEN_INPUTS, image=images)
    np.savez(folder / GOLDEN_EXPECTED, logits=torch_logits(student, preprocess, images))
