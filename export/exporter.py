"""Export: cut the student out of a checkpoint, write its files, prove every one of them, and leave a package or nothing.

The order: student, weights, ONNX, engines, golden files, measurements, gates, manifest, card. All of it happens in a temporary
folder that takes its name at the end.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError, UnknownName, UsageError
from ..zoo.checkpoint import WEIGHTS, Checkpoint, describe_files
from ..zoo.files import new_folder, sha256, write_bytes, write_json
from ..zoo.manifest import command_line, git_commit, library_versions
from ..zoo.preprocess import Preprocess
from ..zoo.target import Target
from .card import package_card
from .evidence import evidence, find_exits, training_images
from .format import FORMATS, PRECISIONS, ExportOptions, Format, Job
from .gates import Gates, passing
from .measure import measure_package
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

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.student import Student

LIBRARIES = ("kdzoo", "torch", "onnx", "onnxscript", "onnxruntime", "tensorrt_rtx", "tensorrt", "safetensors", "numpy")
NUM_GOLDEN = 8
PROBED = 100  # images that are looked at for numbers that a narrow type cannot hold
Say = Callable[[str], None]


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
    cascade_loss: float = 0.1,
    refused: dict[str, str] | None = None,
    say: Say = lambda line: None,
) -> Package:
    """Write the package of one target and give it back, opened.

    Args:
        output: the folder of the package; by default `<entry>-<target>` here.
        data: the images that accuracy is measured on; by default wherever `find_data` finds them. Where there are none, parity is
            measured on the images that the checkpoint carries, accuracy is not, and manifest and card say so.
        cascade_loss: points of top-1 that the early exits of a cascade may cost, with 95 % certainty.
        refused: takes, by path, why a file failed its gate; that file and its engines are left out then, and the others stay.
            Without it, one failure ends the export.
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
    if target.word == "cascade" and any(maker.from_onnx for maker in makers):
        raise UsageError(
            "TensorRT builds no engine of a cascade: it cannot compile the conditions between the exits",
            hint="--format onnx for the cascade, and the branches one by one as engines",
        )
    folder = output or Path(f"{manifest.entry}-{target}")
    check_output(folder, checkpoint.folder, force)

    student, kept, dropped = cut(checkpoint, target)
    images, labels = evidence(checkpoint, data, say)
    training = training_images(checkpoint, data) if "int8" in options.precisions or target.word == "cascade" else None
    found = find_exits(checkpoint, student, training, cascade_loss, say) if target.word == "cascade" else None
    thresholds = found.values if found else None
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
        **({"cascade": asdict(found)} if found else {}),
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
        with tempfile.TemporaryDirectory() as scratch:
            job = Job(
                student, part, manifest.preprocess, options, metadata, images.head(PROBED).images, training, gates.max_drop,
                engines=any(maker.from_onnx for maker in makers), scratch=Path(scratch), thresholds=thresholds,
            )  # fmt: skip
            for precision in options.precisions:
                for maker in makers:
                    say(f"writing {maker.name} {precision}")
                    artifacts += maker.emit(job, precision)
        write_golden(part, student, images.head(NUM_GOLDEN).images, manifest.preprocess, artifacts, thresholds)
        measured = measure_package(part, student, manifest.preprocess, artifacts, images, labels, options, verify, say, thresholds)
        if verify:
            artifacts = passing(part, artifacts, measured, gates, refused)
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

    if target.word == "all-targets":
        raise UsageError("all-targets is one package per target", hint="export the targets one by one")
    network = checkpoint.network()
    student = select(network, target)
    kept, dropped = split_tensors(network, student)
    return student, kept, dropped


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


def write_golden(
    folder: Path,
    student: Student,
    images: NDArray[np.uint8],
    preprocess: Preprocess,
    artifacts: Sequence[Artifact],
    thresholds: tuple[float, ...] | None,
) -> None:
    """Eight raw images and the logits that torch gives for them, so that any consumer can prove its own pipeline; and the logits of
    the files themselves where the precision lets them be others."""
    import numpy as np

    from .outputs import run_file, torch_outputs

    own = {a.path: run_file(folder, a, images, preprocess) for a in artifacts if a.format == "onnx" and a.precision == "int8"}
    (folder / GOLDEN_INPUTS).parent.mkdir()
    np.savez(folder / GOLDEN_INPUTS, image=images)
    expected: dict[str, Any] = {**torch_outputs(student, preprocess, images, thresholds), **own}
    np.savez(folder / GOLDEN_EXPECTED, **expected)
