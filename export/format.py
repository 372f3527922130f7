"""What a format is: it turns a student into files. One format per file in `export.formats`. Torch-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..errors import UsageError
from ..zoo.preprocess import Preprocess
from ..zoo.registry import Registry
from .package import Artifact

if TYPE_CHECKING:
    from ..zoo.student import Student

FORMATS: Registry[type[Format]] = Registry("format", "kdzoo.export.formats")
PRECISIONS = ("fp32", "fp16")
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
    """

    precisions: tuple[str, ...] = ("fp32",)
    batch: Batch = field(default_factory=Batch)
    input: str = "uint8"
    opset: int | None = None
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One student on its way out. `metadata` goes into the files."""

    student: Student
    folder: Path
    preprocess: Preprocess
    options: ExportOptions
    metadata: Mapping[str, str]


class Format(ABC):
    """An export format. `name` is what `--format` takes; `from_onnx` says whether `emit` needs the ONNX beside it."""

    name: ClassVar[str]
    from_onnx: ClassVar[bool] = True

    @classmethod
    def resolve(cls, options: ExportOptions) -> tuple[type[Format], str]:
        """The format that this one stands for on this machine, and why; most stand for themselves."""
        return cls, ""

    @abstractmethod
    def check(self, options: ExportOptions) -> None:
        """Before any work: raises `EnvironmentProblem` or `UsageError` where this machine cannot make what is asked."""

    @abstractmethod
    def emit(self, job: Job, precision: str) -> list[Artifact]:
        """Write the files of one precision into `job.folder`."""
