"""What a folder of kdzoo says about itself, and where it came from. Torch-free."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import IntegrityError
from .files import read_json, write_json
from .preprocess import Preprocess

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
KINDS: dict[str, type] = {
    **dict.fromkeys(("entry", "method", "backbone", "dataset", "weights_dtype"), str),
    **dict.fromkeys(("method_config", "preprocess", "recipe", "metrics", "provenance", "files"), dict),
    "classes": list,
    "epochs": int,
}


@dataclass(frozen=True)
class Manifest:
    """The manifest of a checkpoint: all that is needed to rebuild the network and to judge it.

    Attributes:
        entry: name of the zoo's line, `<method>-<backbone>-<dataset>`.
        method_config: every field of the method's `Config`.
        classes: names of the classes in order of the logits.
        preprocess: geometry and normalisation (`zoo.preprocess.Preprocess`).
        recipe: the resolved recipe, seed included.
        epochs: epochs trained so far.
        weights_dtype: how the weights are stored, `float32` or `float16`.
        metrics: by target: top-1 and top-5 in percent, number of images `n`, `split`.
        provenance: git commit, library versions, host, command.
        files: by name: sha256 and bytes.
    """

    entry: str
    method: str
    method_config: dict[str, Any]
    backbone: str
    dataset: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    recipe: dict[str, Any]
    epochs: int
    weights_dtype: str = "float32"
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        document = {**asdict(self), "preprocess": self.preprocess.to_dict(), "classes": list(self.classes)}
        write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, "kind": "checkpoint", **document})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises `IntegrityError` where it is corrupt, `EnvironmentProblem` where it is newer than this kdzoo."""
        path = folder / MANIFEST
        document = read_json(path, SCHEMA_VERSION)
        missing = [f.name for f in fields(cls) if f.name not in document]
        if document.get("kind") != "checkpoint" or missing:
            raise IntegrityError(f"{path} is not the manifest of a checkpoint; it lacks {', '.join(missing) or 'its kind'}")
        values = {f.name: document[f.name] for f in fields(cls)}
        wrong = [name for name, kind in KINDS.items() if not isinstance(values[name], kind)]
        if wrong:
            raise IntegrityError(f"{path} is not the manifest of a checkpoint: {', '.join(wrong)} cannot be what it says")
        values["preprocess"] = Preprocess.from_dict(values["preprocess"])
        values["classes"] = tuple(values["classes"])
        return cls(**values)


def library_versions(*names: str) -> dict[str, str]:
    """Versions of the installed distributions among `names`, Python's included."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, with `+changes` where it was edited; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+changes" if dirty.strip() else "")


def command_line() -> str:
    """What the user typed, or the script that called us."""
    name = Path(sys.argv[0]).stem
    return shlex.join(["kdzoo" if name in ("kdzoo", "__main__") else name, *sys.argv[1:]])


def host_description() -> str:
    """Processor, cores and system of this machine, in one line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = f"{names[0]}, {len(names)} cores" if names else model
    return f"{model}, {platform.system()} {platform.machine()}"
