"""A Triton model repository of packages: a model per file that Triton can run. Torch-free.

    DIR/<entry>-<target>/config.pbtxt  labels.txt  warmup/golden  1/model.onnx

The file that answers fastest has the name that `kdzoo serve` gives the package, so clients need no change; of every further file
the name ends in what tells it from that one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import OutputError, UnknownName, UsageError
from ..zoo.checkpoint import check_file
from ..zoo.files import new_folder
from ..zoo.paths import DRIVER
from .cascade import EXIT
from .outputs import as_input
from .package import GOLDEN_INPUTS, LABELS, PREPROCESS, STUDENT, Artifact, Package
from .request import check_output
from .runtime import RUNTIMES
from .threads import physical_cores
from .triton_config import CPU, FILES, GOLDEN, GPU, WARM_UP, Place, configuration, to_text

AUTO, ONNXRUNTIME, TENSORRT, PYTHON = "auto", "onnxruntime", "tensorrt", "python"
BACKENDS = (AUTO, ONNXRUNTIME, TENSORRT, PYTHON)
FORMATS = {ONNXRUNTIME: ("onnx",), TENSORRT: ("tensorrt",), PYTHON: ("onnx", "parts")}
PYTHON_MODEL = Path(__file__).with_name("triton_python.py")
VERSION = "1"
NOT_TIMED = float("inf")


@dataclass(frozen=True)
class TritonOptions:
    """Attributes:
    backend: `auto` is onnxruntime, and tensorrt for engines of TensorRT. device: `cpu` or `gpu`, for all but engines.
    instances: of a model, which compute at the same time; None takes the cores of this machine, or one on a GPU.
    precisions: only these files.
    """

    backend: str = AUTO
    device: str = CPU
    instances: int | None = None
    precisions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind, name, known in (("Triton backend", self.backend, BACKENDS), ("device", self.device, (CPU, GPU))):
            if name not in known:
                raise UnknownName(kind, name, known)


@dataclass(frozen=True)
class TritonModel:
    """A model of the repository. `notes`: what to know of it, beside its configuration."""

    name: str
    package: Package
    artifact: Artifact
    place: Place
    notes: tuple[str, ...] = ()

    @property
    def to_dict(self) -> dict[str, Any]:
        own = {"backend": self.place.backend, "device": self.place.device, "instances": self.place.instances}
        return {"name": self.name, "file": f"{self.package.folder}/{self.artifact.path}", **own, "notes": list(self.notes)}


@dataclass(frozen=True)
class TritonRepository:
    """What was written. `left_out`: by path, why Triton does not run a file."""

    folder: Path
    models: tuple[TritonModel, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "models": [model.to_dict for model in self.models], "left_out": self.left_out}


def write_triton(
    packages: Sequence[Package],
    folder: Path,
    options: TritonOptions | None = None,
    *,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> TritonRepository:
    """Write the repository whole, or not at all.

    Raises:
        OutputError: something stands at `folder`, and `force` is not set. UsageError: Triton runs none of these files.
        IntegrityError: a file is not the one of its manifest.
    """
    check_folder(folder, [package.folder for package in packages], force)
    repository = plan(packages, folder, options or TritonOptions())
    with new_folder(folder) as part:
        for model in repository.models:
            write_model(part / model.name, model)
    for model in repository.models:
        say(f"{model.name}: {model.artifact.path} for the {model.place.backend} backend on the {model.place.device}")
    for path, reason in repository.left_out.items():
        say(f"left out: {path}: {reason}")
    return repository


def check_folder(folder: Path, packages: Sequence[Path], force: bool) -> None:
    """Raises `OutputError` where no repository may be written to `folder`: something stands there, or it is or holds a package."""
    for package in packages:
        if package.resolve().is_relative_to(folder.resolve()):
            raise OutputError(f"{folder} is or holds the package {package}", hint="name another folder with --triton")
        check_output(folder, package, force)


def plan(packages: Sequence[Package], folder: Path, options: TritonOptions) -> TritonRepository:
    """What `write_triton` writes; raises `UsageError` where that is nothing, or two packages have one name."""
    models: list[TritonModel] = []
    left_out: dict[str, str] = {}
    for package in packages:
        taken = []
        for artifact in ranked(package):
            if artifact.precision not in (options.precisions or [artifact.precision]):
                continue
            backend, reason = backend_for(artifact, options)
            if reason:
                left_out[f"{package.folder}/{artifact.path}"] = reason
            else:
                taken.append((artifact, backend))
        for number, (artifact, backend) in enumerate(taken):
            name = plain(f"{package.name}-{suffix(artifact)}" if number else package.name)
            if name in {model.name for model in models}:
                raise UsageError(f"two of these packages are {package.name}", hint="write a repository of each")
            models.append(TritonModel(name, package, artifact, place(artifact, backend, options), tuple(notes(artifact, backend))))
    if not models:
        reasons = "; ".join(dict.fromkeys(left_out.values())) or f"there is none of {' or '.join(options.precisions)}"
        raise UsageError(f"Triton runs no file of {', '.join(str(p.folder) for p in packages)}: {reasons}")
    return TritonRepository(folder, tuple(models), left_out)


def ranked(package: Package) -> list[Artifact]:
    """The files of a package: engines, which a GPU waits for, and then the fastest on the smallest batch; a stable order."""
    measured = package.metrics["artifacts"]

    def time(artifact: Artifact) -> float:
        latency = measured.get(artifact.path, {}).get("latency") or []
        return latency[0]["p50_ms"] / latency[0]["batch"] if latency else NOT_TIMED

    files = [artifact for artifact in package.artifacts if artifact.format != STUDENT]
    return sorted(files, key=lambda artifact: (artifact.format not in FORMATS[TENSORRT], time(artifact)))


def backend_for(artifact: Artifact, options: TritonOptions) -> tuple[str, str]:
    """The backend of a file, or why it has none."""
    backend = options.backend
    if backend == AUTO:
        backend = TENSORRT if artifact.format in FORMATS[TENSORRT] else ONNXRUNTIME
    if artifact.format == "trt-rtx" or any(part.format == "trt-rtx" for part in artifact.parts):
        return "", "Triton's tensorrt backend loads engines of TensorRT, not of TensorRT-RTX"
    if artifact.format not in FORMATS[backend]:
        if artifact.format == "parts":
            return "", f"the {backend} backend runs one file, not the parts of a cascade; the python backend does"
        return "", f"Triton's {backend} backend runs {' and '.join(FORMATS[backend])} files, not {artifact.format}"
    smallest, _, largest = artifact.batch
    if backend == TENSORRT and 1 < smallest < largest:
        return "", f"its smallest batch is {smallest}, and Triton sends single requests, too"
    runtime = f"onnxruntime-{'cuda' if options.device == GPU else CPU}"
    for part in artifact.parts or (artifact,):
        if backend != TENSORRT and (reason := RUNTIMES.get(runtime)().refuses(part)):
            return "", reason
    return backend, ""


def place(artifact: Artifact, backend: str, options: TritonOptions) -> Place:
    """A cascade in one file waits behind conditions, which onnxruntime computes on the processor."""
    device = GPU if backend == TENSORRT else options.device
    if artifact.format == "onnx" and EXIT in artifact.details.get("outputs", ()):
        device = CPU
    return Place(backend, device, options.instances or (physical_cores() if device == CPU else 1))


def notes(artifact: Artifact, backend: str) -> Iterator[str]:
    if backend == TENSORRT:
        capability = f" on GPUs of compute capability {artifact.compute_capability}" if artifact.compute_capability else ""
        yield f"Only a Triton with {artifact.runtime} {artifact.runtime_version} loads this engine,{capability or ' on its GPU'}."
    elif EXIT in artifact.details.get("outputs", ()) and artifact.format == "onnx":
        yield "A cascade: its conditions need onnxruntime's provider for processors, so KIND_CPU is right even beside a GPU."
    if backend == PYTHON:
        yield "The Python of Triton's stub needs numpy and onnxruntime; EXECUTION_ENV_PATH can name an environment with both."


def plain(name: str) -> str:
    """Triton's HTTP server does not decode the paths that it is asked for, and `tritonclient` asks for `1%2B2` where a branch is
    `1+2`: here it is `1-2`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def suffix(artifact: Artifact) -> str:
    """What tells a file from the others of its package: `fp16` of `model.fp16.onnx`."""
    stem = artifact.path.rpartition("/")[2].removeprefix("model.")
    return stem.removesuffix(".onnx").removesuffix(".engine").removesuffix(".json").replace(".", "-")


def write_model(folder: Path, model: TritonModel) -> None:
    """The folder of a model, with everything in it."""
    package, artifact = model.package, model.artifact
    version = folder / VERSION
    (folder / WARM_UP).mkdir(parents=True)
    version.mkdir()
    for name in (LABELS, PREPROCESS, GOLDEN_INPUTS, artifact.path, *artifact.companions):
        check_file(package.folder / name, package.document["files"].get(name))
    shutil.copyfile(package.folder / LABELS, folder / LABELS)
    parameters = {"intra_op_thread_count": "1", "inter_op_thread_count": "1"} if model.place.backend == ONNXRUNTIME else {}
    if model.place.backend == PYTHON:
        shutil.copyfile(PYTHON_MODEL, version / FILES[PYTHON])
        source = artifact.path.rpartition("/")[2]
        carried = [source, *artifact.companions, *([DRIVER] if artifact.parts else [])]
        fixed = artifact.batch[0] if artifact.batch[0] == artifact.batch[2] else 0
        parameters = {"file": source, "threads": "1", **({"fixed_batch": str(fixed)} if fixed else {})}
    else:
        source, carried = FILES[model.place.backend], []
        shutil.copyfile(package.folder / artifact.path, version / source)
    for name in carried:
        shutil.copyfile(package.folder / name, version / name)
    config = configuration(model.name, artifact, outputs_of(package, artifact), model.place, parameters)
    (folder / WARM_UP / GOLDEN).write_bytes(warm_up(package, artifact, 1 if config["max_batch_size"] else artifact.batch[0]))
    (folder / "config.pbtxt").write_text(to_text(config, describe(model)), encoding="utf-8")


def warm_up(package: Package, artifact: Artifact, count: int) -> bytes:
    """So many golden images, over and over, as the file takes them."""
    import numpy as np

    images, _ = package.golden()
    prepared = as_input(images, package.preprocess, "float" if artifact.input.dtype == "float32" else "uint8")
    return np.resize(prepared, (count, *prepared.shape[1:])).tobytes()


def outputs_of(package: Package, artifact: Artifact) -> list[str]:
    """The names of what a file gives; an engine gives what the graph gives that it is built of."""
    if artifact.format in FORMATS[TENSORRT]:
        source = artifact.details.get("from")
        artifact = next((each for each in package.described if each.path == source), artifact)
    return list(artifact.details.get("outputs", [artifact.output.name]))


def describe(model: TritonModel) -> list[str]:
    """What a person who opens the configuration wants to know."""
    package, artifact = model.package, model.artifact
    measured, host = package.metrics["artifacts"].get(artifact.path, {}), package.metrics.get("host")
    lines = [f"{package.document['entry']}, branch {package.document['target']}: {artifact.path}, sha256 {artifact.sha256}"]
    if accuracy := measured.get("accuracy"):
        lines.append(f"top-1 {accuracy['top1']:.2f} % of {accuracy['n']:,} images ({accuracy['split']})")
    if latency := measured.get("latency"):
        first = latency[0]
        threads = f" with {first['threads']} threads" if first.get("threads") else ""
        lines.append(f"{first['p50_ms']:.2f} ms for a batch of {first['batch']}{threads}, measured on {host}")
    return [*lines, *model.notes, "Written by kdzoo; instance_group is for the machine where it was written."]
