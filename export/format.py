"""What a format is: it turns a student into files. One format per file in `export.formats`. Torch-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..errors import UsageError
from ..zoo.preprocess import Preprocess
from ..zoo.registry import Registry
from .package import Artifact

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from ..zoo.datasets import ImageSplit
    from ..zoo.student import Student
    from .int8 import Int8

FORMATS: Registry[type[Format]] = Registry("format", "kdzoo.export.formats")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
DEFAULT_CAPABILITIES = ("8.6", "12.0")


@dataclass(frozen=True)
class Batch:
    """Smallest, optimal and largest batch. One number for all three gives a graph of that fixed batch."""

    min: int = 1
    opt: int = 8
    max: int = 64

    @classmethod
    def parse(cls, text: str) -> Batch:
        """`1:8:64`, or `4`; raises `UsageError` unless 1 <= min <= opt <= max."""
        parts = text.split(":")
        try:
            numbers = [int(p) for p in parts]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            numbers *= 3
        if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
            raise UsageError(
                f"batch '{text}' is not MIN:OPT:MAX", hint="for example --batch 1:8:64, or --batch 1 for a fixed batch"
            )
        return cls(*numbers)

    @property
    def fixed(self) -> bool:
        return self.min == self.max

    @property
    def sizes(self) -> tuple[int, int, int]:
        return (self.min, self.opt, self.max)


@dataclass(frozen=True)
class ExportOptions:
    """How files are made.

    Attributes:
        input: `uint8` (raw `N H W C`, normalised inside the graph) or `float` (normalised `N C H W`).
        capabilities: GPU compute capabilities that engines are built for; none given: `DEFAULT_CAPABILITIES` ahead of time, or this
            machine's own GPU.
        opset: of the ONNX; None = the exporter's own choice.
        calibration, calibration_images: how int8 finds the ranges of activations (`quantize.METHODS`), on how many images.
        int8_grid: `unsigned` or `signed` activations for onnxruntime; `auto` = what is faster here, `unsigned`
            unless `signed` is so by a tenth and in three of four rounds.
        sensitivity: measure how much each quantised layer costs, for the manifest.
    """

    precisions: tuple[str, ...] = ("fp32",)
    batch: Batch = field(default_factory=Batch)
    input: str = "uint8"
    opset: int | None = None
    capabilities: tuple[str, ...] = ()
    calibration: str = "minmax"
    calibration_images: int = 500
    int8_grid: str = "auto"
    sensitivity: bool = False


@dataclass(frozen=True)
class Job:
    """One student on its way out.

    Attributes:
        metadata: goes into the files. engines: whether engines are built from them.
        images: real ones, raw `N H W C`, to look for numbers that a narrow type cannot hold.
        training: labelled training images for calibration, where they are at hand. max_drop: the gates, by precision.
        scratch: a folder for what is only needed on the way. thresholds: of a cascade, at which an exit is sure.
    """

    student: Student
    folder: Path
    preprocess: Preprocess
    options: ExportOptions
    metadata: Mapping[str, str]
    images: NDArray[np.uint8]
    training: ImageSplit | None
    max_drop: Mapping[str, float]
    engines: bool
    scratch: Path
    thresholds: tuple[float, ...] | None = None

    @cached_property
    def graph(self) -> ir.Model:
        """The traced graph, made once for all precisions."""
        from .onnx_graph import trace_onnx

        preprocess, options = self.preprocess, self.options
        return trace_onnx(
            self.student, mean=preprocess.mean, std=preprocess.std, height=preprocess.height, width=preprocess.width,
            batch=options.batch.sizes, input=options.input, opset=options.opset,  # type: ignore[arg-type]  # checked before
        )  # fmt: skip

    @cached_property
    def float32(self) -> Path:
        """The float32 file in the scratch folder, from which narrower ones are derived."""
        from .onnx_graph import write_onnx

        return write_onnx(self.graph, self.scratch / "float32.onnx", metadata=self.metadata).path

    @cached_property
    def int8(self) -> Int8:
        """The one calibration of all eight-bit files."""
        from .int8 import Int8

        return Int8(self, self.float32)


class Format(ABC):
    """An export format.

    Attributes:
        name: what `--format` takes. from_onnx: whether it is made from the ONNX beside it. engines: whether TensorRT makes it.
    """

    name: ClassVar[str]
    from_onnx: ClassVar[bool] = True
    engines: ClassVar[bool] = False

    @classmethod
    def resolve(cls, options: ExportOptions) -> tuple[type[Format], str]:
        """The format that this one stands for on this machine, and why; most stand for themselves."""
        return cls, ""

    @abstractmethod
    def check(self, options: ExportOptions) -> None:
        """Before any work: raises `EnvironmentProblem` or `UsageError` where this machine cannot make what is asked."""

    def check_target(self, word: str | None, options: ExportOptions) -> None:  # noqa: B027  # most take every target
        """Raises `UsageError` where the format cannot hold a target in one of the precisions."""

    @abstractmethod
    def emit(self, job: Job, precision: str) -> list[Artifact]:
        """Write the files of one precision into `job.folder`."""
