"""Fetch what is published: the manifest first, then the files that are needed, each checked. Torch-free.

The manifest at the root of a revision is that of a package, of a checkpoint, or of a *collection*: several packages of one
checkpoint, each in a folder named by its target (`3/manifest.json`, `1+2/model.fp32.onnx`). The manifest of a collection has the
sha256 of every file of all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, UnknownName, UsageError
from ..zoo.checkpoint import TRAINING_STATE, TRAINING_TENSORS, Checkpoint
from ..zoo.files import new_folder, read_json, write_json
from ..zoo.hub import HubRevision, open_revision
from ..zoo.manifest import MANIFEST
from ..zoo.paths import check_files, check_name
from ..zoo.reference import Reference
from ..zoo.target import Target
from .package import CONFIG, METRICS, PULLED, SCHEMA_VERSION, STUDENT, WEIGHTS, Package
from .signing import SIGNATURE
from .source import check_branch

COLLECTION = "collection"


@dataclass(frozen=True)
class Pulled:
    """What was fetched: opened, with the commit that it is pinned to and the files that are here, of all that there are."""

    source: Checkpoint | Package
    reference: Reference
    commit: str
    files: tuple[str, ...]
    files_of: int

    @property
    def pinned(self) -> Reference:
        return self.reference.at(self.commit)


def pull(
    reference: Reference,
    *,
    branch: str | None = None,
    formats: tuple[str, ...] = (),
    precisions: tuple[str, ...] = (),
    output: Path | None = None,
    force: bool = False,
    as_before: bool = False,
    token: str | None = None,
    offline: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Pulled:
    """Fetch a package or a checkpoint and open it.

    Args:
        branch: the package of a collection; by default `target`, or the only one.
        formats, precisions: of the files; by default all. `safetensors` is the student that torch reads.
        output: a folder to copy it to. By default it stays in the cache of the Hub, or where the registry has it.
        as_before: take the files that an earlier pull of this commit chose, where there was one.

    Raises:
        HubError: it could not be fetched; IntegrityError: a file, or what a manifest says, cannot be trusted;
        UnknownName, UsageError, OutputError: the request cannot be met as it stands.
    """
    from .request import check_output

    revision = open_revision(reference, token, offline, say)
    if output is not None:
        check_output(output, revision.folder, force)
    branch = branch or reference.target
    document = read_manifest(revision.fetch(MANIFEST))
    place = ""
    if document["kind"] == COLLECTION:
        place, files = choose(document, branch, reference), check_files(document["files"])
        document = read_manifest(revision.fetch(place + MANIFEST, files[place + MANIFEST]))
        if document["kind"] != "package":
            raise IntegrityError(f"{reference} holds a {document['kind']} where a package should be", hint="push it again")
    folder, files = revision.folder / place, check_files(document["files"])
    source = Checkpoint.open(folder) if document["kind"] == "checkpoint" else Package.open(folder)
    check_branch(source, branch, str(reference))
    wanted = needed(source, formats, precisions)
    if as_before and (folder / PULLED).is_file() and isinstance(source, Package):
        wanted = source.here
    for name in wanted:
        say(f"{name}, {files[name]['bytes']:,} bytes")
        revision.fetch(place + name, files[name])
    signature = revision.find(place + SIGNATURE) if isinstance(source, Package) else None
    facts = {"schema_version": SCHEMA_VERSION, "repository": reference.repo_id, "revision": reference.revision}
    facts["commit"] = revision.commit
    if isinstance(revision, HubRevision) and isinstance(source, Package):
        earlier = source.here if (folder / PULLED).is_file() else []
        remember(folder / PULLED, {**facts, "files": sorted({*earlier, *wanted})})
    if output is not None:
        with new_folder(output) as part:
            for name in (MANIFEST, *wanted):
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, part / name)
            if signature is not None:
                shutil.copyfile(signature, part / SIGNATURE)
            write_json(part / PULLED, {**facts, "files": sorted(wanted)})
        source = Package.open(output) if isinstance(source, Package) else Checkpoint.open(output)
    return Pulled(source, reference, revision.commit, tuple(wanted), len(files))


def read_manifest(path: Path) -> dict[str, Any]:
    """Raises `IntegrityError` unless it is a manifest of kdzoo."""
    document = read_json(path, SCHEMA_VERSION)
    if document.get("kind") not in ("package", "checkpoint", COLLECTION) or not isinstance(document.get("files"), dict):
        raise IntegrityError(f"{path} is no manifest of kdzoo", hint="kdzoo push publishes packages, collections and checkpoints")
    found: dict[str, Any] = document
    return found


def described(
    reference: Reference, token: str | None = None, offline: bool = False, say: Callable[[str], None] = lambda line: None
) -> dict[Reference, Package]:
    """The packages of a repository, or the one that `reference` names, with nothing fetched but what they say of themselves; by the
    pinned reference that pulls each.

    Raises:
        UsageError: a checkpoint is published there. Otherwise as `pull`.
    """
    revision = open_revision(reference, token, offline, say)
    pinned, document = reference.at(revision.commit), read_manifest(revision.fetch(MANIFEST))
    if document["kind"] == "checkpoint":
        raise UsageError(f"{reference} is a checkpoint, not measured files", hint=f"kdzoo family {pinned} makes and measures them")
    if document["kind"] == "package":
        places: dict[Reference, str] = {pinned: ""}
    else:
        wanted = [reference.target] if reference.target else targets_of(document, reference)
        places = {pinned.of(target): choose(document, target, reference) for target in wanted}
    found = {}
    for place, folder in places.items():
        facts = check_files(document["files"])
        own = read_manifest(revision.fetch(folder + MANIFEST, facts[folder + MANIFEST])) if folder else document
        own_files = check_files(own["files"])
        if METRICS not in own_files:
            raise IntegrityError(f"the manifest of {place} lists no {METRICS}: nothing is known of its files", hint="push it again")
        revision.fetch(folder + METRICS, own_files[METRICS])
        found[place] = Package.open(revision.folder / folder)
    return found


def targets_of(document: dict[str, Any], reference: Reference) -> list[str]:
    """Of a collection; raises `IntegrityError` where a package of it has no manifest."""
    targets = document.get("targets")
    if not isinstance(targets, list) or not targets or any(f"{t}/{MANIFEST}" not in document["files"] for t in targets):
        raise IntegrityError(f"the manifest of {reference} does not say which packages it holds", hint="push it again")
    found: list[str] = targets
    return found


def choose(document: dict[str, Any], branch: str | None, reference: Reference) -> str:
    """The folder of a package in its collection, with a slash at its end."""
    targets = targets_of(document, reference)
    wanted = str(Target.parse(branch)) if branch else targets[0] if len(targets) == 1 else "target"
    if wanted not in targets:
        raise UnknownName("target", wanted, targets, hint=f"--branch {targets[0]}, or {reference.of(targets[0])}")
    return f"{wanted}/"


def needed(source: Checkpoint | Package, formats: tuple[str, ...], precisions: tuple[str, ...]) -> list[str]:
    """The files of a manifest that are asked for, and those that every use needs."""
    if isinstance(source, Checkpoint):
        if formats or precisions:
            raise UsageError(
                "a checkpoint has no formats", hint="leave --format and --precision out; kdzoo export makes files of it"
            )
        return [name for name in source.manifest.files if name not in (TRAINING_TENSORS, TRAINING_STATE)]
    known = sorted({a.format for a in source.described} | {STUDENT})
    for name in formats:
        if name not in known:
            raise UnknownName("format", name, known, hint="kdzoo info shows what a package holds")
    left: set[str] = set() if STUDENT in formats or not (formats or precisions) else {WEIGHTS, CONFIG}
    for artifact in source.described:
        names = {check_name(name) for name in (artifact.path, *artifact.companions)}
        if (formats and artifact.format not in formats) or (precisions and artifact.precision not in precisions):
            left |= names
    return [name for name in source.document["files"] if name not in left]


def remember(path: Path, document: dict[str, Any]) -> None:
    """Write what was pulled, unless it stands there already: a cache may be read-only."""
    if not path.is_file() or read_json(path) != document:
        write_json(path, document)
