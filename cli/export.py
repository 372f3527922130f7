from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options
from .console import Console, table, verb

if TYPE_CHECKING:
    from ..export.package import Package
    from ..export.request import Request


# How files are made and judged: `export` and `family` share it.
MAKING = (
    click.option(
        "--compute-capability",
        "-c",
        "capabilities",
        multiple=True,
        help="GPUs of trt-rtx engines, e.g. 8.6. Repeats. [8.6 12.0]",
    ),
    click.option("--batch", default="1:8:64", show_default=True, help="MIN:OPT:MAX, or one number for a fixed batch."),
    click.option(
        "--input", "input_kind", default="uint8", show_default=True, help="uint8 (N H W C, raw) or float (N C H W, normalised)."
    ),
    click.option("--calibration", default="minmax", show_default=True, help="Ranges of int8: minmax, percentile or entropy."),
    click.option("--calibration-images", type=click.IntRange(16), default=500, show_default=True, help="Training images for int8."),
    click.option(
        "--int8-grid",
        type=click.Choice(["auto", "unsigned", "signed"]),
        default="auto",
        show_default=True,
        help="Activations of int8 for onnxruntime; auto measures both.",
    ),
    click.option("--sensitivity", is_flag=True, help="Measure what each int8 layer costs (in the manifest)."),
    click.option("--opset", type=int, help="Opset of the ONNX."),
    click.option("--force", is_flag=True, help="Replace a folder that is not empty."),
    options.data,
    click.option(
        "--max-drop", type=click.FloatRange(-100, 100), help="Gate: points of top-1 below torch. [0.02 fp32, 0.1 fp16, 0.5 int8]"
    ),
    click.option(
        "--min-agreement", type=click.FloatRange(0, 1), help="Gate: share of equal argmax. [0.9999 fp32, 0.99 fp16, 0.9 int8]"
    ),
    click.option(
        "--cascade-loss",
        type=click.FloatRange(0, 100),
        default=0.1,
        show_default=True,
        help="Points of top-1 that a cascade may lose, with 95 % certainty.",
    ),
    click.option("--verify/--no-verify", default=True, help="Run and compare every file (recorded in the card)."),
)


@verb(
    options.source,
    click.option(
        "--branch",
        "-b",
        "branches",
        multiple=True,
        default=("target",),
        help="target, 1..N, fused, ensemble, 1+2+3, cascade, all (one file with every branch), all-targets. Repeats.",
    ),
    click.option("--format", "-f", "formats", multiple=True, default=("onnx",), help="onnx, openvino, trt, trt-rtx, ... Repeats."),
    click.option("--precision", "-p", "precisions", multiple=True, default=("fp32",), help="fp32, fp16, bf16, int8. Repeats."),
    click.option(
        "--output",
        "-o",
        type=click.Path(path_type=Path),
        help="Folder of the package; with several branches, the folder of their packages. [<entry>-<target>]",
    ),
    click.option("--triton", type=click.Path(path_type=Path), help="Write a Triton model repository of them there, too."),
    *MAKING,
)
def export(console: Console, source: str | None, **settings: Any) -> None:
    """Cut a branch out of a checkpoint and write it as measured files."""
    from ..export.evidence import gather_evidence
    from ..export.exporter import export as export_one
    from ..export.source import resolve_checkpoint
    from ..export.triton import check_folder, write_triton
    from ..zoo.target import Target

    for text in settings["branches"]:
        Target.parse(text)  # a misspelt branch is told before anything is read
    wanted = request(settings)
    checkpoint = resolve_checkpoint(source, console.say)
    targets = options.expand(settings["branches"], checkpoint.targets)
    output: Path | None = settings["output"]
    names = {target: f"{checkpoint.manifest.entry}-{target}" for target in targets}
    folders = {t: output / name if output and len(targets) > 1 else output or Path(name) for t, name in names.items()}
    wanted.check(checkpoint, folders)  # all of them, before the first one is written
    triton: Path | None = settings["triton"]
    if triton is not None:
        check_folder(triton, [checkpoint.folder, *folders.values()], settings["force"])
    evidence = gather_evidence(checkpoint, wanted, targets, console.say)
    packages = []
    for target, folder in folders.items():
        console.say(f"exporting branch {target} of {checkpoint.manifest.entry}")
        packages.append(export_one(checkpoint, target, wanted, output=folder, evidence=evidence, say=console.say))
    repository = write_triton(packages, triton, force=settings["force"], say=console.say) if triton is not None else None
    documents = [{"folder": str(p.folder), **p.document, "metrics": p.metrics} for p in packages]
    if repository is not None:
        documents = [{**document, "triton": repository.document} for document in documents]
    console.result(
        documents if len(documents) > 1 else documents[0],
        lambda: "\n\n".join(f"{p.folder}\n{artifact_table(p)}" for p in packages),
    )
    console.hint(f"kdzoo verify {packages[0].folder}")


def request(settings: dict[str, Any]) -> Request:
    """What one call asks for; raises `UsageError` for a batch that is none."""
    from ..export.format import Batch, ExportOptions
    from ..export.gates import Gates
    from ..export.request import Request

    making = ExportOptions(
        precisions=tuple(dict.fromkeys(settings["precisions"])),
        batch=Batch.parse(settings["batch"]),
        input=settings["input_kind"],
        opset=settings["opset"],
        capabilities=settings["capabilities"],
        **{name: settings[name] for name in ("calibration", "calibration_images", "int8_grid", "sensitivity")},
    )
    return Request(
        formats=settings["formats"],
        options=making,
        gates=Gates.of(settings["max_drop"], settings["min_agreement"]),
        **{name: settings[name] for name in ("force", "data", "verify", "cascade_loss")},
    )


def artifact_table(package: Package) -> str:
    """The files of a package with what was measured of each."""
    rows = []
    for artifact in package.artifacts:
        measured = package.metrics["artifacts"].get(artifact.path, {})
        accuracy, parity, latency = (measured.get(k) for k in ("accuracy", "parity", "latency"))
        rows.append((
            artifact.path, f"{artifact.bytes / 1e6:.2f}", f"{accuracy['top1']:.2f}" if accuracy else "-",
            f"{parity['max_abs_diff']:.1e}" if parity else "-", f"{latency[0]['p50_ms']:.2f}" if latency else "-",
            measured.get("not_run", "measured"),
        ))  # fmt: skip
    return table(("file", "MB", "top-1 %", "max |diff|", f"p50 ms at batch {package.artifacts[0].batch[0]}", "state"), rows)


command = export
