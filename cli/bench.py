from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import Console, table, verb

OF_FILES = ("formats", "precisions", "runtimes", "threads", "pin", "side_by_side")  # nothing that a client can ask of a server
OF_A_SERVER = ("clients", "rates", "model", "honour_retry_after", "seed", "token_file")
NEARLY_A_CORE = 0.8
SECONDS_OF_A_FILE, SECONDS_OF_A_LOAD = 2.0, 10.0


@verb(
    click.argument("sources", nargs=-1, metavar="SOURCE..."),
    click.option(
        "--branch", "-b", "branches", multiple=True, help="Of a folder with several packages, or of a server. Repeats. [all]"
    ),
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
    click.option(
        "--batch", "batches", type=click.IntRange(1), multiple=True, help="Batch sizes. Repeats. [those of the export; 1]"
    ),
    click.option("--threads", type=click.IntRange(1), help="Threads of the processor. [its physical cores]"),
    click.option("--pin", is_flag=True, help="Keep the threads on as many processors."),
    click.option("--seconds", type=click.FloatRange(0.05), help="Time per file and batch, or per load. [2; with --url 10]"),
    click.option("--compare", "side_by_side", is_flag=True, help="All in turns, each against the first."),
    click.option("--url", help="Put load on a server instead, with requests of random images, as in http://localhost:8000"),
    click.option("--model", help="Of a server that has several. [the only one, or the only entry]"),
    click.option(
        "--clients",
        type=click.IntRange(1),
        multiple=True,
        help="Of a closed loop: each sends its next request when the last is answered. Repeats. [1, 8, 32]",
    ),
    click.option(
        "--rate",
        "rates",
        type=click.FloatRange(0, min_open=True),
        multiple=True,
        help="Requests a second of an open loop, whose latency counts from when each was to be sent. Repeats.",
    ),
    click.option("--honour-retry-after", is_flag=True, help="Refused clients of a closed loop stay away as long as they are told."),
    click.option("--seed", type=int, help="Of the images and of the times of an open loop. [0]"),
    click.option(
        "--token-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Holds the token that the server asks for. [KDZOO_SERVE_TOKEN]",
    ),
)
def bench(console: Console, sources: tuple[str, ...], url: str | None, **settings: Any) -> None:
    """Measure the latency of files, in one runtime or in several, side by side.

    A SOURCE is a package, or a folder that holds packages. The time of a GPU holds the copies to it and back. With --url there
    is no SOURCE: it is the latency and throughput of a server, under each load in turn.
    """
    stray = [option_of(name) for name in (OF_A_SERVER if url is None else OF_FILES) if settings[name] not in (None, (), False)]
    if stray:
        raise click.UsageError(f"only {'with' if url is None else 'without'} --url: {', '.join(stray)}.")
    if bool(sources) == bool(url):
        raise click.UsageError(
            "SOURCE does not go with --url: the server has its own." if sources else "Missing argument 'SOURCE...'."
        )
    if url is None:
        bench_files(console, sources, **settings)
    else:
        bench_server(console, url, **settings)


def option_of(name: str) -> str:
    """As it is typed."""
    (parameter,) = (each for each in bench.params if each.name == name)
    return parameter.opts[0]


def bench_server(console: Console, url: str, branches: tuple[str, ...], batches: tuple[int, ...], **settings: Any) -> None:
    from ..serve.load.load import Traffic, bench_url
    from ..serve.start import read_token

    if len(branches) > 1:
        raise click.UsageError("--branch goes once with --url.")
    clients, rates, sizes = (tuple(dict.fromkeys(each)) for each in (settings["clients"], settings["rates"], batches or (1,)))
    seconds = settings["seconds"] or SECONDS_OF_A_LOAD
    honour, seed = settings["honour_retry_after"], settings["seed"] or 0
    traffic = Traffic(clients, rates, sizes, seconds, min(1.0, seconds), honour_retry_after=honour, seed=seed)
    branch, token = next(iter(branches), None), read_token(settings["token_file"])
    document = bench_url(url, traffic, model=settings["model"], branch=branch, token=token, say=console.say)
    console.result(document, lambda: describe_load(document))


def bench_files(console: Console, sources: tuple[str, ...], side_by_side: bool, **settings: Any) -> None:
    from ..export.benchmark import bench, bench_side_by_side
    from ..export.trials import Choice, find_trials, open_packages

    choice = Choice(*(tuple(dict.fromkeys(settings[name])) for name in ("branches", "formats", "precisions", "runtimes")))
    packages = open_packages(sources, choice.branches, console.say)
    trials = find_trials(packages, choice)
    how = {name: settings[name] for name in ("batches", "threads", "pin")}
    how["seconds"] = settings["seconds"] or SECONDS_OF_A_FILE
    how["not_run"] = None if choice.runtimes else trials.not_run
    found = bench_side_by_side(trials.chosen, **how) if side_by_side else bench(trials.chosen, **how, say=console.say)
    document = {"packages": [str(package.folder) for package in packages], **found, "not_run": trials.not_run}
    console.result(document, lambda: describe(document, side_by_side))


def describe_load(document: dict[str, Any]) -> str:
    """A table for people, a row for each load, then what went wrong, and how busy the load itself was."""
    header = ("load", "batch", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "requests/s", "images/s", "refused", "errors")
    rows, notes = [], []
    for r in document["results"]:
        name = f"{r['clients']} clients" if r["loop"] == "closed" else f"{r['rate']:g} a second"
        wrong = {f"status {s}": n for s, n in r["by_status"].items() if s not in ("200", "429", "503")}
        wrong |= r["connection_errors"] | ({"without an answer": r["unanswered"]} if r["unanswered"] else {})
        rows.append((
            name, r["batch"], *(milliseconds(r[key]) for key in ("p50_ms", "p90_ms", "p99_ms", "p999_ms")),
            f"{r['requests_per_s']:,.0f}", f"{r['images_per_s']:,.0f}", r["refused"], sum(wrong.values()),
        ))  # fmt: skip
        if wrong:
            notes.append(f"{name}: {', '.join(f'{kind} {count}' for kind, count in wrong.items())}")
        if r["refused"]:
            notes.append(
                f"{name}: refused in {milliseconds(r['refused_p50_ms'])} ms (p50), {milliseconds(r['refused_p99_ms'])} ms (p99)"
            )
        late = r["late_p99_ms"] is not None and r["p50_ms"] is not None and r["late_p99_ms"] > r["p50_ms"]
        if late or r["generator_cores"] > NEARLY_A_CORE:
            notes.append(
                f"{name}: the load itself may be the limit: it took {r['generator_cores']:.2f} of a core"
                + (f", and sent up to {milliseconds(r['late_p99_ms'])} ms late (p99)" if late else "")
            )
    cores = max(r["generator_cores"] for r in document["results"])
    server = " ".join(filter(None, document["server"].values()))
    where = f"{document['model']} at {document['url']}" + (f" ({server})" if server else "")
    load = document["load_average"]
    machine = f"the load took up to {cores:.2f} of a core of {document['host']}" + (
        "" if load is None else f"; load average {load}"
    )
    shared = ["the server shares this machine with the load: both would be faster alone"] if document["same_machine"] else []
    return "\n".join([table(header, rows), *notes, where, machine, *shared])


def milliseconds(value: float | None) -> str:
    """A dash where it is not known."""
    return "-" if value is None else f"{value:.2f}"


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
