"""What is benchmarked: the files of packages, each in every runtime that takes it here, or in those that are named. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentProblem, KdzooError, UnknownName, UsageError
from ..zoo.folder_repository import FolderRepository
from ..zoo.target import Target
from .candidates import packages_in
from .outputs import as_input
from .package import Artifact, Package
from .runtime import RUNTIMES, Runtime
from .source import resolve_package

if TYPE_CHECKING:
    from numpy.typing import NDArray

TORCH = "torch"  # runs the student, which is no exported file: only where it is named


@dataclass(frozen=True)
class Trial:
    """One file in one runtime."""

    package: Package
    artifact: Artifact
    runtime: Runtime

    @property
    def labels(self) -> dict[str, str]:
        """What tells it from the others."""
        return {
            "package": str(self.package.folder),
            "target": self.package.document["target"],
            "file": self.artifact.path,
            "precision": self.artifact.precision,
            "runtime": self.runtime.name,
        }

    def calls(self, size: int) -> list[NDArray[Any]]:
        """Batches of the golden images, as the file takes them: one, or for a cascade, where it matters which, as many as there are
        images, so that each is in as many batches as any other."""
        import numpy as np

        images, _ = self.package.golden()
        kind = "float" if self.artifact.input.dtype == "float32" else "uint8"
        prepared = as_input(images, self.package.preprocess, kind)
        count = len(prepared) if self.package.document["target"] == "cascade" else 1
        return [np.ascontiguousarray(prepared[np.arange(k, k + size) % len(prepared)]) for k in range(count)]

    def batches(self, wanted: Sequence[int]) -> list[int]:
        """The `wanted` batch sizes, or those of the export; raises `UsageError` for one that the file cannot take."""
        low, _, high = self.artifact.batch
        bounded = low == high or self.artifact.compute_capability is not None
        for size in wanted:
            if bounded and not low <= size <= high:
                takes = f"has a fixed batch of {low}" if low == high else f"takes batches of {low} to {high}"
                raise UsageError(f"{self.artifact.path} {takes}, not {size}", hint="leave --batch out, or choose files by --format")
        return list(dict.fromkeys(wanted or self.artifact.batch))

    def not_run(self, problem: KdzooError) -> dict[str, str]:
        """What is noted where it cannot run here."""
        return {**self.labels, "reason": problem.what, "fix": problem.hint}


@dataclass(frozen=True)
class Choice:
    """The files to look at; nothing given is all of them."""

    branches: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()

    def takes(self, artifact: Artifact) -> bool:
        return artifact.format in (self.formats or [artifact.format]) and artifact.precision in (
            self.precisions or [artifact.precision]
        )


@dataclass
class Trials:
    """What can be run, and by package, file and runtime why the rest cannot."""

    chosen: list[Trial] = field(default_factory=list)
    not_run: list[dict[str, str]] = field(default_factory=list)


def open_packages(sources: Sequence[str], branches: Sequence[str], say: Callable[[str], None]) -> list[Package]:
    """The packages that `sources` are or hold, of the `branches` that are asked for, all files checked."""
    wanted, found = {str(Target.parse(branch)) for branch in branches}, dict[Path, Package]()
    for source in sources:
        folder = Path(source)
        inside = list(packages_in(folder)) if folder.is_dir() and not FolderRepository(folder).exists() else []
        for package in inside or resolve_branches(source, sorted(wanted), say):
            found.setdefault(package.folder.resolve(), package)
    known = sorted({package.document["target"] for package in found.values()})
    if missing := wanted - set(known):
        raise UsageError(
            f"there is no package of {', '.join(sorted(missing))}", known=known, hint="kdzoo export --branch makes one"
        )
    packages = [package for package in found.values() if not wanted or package.document["target"] in wanted]
    for package in packages:
        package.verify_files()
    return packages


def resolve_branches(source: str, branches: Sequence[str], say: Callable[[str], None]) -> list[Package]:
    """The packages that are published as `source`, or the one in a folder: those of the `branches` that it has.

    Raises:
        UnknownName: it has none of them. Otherwise as `resolve_package`.
    """
    if not branches or (Path(source).is_dir() and not FolderRepository(Path(source)).exists()):
        return [resolve_package(source, say)]
    found, refused = list[Package](), list[UnknownName]()
    for branch in branches:
        try:
            found.append(resolve_package(source, say, branch))
        except UnknownName as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return found


def find_trials(packages: Sequence[Package], choice: Choice) -> Trials:
    """Every chosen file in every runtime that takes it here or, where runtimes are named, in those.

    Raises:
        UsageError: no file is chosen, or a named runtime takes none of them.
        EnvironmentProblem: a named runtime cannot run here, or nothing can.
    """
    runtimes = [RUNTIMES.get(name)() for name in choice.runtimes or (n for n in RUNTIMES.names() if n != TORCH)]
    found, known, refusals = Trials(), [], dict[str, UsageError]()
    for package in packages:
        known += [artifact.path for artifact in package.artifacts]
        files = [artifact for artifact in package.artifacts if choice.takes(artifact)]
        if TORCH in choice.runtimes:
            files += student_in(package, refusals)
        for artifact in files:
            for runtime in runtimes:
                if reason := runtime.refuses(artifact):
                    refusals.setdefault(runtime.name, UsageError(reason))
                    continue
                trial = Trial(package, artifact, runtime)
                try:
                    runtime.check(package.folder, artifact)
                except EnvironmentProblem as problem:
                    if choice.runtimes:
                        raise
                    found.not_run.append(trial.not_run(problem))
                else:
                    found.chosen.append(trial)
    for runtime in runtimes if choice.runtimes else []:
        if runtime.name not in {trial.runtime.name for trial in found.chosen}:
            refusal = refusals.get(runtime.name, UsageError("no file is chosen"))
            told = f"{runtime.name} runs none of these files: {refusal.what}"
            raise UsageError(told, known=list(dict.fromkeys(known)), hint=refusal.hint)
    if not found.chosen:
        if found.not_run:
            first = found.not_run[0]
            raise EnvironmentProblem(f"nothing of this runs here; {first['file']}: {first['reason']}", hint=first["fix"])
        raise UsageError("no file of these packages is chosen", known=list(dict.fromkeys(known)))
    return found


def student_in(package: Package, refusals: dict[str, UsageError]) -> list[Artifact]:
    """What torch runs of a package; nothing, with the reason, where it is not here or no fair comparison."""
    from .runtimes.torch import student_of

    try:
        return [student_of(package)]
    except UsageError as error:
        refusals.setdefault(TORCH, error)
        return []
