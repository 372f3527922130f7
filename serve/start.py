"""From what the command line asks for to a running server. Torch-free, and nothing heavy is imported here."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, UsageError
from .settings import Batching, Bounds, Settings, Wishes
from .supervisor import Supervisor, listen

NEEDED = ("starlette", "uvicorn", "httptools", "uvloop", "multipart", "prometheus_client", "onnxruntime")


@dataclass
class Server:
    """What runs; `run` comes back when it was stopped."""

    supervisor: Supervisor
    document: dict[str, Any]

    @property
    def text(self) -> str:
        lines = [f"{self.document['http']} answers for {', '.join(self.document['models'])}"]
        return "\n".join([*lines, f"gRPC at {self.document['grpc']}"] if self.document["grpc"] else lines)

    def run(self) -> int:
        return self.supervisor.run()


def start(
    sources: Sequence[str],
    *,
    branches: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
    format: str | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    device: str | None = None,
    allow_fallback: bool = False,
    max_batch: int = 32,
    max_wait: float = 0.0,
    bound: int = 256,
    threads: int | None = None,
    workers: int = 1,
    timeout: float = 30.0,
    grace: float = 30.0,
    max_body: int = 32,
    max_pixels: float = 32.0,
    per_client: int = 64,
    token_file: Path | None = None,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> Server:
    """Start the workers and wait until they answer; the options are those of `kdzoo serve`.

    Raises:
        KdzooError: a package cannot be had or does not run here, or the address is taken.
    """
    lacking = [name for name in (*NEEDED, *(["grpc"] if grpc_port is not None else [])) if find_spec(name) is None]
    if lacking:
        raise EnvironmentProblem(f"the server needs {', '.join(lacking)}", hint="pip install 'kdzoo[serve]'")
    if not hasattr(os, "fork"):
        raise EnvironmentProblem("the server runs on Linux and macOS", hint="in WSL or a container (kdzoo deploy --docker)")
    listener = listen(host, port)
    if workers > 1 and grpc_port == 0:
        grpc_port = free_port(host)
    settings = Settings(
        sources=tuple(sources), branches=tuple(branches),
        wishes=Wishes(format, precision, runtime, device, allow_fallback),
        batching=Batching(max_batch, max_wait / 1000, bound, threads or share_of_cores(workers)),
        bounds=Bounds(
            max_body=max_body * 2**20, max_pixels=round(max_pixels * 1e6), per_client=per_client, timeout=timeout,
            token=read_token(token_file),
        ),
        host=host, grpc=grpc_port, certificate=_text(tls_certificate), key=_text(tls_key), grace=grace, workers=workers,
        quiet=quiet,
    )  # fmt: skip
    supervisor = Supervisor(settings, listener, say)
    told = supervisor.start()
    scheme, address = "https" if tls_certificate else "http", listener.getsockname()
    name = f"[{address[0]}]" if ":" in address[0] else address[0]
    return Server(
        supervisor,
        {
            "http": f"{scheme}://{name}:{address[1]}",
            "grpc": f"{name}:{told['grpc']}" if told["grpc"] else None,
            "models": told["models"],
            "pid": os.getpid(),
        },
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def share_of_cores(workers: int) -> int:
    """Threads that compute, for each of the workers."""
    from ..export.threads import physical_cores

    return max(1, physical_cores() // workers)


def free_port(host: str) -> int:
    """A port that all workers can share."""
    with socket.create_server((host, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def read_token(path: Path | None) -> str | None:
    """The token in a file, or in KDZOO_SERVE_TOKEN; never on the command line, where everybody can read it."""
    token = path.read_text(encoding="utf-8").strip() if path is not None else os.environ.get("KDZOO_SERVE_TOKEN")
    if token is not None and (not token or not token.isascii() or not token.isprintable() or " " in token):
        raise UsageError("the token is empty, or has signs that no header can carry", hint="letters and digits, on one line")
    return token
