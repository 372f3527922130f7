from __future__ import annotations

from pathlib import Path

import click

from . import options
from .console import Console, table, verb


@verb(click.argument("package"), options.data)
def verify(console: Console, package: str, data: Path | None) -> None:
    """Check a package: checksums, golden images, accuracy."""
    from ..export.source import resolve_package
    from ..export.verify import verify_package

    found = verify_package(resolve_package(package, console.say), data)
    rows = []
    for path, result in found["artifacts"].items():
        golden, accuracy = result.get("golden"), result.get("accuracy")
        rows.append((
            path, result["checksum"], f"{golden['max_abs_diff']:.1e}" if golden else "-",
            f"{accuracy['top1']:.2f}" if accuracy else "-", f"{accuracy['n']:,}" if accuracy else "-", result.get("not_run", "run"),
        ))  # fmt: skip
    header = ("file", "checksum", "golden max |diff|", "top-1 %", "n", "state")
    part = "" if found["files"] == found["files_of"] else f" of {found['files_of']} files are here,"
    told = f"{found['files']}{part or ' files'} as the manifest describes them"
    console.result(found, lambda: f"{table(header, rows)}\n\n{told}")
    if not any("accuracy" in r for r in found["artifacts"].values()):
        console.hint(f"kdzoo verify {package} --data FOLDER measures the accuracy, too")


command = verify
