"""How an eight-bit file comes about: calibration on training images, a check of its accuracy, sensitive layers left in float.

Torch-free. `quantize` makes the graphs; here it is decided which.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .comparison import compare_times, interleave
from .onnx_file import OnnxRunner, write_graph
from .outputs import as_input
from .parity import in_batches, measure_accuracy, run_over
from .quantize import Grid, Quantised, calibrate, quantise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.datasets import LabelledImages
    from .format import Job

SEED = 0
CHECKED = 2000  # training images, other than those of the calibration, on which a file is compared with float32
RANKED = 200  # of them, for the sensitivity of every layer
TRIES = (1, 2, 4, 8, 16)  # numbers of layers that are left in float until the loss is small enough
CLEARLY = 0.9  # int8 replaces uint8 for onnxruntime where it takes a smaller share of the time in three of four rounds
COMPARED_SECONDS, COMPARED_ROUNDS = 0.3, 12
GRIDS: tuple[Grid, Grid] = ("unsigned", "signed")  # the first is taken where there is nothing between them


@dataclass
class Int8:
    """Everything that the eight-bit files of one student have in common."""

    job: Job
    float32: Path

    @cached_property
    def training(self) -> LabelledImages:
        """Training images in an order of their own. Raises `DataError` where there are none."""
        import numpy as np

        from ..zoo.datasets import EncodedImages

        images = self.job.training
        if images is None:
            raise DataError(
                "int8 is calibrated on training images, and none are at hand",
                hint="--data names the data set, with its training half",
            )
        count = min(self.job.options.calibration_images + CHECKED, len(images))
        some = images.take(np.random.default_rng(SEED).permutation(len(images))[:count])
        return some.decode() if isinstance(some, EncodedImages) else some

    @cached_property
    def ranges(self) -> dict[str, tuple[float, float]]:
        options = self.job.options
        return calibrate(self.float32, self.inputs(self.training.images[: options.calibration_images]), options.calibration)

    @cached_property
    def checked(self) -> LabelledImages:
        """What the calibration did not see; all there is where the set is that small."""
        return _rest(self.training, self.job.options.calibration_images)

    @cached_property
    def reference(self) -> NDArray[np.float32]:
        """Logits of the float32 file for the checked images."""
        return self.logits(OnnxRunner(self.float32), self.checked.images)

    @cached_property
    def kept_float(self) -> tuple[str, ...]:
        """The convolutions that have to stay in float for a small enough loss on the checked images, the most sensitive ones."""
        limit = self.job.max_drop["int8"]
        kept: tuple[str, ...] = ()
        if self.drop(kept) <= limit:
            return kept
        ranked = list(self.sensitivity)
        for count in (n for n in TRIES if n < len(ranked)):
            kept = tuple(ranked[:count])
            if self.drop(kept) <= limit:
                break
        return kept

    @cached_property
    def sensitivity(self) -> dict[str, float]:
        """By convolution, the most sensitive first: mean squared difference of the logits where only this one is quantised, over
        the variance of the logits."""
        layers, images = self.graph("unsigned").layers, self.checked.images[:RANKED]
        reference = self.reference[: len(images)]
        found = {}
        for layer in layers:
            others = [name for name in layers if name != layer]
            logits = self.logits(self.runner(self.graph("unsigned", others)), images)
            found[layer] = float(((logits - reference) ** 2).mean() / max(float(reference.var()), 1e-12))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def graph(self, grid: Grid, keep_float: Collection[str] = ()) -> Quantised:
        return quantise(self.float32, self.ranges, grid, keep_float)

    def drop(self, kept: tuple[str, ...]) -> float:
        """Points of top-1 on the checked images that are lost to float32."""
        logits = self.logits(self.runner(self.graph("unsigned", kept)), self.checked.images)
        before, after = (measure_accuracy(z, self.checked.labels).top1 for z in (self.reference, logits))
        return before - after

    def inputs(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        return as_input(images, self.job.preprocess, self.job.options.input)

    def logits(self, runner: OnnxRunner, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = self.job.options.batch
        return run_over(runner, map(self.inputs, in_batches(images, batch.max)), batch.max, fixed=batch.fixed)

    def runner(self, quantised: Quantised) -> OnnxRunner:
        return OnnxRunner(quantised.data)

    def fastest(self) -> tuple[Grid, dict[Grid, float]]:
        """Which grid onnxruntime computes faster here, and milliseconds of the smallest batch with one thread. The choice decides
        over the bytes of the file, so it must not hang on the noise of a measurement: all that is near a tie is `unsigned`."""
        batch = self.job.options.batch.min
        images = self.inputs(self.checked.images[:1]).repeat(batch, axis=0)
        runners = {grid: OnnxRunner(self.graph(grid, self.kept_float).data, threads=1) for grid in GRIDS}
        calls = {str(grid): partial(run, images) for grid, run in runners.items()}
        unsigned, signed = compare_times(interleave(calls, seconds=COMPARED_SECONDS, min_rounds=COMPARED_ROUNDS))
        clearly = max(signed.ratio, signed.high_quartile) < CLEARLY
        return ("signed" if clearly else "unsigned"), {"unsigned": unsigned.median_ms, "signed": signed.median_ms}

    def write(self, path: Path, grid: Grid) -> dict[str, Any]:
        """One file; gives what the manifest says of it."""
        made = self.graph(grid, self.kept_float)
        write_graph(path, made.data)
        options = self.job.options
        details: dict[str, Any] = {
            "grid": grid,
            "calibration": {
                "method": options.calibration, "images": min(options.calibration_images, len(self.training)),
                "split": "train", "seed": SEED,
            },
            "quantised_layers": len(made.layers),
            "kept_float32": list(made.kept_float),
        }  # fmt: skip
        if options.sensitivity or self.kept_float:
            details["sensitivity"] = [{"layer": name, "error": float(f"{value:.3g}")} for name, value in self.sensitivity.items()]
        return details


def _rest(images: LabelledImages, count: int) -> LabelledImages:
    import numpy as np

    left = np.arange(count, len(images))
    return images.take(left) if len(left) else images
