"""What a server of packages needs, and what it answers then: from the latencies in their metrics, and from the memory that it takes
here. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from ...errors import UsageError
from ...export.machine import this_machine
from ...export.package import Package
from ..choice import CPU, Chosen, choose
from ..settings import BODIES, Wishes
from .command import MAX_BODY, MAX_PIXELS, QUEUE
from .memory import peak_memory

SHARE = 0.8  # of what the bare runtime computes, a server answers at least (benchmarks/serve.py)
WAIT_MS = 50.0  # within which all requests that a replica has taken should be answered
SPARE_MEMORY = 1.5  # times what it took here
MEBIBYTE, STEP = 2**20, 64  # memory is given in steps of so many MiB
DECODED = 6  # bytes of a pixel: as it was decoded, and as RGB
# Times its size that a body takes, seen with 32 of 8 MiB at once: as it came, as a form, as a file of that. A bare picture: 1.8.
FORM = 4
JSON = 26  # seen with one of 8 MiB, of empty objects; no two are read at the same time
DEFAULT_THREADS = 2


@dataclass(frozen=True)
class Measured:
    """The file that answers for a package, and how fast it was where it was measured: `p50_ms` for a `batch` on `threads`.
    `image_bytes`: of one image as the file takes it. `runtime`: what runs it."""

    name: str
    path: str
    p50_ms: float
    batch: int
    images_per_s: float
    threads: int
    host: str
    image_bytes: int
    runtime: str

    @property
    def per_core(self) -> float:
        """Images/s of one core; more threads than one share the work at best evenly, so it is no more than a core alone does."""
        return self.images_per_s / self.threads

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.path}, {self.p50_ms:.2f} ms for a batch of {self.batch} with {self.threads} threads "
            f"on {self.host}, {self.per_core:,.0f} images/s of a core"
        )


@dataclass(frozen=True)
class Resources:
    """For one replica. `peak`: bytes that a server of these packages took here, at full load."""

    files: tuple[Measured, ...]
    threads: int
    max_batch: int
    peak: int

    @property
    def slowest(self) -> Measured:
        return min(self.files, key=lambda each: each.per_core)

    @property
    def requests_per_s(self) -> float:
        """Single images of the slowest package."""
        return SHARE * self.threads * self.slowest.per_core

    @property
    def concurrency(self) -> int:
        """Little's law: what is answered within `WAIT_MS`; no less than keeps every thread busy while answers travel."""
        return max(2 * self.threads, round(self.requests_per_s * WAIT_MS / 1000))

    @property
    def memory_request(self) -> int:
        """MiB."""
        return STEP * ceil(self.peak / MEBIBYTE / STEP)

    @property
    def memory_limit(self) -> int:
        """MiB."""
        return STEP * ceil((SPARE_MEMORY * self.peak + self.on_the_way) / MEBIBYTE / STEP)

    @property
    def max_body(self) -> int:
        """MiB; the largest batch fits."""
        return max(MAX_BODY, 1 + self.max_batch * self.image_bytes // MEBIBYTE)

    @property
    def image_bytes(self) -> int:
        return max(each.image_bytes for each in self.files)

    @property
    def on_the_way(self) -> int:
        """Bytes of what clients may send at once: bodies, pictures that every thread decodes, and images in a full queue."""
        bodies = (FORM * BODIES + JSON) * self.max_body * MEBIBYTE
        return bodies + self.threads * MAX_PIXELS * 1_000_000 * DECODED + QUEUE * self.image_bytes

    @property
    def reasons(self) -> list[str]:
        """How the figures came about."""
        return [
            *map(str, self.files),
            f"expected: {self.requests_per_s:,.0f} requests/s of one image = {SHARE} (what a server leaves of the bare runtime) x "
            f"{self.threads} threads x {self.slowest.per_core:,.0f} images/s of a core ({self.slowest.name})",
            f"at once: {self.concurrency} requests, those that are answered within {WAIT_MS:.0f} ms at that rate",
            f"memory: {self.peak / MEBIBYTE:,.0f} MiB at the peak, {self.threads} threads with batches of {self.max_batch}, "
            f"measured where this was written; the limit is {SPARE_MEMORY} times that, and {self.on_the_way / MEBIBYTE:,.0f} MiB "
            "for what clients may send at once",
            f"sent at once: {BODIES} bodies of {self.max_body} MiB, or more of smaller ones (more it refuses), {FORM} "
            f"times each (as it came, as a form, as a file of that), one of JSON, {JSON} times while it is read, a picture of "
            f"{MAX_PIXELS} million pixels for each thread, a queue of {QUEUE} images",
        ]

    @property
    def document(self) -> dict[str, object]:
        return {
            "threads": self.threads,
            "max_batch": self.max_batch,
            "requests_per_s": round(self.requests_per_s, 1),
            "concurrency": self.concurrency,
            "memory_request_mib": self.memory_request,
            "memory_limit_mib": self.memory_limit,
            "reasons": self.reasons,
        }


def derive(packages: Sequence[Package], *, threads: int | None = None, rate: float | None = None, max_batch: int = 32) -> Resources:
    """The resources of a server of `packages` on processors.

    Args:
        threads: that compute. rate: requests/s that it should answer, from which the threads follow where they are not given.

    Raises:
        UsageError: a package was never timed on a processor. KdzooError: no file of it runs here.
    """
    files = tuple(measured(package, choose(package, this_machine(), Wishes(device=CPU))) for package in packages)
    if threads is None:
        slowest = min(each.per_core for each in files)
        threads = DEFAULT_THREADS if rate is None else max(1, ceil(rate / (SHARE * slowest)))
    return Resources(files, threads, max_batch, peak_memory(packages, threads, max_batch))


def measured(package: Package, chosen: Chosen) -> Measured:
    metrics = package.metrics
    latency = metrics["artifacts"].get(chosen.artifact.path, {}).get("latency") or []
    if not latency or not latency[0].get("threads"):
        raise UsageError(
            f"{package.folder / chosen.artifact.path} was not timed on a processor, so nothing follows for a server of it",
            hint="export it with --verify, or --triton for engines",
        )
    first, artifact = latency[0], chosen.artifact
    figures = (first["p50_ms"], first["batch"], first["images_per_s"], first["threads"])
    image_bytes = prod(int(side) for side in artifact.input.shape[1:]) * (1 if artifact.input.dtype == "uint8" else 4)
    return Measured(package.name, artifact.path, *figures, metrics["host"], image_bytes, chosen.runtime.name)
