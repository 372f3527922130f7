from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from .console import Console, table, verb

if TYPE_CHECKING:
    from ..export.preflight import Verdict

ENVIRONMENT, INTEGRITY = 4, 6


@verb(
    click.argument("package", required=False),
    click.option("--strict", is_flag=True, help="With a PACKAGE: exit 4 unless every file runs here."),
)
def doctor(console: Console, package: str | None, strict: bool) -> None:
    """Say what this machine can train, export and run, and whether it can run a package.

    With a PACKAGE (a folder, a folder of packages, or org/name of the Hub): whether each of its files can run here, by what, and
    what to do where it cannot. Nothing is loaded. Exit code 6: a file is damaged; 4: none runs here; 0: at least one does.
    """
    if package is None and strict:
        raise UsageError("--strict is about the files of a package", hint="kdzoo doctor PACKAGE --strict")
    if package is None:
        on_machine(console)
    else:
        on_package(console, package, strict)


def on_machine(console: Console) -> None:
    from ..export.doctor import examine

    findings = examine()
    problems = [f for f in findings if f.state == "problem"]
    rows = []
    for f in findings:
        rows += [(f.subject, f.state, f.detail), *([("", "", f"-> {f.hint}")] if f.hint else [])]
    console.result(
        {"findings": [asdict(f) for f in findings], "problems": len(problems)},
        lambda: table(("subject", "state", "detail"), rows),
    )
    if problems:
        raise click.exceptions.Exit(ENVIRONMENT)


def on_package(console: Console, source: str, strict: bool) -> None:
    from ..export.doctor import look
    from ..export.preflight import DAMAGED, NOT_HERE, RUNS, find_packages, judge
    from ..export.source import resolve_package

    packages, machine = find_packages(source) or [resolve_package(source, console.say)], look()
    verdicts = [verdict for each in packages for verdict in judge(each, machine)]
    states = [verdict.state for verdict in verdicts]
    document = {
        "machine": machine.to_dict(),
        "files": [asdict(verdict) for verdict in verdicts],
        "runs": states.count(RUNS),
        "damaged": states.count(DAMAGED),
    }
    console.result(document, lambda: written(verdicts, several=len(packages) > 1))
    console.say(f"{states.count(RUNS)} of {len(states)} files can run here")
    if DAMAGED in states:
        raise click.exceptions.Exit(INTEGRITY)
    if RUNS not in states or (strict and any(state not in (RUNS, NOT_HERE) for state in states)):
        raise click.exceptions.Exit(ENVIRONMENT)


def written(verdicts: list[Verdict], *, several: bool) -> str:
    """A line for every file, and below it what is in its way and what to do."""
    rows = []
    for verdict in verdicts:
        name = f"{verdict.package}/{verdict.path}" if several else verdict.path
        rows.append((name, verdict.state, verdict.runtime or "-"))
    lines = table(("file", "state", "by"), rows).splitlines()
    result = lines[:2]
    for verdict, line in zip(verdicts, lines[2:], strict=True):
        result.append(line)
        for obstacle in verdict.obstacles:
            result += [f"    {obstacle.what}", *([f"    -> {obstacle.hint}"] if obstacle.hint else [])]
        if verdict.instead:
            result.append(f"    -> or use {verdict.instead} beside it")
    return "\n".join(result)


command = doctor
