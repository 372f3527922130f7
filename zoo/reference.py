"""The name of something published: `org/name` on the Hugging Face Hub, or `file:///srv/models/org/name`. Torch-free.

`@REVISION` behind it is a branch, a tag or a commit; `#TARGET` behind that is one package of a collection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import UsageError
from .folder_repository import FolderRepository

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LOCAL = ("/", "./", "../", "~")  # how the path of a folder begins that is meant as a repository
RUNS = "runs"  # where `kdzoo train` writes: `runs/name` is a folder, even before it is there


@dataclass(frozen=True)
class Reference:
    """A repository, one of its revisions, one of its packages. `repo_id` of a folder is its absolute path."""

    repo_id: str
    revision: str | None = None
    target: str | None = None
    folder: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises `UsageError` where `text` names no repository."""
        rest, _, target = text.partition("#")
        place, _, revision = rest.partition("@")
        folder = None
        if place.startswith("file://"):
            url = urlsplit(place)
            if url.netloc not in ("", "localhost"):
                raise UsageError(f"'{text}' names a folder of another machine", hint="three slashes: file:///srv/models/org/name")
            folder = Path(unquote(url.path))
        elif place.startswith(LOCAL):
            folder = Path(place).expanduser()
        if folder is not None:
            place = str(folder.absolute())
        elif not REPO_ID.fullmatch(place):
            raise UsageError(f"'{text}' is not org/name[@revision]", hint="or a registry in a folder: file:///srv/models/org/name")
        return cls(place, revision or None, target or None, folder)

    @staticmethod
    def is_meant(text: str) -> bool:
        """Whether SOURCE, which is no folder of something, is a reference: a slip in the path of a folder is not."""
        place = text.partition("#")[0].partition("@")[0]
        if place.startswith("file://"):
            return True
        if place.startswith(LOCAL):
            return FolderRepository(Path(place).expanduser()).exists()
        owner = place.partition("/")[0]
        return bool(REPO_ID.fullmatch(place)) and ("@" in text or not (owner == RUNS or Path(owner).is_dir()))

    def at(self, revision: str) -> Reference:
        return replace(self, revision=revision)

    def of(self, target: str) -> Reference:
        return replace(self, target=target)

    def __str__(self) -> str:
        place = f"file://{self.repo_id}" if self.folder else self.repo_id
        return place + (f"@{self.revision}" if self.revision else "") + (f"#{self.target}" if self.target else "")
