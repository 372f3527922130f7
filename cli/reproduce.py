from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .console import Console, table, verb

if TYPE_CHECKING:
    from ..export.reproduce import Reproduced

DIGITS = 12  # of a sha256 in the table


@verb(
    click.argument("source"),
    click.option("--source", "checkpoint", help="The checkpoint. [found by the sha256 of its weights]"),
    click.option("--branch", "-b", "branches", multiple=True, help="Of an entry, only these targets. Repeats. [all on record]"),
    click.option("--format", "-f", "formats", multiple=True, help="Only files of these formats. Repeats. [all on record]"),
    click.option("--precision", "-p", "precisions", multiple=True, help="Only files of these precisions. Repeats. [all on record]"),
    options.data,
    click.option("--keep", type=click.Path(path_type=Path), help="New folder for what is made. [it is thrown away]"),
)
def reproduce(
    console: Console,
    source: str,
    checkpoint: str | None,
    branches: tuple[str, ...],
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    data: Path | None,
    keep: Path | None,
) -> None:
    """Export a package again from its checkpoint, and compare files and figures.

    SOURCE is a package, published or in a folder, or an entry that comes with recorded exports. Files are compared by sha256;
    latencies are not compared, and what cannot be made without --data is told. Exit 3: something differs; 4: a package that is
    needed is not installed.
    """
    from ..errors import KdzooError, UnknownName
    from ..export.recorded import records_of
    from ..export.reproduce import NOT_MADE, check
    from ..export.reproduce import reproduce as again
    from .messages import sentence

    records = records_of(source, console.say)
    known = [record.target for record in records]
    for branch in branches:
        if branch not in known:
            raise UnknownName("recorded target", branch, known)
    results = []
    for record in (record for record in records if not branches or record.target in branches):
        console.say(f"making {record.entry}-{record.target} again")
        place = keep / record.target if keep and len(records) > 1 else keep
        results.append(
            again(record, source=checkpoint, formats=formats, precisions=precisions, data=data, keep=place, say=console.say)
        )
    problem = None
    try:
        check(results)
    except KdzooError as error:
        problem = error
    not_made = sum(result.count(NOT_MADE) for result in results)
    document = {
        "same": problem is None and not not_made,
        "not_made": not_made,
        "problem": problem and problem.what,
        "exports": [asdict(result) for result in results],
    }
    console.result(document, lambda: "\n\n".join(map(as_text, results)))
    for reason in dict.fromkeys(reason for result in results for reason in result.reasons):
        console.say(f"other than on record: {reason}")
    if problem is not None:
        console.say(f"kdzoo: {sentence(problem)}")
        raise click.exceptions.Exit(problem.exit_code)


def as_text(result: Reproduced) -> str:
    """The table of one export, with the sum of it below."""
    rows = [(line.what, line.recorded[:DIGITS], line.now[:DIGITS], line.state, line.why) for line in result.lines]
    counts = {
        state: sum(line.state == state for line in result.lines) for state in dict.fromkeys(line.state for line in result.lines)
    }
    told = [", ".join(f"{count} {state}" for state, count in counts.items()), *filter(None, [result.not_made])]
    return "\n".join([f"{result.entry}-{result.target}", table(("what", "recorded", "now", "state", "why"), rows), *told])


command = reproduce
