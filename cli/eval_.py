from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options
from .console import Console, table, verb


@verb(
    options.source,
    click.option("--branch", "-b", "branches", multiple=True, help="Targets of a checkpoint. Repeats. [all]"),
    options.data,
    options.device,
)
def eval_(console: Console, source: str | None, branches: tuple[str, ...], data: Path | None, device: str) -> None:
    """Measure top-1 and top-5 of every target, or of every file."""
    from ..export.package import Package
    from ..export.source import resolve
    from ..zoo.datasets import find_data, open_split

    found = resolve(source, console.say)
    if isinstance(found, Package):
        from ..errors import UsageError
        from ..export.verify import verify_package

        if branches:
            raise UsageError(
                f"{found.folder} is a package: it holds branch {found.document['target']} only", hint="leave --branch out"
            )
        path = find_data(found.document["dataset"], data)
        metrics = {n: a["accuracy"] for n, a in verify_package(found, path)["artifacts"].items() if "accuracy" in a}
    else:
        import torch

        from ..export.measure import check_classes
        from ..train.evaluate import evaluate

        manifest = found.manifest
        path = find_data(manifest.dataset, data)
        split = open_split(path, "test", manifest.preprocess, lazy=True)
        check_classes(split, manifest.classes, path)
        place = torch.device(options.pick_device(device))
        network = found.network().to(place)
        wanted = [str(target) for target in options.expand(branches or ("all-targets",), network.targets)]
        metrics = evaluate(network, split, manifest.preprocess, wanted, device=place, split="test").targets
    console.result(metrics, lambda: accuracy_table(metrics))


def accuracy_table(metrics: dict[str, dict[str, Any]]) -> str:
    rows = [
        (name, f"{m['top1']:.2f}", f"{m['top5']:.2f}" if m.get("top5") is not None else "-", f"{m['n']:,}")
        for name, m in metrics.items()
    ]
    return table(("target", "top-1 %", "top-5 %", "n"), rows)


command = eval_
