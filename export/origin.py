"""Where a package comes from, to write the command that makes another one. Torch-free."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import KdzooError
from ..zoo.checkpoint import WEIGHTS
from ..zoo.files import read_json
from ..zoo.manifest import MANIFEST, Manifest


@dataclass(frozen=True)
class Origin:
    """What to export again.

    Attributes:
        source: an entry or a reference that has these weights; "" where none is known, as of a run.
        target: "" where it is not known. weights: sha256 of the checkpoint's.
    """

    source: str = ""
    target: str = ""
    precision: str = ""
    weights: str = ""

    @classmethod
    def of(cls, document: Mapping[str, Any], precision: str = "") -> Origin:
        """Of a file in the package with this manifest."""
        source, weights = document["source"], document["source"].get("weights_sha256", "")
        name = str(source.get("given") or document["entry"])
        bundled = bundled_weights(name)
        known = bundled == weights if bundled is not None else bool(source.get("given"))
        return cls(name if known else "", str(document["target"]), precision, str(weights))

    @classmethod
    def beside(cls, folder: Path) -> Origin:
        """Of a file in a folder, where that is a package."""
        try:
            return cls.of(read_json(folder / MANIFEST))
        except (KdzooError, LookupError, TypeError, AttributeError):
            return cls()

    def export(self, format: str, *options: str) -> str:
        """The command; where it names what is not known, words that say what that is."""
        precision = ("-p", self.precision) if self.precision else ()
        words = ["kdzoo", "export", self.source or "RUN", "-b", self.target or "BRANCH", *precision, "-f", format, *options]
        unknown = [name for name, known in (("RUN", self.source), ("BRANCH", self.target)) if not known]
        what = f" ({' and '.join(unknown)}: what it was cut from{f', sha256 {self.weights[:12]}' if self.weights else ''})"
        return f"{shlex.join(words)} -o NEW{what if unknown else ''}"


def bundled_weights(name: str) -> str | None:
    """sha256 of the weights of an entry; "" where none are bundled, None where it is no entry."""
    from ..zoo.catalog import entries

    entry = next((entry for entry in entries() if entry.name == name), None)
    if entry is None:
        return None
    return str(Manifest.read(entry.folder).files.get(WEIGHTS, {}).get("sha256", "")) if entry.folder is not None else ""
