"""A real server in a process of its own, over small packages, for the tests of serving.

Import it as `kdzoo.tests.serving`. `small_models(once)` is a folder with packages of two branches and of the cascade of one small
run (16x16 pixels, eight classes), made once for all workers; `serve(folder, "--option", ...)` is a server over it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from kdzoo.export.exporter import export
from kdzoo.export.gates import Gates
from kdzoo.export.package import Package
from kdzoo.tests.small_packages import quick_exports
from kdzoo.tests.small_runs import recipe_for, train, write_colours
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.target import Target

ENTRY = "test-entry"
TARGETS = ("1", "2", "cascade")
MODEL, CASCADE = f"{ENTRY}-1", f"{ENTRY}-cascade"
PATIENCE = 30.0  # seconds for a server to end


@dataclass
class Served:
    """A server that answers. `http` and `grpc`: host:port. `log`: what it says on stderr, into a file."""

    http: str
    grpc: str
    models: list[str]
    process: subprocess.Popen[str]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE)


def small_models(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder that holds a package of each of `TARGETS`."""
    return once("served", _make_models) / "models"


def package_in(folder: Path, target: str) -> Package:
    return Package.open(folder / target)


def _make_models(folder: Path) -> None:
    torch.manual_seed(0)
    colours = write_colours(folder / "colours.npz", 64, 32)
    run = train(recipe_for(method="dbfskd", backbone="resnet8", epochs=1, holdout=16), colours, folder / "run")
    with quick_exports():
        for target in TARGETS:
            export(
                Checkpoint.open(run.folder), Target.parse(target), gates=Gates.of(100.0, 0.0), output=folder / "models" / target,
                data=colours, cascade_loss=60.0,
            )  # fmt: skip


@contextmanager
def serve(source: Path, *words: object) -> Iterator[Served]:
    """`kdzoo serve source words...` at free ports of HTTP and gRPC, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="kdzoo-serve-") as scratch:
        log = Path(scratch) / "log"
        command = [sys.executable, "-m", "kdzoo", "serve", source, "--port", 0, "--grpc-port", 0, "--json", *words]
        environment = {key: value for key, value in os.environ.items() if key != "KDZOO_SERVE_TOKEN"}
        with log.open("w") as stderr:
            process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)
        with process:
            try:
                yield _answering(process, log)
            finally:
                if process.poll() is None:
                    process.terminate()
                try:
                    process.wait(timeout=PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()


def _answering(process: subprocess.Popen[str], log: Path) -> Served:
    """What it tells when it answers."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.rstrip() == "}":
            break
    assert text, f"the server ended with {process.wait()}: {log.read_text()}"
    document = json.loads(text)
    return Served(document["http"].partition("//")[2], document["grpc"], document["models"], process, log)
