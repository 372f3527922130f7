"""Everything that a checkpoint can become, in one go: a package per target, a Pareto table of all files, one picture.

A file that fails its gate is refused, alone; the others stay. What cannot be made at all ends the export; the packages before it
are whole. Torch-free at import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..zoo.checkpoint import Checkpoint
from ..zoo.files import write_json
from ..zoo.manifest import host_description
from ..zoo.target import Target
from .exporter import check_output, export
from .format import ExportOptions
from .gates import Gates
from .package import SCHEMA_VERSION, Package

FAMILY, PICTURE = "family.json", "pareto.png"
COLOURS = {"fp32": "#0072B2", "fp16": "#E69F00", "bf16": "#CC79A7", "int8": "#009E73"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Member:
    """One file. `top1` in percent and `p50_ms` of the smallest batch are None where it was not run; `not_run` says why then.

    Attributes:
        path: relative to the family. pareto: no other file is both at least as accurate and at least as fast, and better in one.
    """

    target: str
    path: str
    format: str
    precision: str
    bytes: int
    params: int
    macs: int
    top1: float | None
    p50_ms: float | None
    not_run: str = ""
    pareto: bool = False


@dataclass(frozen=True)
class Family:
    """A folder of packages. `refused`: what failed its gate and is not there, with the reason."""

    folder: Path
    members: tuple[Member, ...]
    refused: dict[str, str]
    document: dict[str, Any]


def export_family(
    checkpoint: Checkpoint,
    targets: Sequence[Target],
    *,
    formats: tuple[str, ...],
    options: ExportOptions,
    gates: Gates,
    output: Path,
    force: bool = False,
    data: Path | None = None,
    verify: bool = True,
    cascade_loss: float = 0.1,
    say: Say = lambda line: None,
) -> Family:
    """Write a package of every target into `output`, then `family.json` and, where matplotlib is installed, `pareto.png`.

    Raises:
        OutputError: a package is there already and `force` was not asked for. Otherwise as `export`, but for failed gates.
    """
    folders = {target: output / str(target) for target in targets}
    if output.is_file():
        raise OutputError(f"{output} is a file", hint="name a folder with --output")
    for target, folder in folders.items():  # all of them, before the first one is written
        checkpoint.require(target)
        check_output(folder, checkpoint.folder, force)
    refused: dict[str, str] = {}
    members: list[Member] = []
    for target, folder in folders.items():
        say(f"exporting branch {target} of {checkpoint.manifest.entry}")
        failed: dict[str, str] = {}
        package = export(
            checkpoint, target, formats=formats, options=options, gates=gates, output=folder, force=force, data=data,
            verify=verify, cascade_loss=cascade_loss, refused=failed, say=say,
        )  # fmt: skip
        refused |= {f"{target}/{path}": reason for path, reason in failed.items()}
        members += members_of(package)
    ranked = tuple(mark_pareto(members))
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": "family",
        "entry": checkpoint.manifest.entry,
        "host": host_description(),
        "members": [asdict(member) for member in ranked],
        "refused": refused,
    }
    write_json(output / FAMILY, document)
    if not draw_pareto(ranked, output / PICTURE, checkpoint.manifest.entry):
        say(f"{PICTURE} is left out: matplotlib is not installed (pip install 'kdzoo[plot]')")
    return Family(output, ranked, refused, document)


def members_of(package: Package) -> list[Member]:
    """The files of a package with what was measured of them."""
    metrics, target = package.metrics, package.document["target"]
    result = []
    for artifact in package.artifacts:
        measured = metrics["artifacts"].get(artifact.path, {})
        latency = measured.get("latency")
        result.append(
            Member(
                target, f"{package.folder.name}/{artifact.path}", artifact.format, artifact.precision, artifact.bytes,
                metrics["student"]["params"], metrics["student"]["macs"], measured.get("accuracy", {}).get("top1"),
                latency[0]["p50_ms"] if latency else None, measured.get("not_run", ""),
            )
        )  # fmt: skip
    return result


def mark_pareto(members: Iterable[Member]) -> list[Member]:
    """The same members, the fastest first and those that were not run last, with `pareto` decided."""
    listed = list(members)
    ranked = sorted((m for m in listed if m.top1 is not None and m.p50_ms is not None), key=lambda m: (m.p50_ms, -(m.top1 or 0)))
    result, best = [], float("-inf")
    for member in ranked:
        assert member.top1 is not None
        result.append(Member(**{**asdict(member), "pareto": member.top1 > best}))
        best = max(best, member.top1)
    return [*result, *(m for m in listed if m.top1 is None or m.p50_ms is None)]


def draw_pareto(members: Sequence[Member], path: Path, title: str) -> bool:
    """Top-1 against latency of every file that was run. False where matplotlib (extra `plot`) is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7.0, 4.6), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    run = [(m, m.p50_ms, m.top1) for m in members if m.p50_ms is not None and m.top1 is not None]
    front = [(ms, top1) for m, ms, top1 in run if m.pareto]
    axes.step([ms for ms, _ in front], [top1 for _, top1 in front], where="post", color="#999999", linewidth=1, zorder=1)
    for precision, colour in COLOURS.items():
        some = [(ms, top1) for m, ms, top1 in run if m.precision == precision]
        if some:
            axes.scatter([ms for ms, _ in some], [top1 for _, top1 in some], color=colour, label=precision, s=45, zorder=2)
    for member, ms, top1 in run:
        if member.pareto:
            axes.annotate(member.target, (ms, top1), textcoords="offset points", xytext=(6, 5), fontsize=8)
    axes.set(xlabel="milliseconds, smallest batch (p50)", ylabel="test top-1 (%)", title=f"{title}: {len(run)} measured files")
    axes.legend(fontsize=8, title="precision", title_fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Software": None})
    return True
