from __future__ import annotations

from dataclasses import asdict
from shlex import quote
from typing import Any

import click

from ..export.select import FIGURES, PERCENTILES, Candidate, Choice, Limits, reasons
from ..export.select import select as best_of
from . import options
from .console import Console, table, verb

FILTERS = {
    "format": "format: onnx, trt-rtx, ...",
    "precision": "precision: fp32, fp16, ...",
    "runtime": "runtime: onnxruntime, ...",
    "dataset": "data set.",
}
HEADER = ("file", "top-1 %", "ms", "M MACs", "M params", "MB")


@verb(
    click.argument("sources", nargs=-1, metavar="[SOURCE]..."),
    click.option("--max-latency", "latency", metavar="TIME", help="Of one call, as in 500us or 2ms."),
    click.option("--max-macs", "macs", metavar="N", help="Multiply-adds for one image, as in 100M."),
    click.option("--max-params", "params", metavar="N", help="Parameters, as in 0.5M."),
    click.option("--max-size", "size", metavar="BYTES", help="Of the file, as in 900KB, 2MB (decimal) or 1.5MiB."),
    click.option("--min-top1", "top1", metavar="SHARE", help="0.70, 70% and 70 are the same: up to 1 a share, above it percent."),
    click.option(
        "--objective", "--sort", type=click.Choice(tuple(FIGURES)), default="top1", show_default=True, help="What is best."
    ),
    click.option("--top", type=click.IntRange(1), default=1, show_default=True, help="List so many, the best first."),
    click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images in a call."),
    click.option("--percentile", type=click.Choice(PERCENTILES), default="p50", show_default=True, help="Of latency."),
    *(click.option(f"--{field}", multiple=True, help=f"Only this {words} Repeats.") for field, words in FILTERS.items()),
    click.option(
        "--host", "--device", multiple=True, help="Only what was measured on a host of this name, or part of it. Repeats."
    ),
    click.option("--offline", is_flag=True, help="Of what is published, only what the cache has."),
    options.token,
)
def select(
    console: Console, sources: tuple[str, ...], objective: str, top: int, batch: int, percentile: str, **settings: Any
) -> None:
    """Choose the best measured file within a budget.

    A SOURCE is a package, a folder that holds packages, or published: org/name@main, of which only the figures are fetched. Without
    one the bundled entries are taken, which have no latency and no size. Exit code 7: nothing fits; it says what comes nearest, and
    which limit to relax.
    """
    from ..export.candidates import bundled, having, read_packages

    limits = Limits.parse(**{key: settings[key] for key in FIGURES})
    wanted = {key: settings[key] for key in (*FILTERS, "host") if settings[key]}
    if not sources:
        console.say("no source given: taking the bundled entries")
    token, offline = settings["token"], settings["offline"]
    found = read_packages(sources, batch, percentile, token, offline, console.say) if sources else bundled()
    candidates = having(found, wanted, batch)
    choice = best_of(candidates, limits, objective)
    chosen, left_out, warnings = choice.fitting[:top], reasons(choice.left_out, limits), doubts(choice, limits, objective)
    document = {
        "path": chosen[0].path,
        "best": [figures(c) for c in chosen],
        "fitting": len(choice.fitting),
        "limits": {**limits.document, **wanted, "batch": batch, "percentile": percentile},
        "objective": objective,
        "left_out": [{"reason": reason, "count": count} for reason, count in left_out.items()],
        "warnings": warnings,
    }
    told = [f"{len(choice.fitting)} of {len(candidates)} fit", *(f"{count} left out, {why}" for why, count in left_out.items())]
    console.result(document, lambda: "\n".join([table(HEADER, [row(c) for c in chosen]), *told, *warnings]))
    console.hint(use(chosen[0]))


def figures(candidate: Candidate) -> dict[str, Any]:
    """For `--json`: what is known of a candidate, and why the rest is not."""
    return {key: value for key, value in asdict(candidate).items() if value not in (None, "", {}, False)}


def row(candidate: Candidate) -> tuple[str, ...]:
    scaled = (
        (candidate.top1, 1),
        (candidate.latency_ms, 1),
        *((n, 1e6) for n in (candidate.macs, candidate.params, candidate.bytes)),
    )
    return (candidate.path, *("-" if value is None else f"{value / unit:.2f}" for value, unit in scaled))


def doubts(choice: Choice, limits: Limits, objective: str) -> list[str]:
    """What makes the answer less than certain: the best has no figure for the objective, or figures do not compare."""
    figure, best = FIGURES[objective], choice.fitting[0]
    told = (
        [] if best.figure(objective) is not None else [f"no {figure.title} is known: {best.lacks.get(figure.name, 'not measured')}"]
    )
    for key, field in (("top1", "dataset"), ("latency", "host")):
        kinds = sorted({value for c in choice.fitting if (value := getattr(c, field))})
        if key in {objective, *limits.given} and len(kinds) > 1:
            told.append(f"{FIGURES[key].title} was measured on {' and '.join(kinds)}, which do not compare: --{field} takes one")
    return told


def use(candidate: Candidate) -> str:
    """The command that makes, runs or checks a candidate."""
    if not candidate.package:
        return f"kdzoo export {candidate.path}"
    package = quote(candidate.package)
    if candidate.published:
        return f"kdzoo pull {package} --format {candidate.format} --precision {candidate.precision}"
    return f"kdzoo predict {package} IMAGE" if candidate.format == "onnx" else f"kdzoo verify {package}"


command = select
