from __future__ import annotations

from dataclasses import asdict

import click

from .console import Console, table, verb


@verb()
def doctor(console: Console) -> None:
    """Say what this machine can train, export and run."""
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
        raise click.exceptions.Exit(4)


command = doctor
