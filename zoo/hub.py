"""Files of a repository on the Hugging Face Hub: into the standard cache, resumed where they were cut off, checked. Torch-free.

huggingface_hub gives addresses, tokens, retries and the layout of the cache; `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_CACHE` and
`HF_HUB_OFFLINE` mean what they mean there. Nothing is asked of a server but by `HubRevision.open` and `fetch`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HubError, IntegrityError
from .checkpoint import check_file
from .files import sha256
from .folder_repository import FolderRepository, FolderRevision
from .hub_errors import Unreachable, damaged, hub_errors, too_large
from .manifest import MANIFEST

if TYPE_CHECKING:
    from .reference import Reference

MOST_UNNAMED = 1 << 24  # bytes of a file whose size no manifest tells: the manifest itself, and a signature


@dataclass(frozen=True)
class HubRevision:
    """One commit of a repository; its files lie in `folder`, its snapshot in the cache."""

    repo_id: str
    commit: str
    folder: Path
    token: str | None = None
    offline: bool = False

    @classmethod
    def open(cls, reference: Reference, token: str | None, offline: bool, say: Callable[[str], None]) -> HubRevision:
        """Pin the commit of a reference and fetch its manifest, which stands at the root.

        Where there is no network, or `offline`, the commit that the cache knows by this name.

        Raises:
            HubError: no access, no such repository, revision or manifest, no network and nothing in the cache.
            IntegrityError: the manifest is damaged, and nothing of it is kept.
        """
        from huggingface_hub import constants

        offline = offline or constants.HF_HUB_OFFLINE
        revision = reference.revision or constants.DEFAULT_REVISION
        with hub_errors(reference.repo_id):
            known = path = cached(reference.repo_id, MANIFEST, revision)
        if not offline and not (known and constants.REGEX_COMMIT_OID.fullmatch(revision)):  # a commit does not change
            try:
                with hub_errors(reference.repo_id, revision):
                    path = download(reference.repo_id, MANIFEST, revision, token, None)
            except Unreachable as error:
                if known is None:
                    raise
                say(f"{error.what}: taking what the cache knows as {reference}")
        if path is None:
            raise HubError(f"{reference} is not in the cache, and offline nothing is fetched", hint="once without --offline")
        blob = path.resolve()
        if digest(blob, blob.name) != blob.name:
            forget(path)
            raise damaged(reference.repo_id, MANIFEST)
        return cls(reference.repo_id, path.parent.name, path.parent, token, offline)

    def fetch(self, name: str, expected: dict[str, Any] | None = None) -> Path:
        """The path of a file in the cache, fetched where it is not there.

        Raises:
            HubError: it could not be fetched; IntegrityError: it is not what is expected, and nothing of it is kept.
        """
        with hub_errors(self.repo_id, self.commit):
            path = cached(self.repo_id, name, self.commit)
            if path is None and self.offline:
                raise HubError(
                    f"{name} of {self.repo_id} is not in the cache, and offline nothing is fetched", hint="once without --offline"
                )
            path = path or download(self.repo_id, name, self.commit, self.token, expected["bytes"] if expected else None)
        try:
            if expected is not None:
                check_file(path, expected)
        except IntegrityError:
            forget(path)
            raise damaged(self.repo_id, name) from None
        return path

    def find(self, name: str) -> Path | None:
        """The path of a file that no manifest names, fetched where the cache lacks it; None where there is none, or no network."""
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError

        known = try_to_load_from_cache(self.repo_id, name, revision=self.commit)  # the cache knows, too, of what there is not
        if known is not None or self.offline:
            return Path(known) if isinstance(known, str) else None
        with suppress(Unreachable), hub_errors(self.repo_id, self.commit):
            try:
                # This alone notes in the cache that there is none.
                hf_hub_download(self.repo_id, name, revision=self.commit, token=self.token, dry_run=True)
                return download(self.repo_id, name, self.commit, self.token, None)
            except EntryNotFoundError:
                return None
        return None


def open_revision(
    reference: Reference, token: str | None = None, offline: bool = False, say: Callable[[str], None] = lambda line: None
) -> HubRevision | FolderRevision:
    """One revision of a repository, wherever that is."""
    if reference.folder is not None:
        return FolderRepository(reference.folder.absolute()).open(reference.revision)
    return HubRevision.open(reference, token, offline, say)


def cached(repo_id: str, name: str, revision: str) -> Path | None:
    """The file of a revision in the standard cache, without asking anybody."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def download(repo_id: str, name: str, revision: str, token: str | None, expected: int | None) -> Path:
    """Bring a file into the standard cache and give its place in the snapshot.

    What huggingface_hub has fetched of a file is lost when the process ends, and of the last 10 MB when the connection does. Here
    every byte is kept in `<blob>.incomplete`, and becomes the blob once all are what the server said they are.

    A file that has not the `expected` bytes, or is far too large for one that nobody has told of, is refused before it comes.
    """
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    url, cache = hf_hub_url(repo_id, name, revision=revision), Path(constants.HF_HUB_CACHE)
    etag, size = described(url, token)
    if size is not None and (size > MOST_UNNAMED if expected is None else size != expected):
        raise too_large(repo_id, name, size, MOST_UNNAMED) if expected is None else damaged(repo_id, name)
    most = next(known for known in (size, expected, MOST_UNNAMED) if known is not None)
    repository = repo_folder_name(repo_id=repo_id, repo_type="model")
    blob, lock = cache / repository / "blobs" / etag, cache / ".locks" / repository / f"{etag}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            part = blob.with_name(f"{etag}.incomplete")
            if size is not None and part.exists() and part.stat().st_size > size:
                part.unlink()
            fetch_rest(part, url, size, name, token, most)
            if part.stat().st_size > most:
                part.unlink()
                raise too_large(repo_id, name, most + 1, most)
            if digest(part, etag) != etag:
                part.unlink()
                raise damaged(repo_id, name)
            part.replace(blob)
    # It finds the blob, and writes the names that lead to it.
    return Path(hf_hub_download(repo_id, name, revision=revision, token=token))


def fetch_rest(part: Path, url: str, size: int | None, name: str, token: str | None, most: int) -> None:
    """Append to `part` what it lacks; where the connection ends, ask again as long as that brings something. What comes beyond
    `most` bytes is not waited for."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff, tqdm  # type: ignore[attr-defined]

    http_error: Any = errors.HTTPError  # type: ignore[attr-defined]
    headers = {**build_hf_headers(token=token), "Accept-Encoding": "identity"}
    asked: dict[str, Any] = {"timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT, "retry_on_exceptions": ()}
    part.touch()
    with part.open("r+b") as file, tqdm(total=size, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        while (start := file.seek(0, os.SEEK_END)) != size:
            try:
                from_here = {"Range": f"bytes={start}-"} if start else {}
                with http_stream_backoff("GET", url, headers={**headers, **from_here}, **asked) as response:
                    hf_raise_for_status(response)
                    if response.status_code != 206:  # the server sends all of it
                        file.seek(0)
                        file.truncate()
                    for chunk in response.iter_bytes():
                        file.write(chunk)
                        bar.update(len(chunk))
                        if file.tell() > most:
                            return
                return
            except http_error as error:
                if isinstance(error, errors.HfHubHTTPError) or file.tell() <= start:
                    raise


def described(url: str, token: str | None) -> tuple[str, int | None]:
    """Etag and size of a file. A server that is busy is asked again; one that cannot be reached is not."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found = get_hf_file_metadata(url, token=token)
    except HfHubHTTPError as error:
        if error.response.status_code not in (429, 500, 502, 503, 504):
            raise
        found = get_hf_file_metadata(url, token=token, retry_on_errors=True)
    if found.etag is None or not re.fullmatch(r"[\w-]+", found.etag):
        raise HubError(f"{url} does not answer as a Hub does: it has no usable etag", hint="look at HF_ENDPOINT, or at the proxy")
    return found.etag, found.size


def digest(path: Path, etag: str) -> str:
    """What the Hub gives as etag: sha256 of a large file, the name that git gives to a small one; else the etag itself."""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return sha256(path)
    if re.fullmatch(r"[0-9a-f]{40}", etag):
        return hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes()).hexdigest()
    return etag


def forget(path: Path) -> None:
    """Remove a file from the cache: its name in the snapshot, and what that leads to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)
