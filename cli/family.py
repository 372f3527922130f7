from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options
from .console import Console, table, verb
from .export import MAKING, request
from .messages import sentence


@verb(
    options.source,
    click.option("--branch", "-b", "branches", multiple=True, default=("all-targets",), help="Targets. Repeats. [all of them]"),
    click.option("--format", "-f", "formats", multiple=True, default=("onnx",), help="onnx, openvino, trt, trt-rtx, ... Repeats."),
    click.option("--precision", "-p", "precisions", multiple=True, default=("fp32", "fp16", "int8"),
                 help="fp32, fp16, bf16, int8. Repeats. [fp32 fp16 int8]"),
    click.option("--output", "-o", type=click.Path(path_type=Path), help="Folder of the family. [<entry>-family]"),
    *MAKING,
)  # fmt: skip
def family(console: Console, source: str | None, **settings: Any) -> None:
    """Write every target of a checkpoint in every precision, measured, with a Pareto table."""
    from ..errors import GateFailed
    from ..export.family import export_family
    from ..export.source import resolve_checkpoint

    wanted = request(settings)
    checkpoint = resolve_checkpoint(source, console.say)
    targets = options.expand(settings["branches"], lambda: distinct(checkpoint.targets()))
    output = settings["output"] or Path(f"{checkpoint.manifest.entry}-family")
    found = export_family(checkpoint, targets, wanted, output=output, say=console.say)
    rows = [
        (m.path, f"{m.bytes / 1e6:.2f}", f"{m.macs / 1e6:.1f}", "-" if m.top1 is None else f"{m.top1:.2f}",
         "-" if m.p50_ms is None else f"{m.p50_ms:.2f}", "*" if m.pareto else "", m.not_run)
        for m in found.members
    ]  # fmt: skip
    header = ("file", "MB", "M MACs", "top-1 %", "p50 ms", "Pareto", "not run")
    document = {"folder": str(found.folder), **found.document}
    console.result(document, lambda: f"{found.folder} on {document['host']}\n{table(header, rows)}")
    if found.refused:
        error = GateFailed(
            f"{len(found.members)} files are there; refused: {'; '.join(found.refused.values())}",
            hint="--max-drop and --min-agreement move the gates; the other files are whole",
        )
        click.echo(f"kdzoo: {' '.join(sentence(error).split())}", err=True)  # not raised: --json has its document already
        raise click.exceptions.Exit(error.exit_code)
    console.hint(f"kdzoo verify {found.folder / str(targets[0])}")


def distinct(targets: tuple[str, ...]) -> tuple[str, ...]:
    """`target` is one of the branches, where there are several."""
    return tuple(t for t in targets if t != "target") or targets


command = family
