"""What a runtime is: it runs the files of some formats on this machine, and says on what it really ran. One runtime per file in
`export.runtimes`. Torch-free; what is heavy is imported when a file is opened.

Shapes: `N` images, `H` `W` space, `C` channels, `K` classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..errors import UsageError
from ..zoo.registry import Registry
from .package import Artifact

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from numpy.typing import NDArray

    Inputs = NDArray[Any] | dict[str, NDArray[Any]]

RUNTIMES: Registry[type[Runtime]] = Registry("runtime", "kdzoo.export.runtimes")


@dataclass(frozen=True)
class RanOn:
    """What runs a file: the `runtime` with its `version`, the `device` in the runtime's own words, and how many `threads` of the
    processor; None where another device does the work."""

    runtime: str
    version: str
    device: str
    threads: int | None


class Session(ABC):
    """A file that is loaded and ready. Close it, or use it in a `with`, where several are opened one after the other.

    Attributes:
        inputs: what the file reads; `image`, but for the later parts of a cascade.
        shareable: whether several threads may call it at the same time.
    """

    ran_on: RanOn
    inputs: tuple[str, ...]
    shareable: bool = False

    @abstractmethod
    def everything(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """All outputs by name, of images uint8 `N H W C` (or float32 `N C H W`, where the file was exported so), or of all inputs
        by name."""

    def by_name(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Every input by its name."""
        return inputs if isinstance(inputs, dict) else {self.inputs[0]: inputs}

    def __call__(self, inputs: Inputs) -> NDArray[Any]:
        """The logits float32 `N K`."""
        return self.everything(inputs)["logits"]

    def close(self) -> None:  # noqa: B027  # most have nothing but memory, which goes with them
        """Give back what the garbage collector would not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Runtime(ABC):
    """Runs files. `name` is what `--runtime` takes; `own_formats` are those whose files are made for it."""

    name: ClassVar[str]
    own_formats: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def refuses(self, artifact: Artifact) -> str:
        """Why it does not run files of this kind, on whatever machine; "" where it does."""

    @abstractmethod
    def check(self, folder: Path, artifact: Artifact) -> None:
        """Before anything is loaded: raises `EnvironmentProblem`, with the fix, where this machine cannot run the file, and
        `IntegrityError` where it is not the file that was described."""

    @abstractmethod
    def open(self, folder: Path, artifact: Artifact, threads: int | None = None, *, in_turns: bool = False) -> Session:
        """Load a file of the package in `folder`, after `check`.

        Args:
            threads: of the processor; None takes its physical cores.
            in_turns: other sessions run between its calls, so its threads must not wait for the next one busily.

        Raises:
            EnvironmentProblem: it would run on another device than this runtime stands for.
            GateFailed: the runtime does not take the file after all.
        """


def runtime_for(artifact: Artifact) -> tuple[Runtime, str]:
    """The runtime that a file is made for, and why it is that one. Whether it runs here is another question: `Runtime.check`."""
    for name in RUNTIMES.names():
        cls = RUNTIMES.get(name)
        if artifact.format in cls.own_formats:
            return cls(), f"{artifact.format} files are made for {name}"
    formats = sorted({each for name in RUNTIMES.names() for each in RUNTIMES.get(name).own_formats})
    raise UsageError(f"no runtime here is made for {artifact.path}, a {artifact.format} file", known=formats)
