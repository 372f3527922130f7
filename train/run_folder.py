"""The folder of a training run.

runs/<entry>/  recipe.yaml  log.jsonl  curve.png  checkpoint/{model.safetensors, manifest.json, training.*}
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ..errors import OutputError
from ..zoo.files import not_writable, standing, write_bytes
from ..zoo.manifest import command_line, git_commit, host_description, library_versions
from .curve import draw_curve
from .recipe import Recipe

EVENTS = "events"  # of TensorBoard
LIBRARIES = ("kdzoo", "torch", "torchvision", "numpy", "safetensors")


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes. With `writes` False it writes nothing: another process of the run does."""

    path: Path
    writes: bool = True

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    def claim(self, resume: bool) -> None:
        """Raises `OutputError` where the folder holds something and no resumption was asked for, or cannot be made."""
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is not a folder", hint="name another place with --output")
        if not self.writes or not self.path.exists():
            return
        if not resume and any(path.name != EVENTS and not path.name.startswith(".") for path in self.path.iterdir()):
            raise OutputError(f"{self.path} is not empty", hint="go on with it by --resume, or name another folder with --output")
        for part in self.path.glob(".*.part"):  # of a process that was killed while it wrote
            shutil.rmtree(part, ignore_errors=True)

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return standing(self.checkpoint).exists()

    def make(self) -> None:
        """Raises `OutputError` where the folder cannot be made."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_writable(self.path, error) from error

    def write_recipe(self, recipe: Recipe) -> None:
        if self.writes:
            write_bytes(self.path / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False).encode())

    def write_log(self, records: list[dict[str, Any]]) -> None:
        if self.writes:
            write_bytes(self.log, "".join(json.dumps(r) + "\n" for r in records).encode())

    def draw(self, records: list[dict[str, Any]], title: str) -> None:
        if self.writes:
            draw_curve(records, self.path / "curve.png", title)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, none where there is no log yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def provenance(device: torch.device) -> dict[str, Any]:
    """Commit, versions, host and command of this process."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else host_description()
    return {
        "git_commit": git_commit(),
        "versions": library_versions(*LIBRARIES),
        "host": name,
        "command": command_line(),
    }
