"""Everything that a checkpoint can become, in one go: a package per target, a Pareto table of all files, one picture.

A file that fails its gate is refused, alone; the others stay. Where all files of a target are refused, its package of an earlier
export is moved to `BEFORE`: where it stood it would be taken for what this one made. Torch-free at import.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GateFailed, OutputError
from ..zoo.checkpoint import WEIGHTS, Checkpoint
from ..zoo.files import predecessor, write_json
from ..zoo.manifest import host_description
from ..zoo.target import Target
from .candidates import packages_in
from .cards.markdown import in_order
from .evidence import Evidence, gather_evidence
from .exporter import export
from .package import SCHEMA_VERSION, Package
from .pareto_picture import draw_pareto
from .request import Request
from .torch_answers import node_logits

if TYPE_CHECKING:
    from .torch_answers import NodeLogits

FAMILY, PICTURE = "family.json", "pareto.png"
BEFORE = ".before"  # hidden, so that it is no package of the family
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
    request: Request,
    *,
    output: Path,
    say: Say = lambda line: None,
) -> Family:
    """Write a package of every target into `output`, then `family.json` and, where matplotlib is installed, `pareto.png`.

    Packages of other targets of the same checkpoint that stand in `output` stay, and are listed with them.

    Raises:
        OutputError: a package is there already and `request.force` is not set, or it is of another checkpoint.
        GateFailed: no file of any target passed. Otherwise as `export`.
    """
    folders = {target: output / str(target) for target in targets}
    check_family(checkpoint, folders, output, request.force)
    request.check(checkpoint, folders)
    refused: dict[str, str] = {}
    evidence = gather_evidence(checkpoint, request, targets, say)
    if request.verify:
        evidence = replace(evidence, answers=everything(checkpoint, evidence, say))
    for target, folder in folders.items():
        say(f"exporting branch {target} of {checkpoint.manifest.entry}")
        failed: dict[str, str] = {}
        try:
            export(checkpoint, target, request, output=folder, refused=failed, evidence=evidence, say=say)
        except GateFailed as error:
            failed[""] = error.what.removesuffix(f": {'; '.join(failed.values())}")  # each file has its own reason
            if Package.is_package(folder):
                say(f"{folder} is of an earlier export and is now {set_aside(folder)}")
        refused |= {f"{target}/{path}".rstrip("/"): reason for path, reason in failed.items()}
    packages = [p for p in standing_in(output) if is_of(p, checkpoint)]
    if not packages:
        for path in (output / FAMILY, output / PICTURE):
            if path.exists():
                set_aside(path)
        raise GateFailed(f"no file passed its gates: {'; '.join(refused.values())}")
    ranked = tuple(mark_pareto(member for package in packages for member in members_of(package)))
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
        (output / PICTURE).unlink(missing_ok=True)  # of an earlier export
        say(f"{PICTURE} is left out: matplotlib is not installed (pip install 'kdzoo[plot]')")
    return Family(output, ranked, refused, document)


def set_aside(path: Path) -> Path:
    """Move something of a family to `BEFORE`, in place of what was moved there before it."""
    kept = path.parent / BEFORE / path.name
    if kept.is_dir():
        shutil.rmtree(kept)
    kept.parent.mkdir(exist_ok=True)
    path.rename(kept)
    shutil.rmtree(predecessor(path), ignore_errors=True)  # of a replacement that was killed; it would stand in for the package
    return kept


def check_family(checkpoint: Checkpoint, folders: dict[Target, Path], output: Path, force: bool) -> None:
    """Raises `OutputError` where the family of another checkpoint stands in `output`, or one that was not to be changed."""
    if output.is_file():
        raise OutputError(f"{output} is a file", hint="name a folder with --output")
    if Package.is_package(output):
        raise OutputError(f"{output} is a package", hint="name another folder with --output")
    if not output.is_dir():
        return
    for package in standing_in(output):
        if package.folder not in folders.values() and not is_of(package, checkpoint):
            raise OutputError(f"{package.folder} was cut from another checkpoint", hint="name another folder with --output")
    if (output / FAMILY).exists() and not force:
        raise OutputError(f"{output} holds a family", hint="name another folder with --output, or add to it with --force")


def standing_in(folder: Path) -> list[Package]:
    """The packages that stand side by side in a folder, in the order of their targets."""
    found = list(packages_in(folder, depth=1))
    order = in_order(package.document["target"] for package in found)
    return sorted(found, key=lambda package: order.index(package.document["target"]))


def is_of(package: Package, checkpoint: Checkpoint) -> bool:
    """Whether a package was cut out of this checkpoint."""
    return package.document["source"].get("weights_sha256") == checkpoint.manifest.files[WEIGHTS]["sha256"]


def everything(checkpoint: Checkpoint, evidence: Evidence, say: Say) -> NodeLogits:
    """The logits of every branch, and the fused ones: torch runs once for all targets."""
    network = checkpoint.network()
    nodes = [branch.logits for branch in network.branches] + ([network.fused] if network.fused else [])
    say(f"running torch on {len(evidence.images)} images, for all targets")
    return node_logits(network, nodes, checkpoint.manifest.preprocess, evidence.images)


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
        result.append(replace(member, pareto=member.top1 > best))
        best = max(best, member.top1)
    return [*result, *(m for m in listed if m.top1 is None or m.p50_ms is None)]
