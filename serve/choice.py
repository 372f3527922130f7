"""Which file of a package answers, and in which runtime: what runs on this machine, by what was measured. Torch-free.

Nothing is chosen silently: a `Chosen` carries the reason, and what was passed over with the reason for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, IntegrityError, UnknownName, UsageError
from ..export.machine import Machine
from ..export.package import METRICS, STUDENT, Artifact, Package
from ..export.preflight import PRECISIONS, RUNS, Verdict, judge
from ..export.runtime import RUNTIMES, Runtime, runtime_for
from ..zoo.checkpoint import check_file
from .settings import Wishes

CPU, GPU = "cpu", "gpu"
ON_GPU = ("tensorrt", "trt-rtx", "onnxruntime-tensorrt", "onnxruntime-cuda")  # the faster first
NOT_TIMED = float("inf")


@dataclass(frozen=True)
class Chosen:
    """The file, what runs it, why, and by path why not another one."""

    artifact: Artifact
    runtime: Runtime
    why: str
    passed_over: dict[str, str]

    @property
    def device(self) -> str:
        return GPU if self.runtime.name in ON_GPU else CPU


def check_wishes(wishes: Wishes) -> None:
    """Raises `UnknownName` for a word that nobody knows."""
    for kind, name, known in (
        ("precision", wishes.precision, PRECISIONS),
        ("runtime", wishes.runtime, RUNTIMES.names()),
        ("device", wishes.device, (CPU, GPU)),
    ):
        if name is not None and name not in known:
            raise UnknownName(kind, name, list(known))


def choose(package: Package, machine: Machine, wishes: Wishes) -> Chosen:
    """The file of `package` that answers on `machine`.

    On a GPU an engine comes before ONNX; on a processor the file with the shortest measured time of a single image.

    Raises:
        UsageError: the package has no such file. EnvironmentProblem: it does not run here, and no fallback is allowed.
        IntegrityError: a file is not the one of the manifest.
    """
    check_wishes(wishes)
    verdicts = {verdict.path: verdict for verdict in judge(package, machine)}
    every = [artifact for artifact in package.artifacts if artifact.format != STUDENT]
    wished = [a for a in every if a.format == (wishes.format or a.format) and a.precision == (wishes.precision or a.precision)]
    if not wished:
        raise UsageError(f"{package.folder} holds no file for {wishes}", known=[a.path for a in every])
    if damaged := [obstacle.what for verdict in verdicts.values() for obstacle in verdict.obstacles if obstacle.damaged]:
        raise IntegrityError(damaged[0], hint="pull it again, or export it again")
    passed = {path: _why_not(verdict) for path, verdict in verdicts.items() if verdict.state != RUNS}
    pairs = _pairs(package.folder, wished, verdicts, machine, wishes.runtime, wishes.device, passed)
    fallback = ""
    if not pairs and wishes.allow_fallback:
        pairs, fallback = (
            _pairs(package.folder, every, verdicts, machine, None, None, passed),
            f"{wishes} does not run here, fallback: ",
        )
    if not pairs:
        reasons = "; ".join(dict.fromkeys(f"{a.path}: {passed[a.path]}" for a in wished if a.path in passed))
        fixes = [o.hint for a in wished for o in verdicts[a.path].obstacles if o.stops and o.hint]
        hint = fixes[0] if fixes else "leave the wish out, or --allow-fallback"
        raise EnvironmentProblem(f"no file of {package.folder} runs here as asked ({str(wishes) or 'any'}): {reasons}", hint=hint)
    check_file(package.folder / METRICS, package.document["files"].get(METRICS))
    times = {path: _batch_1(measured) for path, measured in package.metrics["artifacts"].items()}
    artifact, runtime = min(pairs, key=lambda pair: _rank(pair[0], pair[1], times))
    time = times.get(artifact.path, NOT_TIMED)
    why = f"{time:.2f} ms for an image when it was measured" if time != NOT_TIMED else "not timed where it was made"
    if len(pairs) > 1:
        why += f", first of {len(pairs)} that run here"
    passed.pop(artifact.path, None)  # another runtime was wished for
    return Chosen(artifact, runtime, fallback + why, passed)


def _pairs(
    folder: Path,
    artifacts: Sequence[Artifact],
    verdicts: dict[str, Verdict],
    machine: Machine,
    wanted: str | None,
    device: str | None,
    passed: dict[str, str],
) -> list[tuple[Artifact, Runtime]]:
    """What runs here; why another one does not goes to `passed`."""
    found = []
    for artifact in artifacts:
        if verdicts[artifact.path].state != RUNS:
            continue
        for name in [wanted] if wanted else _runtimes(artifact, machine, device):
            runtime = RUNTIMES.get(name)()
            why_not = runtime.refuses(artifact) or _off_device(name, device)
            if not why_not:
                try:
                    runtime.check(folder, artifact)
                except EnvironmentProblem as problem:
                    why_not = _without_name(artifact.path, problem.what)
            if why_not:
                passed.setdefault(artifact.path, why_not)
            else:
                found.append((artifact, runtime))
    return found


def _runtimes(artifact: Artifact, machine: Machine, device: str | None) -> list[str]:
    """The runtime that a file is made for and, where there is a GPU, onnxruntime's for GPUs, if it is installed with them."""
    names = [runtime_for(artifact)[0].name]
    if artifact.format == "onnx" and machine.gpus and device != CPU:
        names.insert(0, "onnxruntime-cuda")
    return names


def _off_device(runtime: str, device: str | None) -> str:
    here = GPU if runtime in ON_GPU else CPU
    return f"{runtime} runs on the {here}" if device not in (None, here) else ""


def _rank(artifact: Artifact, runtime: Runtime, times: dict[str, float]) -> tuple[int, float, int]:
    order = ON_GPU.index(runtime.name) if runtime.name in ON_GPU else len(ON_GPU)
    return order, times.get(artifact.path, NOT_TIMED), PRECISIONS.index(artifact.precision)


def _batch_1(measured: dict[str, Any]) -> float:
    """Milliseconds for the smallest batch that was timed; infinite where none was."""
    latency = measured.get("latency") or []
    return float(latency[0]["p50_ms"]) / latency[0]["batch"] if latency else NOT_TIMED


def _why_not(verdict: Verdict) -> str:
    """What follows the name of the file, which stands before it wherever it is told."""
    stopping = (each.what for each in verdict.obstacles if each.stops or each.damaged)
    return "; ".join(_without_name(verdict.path, what) for what in stopping) or verdict.state


def _without_name(path: str, what: str) -> str:
    return what.removeprefix(path).lstrip()
