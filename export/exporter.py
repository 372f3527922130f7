"""Export: cut the student out of a checkpoint, write its files, prove every one of them, and leave a package or nothing.

The order: student, weights, ONNX, engines, golden files, measurements, gates, manifest, card. All of it happens in a temporary
folder that takes its name at the end.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentProblem, GateFailed
from ..zoo.checkpoint import WEIGHTS, Checkpoint, describe_files
from ..zoo.files import new_folder, sha256, write_bytes, write_json
from ..zoo.manifest import command_line, git_commit, library_versions
from ..zoo.preprocess import Preprocess
from ..zoo.target import Target
from .cards.package_card import package_card
from .cards.published_figures import published_figures
from .evidence import Evidence, find_exits, gather_evidence
from .format import Format, Job
from .gates import passing
from .measure import measure_package, why_not_run
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
from .request import Request
from .torch_answers import node_logits, student_outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.student import Student

LIBRARIES = ("kdzoo", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt_rtx", "tensorrt", "safetensors", "numpy")
NUM_GOLDEN = 8
PROBED = 100  # images that are looked at for numbers that a narrow type cannot hold
Say = Callable[[str], None]


def export(
    checkpoint: Checkpoint,
    target: Target,
    request: Request | None = None,
    *,
    output: Path | None = None,
    refused: dict[str, str] | None = None,
    evidence: Evidence | None = None,
    say: Say = lambda line: None,
    **settings: Any,
) -> Package:
    """Write the package of one target and give it back, opened.

    Args:
        request: what is wanted; `settings` are fields of `Request` by name, and go over it.
        output: the folder of the package; by default `<entry>-<target>` here.
        refused: takes, by path, why a file failed its gate; that file and its engines are left out then, and the others stay.
            Without it, one failure ends the export.
        evidence: the images, where they were gathered for several targets already (`gather_evidence`).
        say: takes the lines of talk.

    Raises:
        UnknownName, UsageError, OutputError, DataError: the request cannot be met as it stands.
        EnvironmentProblem: a package, a GPU or disk space is missing.
        GateFailed: a file is too far from torch, or all are; nothing is left behind.
    """
    request = replace(request or Request(), **settings)
    options, manifest = request.options, checkpoint.manifest
    folder = output or Path(f"{manifest.entry}-{target}")
    request.check(checkpoint, {target: folder})
    makers = request.makers(target, say)
    student, kept, dropped = cut(checkpoint, target)
    seen = evidence or gather_evidence(checkpoint, request, [target], say)
    images, found = seen.images, None
    if target.word == "cascade":
        assert seen.training is not None, "gathered for another target"
        found = find_exits(checkpoint, student, seen.training, request.cascade_loss, say)
    thresholds = found.values if found else None
    weights_sha256 = manifest.files[WEIGHTS]["sha256"]
    description = {
        "entry": manifest.entry,
        "target": str(target),
        "method": manifest.method,
        "backbone": manifest.backbone,
        "dataset": manifest.dataset,
        "source": {
            "weights_sha256": weights_sha256,
            "epochs": manifest.epochs,
            "seed": manifest.recipe.get("seed"),
            "given": checkpoint.origin,
        },
        "published": published_figures(manifest.entry, [str(target)]),
        "tensors": {"kept": kept, "dropped": dropped},
        "options": request.recorded(),
        "gates": asdict(request.gates),
        "verified": request.verify,
        "provenance": {
            "command": command_line(),
            "git_commit": git_commit(),
            "versions": library_versions(*LIBRARIES),
            "training": manifest.provenance,
        },
        **({"cascade": asdict(found)} if found else {}),
    }
    metadata = {
        "kdzoo.entry": manifest.entry,
        "kdzoo.target": str(target),
        "kdzoo.labels": json.dumps(list(manifest.classes), ensure_ascii=False),
        "kdzoo.preprocess": json.dumps(manifest.preprocess.to_dict(), sort_keys=True),
        "kdzoo.input": options.input,
        "kdzoo.source_sha256": weights_sha256,
    }
    with new_folder(folder) as part, tempfile.TemporaryDirectory() as scratch:
        write_student(part, student, checkpoint, target)
        write_json(part / PREPROCESS, manifest.preprocess.to_dict())
        write_bytes(part / LABELS, ("\n".join(manifest.classes) + "\n").encode())
        job = Job(
            student, part, manifest.preprocess, options, metadata, images.head(PROBED).images, seen.training,
            request.gates.max_drop, engines=any(maker.engines for maker in makers), scratch=Path(scratch), thresholds=thresholds,
        )  # fmt: skip
        artifacts = emit(job, makers, refused, say)
        reference = None
        if request.verify:
            answers = seen.answers
            if answers is None:
                say(f"running torch on {len(images)} images")
                answers = node_logits(student, student.outputs, manifest.preprocess, images)
            reference = student_outputs(student, answers, thresholds)
        measured = measure_package(
            part, student, manifest.preprocess, artifacts, images, seen.labels, options, reference, say, refused
        )
        artifacts = passing(part, artifacts, measured, request.gates, refused)
        if not artifacts:
            raise GateFailed(f"no file of target {target} passed its gates: {'; '.join((refused or {}).values())}")
        write_golden(part, student, images.head(NUM_GOLDEN).images, manifest.preprocess, artifacts, thresholds)
        metrics = measured.document(manifest, target)
        write_json(part / METRICS, metrics)
        card = package_card(description, metrics, artifacts, list(manifest.classes), manifest.preprocess.to_dict())
        write_bytes(part / CARD, card.encode())
        write_manifest(part, {**description, "files": describe_files(part)}, artifacts)
    return Package.open(folder)


def emit(job: Job, makers: Sequence[Format], refused: dict[str, str] | None, say: Say) -> list[Artifact]:
    """Write the files of every precision. What a precision cannot hold is noted in `refused` or, without it, raised; of that,
    and of what would be made from it, nothing stays in the folder."""
    artifacts: list[Artifact] = []
    for precision in job.options.precisions:
        failed: set[str] = set()
        for maker in makers:
            file, before = f"{maker.name} {precision}", set(job.folder.iterdir())
            try:
                if missing := failed & sources_of(maker, job):
                    raise GateFailed(f"{file} is made from {missing.pop()} {precision}, which was refused")
                say(f"writing {file}")
                artifacts += maker.emit(job, precision)
            except GateFailed as error:
                if refused is None:
                    raise
                refused[file] = error.what
                failed.add(maker.name)
                for path in set(job.folder.iterdir()) - before:
                    path.unlink()
    return artifacts


def sources_of(maker: Format, job: Job) -> set[str]:
    """The formats whose files a format is made from."""
    if maker.engines and job.thresholds is not None:
        return {"parts"}
    return {"onnx"} if maker.from_onnx else set()


def cut(checkpoint: Checkpoint, target: Target) -> tuple[Student, list[str], list[str]]:
    """The student of a target, with the names of the tensors that it keeps and that it drops."""
    from ..zoo.student import select, split_tensors

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
    the files themselves where the precision lets them be others and they run here."""
    import numpy as np

    from .outputs import run_file, torch_outputs

    own: dict[str, Any] = {}
    for artifact in (a for a in artifacts if a.precision == "int8" and not why_not_run(folder, a)):
        with suppress(EnvironmentProblem):  # it does not run here after all, which is measured; `verify` compares classes then
            own[artifact.path] = run_file(folder, artifact, images, preprocess)
    (folder / GOLDEN_INPUTS).parent.mkdir()
    np.savez(folder / GOLDEN_INPUTS, image=images)
    expected: dict[str, Any] = {**torch_outputs(student, preprocess, images, thresholds), **own}
    np.savez(folder / GOLDEN_EXPECTED, **expected)
