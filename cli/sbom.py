from __future__ import annotations

from pathlib import Path

import click

from .console import Console, verb


@verb(
    click.argument("package"),
    click.option("--output", "-o", type=click.Path(path_type=Path), help="File to write. [stdout]"),
)
def sbom(console: Console, package: str, output: Path | None) -> None:
    """Write the bill of materials of a package (CycloneDX).

    JSON of version 1.6: every file with its sha256, what runs it, what made it, and a model card. The same package gives the same
    document.
    """
    from ..export.sbom import sbom as bill_of
    from ..export.source import resolve_package
    from ..zoo.files import to_json, write_json

    document = bill_of(resolve_package(package, console.say))
    if output is None:
        console.result(document, lambda: to_json(document).decode().rstrip())
        return
    write_json(output, document)
    console.result({"sbom": str(output), "components": len(document["components"])}, lambda: str(output))


command = sbom
