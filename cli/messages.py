"""From an exception to the sentence that a person reads, and to an exit code."""

from __future__ import annotations

import errno
import json
import sys
from difflib import get_close_matches

import click

from ..errors import KdzooError, UnknownName

MOST_NAMES = 48  # of what is known; of more than that a few are told, and `--json` has them all
NEAREST = 6


def sentence(error: KdzooError) -> str:
    """What was wrong, what is known, what to do next, in that order."""
    text = error.what
    if isinstance(error, UnknownName) and error.suggestion:
        text += f"; did you mean '{error.suggestion}'?"
    if error.known:
        text = f"{ended(text)} Known: {known_names(error)}."
    return with_next(text, error.hint)


def known_names(error: KdzooError) -> str:
    """All that is known or, of a long list, those that look most like what was asked for."""
    if len(error.known) <= MOST_NAMES:
        return ", ".join(error.known)
    asked = error.name if isinstance(error, UnknownName) else ""
    nearest = get_close_matches(asked, error.known, n=NEAREST, cutoff=0.0)
    return f"{', '.join(nearest)} and {len(error.known) - NEAREST} more"


def ended(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def with_next(text: str, step: str) -> str:
    return f"{ended(text)} Next: {step}" if step else text


def report(error: BaseException, *, as_json: bool, verbose: bool) -> int:
    """Say `error` on stderr (and, with `--json`, as a document on stdout); gives the exit code."""
    kind, known, hint = type(error).__name__, [], ""
    if isinstance(error, KdzooError):
        text, code, known, hint = sentence(error), error.exit_code, list(error.known), error.hint
    elif isinstance(error, click.ClickException):
        text, code = error.format_message(), 2
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f"{error.ctx.command_path} --help"
            text = with_next(text, hint)
    elif isinstance(error, (KeyboardInterrupt, click.Abort)):
        text, code = "interrupted", 130
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        text, code = f"the disk is full: {error}. Next: free some space", 4
    else:
        text, code = f"unexpected {kind}: {error}. Next: run it again with -v and report what it prints", 1
    if verbose and code == 1:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    text = " ".join(text.split())  # onnxruntime and the exporter speak in paragraphs
    click.echo(f"kdzoo: {text}", err=True)
    if as_json:
        document = {"type": kind, "message": text, "known": known, "hint": hint, "exit_code": code}
        click.echo(json.dumps({"error": document}, indent=2))
    return code
