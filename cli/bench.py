from __future__ import annotations

from typing import Any

import click

from .console import Console, table, verb


@verb(
    click.argument("sources", nargs=-1, required=True, metavar="SOURCE..."),
    click.option("--branch", "-b", "branches", multiple=True, help="Of a folder with several packages. Repeats. [all]"),
    click.option("--format", "-f", "formats", multiple=True, help="onnx, openvino, trt-rtx, ... Repeats. [all]"),
    click.option("--precision", "-p", "precisions", multiple=True, help="fp32, fp16, bf16, int8. Repeats. [all]"),
    click.option(
        "--runtime",
        "-r",
        "runtimes",
        multiple=True,
        help="onnxruntime-cpu, onnxruntime-cuda, onnxruntime-tensorrt, openvino, parts (of a cascade, each in the runtime that "
        "it is made for), tensorrt, trt-rtx, torch. Repeats. "
        "[all but torch that run a file here]",
    ),
    click.option("--batch", "batches", type=click.IntRange(1), multiple=True, help="Batch sizes. Repeats. [those of the export]"),
    click.option("--threads", type=click.IntRange(1), help="Threads of the processor. [its physical cores]"),
    click.option("--pin", is_flag=True, help="Keep the threads on as many processors."),
    click.option("--seconds", type=click.FloatRange(0.05), default=2.0, show_default=True, help="Time per file and batch."),
    click.option("--compare", "side_by_side", is_flag=True, help="All in turns, each against the first."),
)
def bench(console: Console, sources: tuple[str, ...], side_by_side: bool, **settings: Any) -> None:
    """Measure the latency of files, in one runtime or in several, side by side.

    A SOURCE is a package, or a folder that holds packages. The time of a GPU holds the copies to it and back.
    """
    from ..export.benchmark import bench, bench_side_by_side
    from ..export.trials import Choice, find_trials, open_packages

    choice = Choice(*(tuple(dict.fromkeys(settings[name])) for name in ("branches", "formats", "precisions", "runtimes")))
    packages = open_packages(sources, choice.branches, console.say)
    trials = find_trials(packages, choice)
    how = {name: settings[name] for name in ("batches", "threads", "seconds", "pin")}
    how["not_run"] = None if choice.runtimes else trials.not_run
    found = bench_side_by_side(trials.chosen, **how) if side_by_side else bench(trials.chosen, **how, say=console.say)
    document = {"packages": [str(package.folder) for package in packages], **found, "not_run": trials.not_run}
    console.result(document, lambda: describe(document, side_by_side))


def describe(document: dict[str, Any], side_by_side: bool) -> str:
    """Tables for people: the figures, what each runtime ran on, what was not run, and the machine."""
    results, folders = document["results"], document["packages"]
    ran = {
        f"{'' if r['runtime'] == r['runs_in'] else r['runtime'] + ' in '}{r['runs_in']} {r['version']} on {r['device']}"
        + (f", threads: {n}" if (n := r["threads"]) else "")
        for r in results
    }
    names = [f"{r['package'] + '/' if len(folders) > 1 else ''}{r['file']}" for r in results]
    if side_by_side:
        header: tuple[str, ...] = ("file", "runtime", "batch", "rounds", "median ms", "ratio", "quartiles", "images/s")
        rows = [
            (name, r["runtime"], r["batch"], r["rounds"], f"{r['median_ms']:.4f}", f"{r['ratio']:.3f}",
             f"{r['low_quartile']:.3f} to {r['high_quartile']:.3f}", f"{r['images_per_s']:,.0f}")
            for name, r in zip(names, results, strict=True)
        ]  # fmt: skip
    else:
        header = ("file", "runtime", "batch", "calls", "p50 ms", "p90 ms", "p99 ms", "mean ms", "images/s")
        rows = [
            (name, r["runtime"], r["batch"], r["calls"], *(f"{r[key]:.4f}" for key in ("p50_ms", "p90_ms", "p99_ms", "mean_ms")),
             f"{r['images_per_s']:,.0f}")
            for name, r in zip(names, results, strict=True)
        ]  # fmt: skip
    skipped: dict[tuple[str, str], list[str]] = {}
    for each in document["not_run"]:
        skipped.setdefault((each["runtime"], each["reason"].removeprefix(each["file"]).strip()), []).append(each["file"])
    not_run = [f"{runtime} does not run {', '.join(dict.fromkeys(files))}: {why}" for (runtime, why), files in skipped.items()]
    load, pinned = document["load_average"], document["pinned_to"]
    where = f"on {document['host']}" + ("" if load is None else f"; load average {load}")
    where += f"; pinned to processors {', '.join(map(str, pinned))}" if pinned else "; not pinned"
    return "\n".join([table(header, rows), *sorted(ran), *not_run, where])


command = bench
