from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from . import options
from .console import Console, table, verb

FILE = click.Path(path_type=Path)


@verb(
    click.argument("package"),
    options.data,
    click.option("--public-key", type=FILE, help="Of whom the package must be signed by, in a PEM file."),
    click.option("--certificate", "certificates", multiple=True, type=FILE, help="Root that the signer's must be under. Repeats."),
)
def verify(console: Console, package: str, data: Path | None, public_key: Path | None, certificates: tuple[Path, ...]) -> None:
    """Check a package: checksums, golden images, accuracy, signature."""
    from ..export.signing import SIGNATURE, verify_signature
    from ..export.source import resolve_package
    from ..export.verify import verify_package

    source = resolve_package(package, console.say)
    asked = public_key is not None or bool(certificates)
    signed = verify_signature(source, public_key=public_key, certificates=certificates) if asked else None
    found = {**verify_package(source, data), "signature": asdict(signed) if signed else None}
    rows = []
    for path, result in found["artifacts"].items():
        golden, accuracy = result.get("golden"), result.get("accuracy")
        rows.append((
            path, result["checksum"], f"{golden['max_abs_diff']:.1e}" if golden else "-",
            f"{accuracy['top1']:.2f}" if accuracy else "-", f"{accuracy['n']:,}" if accuracy else "-", state(result),
        ))  # fmt: skip
    header = ("file", "checksum", "golden max |diff|", "top-1 %", "n", "state")
    part = "" if found["files"] == found["files_of"] else f" of {found['files_of']} files are here,"
    told = f"{found['files']}{part or ' files'} as the manifest describes them"
    if signed is not None:
        told += f"; the manifest is signed with {public_key or 'a certificate under ' + ', '.join(map(str, certificates))}"
    elif (source.folder / SIGNATURE).is_file():
        console.say("it is signed; --public-key proves by whom")
    if found["unnamed"]:
        told += f"; no part of it, and looked at by nobody: {', '.join(found['unnamed'])}"
    console.result(found, lambda: f"{table(header, rows)}\n\n{told}")
    if not any("accuracy" in r for r in found["artifacts"].values()):
        console.hint(f"kdzoo verify {package} --data FOLDER measures the accuracy, too")


def state(result: dict[str, Any]) -> str:
    if "not_run" in result:
        return str(result["not_run"])
    return f"run; accuracy not compared: {result['not_compared']}" if "not_compared" in result else "run"


command = verify
