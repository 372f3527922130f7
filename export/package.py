"""The folder that `export` writes: a student, its artifacts, and everything needed to run and to judge them. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import IntegrityError, UsageError
from ..zoo.checkpoint import check_file
from ..zoo.files import read_json, standing, write_json
from ..zoo.paths import check_name
from ..zoo.preprocess import Preprocess
from .tensor_spec import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA_VERSION = 1
MANIFEST, METRICS, PREPROCESS, LABELS, CARD = "manifest.json", "metrics.json", "preprocess.json", "labels.txt", "README.md"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
STUDENT = "safetensors"  # as a format: the student that torch reads, `WEIGHTS` and `CONFIG`
KINDS: dict[str, type] = {
    **dict.fromkeys(("entry", "target", "method", "backbone", "dataset"), str),
    **dict.fromkeys(("source", "tensors", "options", "gates", "provenance", "files"), dict),
    "artifacts": list,
    "verified": bool,
}
SIGNATURE = "model.sig"  # beside the manifest, and a file that it cannot name
PULLED = "pulled.json"  # beside the manifest: where `kdzoo pull` had the folder from, and which files it fetched
GOLDEN_INPUTS, GOLDEN_EXPECTED = "golden/inputs.npz", "golden/expected.npz"


@dataclass(frozen=True)
class Artifact:
    """One emitted file.

    Attributes:
        path: relative to the package. format: `onnx`, `trt-rtx`, ... precision: `fp32`, `fp16`, `bf16` or `int8`.
        batch: smallest, optimal and largest batch. runtime: what runs it, with the version it was made for.
        compute_capability: of the GPU that an engine is built for. details: what else the format knows (opset, nodes, ...).
    """

    path: str
    format: str
    precision: str
    sha256: str
    bytes: int
    input: TensorSpec
    output: TensorSpec
    batch: tuple[int, int, int]
    runtime: str
    runtime_version: str
    compute_capability: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def companions(self) -> tuple[str, ...]:
        """The files beside it without which it is worth nothing: the sidecar of an engine, the weights of an OpenVINO graph, the
        parts of a cascade."""
        details = self.details if isinstance(self.details, dict) else {}
        own = (details[key] for key in ("sidecar", "weights") if details.get(key) is not None)
        return (*own, *(name for part in self.parts for name in (part.path, *part.companions)))

    @property
    def parts(self) -> tuple[Artifact, ...]:
        """Of a cascade in parts, the file of every exit."""
        details = self.details if isinstance(self.details, dict) else {}
        parts = details.get("parts", [])
        if not isinstance(parts, list):
            raise IntegrityError(f"a manifest cannot have {parts!r:.60} as the parts of {self.path}", hint="export again")
        return tuple(Artifact.from_dict(part) for part in parts)

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Artifact:
        """Raises `IntegrityError` where a field is missing or wrong."""
        try:
            values = {f.name: document[f.name] for f in fields(cls)}
            for name in ("input", "output"):
                values[name] = TensorSpec.from_dict(values[name])
            return cls(**{**values, "batch": tuple(values["batch"])})
        except (KeyError, TypeError) as error:
            raise IntegrityError(f"a manifest describes an artifact without {error}", hint="export again") from None


@dataclass(frozen=True)
class Package:
    """A package on disk: its manifest, and lazily the rest."""

    folder: Path
    document: dict[str, Any]

    @classmethod
    def is_package(cls, folder: Path) -> bool:
        """Whether `folder` holds the manifest of a package (and not of a checkpoint)."""
        path = standing(folder) / MANIFEST
        document = read_json(path) if path.is_file() else None
        return isinstance(document, dict) and document.get("kind") == "package"

    @classmethod
    def open(cls, folder: Path) -> Package:
        """Raises `UsageError` where there is no package, `IntegrityError` or `EnvironmentProblem` where it cannot be read."""
        folder = standing(folder)
        if not (folder / MANIFEST).is_file():
            raise UsageError(f"{folder} holds no package: there is no {MANIFEST}", hint="kdzoo export makes one")
        document = read_json(folder / MANIFEST, SCHEMA_VERSION)
        if document.get("kind") != "package":
            raise UsageError(f"{folder} is a {document.get('kind')}, not a package", hint="kdzoo export makes a package of it")
        wrong = [name for name, kind in KINDS.items() if not isinstance(document.get(name), kind)]
        if wrong:
            raise IntegrityError(
                f"{folder / MANIFEST} is not the manifest of a package: {', '.join(wrong)} cannot be what it says",
                hint="export again",
            )
        for name in (*document["files"], *_named(document["artifacts"])):
            check_name(name)
        return cls(folder, document)

    @property
    def name(self) -> str:
        return f"{self.document['entry']}-{self.document['target']}"

    @property
    def described(self) -> list[Artifact]:
        """What the manifest lists."""
        return [Artifact.from_dict(a) for a in self.document["artifacts"]]

    @property
    def artifacts(self) -> list[Artifact]:
        """What should be here: all of it, but for a package that was pulled in part."""
        here = set(self.here)
        return [a for a in self.described if a.path in here]

    @property
    def here(self) -> list[str]:
        """The files that are or should be here: those of the manifest, but for what a pull in part left out.

        What it left out is told by a file that nobody signs: it excuses what is absent, and nothing else."""
        names, pulled = list(self.document["files"]), self.folder / PULLED
        if not pulled.is_file():
            return names
        fetched = read_json(pulled, SCHEMA_VERSION).get("files", [])
        if not isinstance(fetched, list):
            raise IntegrityError(f"{pulled} does not say which files were fetched", hint="pull the package again")
        return [name for name in names if name in fetched or (self.folder / name).is_file()]

    @property
    def metrics(self) -> dict[str, Any]:
        document: dict[str, Any] = read_json(self.folder / METRICS, SCHEMA_VERSION)
        return document

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess.from_dict(read_json(self.folder / PREPROCESS))

    @property
    def labels(self) -> list[str]:
        return read_text(self.folder / LABELS).splitlines()

    def artifact(self, format: str = "onnx", precision: str | None = None) -> Artifact:
        """The first artifact of a format; raises `UsageError` where there is none."""
        found = [a for a in self.artifacts if a.format == format and precision in (None, a.precision)]
        if not found:
            raise UsageError(f"{self.folder} holds no {precision or ''} {format} file", known=[a.path for a in self.artifacts])
        return found[0]

    def golden(self, artifact: Artifact | None = None) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Raw images `N H W C` and the logits `N K` that torch gave for them, or `artifact` itself, where its precision
        (eight bits) lets it give others."""
        import numpy as np

        try:
            with np.load(self.folder / GOLDEN_INPUTS, allow_pickle=False) as inputs:
                images = inputs["image"]
            with np.load(self.folder / GOLDEN_EXPECTED, allow_pickle=False) as expected:
                own = artifact is not None and artifact.path in expected
                logits = expected[artifact.path if own and artifact else "logits"]
        except (OSError, ValueError, KeyError) as error:
            raise IntegrityError(f"the golden files of {self.folder} cannot be read: {error}", hint="export again") from None
        return images, logits

    @property
    def unnamed(self) -> list[str]:
        """What lies in the folder and is no part of the package: nobody vouches for it."""
        own = {*self.document["files"], MANIFEST, PULLED, SIGNATURE}
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.as_posix() for path in found if path.as_posix() not in own and path.parts[0] not in (".cache", ".git"))

    def verify_files(self) -> int:
        """Check size and sha256 of all that should be here; gives how many, raises `IntegrityError` at the first wrong one."""
        here = self.here
        for name in here:
            check_file(self.folder / name, self.document["files"][name])
        return len(here)


def read_text(path: Path) -> str:
    """Raises `IntegrityError` where a file is missing or is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read as a text: {error}", hint="copy it again, or export again") from None


def _named(artifacts: object) -> Iterator[object]:
    """What the artifacts of a manifest, and their parts, name as files; what is no artifact is left to the schema."""
    for artifact in artifacts if isinstance(artifacts, list) else ():
        if not isinstance(artifact, dict):
            continue
        details = artifact.get("details")
        details = details if isinstance(details, dict) else {}
        places = ((artifact, "path"), (details, "sidecar"), (details, "weights"), (details, "from"))
        yield from (where[key] for where, key in places if where.get(key) is not None)
        yield from _named(details.get("parts"))


def write_manifest(folder: Path, document: dict[str, Any], artifacts: list[Artifact]) -> None:
    """The manifest of a package, last of its files."""
    write_json(
        folder / MANIFEST,
        {"schema_version": SCHEMA_VERSION, "kind": "package", **document, "artifacts": [asdict(a) for a in artifacts]},
    )
