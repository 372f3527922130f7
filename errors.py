"""The one exception tree of kdzoo.

Every error that a user can cause is a `KdzooError`: it carries *data* (what was wrong, what is known, what to do next) and
the exit code of the command line; the sentence is made at the edge, in `kdzoo.cli.messages`. Torch-free.

Exit codes: 1 unexpected, 2 usage, 3 verification or gate failed, 4 environment, 5 hub or network, 6 integrity,
7 nothing satisfies the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


class KdzooError(Exception):
    """Something the user can act on: `what` happened, what is `known`, and the next step (`hint`)."""

    exit_code = 1

    def __init__(self, what: str, *, known: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.known = tuple(known)
        self.hint = hint


class UsageError(KdzooError):
    """The request itself is wrong."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not in a registry, a recipe or a list of choices; carries the nearest known one."""

    def __init__(self, kind: str, name: str, known: Sequence[str], *, hint: str = "") -> None:
        self.kind, self.name = kind, name
        self.suggestion = next(iter(get_close_matches(name, known, n=1, cutoff=0.5)), None)
        super().__init__(f"unknown {kind} '{name}'", known=sorted(known), hint=hint)


class BadValue(UsageError):
    """A setting whose value it cannot take: the `key` as it is written in the recipe, and what it `takes`."""

    def __init__(self, kind: str, key: str, value: object, takes: str, *, known: Sequence[str] = ()) -> None:
        self.key = key
        super().__init__(f"{kind} '{key}' cannot be {value!r}", known=known, hint=f"it takes {takes}")


class DataError(UsageError):
    """Images or labels that are missing or cannot be used."""


class OutputError(UsageError):
    """The output folder cannot be used: it is not empty, or it cannot be written."""


class GateFailed(KdzooError):
    """A verification or a gate on accuracy, agreement or parity failed; nothing was left behind."""

    exit_code = 3


class TrainingDiverged(GateFailed):
    """The loss is no longer a finite number; the last good checkpoint is kept."""


class EnvironmentProblem(KdzooError):
    """A runtime, a package, a device or disk space is missing or wrong."""

    exit_code = 4


class HubError(KdzooError):
    """The Hub, a registry or the network: no access, nothing of that name, too many requests, no connection, offline."""

    exit_code = 5


class IntegrityError(KdzooError):
    """A file is corrupt, or is not the file that its manifest describes."""

    exit_code = 6


class NothingFits(KdzooError):
    """No measured file is within the limits; says which is the nearest, and what to relax."""

    exit_code = 7
