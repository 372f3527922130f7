"""What SOURCE on the command line means: a checkpoint, a run, a package, or an entry of the zoo. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import UnknownName, UsageError
from ..zoo.catalog import DEFAULT_ENTRY, entries
from ..zoo.checkpoint import Checkpoint
from ..zoo.files import standing
from ..zoo.manifest import MANIFEST
from .package import Package

RUNS = Path("runs")


def newest_run(runs: Path = RUNS) -> Path | None:
    """The run below `./runs` whose checkpoint is the youngest."""
    checkpoints = [standing(folder / "checkpoint") for folder in runs.glob("*/")]
    manifests = [c / MANIFEST for c in checkpoints if (c / MANIFEST).is_file()]
    return max(manifests, key=lambda path: path.stat().st_mtime).parent.parent if manifests else None


def resolve(source: str | None, say: Callable[[str], None]) -> Checkpoint | Package:
    """Open what `source` names; without one, the newest run under `./runs`, else the default bundled entry, and say so.

    Raises:
        UnknownName: neither a folder nor an entry; UsageError: a folder of something else, or an entry without weights.
    """
    if source is None:
        run = newest_run()
        if run is not None:
            say(f"no source given: taking the newest run, {run}")
            return Checkpoint.open(run)
        say(f"no source given and no run under ./{RUNS}: taking the bundled entry {DEFAULT_ENTRY}")
        source = DEFAULT_ENTRY
    folder = Path(source)
    if folder.is_dir():
        return Package.open(folder) if Package.is_package(folder) else Checkpoint.open(folder)
    known = {entry.name: entry for entry in entries()}
    if source not in known:
        raise UnknownName(
            "source", source, list(known), hint="a source is a run, checkpoint or package folder, or an entry (kdzoo ls)"
        )
    bundled = known[source].folder
    if bundled is None:
        raise UsageError(f"no weights of {source} are bundled yet", hint=f"train them: kdzoo train {source}")
    return Checkpoint.open(bundled)


def resolve_checkpoint(source: str | None, say: Callable[[str], None]) -> Checkpoint:
    """As `resolve`; raises `UsageError` where the source is a package, which holds one target only."""
    found = resolve(source, say)
    if isinstance(found, Package):
        raise UsageError(
            f"{found.folder} is a package, which holds one target only", hint="give the run or entry that it was cut from"
        )
    return found


def resolve_package(source: str, say: Callable[[str], None]) -> Package:
    """As `resolve`; raises `UsageError` where the source is no package."""
    found = resolve(source, say)
    if isinstance(found, Checkpoint):
        raise UsageError(f"{source} is a checkpoint, not a package", hint=f"kdzoo export {source} makes a package of it")
    return found
