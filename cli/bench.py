from __future__ import annotations

from dataclasses import asdict

import click

from .console import Console, table, verb


@verb(
    click.argument("package"),
    click.option("--batch", "batches", type=click.IntRange(1), multiple=True, help="Batch sizes. Repeats. [those of the export]"),
    click.option("--threads", type=click.IntRange(1), help="Threads of onnxruntime. [all cores]"),
    click.option("--seconds", type=click.FloatRange(0.05), default=2.0, show_default=True, help="Time per file and batch."),
)
def bench(console: Console, package: str, batches: tuple[int, ...], threads: int | None, seconds: float) -> None:
    """Measure the latency of the files of a package."""
    import numpy as np

    from ..errors import UsageError
    from ..export.benchmark import measure_latency
    from ..export.measure import why_not_run
    from ..export.onnx_file import OnnxRunner
    from ..export.outputs import as_input
    from ..export.source import resolve_package
    from ..zoo.manifest import host_description

    opened = resolve_package(package, console.say)
    opened.verify_files()
    images, _ = opened.golden()
    inputs = as_input(images, opened.preprocess, opened.document["options"]["input"])
    results, not_run = [], {}
    for artifact in opened.artifacts:
        if reason := why_not_run(opened.folder, artifact):
            not_run[artifact.path] = reason
            continue
        fixed = artifact.batch[0] == artifact.batch[2]
        if fixed and any(b != artifact.batch[0] for b in batches):
            raise UsageError(f"{artifact.path} has a fixed batch of {artifact.batch[0]}", hint="leave --batch out")
        runner = OnnxRunner(opened.folder / artifact.path, threads)
        for size in batches or dict.fromkeys(artifact.batch):
            chunk = np.ascontiguousarray(inputs[np.arange(size) % len(inputs)])
            result = measure_latency(lambda run=runner, x=chunk: run(x), size, seconds=seconds)  # type: ignore[misc]
            results.append({"file": artifact.path, **asdict(result)})
    document = {
        "package": str(opened.folder),
        "host": host_description(),
        "threads": threads,
        "results": results,
        "not_run": not_run,
    }
    header = ("file", "batch", "calls", "p50 ms", "p90 ms", "p99 ms", "images/s")
    rows = [
        (r["file"], r["batch"], r["calls"], r["p50_ms"], r["p90_ms"], r["p99_ms"], f"{r['images_per_s']:,.0f}") for r in results
    ]
    lines = [f"{path}: {why}" for path, why in not_run.items()]
    console.result(document, lambda: "\n".join([table(header, rows), *lines, f"on {document['host']}"]))


command = bench
