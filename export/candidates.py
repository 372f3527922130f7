"""What `select` chooses from: the measured files of packages, or the targets of bundled entries. Torch-free, numpy-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, NothingFits, UnknownName, UsageError
from ..zoo.catalog import entries
from ..zoo.checkpoint import check_file
from ..zoo.folder_repository import FolderRepository
from ..zoo.reference import Reference
from .package import METRICS, Artifact, Package
from .pull import described
from .select import PERCENTILES, Candidate

DEPTH = 2  # how far below a SOURCE packages are looked for
NOT_TIMED = "made for TensorRT, not timed here"
NOT_EXPORTED = "a bundled entry is no file yet"


def packages_in(folder: Path, depth: int = DEPTH) -> Iterator[Package]:
    """The package in `folder`, or those below it, by name; hidden folders are of exports under way."""
    if Package.is_package(folder):
        yield Package.open(folder)
    elif depth and folder.is_dir():
        for below in sorted(folder.iterdir()):
            if below.is_dir() and not below.name.startswith("."):
                yield from packages_in(below, depth - 1)


def read_packages(
    sources: Iterable[str],
    batch: int,
    percentile: str,
    token: str | None = None,
    offline: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Candidate]:
    """The files of all packages that `sources` are, hold, or have published, each package once. Of what is published nothing is
    fetched but manifests and metrics.

    Raises:
        UsageError: a source without packages, or no such percentile.
        IntegrityError: figures or files that are not those of the manifest. HubError: what is published cannot be had.
    """
    if percentile not in PERCENTILES:
        raise UnknownName("percentile", percentile, PERCENTILES)
    found: dict[Path, Package] = {}
    elsewhere: dict[Reference, Package] = {}
    for text in sources:
        source = Path(text)
        if Reference.is_meant(text) and (not source.is_dir() or FolderRepository(source).exists()):
            elsewhere |= described(Reference.parse(text), token, offline, say)
            continue
        packages = list(packages_in(source))
        if not packages:
            raise UsageError(
                f"{source} {'holds no package' if source.is_dir() else 'is no folder'}",
                hint="kdzoo export SOURCE --branch all-targets -o FOLDER makes some; without a SOURCE: the bundled entries",
            )
        for package in packages:
            found.setdefault(package.folder.resolve(), package)
    here = [candidate for package in found.values() for candidate in read_package(package, batch, percentile)]
    return here + [c for place, package in elsewhere.items() for c in read_package(package, batch, percentile, place)]


def read_package(package: Package, batch: int, percentile: str, place: Reference | None = None) -> list[Candidate]:
    """The files of one package with the latency of a call on `batch` images; `place` is where it is published and not fetched from
    yet."""
    check_file(package.folder / METRICS, package.document["files"].get(METRICS))
    metrics, artifacts = package.metrics, package.described if place else package.artifacts
    return [_file(package, metrics, artifact, batch, percentile, place) for artifact in artifacts]


def _file(
    package: Package, metrics: dict[str, Any], artifact: Artifact, batch: int, percentile: str, place: Reference | None
) -> Candidate:
    folder = package.folder if place is None else place
    if place is None and not (package.folder / artifact.path).is_file():
        raise IntegrityError(f"{package.folder / artifact.path} is missing", hint=f"kdzoo verify {package.folder}")
    measured = metrics["artifacts"].get(artifact.path, {"not_run": "not measured"})
    why_not, accuracy, student = measured.get("not_run"), measured.get("accuracy") or {}, metrics["student"]
    latencies = {each["batch"]: each[f"{percentile}_ms"] for each in measured.get("latency", ())}
    lacks = {}
    if accuracy.get("top1") is None:
        lacks["top1"] = why_not or "exported without --data, so accuracy was not measured"
    if batch not in latencies:
        elsewhere = f"measured at a batch of {', '.join(map(str, latencies))}, not of {batch}" if latencies else NOT_TIMED
        lacks["latency_ms"] = why_not or elsewhere
    return Candidate(
        path=f"{folder}/{artifact.path}", package=str(folder), published=place is not None, host="" if why_not else metrics["host"],
        **{key: package.document[key] for key in ("entry", "target", "dataset")},
        **{key: getattr(artifact, key) for key in ("format", "precision", "runtime", "bytes")},
        batch=(artifact.batch[0], artifact.batch[2]),
        top1=accuracy.get("top1"), n=accuracy.get("n"), latency_ms=latencies.get(batch),
        macs=student.get("macs"), params=student.get("params"), lacks=lacks,
    )  # fmt: skip


def bundled() -> list[Candidate]:
    """The targets of the bundled entries, those with two names once."""
    return [
        Candidate(
            path=f"{entry.name} --branch {target}", entry=entry.name, target=target, dataset=entry.dataset,
            top1=figures.get("top1"), n=figures.get("n"), macs=figures.get("macs"), params=figures.get("params"),
            lacks=dict.fromkeys(("latency_ms", "bytes"), NOT_EXPORTED),
        )
        for entry in entries() if entry.folder is not None
        for target, figures in entry.measured.items() if target not in entry.same
    ]  # fmt: skip


def having(candidates: Sequence[Candidate], wanted: Mapping[str, Sequence[str]], batch: int) -> list[Candidate]:
    """Those that take `batch` images at once and whose fields are among the `wanted`; of a host a part of its name is enough.

    Raises:
        NothingFits: none is left; it says what there is.
    """
    found = _kept(candidates, [c for c in candidates if takes(c, batch)], f"takes a batch of {batch}", "batch")
    for field, values in wanted.items():
        if values:
            fits = [c for c in found if any(_is(field, getattr(c, field), value) for value in values)]
            found = _kept(found, fits, f"has {field} {' or '.join(values)}", field)
    return found


def takes(candidate: Candidate, batch: int) -> bool:
    return candidate.batch is None or candidate.batch[0] <= batch <= candidate.batch[1]


def _is(field: str, text: str, value: str) -> bool:
    return value.lower() in text.lower() if field == "host" else value == text


def _kept(before: Sequence[Candidate], after: list[Candidate], what: str, field: str) -> list[Candidate]:
    if after:
        return after
    known = {(":".join(map(str, value)) if field == "batch" else value) for c in before if (value := getattr(c, field))}
    hint = (
        "ask for one of these"
        if known
        else f"{NOT_EXPORTED}: kdzoo export {before[0].entry} --branch all-targets -o FOLDER makes files"
    )
    raise NothingFits(f"none of {len(before)} {what}", known=sorted(known), hint=hint)
