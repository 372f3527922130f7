"""Publish a package, a folder of packages, or a checkpoint: proved first, then one commit with all its files. Torch-free.

The files of one package, or of a checkpoint, stand at the root of the repository, as they do in its folder. A folder of packages of
one checkpoint (`kdzoo export -b all-targets -o FOLDER`) becomes a collection (`export.pull`): each in a folder named by its target,
and above them a manifest of all files and a short card.

A push is the whole next version: what the manifest of the version before named and this one does not is removed in the same
commit; files that were never ours (LICENSE, .gitattributes) stay. The tag is `v<kdzoo>-<first 12 of the sha256 of the manifest>`,
and of a signed package `-signed-<first 6 of the sha256 of the signature>` behind it. A signature goes with its package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..errors import IntegrityError, UsageError
from ..zoo.checkpoint import Checkpoint
from ..zoo.files import read_json, sha256, to_json
from ..zoo.folder_repository import FolderRepository
from ..zoo.hub import HubRevision
from ..zoo.hub_errors import hub_errors
from ..zoo.manifest import MANIFEST
from ..zoo.paths import check_files
from ..zoo.reference import Reference
from .candidates import packages_in
from .cards.collection_card import collection_card
from .cards.markdown import in_order
from .package import CARD, SCHEMA_VERSION, Package
from .pull import COLLECTION
from .signing import SIGNATURE, check_signed
from .verify import verify_package

Say = Callable[[str], None]


@dataclass(frozen=True)
class Bundle:
    """What is published: a name and every file, the manifest at its root among them."""

    name: str
    files: dict[str, Path | bytes]

    @property
    def digest(self) -> str:
        manifest = self.files[MANIFEST]
        return hashlib.sha256(manifest).hexdigest() if isinstance(manifest, bytes) else sha256(manifest)

    @property
    def tag(self) -> str:
        signature = self.files.get(SIGNATURE)
        signed = f"-signed-{sha256(signature)[:6]}" if isinstance(signature, Path) else ""
        return f"v{__version__}-{self.digest[:12]}{signed}"


@dataclass(frozen=True)
class Pushed:
    """Where it went: `commit` and its `url`, the `tag` (none for a pull request, which is no version yet)."""

    reference: Reference
    commit: str
    url: str
    tag: str | None
    changed: bool
    removed: tuple[str, ...] = ()


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    token: str | None = None,
    say: Say = lambda line: None,
) -> Pushed:
    """Publish what is in `folder`.

    Args:
        repo_id: `org/name`, or `file:///srv/models/org/name` for a registry in a folder.
        private: make the repository private; refused where it is public already.
        revision: the branch, made where it is missing; by default `main`.

    Raises:
        IntegrityError, GateFailed: it does not verify, and nothing was sent; UsageError: it is nothing that can be published;
        HubError: no access, no network.
    """
    reference = Reference.parse(repo_id)
    if reference.revision or reference.target:
        raise UsageError(f"--repo-id {repo_id} names more than a repository", hint="--revision names the branch")
    if reference.folder is not None and (private or create_pr):
        raise UsageError("--private and --create-pr are of the Hub", hint="permissions of the folder say who may read it")
    bundle = gather(folder, say)
    if reference.folder is None:
        return push_to_hub(bundle, reference, private, create_pr, revision, token, say)
    repository = FolderRepository(reference.folder.absolute())
    refs = (bundle.tag, revision) if revision else (bundle.tag,)
    changed = repository.publish(bundle.files, bundle.digest, refs, latest=revision is None)
    url = f"file://{repository.open(bundle.digest).folder}"
    return Pushed(reference.at(bundle.tag), bundle.digest, url, bundle.tag, changed)


def gather(folder: Path, say: Say) -> Bundle:
    """The files of what is in `folder`, proved."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", hint="kdzoo export makes a package, kdzoo push publishes it")
    if Package.is_package(folder):
        package = proved(Package.open(folder), say)
        names = (MANIFEST, *package.document["files"], *signature_of(package))
        return Bundle(package.name, {name: package.folder / name for name in names})
    packages = list(packages_in(folder, depth=1))
    if packages:
        return collect([proved(package, say) for package in packages])
    checkpoint = Checkpoint.open(folder)
    check_files(checkpoint.manifest.files)
    checkpoint.verify()
    place = checkpoint.folder
    return Bundle(checkpoint.manifest.entry, {name: place / name for name in (MANIFEST, *checkpoint.manifest.files)})


def proved(package: Package, say: Say) -> Package:
    """The package, which is whole and verifies; else an error."""
    files = check_files(package.document["files"])
    if len(package.here) < len(files):
        raise UsageError(
            f"{package.folder} holds {len(package.here)} of {len(files)} files: it was pulled in part", hint="pull it as a whole"
        )
    say(f"verifying {package.folder}")
    verify_package(package)
    return package


def signature_of(package: Package) -> list[str]:
    """The name of its signature, where it has one; raises `IntegrityError` where that is not of this manifest."""
    if not (package.folder / SIGNATURE).is_file():
        return []
    check_signed(package)
    return [SIGNATURE]


def collect(packages: list[Package]) -> Bundle:
    """Several packages of one checkpoint as one collection."""
    first = packages[0].document
    by_target = {package.document["target"]: package for package in packages}
    if len(by_target) < len(packages) or any(p.document["source"] != first["source"] for p in packages):
        raise UsageError(
            "these packages are not the targets of one checkpoint, each once",
            known=[package.folder.name for package in packages],
            hint="kdzoo export SOURCE -b all-targets -o FOLDER writes them",
        )
    targets = in_order(by_target)
    card = collection_card({target: by_target[target] for target in targets}).encode()
    content: dict[str, Path | bytes] = {CARD: card}
    files = {CARD: {"sha256": hashlib.sha256(card).hexdigest(), "bytes": len(card)}}
    for target in targets:
        package = by_target[target]
        paths = {name: package.folder / name for name in (MANIFEST, *signature_of(package))}
        own = {name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in paths.items()}
        described = {**package.document["files"], **own}
        content |= {f"{target}/{name}": package.folder / name for name in described}
        files |= {f"{target}/{name}": facts for name, facts in described.items()}
    document = {"schema_version": SCHEMA_VERSION, "kind": COLLECTION, "entry": first["entry"], "targets": targets, "files": files}
    return Bundle(first["entry"], {**content, MANIFEST: to_json(document)})


def push_to_hub(
    bundle: Bundle, reference: Reference, private: bool, create_pr: bool, revision: str | None, token: str | None, say: Say
) -> Pushed:
    """One commit upon the head of the branch; refused by the Hub where somebody else was faster."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo_id, branch = reference.repo_id, revision or "main"
    api = HfApi(token=token, library_name="kdzoo", library_version=__version__)
    with hub_errors(repo_id, branch, "write to"):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise UsageError(f"{repo_id} is public already", hint="make it private on its page, or leave --private out")
        if revision and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        head = api.model_info(repo_id, revision=branch).sha
        assert head is not None, "the Hub gives the commit of a revision"
        present = set(api.list_repo_files(repo_id, revision=head))
        stale = sorted(published(reference.at(head), present, token) - bundle.files.keys())
        say(f"sending {len(bundle.files)} files to {repo_id}, removing {len(stale)}")
        additions = [CommitOperationAdd(path_in_repo=n, path_or_fileobj=c) for n, c in bundle.files.items()]
        commit = api.create_commit(
            repo_id,
            [*additions, *(CommitOperationDelete(path_in_repo=name) for name in stale)],
            commit_message=f"{bundle.name} ({bundle.tag})",
            revision=branch,
            create_pr=create_pr,
            parent_commit=head,
        )
        tag = None if create_pr else bundle.tag
        if tag:
            api.create_tag(repo_id, tag=tag, revision=commit.oid, exist_ok=True)
    url = (commit.pr_url if create_pr else None) or commit.commit_url
    return Pushed(reference.at(tag or commit.oid), commit.oid, url, tag, commit.oid != head, tuple(stale))


def published(reference: Reference, present: set[str], token: str | None) -> set[str]:
    """The files of the version that stands there, by its own manifest; none where it has no manifest of ours."""
    if MANIFEST not in present:
        return set()
    with suppress(IntegrityError):
        document = read_json(HubRevision.open(reference, token, False, lambda line: None).folder / MANIFEST)
        return {SIGNATURE, *check_files(document.get("files"))} & present
    return set()
