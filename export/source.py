"""What SOURCE means: a checkpoint, a run, a package, an entry of the zoo, or something published (`zoo.reference`). Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..errors import UnknownName, UsageError
from ..zoo.catalog import DEFAULT_ENTRY, entries
from ..zoo.checkpoint import Checkpoint
from ..zoo.files import standing
from ..zoo.folder_repository import FolderRepository
from ..zoo.manifest import MANIFEST
from ..zoo.reference import Reference
from ..zoo.target import Target
from .package import Package

RUNS = Path("runs")


def newest_run(runs: Path = RUNS) -> Path | None:
    """The run below `./runs` whose checkpoint is the youngest."""
    checkpoints = [standing(folder / "checkpoint") for folder in runs.glob("*/")]
    manifests = [c / MANIFEST for c in checkpoints if (c / MANIFEST).is_file()]
    return max(manifests, key=lambda path: path.stat().st_mtime).parent.parent if manifests else None


def resolve(source: str | None, say: Callable[[str], None], branch: str | None = None) -> Checkpoint | Package:
    """Open what `source` names; without one, the newest run under `./runs`, else the default bundled entry, and say so.

    `branch` chooses the package of a published collection. Of a commit that `kdzoo pull` fetched in part, that part is taken.

    Raises:
        UnknownName: neither a folder nor an entry; UsageError: a folder of something else, or an entry without weights;
        HubError, IntegrityError: what is published cannot be fetched, or is not what it says.
    """
    if source is None:
        run = newest_run()
        if run is not None:
            say(f"no source given: taking the newest run, {run}")
            return Checkpoint.open(run)
        say(f"no source given and no run under ./{RUNS}: taking the bundled entry {DEFAULT_ENTRY}")
        source = DEFAULT_ENTRY
    folder = Path(source)
    if folder.is_dir() and not FolderRepository(folder).exists():
        found = Package.open(folder) if Package.is_package(folder) else Checkpoint.open(folder)
        check_branch(found, branch, source)
        return found
    known = {entry.name: entry for entry in entries()}
    if source not in known and Reference.is_meant(source):
        from .pull import pull

        pulled = pull(Reference.parse(source), branch=branch, as_before=True, say=say)
        origin = None if pulled.reference.folder else str(pulled.pinned)
        return replace(pulled.source, origin=origin) if isinstance(pulled.source, Checkpoint) else pulled.source
    if source not in known:
        raise UnknownName(
            "source", source, list(known),
            hint="a source is a run, checkpoint or package folder, an entry (kdzoo ls), or published: org/name@main",
        )  # fmt: skip
    bundled = known[source].folder
    if bundled is None:
        raise UsageError(f"no weights of {source} are bundled yet", hint=f"train them: kdzoo train {source}")
    checkpoint = replace(Checkpoint.open(bundled), origin=source)
    check_branch(checkpoint, branch, source)
    return checkpoint


def check_branch(found: Checkpoint | Package, branch: str | None, source: str) -> None:
    """Raises `UsageError` where a branch is asked for that is not the one that was found."""
    if branch is None:
        return
    target = str(Target.parse(branch))
    if isinstance(found, Checkpoint):
        raise UsageError(f"{source} is a checkpoint with all its branches", hint=f"kdzoo export {source} --branch {target}")
    if target != found.document["target"]:
        raise UnknownName("target", target, [found.document["target"]], hint=f"{source} is a package, which holds one target")


def resolve_checkpoint(source: str | None, say: Callable[[str], None]) -> Checkpoint:
    """As `resolve`; raises `UsageError` where the source is a package, which holds one target only."""
    found = resolve(source, say)
    if isinstance(found, Package):
        raise UsageError(
            f"{found.folder} is a package, which holds one target only", hint="give the run or entry that it was cut from"
        )
    return found


def resolve_package(source: str, say: Callable[[str], None], branch: str | None = None) -> Package:
    """As `resolve`; raises `UsageError` where the source is no package."""
    found = resolve(source, say, branch)
    if isinstance(found, Checkpoint):
        raise UsageError(f"{source} is a checkpoint, not a package", hint=f"kdzoo export {source} makes a package of it")
    return found
