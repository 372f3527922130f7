"""Make an export again from its checkpoint and its record, and compare: every file by sha256, every figure. Torch-free at import.

Latencies differ from day to day and are not compared. Figures may differ by rounding where the processor or a library is another
one: accuracy by `ACCURACY` points, the agreement with torch by `AGREEMENT`, logits by what `parity.tolerance` allows.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, EnvironmentProblem, GateFailed, KdzooError, UsageError
from ..zoo.datasets import find_data
from ..zoo.files import new_folder
from ..zoo.manifest import library_versions
from ..zoo.paths import DRIVER
from ..zoo.target import Target
from .exporter import LIBRARIES, export
from .format import FORMATS
from .package import GOLDEN_EXPECTED
from .parity import tolerance
from .recorded import Recorded, find_checkpoint
from .request import check_output

ACCURACY, AGREEMENT = 0.05, 0.005
SAME, DIFFERS, NOT_MADE, NOT_COMPARED = "same", "differs", "not made here", "not compared"
NEEDS_DATA = "needs data: --data names the data set"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Line:
    """One comparison: a file (its sha256) or a figure. `why` says what is known of a difference or of its absence."""

    what: str
    recorded: str
    now: str
    state: str
    why: str = ""


@dataclass(frozen=True)
class Reproduced:
    """What came out of one export.

    Attributes:
        lines: files first. reasons: what is other here than it was then, from the likeliest to the least.
        missing: the packages that this machine lacks, with the pip line.
    """

    entry: str
    target: str
    checkpoint: str
    lines: list[Line]
    reasons: tuple[str, ...]
    missing: tuple[str, ...]

    def count(self, state: str) -> int:
        return sum(line.state == state for line in self.lines)

    @property
    def not_made(self) -> str:
        """How many of its lines are of files that were not made here, and why; "" where none are."""
        reasons = dict.fromkeys(line.why for line in self.lines if line.state == NOT_MADE)
        return f"{self.count(NOT_MADE)} of {len(self.lines)} were not made: {'; '.join(reasons)}" if reasons else ""


def check(results: Sequence[Reproduced]) -> None:
    """Raises what stands in the way of calling all of it the same.

    Raises:
        GateFailed: something differs. EnvironmentProblem: something could not be made for want of a package.
        DataError: nothing could be compared for want of data.
    """
    lines = [(result, line) for result in results for line in result.lines]
    differing = [f"{result.target}/{line.what}" for result, line in lines if line.state == DIFFERS]
    if differing:
        reasons = list(dict.fromkeys(reason for result in results for reason in result.reasons))
        because = "; ".join(reasons) or "nothing else that is recorded is other here: the package, or the code, was changed"
        raise GateFailed(
            f"{len(differing)} of {len(lines)} do not come out as recorded: "
            f"{', '.join(differing[:6])}{', ...' if len(differing) > 6 else ''} ({because})",
            hint="--keep FOLDER keeps what was made, to look at",
        )
    missing = list(dict.fromkeys(name for result in results for name in result.missing))
    not_made = sum(line.state == NOT_MADE for _, line in lines)
    if missing:
        raise EnvironmentProblem(f"{not_made} files were not made here: {'; '.join(missing)}", hint="kdzoo doctor says more")
    if not any(line.state == SAME for _, line in lines):
        raise DataError("nothing could be made again without the images", hint="--data names the data set")


def reproduce(
    recorded: Recorded,
    *,
    source: str | None = None,
    formats: Sequence[str] = (),
    precisions: Sequence[str] = (),
    data: Path | None = None,
    keep: Path | None = None,
    say: Say = lambda line: None,
) -> Reproduced:
    """Export again and compare; differences are found in the answer, not raised (`check` raises them).

    Args:
        source: the checkpoint; by default it is found by the sha256 of its weights.
        formats, precisions: only the files of these; by default all.
        keep: a new folder for what is made; by default nothing is kept.

    Raises:
        UsageError, IntegrityError: no such checkpoint, or another one. DataError: `data` is named and unusable.
        GateFailed: nothing comes through its gates.
    """
    checkpoint = find_checkpoint(recorded, source, say)
    if keep is not None:
        check_output(keep, checkpoint.folder, force=False)
    chosen, problems, missing = choose(recorded, formats, precisions, data)
    if not chosen:
        lines = compare_files(recorded, None, chosen, problems, {})
        return Reproduced(recorded.entry, recorded.target, str(checkpoint.folder), lines, (), missing)
    made = [a for a in recorded.artifacts if a["path"] in chosen]
    wanted = tuple(dict.fromkeys(recorded.made_formats[a["path"]] for a in made))
    request = recorded.request(wanted, tuple(dict.fromkeys(a["precision"] for a in made)), data)
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "again"
        package = export(checkpoint, Target.parse(recorded.target), request, output=folder, refused=refused, say=say)
        now = Recorded.of(package)
        reasons = changes(recorded, now)
        lines = compare_files(recorded, now, chosen, problems, refused) + compare_figures(recorded, now, chosen)
        if keep is not None:
            with new_folder(keep) as part:
                shutil.copytree(package.folder, part, dirs_exist_ok=True)
    return Reproduced(recorded.entry, recorded.target, str(checkpoint.folder), lines, reasons, missing)


def choose(
    recorded: Recorded, formats: Sequence[str], precisions: Sequence[str], data: Path | None
) -> tuple[set[str], dict[str, KdzooError], tuple[str, ...]]:
    """Of the artifacts that are asked for, those that can be made here; why the others cannot, by path; what is not installed."""
    asked = [
        a for a in recorded.artifacts
        if (not formats or recorded.made_formats[a["path"]] in formats) and (not precisions or a["precision"] in precisions)
    ]  # fmt: skip
    if not asked:
        known = sorted({f"{recorded.made_formats[a['path']]} {a['precision']}" for a in recorded.artifacts})
        raise UsageError(f"{recorded.entry}-{recorded.target} has no such file", known=known)
    no_data: DataError | None = None
    try:
        find_data(recorded.dataset, data)
    except DataError as error:
        if data is not None:
            raise
        no_data = DataError(NEEDS_DATA, hint=error.what)
    problems: dict[str, KdzooError] = {}
    missing: dict[str, None] = {}
    unmakeable: dict[str, EnvironmentProblem] = {}
    for name in dict.fromkeys(recorded.made_formats[a["path"]] for a in asked):
        try:
            FORMATS.get(name)().check(recorded.request((name,), ("fp32",), data).options)
        except EnvironmentProblem as error:
            unmakeable[name] = error
            missing[f"{error.what} ({error.hint})"] = None
    for artifact in asked:
        needs_data = artifact["precision"] == "int8" or recorded.target == "cascade"
        absent = unmakeable.get(recorded.made_formats[artifact["path"]])
        problem = (no_data if needs_data else None) or absent
        if problem is not None:
            problems[artifact["path"]] = problem
    return {a["path"] for a in asked} - problems.keys(), problems, tuple(missing)


def compare_files(
    recorded: Recorded, now: Recorded | None, chosen: Iterable[str], problems: dict[str, KdzooError], refused: dict[str, str]
) -> list[Line]:
    """Every file of the record that was asked for, and every one that is new. `now` is None where nothing could be made."""
    chosen = set(chosen)
    owners: dict[str, list[dict[str, Any]]] = {}
    for artifact in recorded.artifacts:
        for name in (artifact["path"], *artifact["companions"]):
            owners.setdefault(name, []).append(artifact)
    lines = []
    for name, facts in recorded.files.items():
        own = owners.get(name, [])
        made = [artifact for artifact in own if artifact["path"] in chosen]
        unmade = [problems[artifact["path"]] for artifact in own if artifact["path"] in problems]
        if now is not None and (made or not own):
            found = now.files.get(name, {}).get("sha256")
            why = next((refused[a["path"]] for a in made if a["path"] in refused), "was not written") if found is None else ""
            state = SAME if found == facts["sha256"] else DIFFERS
            if found is not None and state == DIFFERS and name != DRIVER and made and not any(a["reproducible"] for a in made):
                state, why = NOT_COMPARED, "TensorRT chooses by timing: another build has other bytes"
            if name == GOLDEN_EXPECTED and state == DIFFERS:
                state, why = NOT_COMPARED, "torch rounds otherwise on another processor, and only what was made now is in it"
            lines.append(Line(name, facts["sha256"], found or "-", state, why))
        elif unmade:
            lines.append(Line(name, facts["sha256"], "-", NOT_MADE, unmade[0].what))
    new = [name for name in (now.files if now else {}) if name not in recorded.files]
    return lines + [Line(name, "-", now.files[name]["sha256"], DIFFERS, "is not in the record") for name in new if now]


def compare_figures(recorded: Recorded, now: Recorded, chosen: Iterable[str]) -> list[Line]:
    """Parameters and multiply-adds; accuracy and parity of every file that was run then and is here."""
    lines = [figure(f"student: {key}", value, now.student.get(key), 0) for key, value in recorded.student.items()]
    if recorded.reference is not None:
        lines += compare_accuracy("torch", recorded.reference, now.reference)
    for path in (path for path in recorded.figures if path in set(chosen)):
        then, found = recorded.figures[path], now.figures.get(path, {})
        if "accuracy" in then:
            lines += compare_accuracy(path, then["accuracy"], found.get("accuracy"))
        if "parity" in then and "parity" in found:
            precision = next(a["precision"] for a in recorded.artifacts if a["path"] == path)
            allowed = tolerance(precision, then["parity"]["largest_logit"])
            if then["parity"]["n"] != found["parity"]["n"]:
                why = f"measured on {then['parity']['n']:,} images then, on {found['parity']['n']:,} here"
                lines.append(Line(f"{path}: parity", "-", "-", NOT_COMPARED, why))
                continue
            for key, limit in (("agreement", AGREEMENT), ("max_abs_diff", allowed)):
                lines.append(figure(f"{path}: {key}", then["parity"][key], found["parity"][key], limit))
    return lines


def compare_accuracy(what: str, then: dict[str, Any], now: dict[str, Any] | None) -> list[Line]:
    if now is None:
        return [Line(f"{what}: top1", f"{then['top1']:g}", "-", NOT_COMPARED, NEEDS_DATA)]
    if then["n"] != now["n"]:
        why = f"measured on {then['n']:,} images then, on {now['n']:,} here"
        return [Line(f"{what}: top1", f"{then['top1']:g}", f"{now['top1']:g}", NOT_COMPARED, why)]
    return [figure(f"{what}: {key}", then[key], now[key], ACCURACY) for key in ("top1", "top5") if then.get(key) is not None]


def figure(what: str, then: float | None, now: float | None, allowed: float) -> Line:
    """Two numbers; the same where they differ by at most `allowed`."""
    if then is None or now is None:
        return Line(what, str(then), str(now), SAME if then == now else DIFFERS)
    same = abs(then - now) <= allowed + 1e-9
    state, why = SAME if same else DIFFERS, f"within {allowed:g}" if same and then != now else ""
    first, second = (f"{value:.6g}" if isinstance(value, float) else str(value) for value in (then, now))
    return Line(what, first, second, state, why)


def changes(recorded: Recorded, now: Recorded) -> tuple[str, ...]:
    """What is other here: libraries, the processor."""
    installed = library_versions(*LIBRARIES)
    found = []
    for name, version in recorded.versions.items():
        if installed.get(name) != version:
            found.append(f"{name} is {installed.get(name, 'not installed')}, it was {version}")
    if recorded.host != now.host:
        found.append(f"this is {now.host}, it was made on {recorded.host}")
    return tuple(found)
