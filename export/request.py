"""What is asked of an export, and whether it can be done: everything is checked before the first file is written. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadValue, DataError, OutputError, UnknownName, UsageError
from ..zoo.checkpoint import Checkpoint
from ..zoo.datasets import find_data
from ..zoo.target import Target
from .format import FORMATS, PRECISIONS, ExportOptions, Format
from .gates import Gates
from .quantize import METHODS

Say = Callable[[str], None]
GRIDS = ("auto", "unsigned", "signed")


@dataclass(frozen=True)
class Request:
    """What is wanted of a checkpoint, the same for each of its targets.

    Attributes:
        force: replace what stands in the folder of a package.
        data: the images that accuracy is measured on; by default wherever `find_data` finds them. Where there are none, parity is
            measured on the images that the checkpoint carries, accuracy is not, and manifest and card say so.
        verify: run every file and compare it with torch. cascade_loss: points of top-1 that the early exits of a cascade may cost,
            with 95 % certainty.
    """

    formats: tuple[str, ...] = ("onnx",)
    options: ExportOptions = field(default_factory=ExportOptions)
    gates: Gates = field(default_factory=Gates)
    force: bool = False
    data: Path | None = None
    verify: bool = True
    cascade_loss: float = 0.1

    def recorded(self) -> dict[str, Any]:
        """What a manifest keeps of it, to make the same files again."""
        options = {**asdict(self.options), "batch": list(self.options.batch.sizes)}
        return {"formats": list(self.formats), **options, "cascade_loss": self.cascade_loss}

    def makers(self, target: Target, say: Say = lambda line: None) -> list[Format]:
        """The makers of the wanted formats, each checked against this machine; the ONNX first, because others are made from it.

        TensorRT cannot compile the conditions of a cascade, so its engines are made from the parts.
        """
        found: dict[str, Format] = {}
        for name in self.formats:
            cls, why = FORMATS.get(name).resolve(self.options)
            if why:
                say(f"{name} -> {why}")
            found[cls.name] = cls()
        if any(maker.from_onnx for maker in found.values()):
            found = {"onnx": FORMATS.get("onnx")(), **found}
        if target.word == "cascade" and any(maker.engines for maker in found.values()):
            found = {"parts": FORMATS.get("parts")(), **found}
        for maker in found.values():
            maker.check(self.options)
        return sorted(found.values(), key=lambda maker: (maker.from_onnx, maker.engines))

    def needs_training(self, targets: Iterable[Target]) -> str:
        """What is done with training images; "" where none are needed."""
        if "int8" in self.options.precisions:
            return "int8 is calibrated"
        return "the thresholds of a cascade are found" if any(target.word == "cascade" for target in targets) else ""

    def check(self, checkpoint: Checkpoint, folders: dict[Target, Path]) -> None:
        """Whether a package of every target can be written into its folder.

        Raises:
            UnknownName, UsageError, OutputError, DataError: not as it stands. EnvironmentProblem: not on this machine.
        """
        options, words = self.options, {target.word for target in folders}
        check_names("precision", options.precisions, PRECISIONS)
        check_names("input", [options.input], ["uint8", "float"])
        check_names("calibration method", [options.calibration], METHODS)
        check_names("int8 grid", [options.int8_grid], GRIDS)
        if not 0 <= self.cascade_loss <= 100:
            raise BadValue("setting", "cascade_loss", self.cascade_loss, "points of top-1, 0 to 100")
        if "all-targets" in words:
            raise UsageError("all-targets is one package per target", hint="export the targets one by one")
        for word in words:
            for maker in self.makers(Target(word)):
                maker.check_target(word, options)
        for target, folder in folders.items():
            checkpoint.require(target)
            check_output(folder, checkpoint.folder, self.force)
        manifest = checkpoint.manifest
        if "cascade" in words and not manifest.recipe.get("holdout", 0):
            raise UsageError(
                f"{manifest.entry} was trained on all its training images, and thresholds found on those would be too bold",
                hint="train it with --set holdout=5000, which keeps images for this",
            )
        if what := self.needs_training(folders):
            try:
                find_data(manifest.dataset, self.data)
            except DataError as error:
                raise no_training(what, error) from None


def no_training(what: str, error: DataError) -> DataError:
    """The error that says what the training images are needed for, and why there are none."""
    return DataError(
        f"{what} on training images, and none are at hand: {error.what}", hint="--data names the data set, with its training half"
    )


def check_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises `UnknownName` for the first of `names` that is not `known`."""
    known = list(known)
    for name in names:
        if name not in known:
            raise UnknownName(kind, name, known)


def check_output(folder: Path, source: Path, force: bool) -> None:
    """Raises `OutputError` where a new package may not take the place of what stands at `folder`."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file", hint="name a folder with --output")
    for kept, what in ((Path.cwd(), "the folder you are in"), (source, "the checkpoint")):
        if kept.resolve().is_relative_to(folder.resolve()):
            raise OutputError(f"{folder} is or holds {what} and cannot be replaced", hint="name another folder with --output")
    if any(folder.iterdir()) and not force:
        raise OutputError(f"{folder} is not empty", hint="name another folder with --output, or replace it with --force")
