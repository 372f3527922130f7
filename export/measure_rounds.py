"""How the files of a package are timed, all of them in turns: every round opens each file anew, and passes over the same images.

In turns, because a machine is busier in one minute than in the next, and anew, because where the memory of a session lies moves its
times by a percent or so. The images are a sample of those that the file was measured on, drawn with a fixed seed; of a cascade in
the proportion in which its exits take them, so that the mean is the one over all images. What the figures are is told in
`measure_latency`. Torch-free.

Shapes: `N` images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from .measure_latency import Passes, summarise, time_passes, warm_up, without_collector

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.datasets import ImageSplit
    from .outputs import Prepare
    from .package import Artifact
    from .runtime import Session

ROUNDS, PASSES = 3, 3  # passes in each round
SECONDS, SECONDS_OF_AN_EXIT = 0.08, 0.02  # for a pass; as many different inputs as fit into it,
MOST, FEWEST = 128, 2  # within these,
OF_A_CASCADE, LONGEST = 16, 0.5  # or so many images of a cascade, whose exits differ, where a pass over them takes no longer,
LONG_MS = 500.0  # or one input in one pass of a round, where a call takes as long
SAMPLE, SAMPLE_BYTES = 256, 1 << 27  # images, and bytes of them, that are held at once
OF_AN_EXIT = 16  # images
SEED = 0


def further_rounds(artifacts: Sequence[Artifact]) -> Iterator[Artifact]:
    """All of them in turns, as often as rounds are left after the first."""
    for _ in range(ROUNDS - 1):
        yield from artifacts


@dataclass
class Timed:
    """One batch size, or one exit. `pick(count)` gives so many inputs: what `seconds` hold, or `rather` as many where those are
    more. `passes` is what they took so far."""

    batch: int
    pick: Callable[[int], list[Any]]
    seconds: float
    rather: int = FEWEST
    inputs: list[Any] = field(default_factory=list)
    passes: Passes = field(default_factory=list)

    def round(self, run: Callable[[Any], object]) -> None:
        """Warm up and pass; in the first round it is found how many inputs fit into a pass."""
        took = warm_up(run, self.inputs or self.pick(max(FEWEST, self.rather)), self.seconds / 3 if self.inputs else self.seconds)
        if not self.inputs:
            fitting, at_most = (int(1000.0 * seconds / max(took, 1e-3)) for seconds in (self.seconds, LONGEST))
            self.inputs = self.pick(1 if took > LONG_MS else max(FEWEST, min(MOST, fitting), min(self.rather, at_most)))
        self.passes += time_passes(run, self.inputs, 1 if took > LONG_MS else PASSES)


class FileTimes:
    """What one file takes: by batch size and, of a cascade, by exit.

    Args:
        exits_N: where each of the `images` leaves a cascade; None for anything else.
    """

    def __init__(self, sizes: list[int], images: ImageSplit, prepare: Prepare, exits_N: NDArray[np.int64] | None) -> None:
        rows = sample(len(images), exits_N, SAMPLE)
        first = prepare(images.take(rows[:1]).head(1).images)
        rows = sample(len(images), exits_N, max(1, min(SAMPLE, len(images), SAMPLE_BYTES // first.nbytes)))
        inputs = prepare(images.take(rows).head(len(rows)).images)
        images_of_a_pass = FEWEST if exits_N is None else OF_A_CASCADE
        self.sizes = [Timed(size, partial(batches, inputs, size), SECONDS, images_of_a_pass // size) for size in sizes]
        self.exits: dict[int, Timed] = {}
        for number in [] if exits_N is None else sorted({int(each) for each in exits_N}):
            assert exits_N is not None
            own = prepare(images.take(evenly((exits_N == number).nonzero()[0], OF_AN_EXIT)).head(OF_AN_EXIT).images)
            self.exits[number] = Timed(sizes[0], partial(batches, own, sizes[0]), SECONDS_OF_AN_EXIT)

    def round(self, session: Session) -> None:
        """All sizes and exits once, in a session of this file."""
        with without_collector():
            for each in (*self.sizes, *self.exits.values()):
                each.round(session)

    def latency(self, threads: int | None) -> list[dict[str, Any]]:
        """A row for every batch size, as `metrics.json` has it."""
        return [{**asdict(summarise(each.passes, each.batch)), "threads": threads} for each in self.sizes]

    def of_exits(self) -> dict[str, float]:
        """Median milliseconds of the smallest batch, by the exit at which all of it leaves."""
        return {str(number): summarise(each.passes, each.batch).p50_ms for number, each in self.exits.items()}


def sample(total: int, exits_N: NDArray[np.int64] | None, count: int) -> NDArray[np.int64]:
    """So many of `total` images; of a cascade those that leave early first, each exit with its share."""
    import numpy as np

    mixed = np.random.default_rng(SEED).permutation(total)
    ordered = mixed if exits_N is None else mixed[np.argsort(exits_N[mixed], kind="stable")]
    return evenly(ordered, count)


def batches(inputs_N: NDArray[Any], size: int, count: int) -> list[NDArray[Any]]:
    """So many batches in mixed order: those of one image are spread over the whole sample, larger ones are drawn from it."""
    import numpy as np

    mixed = np.random.default_rng(SEED).permutation
    if size == 1:
        return [inputs_N[row : row + 1] for row in mixed(evenly(np.arange(len(inputs_N)), count))]
    order = mixed(len(inputs_N))
    return [np.ascontiguousarray(inputs_N[order[np.arange(k * size, (k + 1) * size) % len(order)]]) for k in range(count)]


def evenly(values_N: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """So many of the values at equal distances, in their order; some come again where there are fewer."""
    import numpy as np

    return values_N[((np.arange(count) + 0.5) * len(values_N) / count).astype(np.int64)]
