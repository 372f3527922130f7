"""A Hugging Face Hub of this machine: the real client speaks to it over HTTP, and it does harm on demand.

Import it as `kdzoo.tests.hub_server`. Repositories, commits, branches, tags, large files behind a redirect to another host, ranges,
tokens; `fail`, `cut` and `flip` make an answer an error, an answer that ends too early, and an answer with a wrong byte.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kdzoo.tests.hub_pages import WRITER, Handler, Repository, Request, is_large

# What huggingface_hub itself does when it uploads.
own_warnings = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Hub(ThreadingHTTPServer):
    """The server, its repositories, what it was asked, and the harm that it is to do."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.failures: list[tuple[str, int, dict[str, str], list[int]]] = []
        self.cuts: dict[str, list[int]] = {}
        self.flips: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo_id: str, files: dict[str, bytes], *, private: bool = False, branch: str = "main") -> str:
        """A commit with just these files."""
        repository = self.repositories.setdefault(repo_id, Repository(private))
        self.large |= {hashlib.sha256(c).hexdigest(): c for name, c in files.items() if is_large(name)}
        return repository.commit(files, branch)

    def add_folder(self, repo_id: str, folder: Path, **settings: Any) -> str:
        found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return self.add(repo_id, found, **settings)

    def fail(self, pattern: str, status: int, *, times: int = 10**6, **headers: str) -> None:
        """Answer requests `METHOD PATH` that match with an error."""
        self.failures.append((pattern, status, {k.replace("_", "-"): v for k, v in headers.items()}, [times]))

    def cut(self, name: str, at: int, times: int = 1) -> None:
        """Send a file up to a byte, and close the connection."""
        self.cuts[name] = [at] * times

    def flip(self, name: str) -> None:
        """Send a file with one wrong byte in the middle."""
        self.flips.add(name)

    def asked(self, pattern: str) -> list[Request]:
        return [r for r in self.log if re.search(pattern, f"{r.method} {r.path}")]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


@contextmanager
def serve(home: Path) -> Iterator[Hub]:
    """A running Hub; the client knows it, an empty cache below `home`, the token of a writer, and no other network."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_DEBUG"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", WRITER)
        patch.setenv("HF_HOME", str(home))
        settings = {
            "ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(home / "hub"), "HF_HOME": str(home), "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "tokens"), "AGENT_HARNESSES_PATH": str(home / "agents.json"),
            "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
        }  # fmt: skip
        for name, value in settings.items():
            patch.setattr(constants, name, value, raising=False)
        for module in (_http, file_download):
            patch.setattr(module, "time", QuickTime())
        _http.close_session()
        try:
            yield hub
        finally:
            _http.close_session()
            hub.shutdown()
            hub.server_close()
            thread.join()


class QuickTime:
    """The module `time`, but that nobody sleeps: the client waits for seconds before it asks again."""

    def __getattr__(self, name: str) -> Any:
        import time

        return (lambda seconds: None) if name == "sleep" else getattr(time, name)
