from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from . import options
from .console import Console, verb


@verb(
    click.argument("package", type=click.Path(path_type=Path)),
    click.option("--repo-id", required=True, help="org/name on the Hub, or file:///srv/models/org/name."),
    click.option("--private", is_flag=True, help="Make the repository private."),
    click.option("--create-pr", is_flag=True, help="As a pull request."),
    click.option("--revision", help="Branch, made where it is missing. [main]"),
    options.token,
)
def push(console: Console, package: Path, **settings: Any) -> None:
    """Publish a package, a folder of packages or a checkpoint.

    It is verified first. One commit has all its files and removes those of the version before; a tag names the version. A folder
    of packages becomes a repository with a folder for each target.
    """
    from ..export.publish import push as publish

    options.hush(console)
    done = publish(package, say=console.say, **settings)
    console.result({**asdict(done), "reference": str(done.reference)}, lambda: done.url)
    if not done.changed:
        console.say("nothing had changed")
    console.hint(f"kdzoo pull {done.reference}")


command = push
