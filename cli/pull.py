from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options
from .console import Console, verb


@verb(
    click.argument("reference"),
    click.option("--branch", "-b", help="Target, where there are several. [target, or the only one]"),
    click.option("--format", "-f", "formats", multiple=True, help="onnx, trt-rtx, safetensors, ... Repeats. [all]"),
    click.option("--precision", "-p", "precisions", multiple=True, help="fp32, fp16. Repeats. [all]"),
    click.option("--output", "-o", type=click.Path(path_type=Path), help="Folder to copy it to. [it stays in the cache]"),
    click.option("--force", is_flag=True, help="Replace a folder that is not empty."),
    click.option("--offline", is_flag=True, help="Only from the cache."),
    options.token,
)
def pull(console: Console, reference: str, **settings: Any) -> None:
    """Fetch what is published, checked, and pin its commit.

    REFERENCE is org/name[@revision] or file:///srv/models/org/name[@revision].
    """
    from ..export.package import Package
    from ..export.pull import pull as fetch
    from ..zoo.reference import Reference

    options.hush(console)
    done = fetch(Reference.parse(reference), say=console.say, **settings)
    source = done.source
    document = {
        "repository": done.reference.repo_id,
        "commit": done.commit,
        "folder": str(source.folder),
        "kind": "package" if isinstance(source, Package) else "checkpoint",
        "target": source.document["target"] if isinstance(source, Package) else None,
        "files": list(done.files),
        "files_of": done.files_of,
    }
    console.result(document, lambda: f"{source.folder}\n{len(done.files)} of {done.files_of} files at commit {done.commit}")
    if isinstance(source, Package):
        console.hint(f"kdzoo verify {source.folder}")
    else:
        console.hint(f"kdzoo export {source.folder} --branch target")


command = pull
