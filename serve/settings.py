"""What a server is started with, as it goes from the command line to its worker processes. Torch-free, and light: the supervisor
imports it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

BODIES = 8  # of the largest size may be under way at once, and more of smaller ones


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for; None leaves it to the machine.

    Attributes:
        device: `cpu` or `gpu`. allow_fallback: take another file, runtime or device where the wished one does not run here.
    """

    format: str | None = None
    precision: str | None = None
    runtime: str | None = None
    device: str | None = None
    allow_fallback: bool = False

    def __str__(self) -> str:
        given = {"--format": self.format, "--precision": self.precision, "--runtime": self.runtime, "--device": self.device}
        return " ".join(f"{option} {value}" for option, value in given.items() if value)


@dataclass(frozen=True)
class Batching:
    """How requests gather: see `Batcher`. threads: of the processor, each with a call of its own; None takes its cores."""

    max_batch: int = 64
    max_wait: float = 0.0
    bound: int = 256
    threads: int | None = None


@dataclass(frozen=True)
class Bounds:
    """max_body: bytes of a body, as it came and unpacked. max_pixels: of a picture. body_seconds: for the whole body to come in.
    per_client: requests of one address at the same time. timeout: seconds for an answer. token: that clients have to show."""

    max_body: int = 32 * 2**20
    max_pixels: int = 32_000_000
    body_seconds: float = 15.0
    header_seconds: float = 10.0
    per_client: int = 64
    timeout: float = 30.0
    token: str | None = None

    @property
    def all_bodies(self) -> int:
        """Bytes of all bodies that are under way, as they came and unpacked."""
        return BODIES * self.max_body


@dataclass(frozen=True)
class Settings:
    """Attributes:
    http, grpc: file descriptor of the socket that listens for HTTP; port of gRPC, None without it.
    grace: seconds in which a stopping server answers what it has taken. shared: file descriptor of the counters' memory.
    """

    sources: tuple[str, ...]
    branches: tuple[str, ...] = ()
    wishes: Wishes = field(default_factory=Wishes)
    batching: Batching = field(default_factory=Batching)
    bounds: Bounds = field(default_factory=Bounds)
    host: str = "127.0.0.1"
    http: int = -1
    grpc: int | None = None
    certificate: str | None = None
    key: str | None = None
    grace: float = 30.0
    workers: int = 1
    number: int = 0
    shared: int = -1
    quiet: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        found: dict[str, Any] = json.loads(text)
        parts = {"wishes": Wishes, "batching": Batching, "bounds": Bounds}
        return cls(**{key: parts[key](**value) if key in parts else value for key, value in found.items()})
