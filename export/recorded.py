"""What an export has left on record: how it was asked for, every file with its sha256, every figure. Torch-free.

A package has it in its manifest and its metrics. A bundled entry has it, without the files, for a few exports in `exports.json`
beside its card (`tools/record.py` writes it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, UsageError
from ..zoo.catalog import CARDS
from ..zoo.checkpoint import WEIGHTS, Checkpoint
from ..zoo.files import read_json
from ..zoo.manifest import MANIFEST
from ..zoo.paths import DRIVER
from .format import Batch, ExportOptions
from .formats.onnx import onnx_name
from .gates import Gates
from .package import CARD, METRICS, SCHEMA_VERSION, Artifact, Package
from .request import Request
from .schema import check_document
from .source import RUNS, resolve, resolve_checkpoint

EXPORTS = "exports.json"
FIGURES = ("accuracy", "parity")  # of what is measured of a file; latencies are of the day
OF_THE_DAY = (METRICS, CARD)  # hold latencies
ENGINES = {"tensorrt": "tensorrt", "tensorrt_rtx": "trt-rtx"}  # by runtime, the format that builds its engines
Say = Callable[[str], None]


@dataclass(frozen=True)
class Recorded:
    """One export.

    Attributes:
        source: sha256 of the weights of the checkpoint, and what it was `given` as.
        options: fields of `Request` and `ExportOptions`. files: sha256 and bytes of every file whose bytes are decided by
            checkpoint and options. student, reference, figures: from the metrics.
        artifacts: as in the manifest, but with `companions`, the files that come and go with them, `grid` of an eight-bit file,
            and `reproducible`: whether the same build gives the same bytes.
    """

    entry: str
    target: str
    dataset: str
    source: dict[str, Any]
    options: dict[str, Any]
    gates: dict[str, Any]
    verified: bool
    artifacts: list[dict[str, Any]]
    files: dict[str, dict[str, Any]]
    student: dict[str, Any]
    reference: dict[str, Any] | None
    figures: dict[str, dict[str, Any]]
    versions: dict[str, str]
    host: str

    @classmethod
    def of(cls, package: Package) -> Recorded:
        """Raises `IntegrityError` where the manifest does not say enough to make the files again."""
        document, metrics = package.document, package.metrics
        try:
            figures = {p: {k: m[k] for k in FIGURES if k in m} for p, m in metrics["artifacts"].items()}
            return cls(
                **{key: document[key] for key in ("entry", "target", "dataset", "source", "options", "gates", "verified")},
                artifacts=[_short(artifact) for artifact in package.described],
                files={name: facts for name, facts in document["files"].items() if name not in OF_THE_DAY},
                student=metrics["student"], reference=metrics["reference"], figures=figures,
                versions=document["provenance"]["versions"], host=metrics["host"],
            ).checked()  # fmt: skip
        except KeyError as error:
            raise _too_old(str(package.folder), error) from None

    @classmethod
    def from_dict(cls, document: Any, where: str) -> Recorded:
        try:
            return cls(**{f.name: document[f.name] for f in fields(cls)}).checked()
        except (KeyError, TypeError) as error:
            raise _too_old(where, error) from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def checked(self) -> Recorded:
        """Itself; raises `KeyError` where something is missing that a request needs."""
        for key in ("formats", "precisions", "batch", "input", "calibration", "calibration_images", "cascade_loss"):
            self.options[key]
        for artifact in self.artifacts:
            artifact["companions"], artifact["reproducible"], artifact["grid"]
        self.source["weights_sha256"], self.gates["max_drop"], self.gates["min_agreement"]
        return self

    def request(self, formats: tuple[str, ...], precisions: tuple[str, ...], data: Path | None) -> Request:
        """The same again, of some of its formats and precisions. What was chosen by measurement is what was chosen then."""
        made: dict[str, Any] = {f.name: self.options[f.name] for f in fields(ExportOptions) if f.name in self.options}
        grids = [a["grid"] for a in self.artifacts if a["runtime"] == "onnxruntime" and a["grid"]]
        capabilities = dict.fromkeys(a["compute_capability"] for a in self.artifacts if a["compute_capability"])
        made |= {
            "precisions": precisions,
            "batch": Batch(*self.options["batch"]),
            "capabilities": tuple(capabilities),
            "int8_grid": grids[0] if grids else "auto",
        }
        options = ExportOptions(**made)
        gates = Gates(self.gates["max_drop"], self.gates["min_agreement"])
        return Request(formats, options, gates, data=data, verify=self.verified, cascade_loss=self.options["cascade_loss"])

    @property
    def made_formats(self) -> dict[str, str]:
        """By artifact, the name of the format that makes it: of an engine, in parts or not, that of its runtime; a file of signed
        eight bits that is there for an engine comes with the engine."""
        names = {
            a["path"]: ENGINES.get(a["runtime"], a["format"]) if a["compute_capability"] else a["format"] for a in self.artifacts
        }
        engines = [names[a["path"]] for a in self.artifacts if a["compute_capability"]]
        source = onnx_name("int8", for_engine=True)
        signed = {source, source.replace(".onnx", ".parts.json")}
        return names | {path: engines[0] for path in names if path in signed and engines}


def recorded_exports(entry: str) -> list[Recorded]:
    """What is on record of a bundled entry; empty where nothing is."""
    path = CARDS / entry / EXPORTS
    if not path.is_file():
        return []
    return [Recorded.from_dict(document, str(path)) for document in read_json(path, SCHEMA_VERSION)["exports"]]


def records_of(source: str, say: Say) -> list[Recorded]:
    """The record of a package, its files checked, or those of a bundled entry.

    Raises:
        UsageError: there is none. IntegrityError: a file of the package is not what its manifest says.
    """
    if not Path(source).is_dir() and (found := recorded_exports(source)):
        return found
    opened = resolve(source, say)
    if isinstance(opened, Checkpoint):
        raise UsageError(
            f"{source} has no recorded export", known=[p.parent.name for p in CARDS.glob(f"*/{EXPORTS}")],
            hint=f"kdzoo export {source} makes a package, which records how it was made",
        )  # fmt: skip
    check_document(opened, MANIFEST, opened.document)
    opened.verify_files()
    return [Recorded.of(opened)]


def find_checkpoint(recorded: Recorded, given: str | None, say: Say) -> Checkpoint:
    """The checkpoint that an export was cut from, by the sha256 of its weights.

    `given`, else what the record names, else a bundled entry, else a run below `./runs`.

    Raises:
        IntegrityError: `given` has other weights. UsageError: there is no such checkpoint.
    """
    wanted = recorded.source["weights_sha256"]
    if given is not None:
        checkpoint = resolve_checkpoint(given, say)
        if weights_of(checkpoint) != wanted:
            raise IntegrityError(
                f"{given} is not the checkpoint that {recorded.entry}-{recorded.target} was cut from: its weights have sha256 "
                f"{weights_of(checkpoint)[:12]}, the record says {wanted[:12]}",
                hint="--source names the run, checkpoint or entry with those weights",
            )
        return checkpoint
    for folder in _bundled_and_runs():
        if read_json(folder / MANIFEST).get("files", {}).get(WEIGHTS, {}).get("sha256") == wanted:
            say(f"the checkpoint is {folder}")
            return Checkpoint.open(folder)
    named = recorded.source.get("given")
    if named:
        say(f"taking the checkpoint that the record names, {named}")
        return find_checkpoint(recorded, named, say)
    raise UsageError(
        f"the checkpoint of {recorded.entry}-{recorded.target} is neither bundled nor below ./{RUNS}: "
        f"weights with sha256 {wanted[:12]}, {recorded.source.get('epochs')} epochs",
        hint="--source names it",
    )


def weights_of(checkpoint: Checkpoint) -> str:
    return str(checkpoint.manifest.files[WEIGHTS]["sha256"])


def _bundled_and_runs() -> Iterator[Path]:
    yield from (path.parent for path in sorted(CARDS.glob(f"*/{MANIFEST}")))
    runs = [path for pattern in (f"*/{MANIFEST}", f"*/checkpoint/{MANIFEST}") for path in RUNS.glob(pattern)]
    yield from (path.parent for path in sorted(runs, key=lambda path: -path.stat().st_mtime))


def _short(artifact: Artifact) -> dict[str, Any]:
    """What is needed of an artifact to make and to compare it."""
    kept = {key: getattr(artifact, key) for key in ("path", "format", "precision", "sha256", "runtime", "compute_capability")}
    driver = [DRIVER] if artifact.format == "parts" else []
    return {
        **kept,
        "companions": list(dict.fromkeys([*artifact.companions, *driver])),
        "reproducible": all(made.details.get("reproducible", True) for made in (artifact, *artifact.parts)),
        "grid": artifact.details.get("grid"),
    }


def _too_old(where: str, error: Exception) -> IntegrityError:
    return IntegrityError(f"{where} does not say how it was made: {error} is missing", hint="export it again with this kdzoo")
