"""Can this machine run the files of a package? Judged by manifest, sidecars and checksums alone: nothing is loaded. Torch-free."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import EnvironmentProblem, IntegrityError, UsageError
from ..zoo.files import read_json, sha256
from ..zoo.folder_repository import FolderRepository
from .candidates import packages_in
from .engine_sidecar import check_engine, read_sidecar
from .machine import Machine
from .obstacles import FORMAT_OF, Obstacle, of_engine
from .obstacles_onnx import SLOW, fixed_batch, of_onnx, of_openvino
from .origin import Origin
from .package import MANIFEST, PULLED, SCHEMA_VERSION, Artifact, Package
from .schema import check_document

RUNS, RUNS_NOT, DAMAGED, NOT_HERE = "runs", "does not run", "damaged", "not here"
PRECISIONS = ("fp32", "fp16", "int8", "bf16")  # from the one that runs everywhere
RUNTIMES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    **{format: runtime for runtime, format in FORMAT_OF.items()},
    "trt": "tensorrt",
}


@dataclass(frozen=True)
class Verdict:
    """What becomes of one file on one machine.

    Attributes:
        state: `runs`, `does not run`, `damaged` (it is not the file that the manifest describes) or `not here` (it was not pulled).
        runtime: what runs it, with the version that is installed. instead: a file of the package that does better here.
    """

    package: str
    path: str
    format: str
    precision: str
    state: str
    runtime: str
    obstacles: tuple[Obstacle, ...] = ()
    instead: str = ""


def find_packages(source: str) -> list[Package]:
    """The packages below a folder; none where it is a package itself, something else that `source.resolve` knows, or no folder.

    Raises:
        UsageError: a folder without any of that.
    """
    folder = Path(source)
    if not folder.is_dir() or Package.is_package(folder) or FolderRepository(folder).exists():
        return []
    found = list(packages_in(folder))
    if not found and not (folder / MANIFEST).is_file() and not (folder / "checkpoint").is_dir():
        raise UsageError(f"{folder} holds no package", hint="kdzoo export makes one")
    return found


def judge(package: Package, machine: Machine) -> list[Verdict]:
    """A verdict on every file that the manifest lists.

    Raises:
        IntegrityError: the manifest itself is not one.
    """
    check_document(package, MANIFEST, package.document)
    here = {artifact.path for artifact in package.artifacts}
    found = [_judge(package, artifact, machine, artifact.path in here) for artifact in package.described]
    return [replace(verdict, instead=_better(verdict, found)) for verdict in found]


def _judge(package: Package, artifact: Artifact, machine: Machine, is_here: bool) -> Verdict:
    origin = Origin.of(package.document, artifact.precision)
    obstacles = tuple(obstacles_of(package, artifact, machine, origin)) if is_here else (_not_pulled(package, artifact),)
    state = RUNS
    if not is_here:
        state = NOT_HERE
    elif any(obstacle.damaged for obstacle in obstacles):
        state = DAMAGED
    elif any(obstacle.stops for obstacle in obstacles):
        state = RUNS_NOT
    runtime = runtime_of(artifact, machine)
    return Verdict(str(package.folder), artifact.path, artifact.format, artifact.precision, state, runtime, obstacles)


def runtime_of(artifact: Artifact, machine: Machine) -> str:
    """The installed runtime that takes a file; "" where there is none."""
    if artifact.parts:
        return runtime_of(artifact.parts[0], machine)
    runtime = RUNTIMES.get(artifact.format, "")
    if runtime == "onnxruntime":
        names = machine.onnxruntimes
        return f"{names[0]} {machine.imported or machine.versions[names[0]]}" if names else ""
    version = machine.version_of(runtime) if runtime else None
    return f"{runtime} {version}" if version else ""


def obstacles_of(package: Package, artifact: Artifact, machine: Machine, origin: Origin) -> Iterator[Obstacle]:
    """What keeps a file from running: what is wrong with it or, where it is whole, what this machine lacks."""
    damages = list(_damages(package, artifact))
    if damages:
        yield from damages
        return
    if artifact.format == "onnx":
        yield from of_onnx(artifact, machine, origin)
    elif artifact.parts:
        for part in artifact.parts:
            yield from obstacles_of(package, part, machine, origin)
    elif artifact.format == "openvino":
        yield from of_openvino(artifact, machine, origin)
    elif artifact.format in RUNTIMES:
        yield from _engine(package, artifact, machine, origin)
    else:
        yield Obstacle("unknown-format", f"this kdzoo knows no runtime of {artifact.format}", "pip install --upgrade kdzoo")
    yield from fixed_batch(artifact, origin)


def _damages(package: Package, artifact: Artifact) -> Iterator[Obstacle]:
    """Whether the file, and those that belong to it, are what the manifest describes."""
    for name in (artifact.path, *artifact.companions):
        path, told = package.folder / name, package.document["files"].get(name)
        again = "copy it again, pull it again, or export it again"
        if told is None:
            yield Obstacle("not-in-manifest", f"{name} is missing in the files of the manifest", again, damaged=True)
        elif not path.is_file():
            yield Obstacle("missing", f"{path} is missing", again, damaged=True)
        elif (size := path.stat().st_size) != told["bytes"]:
            what = f"{path} has {size} bytes, its manifest says {told['bytes']}"
            yield Obstacle("truncated" if size < told["bytes"] else "changed", what, again, damaged=True)
        elif sha256(path) != told["sha256"]:
            yield Obstacle("changed", f"{path} is not the file that its manifest describes (sha256)", again, damaged=True)


def _engine(package: Package, artifact: Artifact, machine: Machine, origin: Origin) -> Iterator[Obstacle]:
    if "sidecar" not in artifact.details:
        yield Obstacle("no-sidecar", f"{artifact.path} has no sidecar in its manifest", "export the engine again", damaged=True)
        return
    sidecar, engine = package.folder / artifact.details["sidecar"], package.folder / artifact.path
    try:
        info = read_sidecar(sidecar)
        check_engine(info, sidecar, engine)
    except IntegrityError as error:
        yield Obstacle("not-its-sidecar", error.what, error.hint, damaged=True)
        return
    except EnvironmentProblem as error:
        yield Obstacle("sidecar-newer", error.what, error.hint)
        return
    yield from of_engine(info, machine, origin)


def _not_pulled(package: Package, artifact: Artifact) -> Obstacle:
    path = package.folder / PULLED
    facts = read_json(path, SCHEMA_VERSION) if path.is_file() else {}
    reference = f"{facts.get('repository', 'REPOSITORY')}@{facts.get('commit', 'main')}"
    return Obstacle(
        "not-pulled",
        f"{artifact.path} was not pulled",
        shlex.join(["kdzoo", "pull", reference, "-b", package.document["target"], "-f", artifact.format, "-p", artifact.precision]),
    )


def _better(verdict: Verdict, verdicts: list[Verdict]) -> str:
    """A file that runs well, for one that does not: of the same precision where there is one, an ONNX file first."""

    def slow(one: Verdict) -> bool:
        return any(obstacle.case in SLOW for obstacle in one.obstacles)

    if verdict.state == NOT_HERE or (verdict.state == RUNS and not slow(verdict)):
        return ""
    fit = [v for v in verdicts if v.state == RUNS and not slow(v) and v.path != verdict.path]
    ranked = sorted(
        fit,
        key=lambda v: (
            v.precision != verdict.precision,
            PRECISIONS.index(v.precision) if v.precision in PRECISIONS else len(PRECISIONS),
            v.format != "onnx",
        ),
    )
    return ranked[0].path if ranked else ""
