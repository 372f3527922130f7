"""A package that answers: its chosen file, loaded, proved on its golden images, behind a queue. Torch-free.

Shapes: `N` images, `H` `W` space, `C` channels, `K` classes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import GateFailed, KdzooError
from ..export.outputs import as_input
from ..export.package import LABELS, PREPROCESS, Package
from ..export.parity import EXACT, tolerance
from ..export.tensor_spec import TensorSpec
from ..export.threads import physical_cores
from ..zoo.checkpoint import check_file
from .batching import Batcher
from .choice import GPU, Chosen
from .settings import Batching

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..export.runtime import Session
    from .counters import Row

LATE, HUNG = 60.0, 120.0  # seconds for one batch: whoever takes longer gets no more requests, and does not come back
BUILDS = ("onnxruntime-tensorrt",)  # engines, within a call, which takes minutes
PLATFORMS = {"onnx": "onnxruntime_onnx", "openvino": "openvino", "tensorrt": "tensorrt_plan", "trt-rtx": "tensorrt_plan"}


@dataclass
class Model:
    """What answers under one name.

    Attributes:
        input, outputs: as the protocol tells them, a dynamic dimension is -1. failure: why it cannot answer at present.
        users: requests that have found this model and are not answered yet; it is not closed before they are.
        batch: the smallest and largest that is computed at once.
    """

    package: Package
    chosen: Chosen
    sessions: list[Session]
    batch: tuple[int, int]
    labels: list[str]
    input: TensorSpec
    outputs: tuple[TensorSpec, ...] = ()
    batcher: Batcher | None = None
    failure: str = ""
    users: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.package.name

    @property
    def platform(self) -> str:
        return PLATFORMS.get(self.chosen.artifact.format, self.chosen.artifact.format)

    @property
    def takes_pictures(self) -> bool:
        """Whether images go in as uint8 `N H W C`; else normalised, float32 `N C H W`."""
        return self.chosen.artifact.input.dtype == "uint8"

    @property
    def ready(self) -> bool:
        return not self.failure and self.batcher is not None and self.batcher.longest_call() < LATE

    @property
    def is_hung(self) -> bool:
        """Whether a call does not come back, so that nothing but another process helps."""
        return self.batcher is not None and self.batcher.longest_call() > HUNG and self.chosen.runtime.name not in BUILDS

    def start(self, row: Row, batching: Batching, on_failure: Callable[[Exception], None]) -> None:
        """Take requests, in the event loop that runs."""
        self.batcher = Batcher(
            self.sessions, batch=self.batch, row=row, max_wait=batching.max_wait, bound=batching.bound, on_failure=on_failure
        )

    async def close(self) -> None:
        """Answer what waits, then give everything back."""
        if self.batcher is not None:
            await self.batcher.close()
        for session in dict.fromkeys(self.sessions):
            await asyncio.to_thread(session.close)

    def prepared(self, images: NDArray[Any]) -> NDArray[Any]:
        """Raw images uint8 `N H W C` as the file takes them."""
        return as_input(images, self.package.preprocess, "uint8" if self.takes_pictures else "float")

    def prove(self) -> None:
        """Answer the golden images, and learn from that what the outputs are; raises `GateFailed` where the logits are not those of
        the package."""
        import numpy as np

        artifact = self.chosen.artifact
        images, expected = self.package.golden(artifact)
        images, expected = images[: self.batch[1]], expected[: self.batch[1]]
        prepared = self.prepared(images)
        if len(prepared) < self.batch[0]:
            prepared = np.resize(prepared, (self.batch[0], *prepared.shape[1:]))
        found = self.sessions[0].everything(prepared)
        self.outputs = tuple(TensorSpec(name, array.dtype.name, (-1, *array.shape[1:])) for name, array in found.items())
        logits = found["logits"][: len(expected)]
        allowed = tolerance(artifact.precision if artifact.precision in EXACT else "fp16", float(np.abs(expected).max()))
        worst = float(np.abs(logits - expected).max())
        if not worst <= allowed:  # NaN is not
            raise GateFailed(
                f"{package_path(self)} gives other logits for the golden images than when it was measured: {worst:.3g} off, "
                f"{allowed:.3g} is allowed",
                hint=f"kdzoo verify {self.package.folder}",
            )


def package_path(model: Model) -> str:
    return str(model.package.folder / model.chosen.artifact.path)


def open_model(package: Package, chosen: Chosen, batching: Batching) -> Model:
    """Load the chosen file and prove it; may take a second, so not in an event loop.

    Raises:
        KdzooError: it does not load, or does not answer as it should.
    """
    for name in (PREPROCESS, LABELS, *chosen.artifact.companions):
        check_file(package.folder / name, package.document["files"].get(name))
    artifact = chosen.artifact
    smallest, _, largest = artifact.batch
    is_bounded = smallest == largest or artifact.compute_capability is not None
    batch = (smallest, largest if is_bounded else max(smallest, batching.max_batch))
    session = chosen.runtime.open(package.folder, artifact, 1 if chosen.device != GPU else None, in_turns=True)
    sessions = [session]
    try:
        count = 1 if chosen.device == GPU else batching.threads or physical_cores()
        for _ in range(count - 1):
            sessions.append(session if session.shareable else chosen.runtime.open(package.folder, artifact, 1, in_turns=True))
        model = Model(package, chosen, sessions, batch, package.labels, _spec(artifact.input), metrics=package.metrics)
        model.prove()
    except KdzooError:
        for each in dict.fromkeys(sessions):
            each.close()
        raise
    return model


def _spec(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, tuple(dim if isinstance(dim, int) else -1 for dim in spec.shape))
