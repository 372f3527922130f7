"""A registry without a network: a folder that holds revisions and never changes one. Torch-free.

`revisions/<sha256 of its manifest.json>/` holds the files of a revision, whole or absent, written once, but for its signature: that
may come later and is not named by the manifest; `refs/<branch or tag>` and `latest`, the last push, are small files with the digest
of one.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import HubError, IntegrityError, UsageError
from .checkpoint import check_file
from .files import alone, new_folder, read_json, sha256, write_bytes
from .manifest import MANIFEST

LATEST, REFS, REVISIONS = "latest", "refs", "revisions"


@dataclass(frozen=True)
class FolderRevision:
    """One revision, read where it lies."""

    repo_id: str
    commit: str
    folder: Path

    def fetch(self, name: str, expected: dict[str, Any] | None = None) -> Path:
        """The path of a file; raises `IntegrityError` where it is not the one that is expected."""
        path = self.folder / name
        if expected is not None:
            check_file(path, expected)
        elif name == MANIFEST and path.is_file() and sha256(path) != self.commit:
            raise IntegrityError(f"{path} is not what was pushed (sha256)", hint="push it again")
        return path

    def find(self, name: str) -> Path | None:
        """The path of a file that the manifest does not name, where there is one."""
        return self.folder / name if (self.folder / name).is_file() else None


@dataclass(frozen=True)
class FolderRepository:
    """The folder of a repository, `root`."""

    root: Path

    def exists(self) -> bool:
        return (self.root / REVISIONS).is_dir()

    def open(self, revision: str | None) -> FolderRevision:
        """The revision of a branch, a tag, or the beginning of a digest; None is the latest. Raises `HubError` where it is not."""
        if not self.exists():
            raise HubError(f"there is no repository in {self.root}", hint=f"kdzoo push PACKAGE --repo-id file://{self.root}")
        pointer = self._ref(revision) if revision else self.root / LATEST
        found = pointer.read_text(encoding="ascii").strip() if pointer.is_file() else revision or ""
        folders = sorted((self.root / REVISIONS).glob(f"{found}*")) if re.fullmatch(r"[0-9a-f]{7,64}", found) else []
        if len(folders) != 1:
            refs = [p.relative_to(self.root / REFS).as_posix() for p in sorted((self.root / REFS).rglob("*")) if p.is_file()]
            raise HubError(f"{self.root} has no revision '{revision or LATEST}'", known=refs, hint="or the beginning of a digest")
        return FolderRevision(str(self.root), folders[0].name, folders[0])

    def _ref(self, name: str) -> Path:
        if not re.fullmatch(r"\w[\w.+-]*(/\w[\w.+-]*)*", name):
            raise UsageError(f"'{name}' cannot be the name of a revision", hint="letters, digits and . + - _ /")
        return self.root / REFS / name

    def publish(self, files: dict[str, Path | bytes], commit: str, refs: tuple[str, ...], latest: bool) -> bool:
        """Write the revision `commit` and let `refs` name it; gives False where all of it was there already."""
        target = self.root / REVISIONS / commit
        with alone(self.root / LATEST, lambda: None):
            missing = not target.exists()
            if missing:
                with new_folder(target) as part:
                    for name, content in files.items():
                        (part / name).parent.mkdir(parents=True, exist_ok=True)
                        if isinstance(content, bytes):
                            (part / name).write_bytes(content)
                        else:
                            shutil.copyfile(content, part / name)
            changed = missing or self._add_unnamed(files, target)
            for ref in refs:
                write_bytes(self._ref(ref), f"{commit}\n".encode())
            if latest:
                write_bytes(self.root / LATEST, f"{commit}\n".encode())
        return changed

    @staticmethod
    def _add_unnamed(files: dict[str, Path | bytes], target: Path) -> bool:
        """Write the files that the manifest of a revision does not name; gives whether one of them was not there like this."""
        changed = False
        for name in files.keys() - {MANIFEST, *read_json(target / MANIFEST)["files"]}:
            found = files[name]
            content = found if isinstance(found, bytes) else found.read_bytes()
            if not (target / name).is_file() or (target / name).read_bytes() != content:
                write_bytes(target / name, content)
                changed = True
        return changed
