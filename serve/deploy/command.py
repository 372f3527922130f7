"""The command line of the server that is deployed. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HTTP, GRPC = 8000, 8001
QUEUE = 256  # images that wait
MAX_BODY, MAX_PIXELS = 8, 16  # MiB of a request, millions of a picture: the memory of a container is bounded, too
# onnxruntime, from 1.29 on, tells its maker of every session that is opened, unless it is told not to.
ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
SPARE_SECONDS = 15  # after the grace, before whoever stops the server kills it
BEHIND_A_PROXY = 100_000  # where every client has the address of the proxy
ADVICE = "Behind a proxy all clients have one address: raise --per-client then."


@dataclass(frozen=True)
class Command:
    """`grace`: seconds in which a stopping server answers what it has taken. max_body: MiB."""

    threads: int
    max_batch: int
    grace: int
    max_body: int = MAX_BODY
    host: str = "0.0.0.0"
    is_behind_proxy: bool = False

    @property
    def stop_seconds(self) -> int:
        """That it must be given to end by itself."""
        return self.grace + SPARE_SECONDS

    def arguments(self, packages: Sequence[str]) -> list[str]:
        """What follows `kdzoo`, or `python -m kdzoo`."""
        options = {
            "--host": self.host, "--port": HTTP, "--grpc-port": GRPC, "--device": "cpu", "--threads": self.threads,
            "--max-batch": self.max_batch, "--queue": QUEUE, "--max-body": self.max_body, "--max-pixels": MAX_PIXELS,
            "--grace": self.grace, **({"--per-client": BEHIND_A_PROXY} if self.is_behind_proxy else {}),
        }  # fmt: skip
        return ["serve", *packages, *(str(word) for pair in options.items() for word in pair)]
