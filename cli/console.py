"""Where words go: data on stdout, talk on stderr; with `--json` one document on stdout. Options that every verb has."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Console:
    """How this call wants to be spoken to."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def say(self, line: str) -> None:
        """Talk: progress, reasons, hints."""
        if not self.quiet:
            click.echo(line, err=True)

    def hint(self, line: str) -> None:
        """The next command, after success; only for people."""
        if not (self.as_json or self.quiet):
            click.echo(f"next: {line}", err=True)

    def result(self, document: Any, text: Callable[[], str]) -> None:
        """The data of the verb: the document with `--json`, else the text."""
        click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str) if self.as_json else text())

    @property
    def interactive(self) -> bool:
        """Whether a progress bar can be drawn."""
        return sys.stderr.isatty() and not self.quiet


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns; those that hold numbers are flushed right."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    numeric = [all(_is_number(row[i]) for row in cells) and bool(cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(list(header)), line(["-" * w for w in widths]), *map(line, cells)])


def _is_number(text: str) -> bool:
    return (
        text in ("", "-")
        or text.replace(",", "").replace(".", "").replace("-", "").replace("+", "").replace("%", "").strip().isdigit()
    )


def verb(*parameters: Callable[[Any], Any]) -> Callable[[Callable[..., None]], click.Command]:
    """A command with `parameters` and the options of all verbs; its body gets a `Console` first."""

    def decorate(body: Callable[..., None]) -> click.Command:
        @functools.wraps(body)
        def call(as_json: bool, quiet: bool, verbose: bool, **arguments: Any) -> None:
            body(Console(as_json, quiet, verbose), **arguments)

        decorated: Any = call
        common = (
            click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
            click.option("-q", "--quiet", is_flag=True, help="No talk."),
            click.option("-v", "--verbose", is_flag=True, help="Tracebacks of unexpected errors."),
        )
        for parameter in reversed((*parameters, *common)):
            decorated = parameter(decorated)
        return click.command(name=body.__name__.rstrip("_"))(decorated)

    return decorate
