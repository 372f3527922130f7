"""A run as TensorBoard events, beside its own log: losses, learning rate, speed and accuracy of every target, by epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem
from .loop import StepReport
from .reporter import Reporter


class EventReporter:
    """Writes events into `folder` and passes everything on to another reporter."""

    def __init__(self, reporter: Reporter, folder: Path) -> None:
        """Raises `EnvironmentProblem` where TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise EnvironmentProblem("TensorBoard is not installed", hint="pip install 'kdzoo[tensorboard]'") from None
        self.reporter, self.folder, self.make_writer = reporter, folder, SummaryWriter
        self.writer: Any = None

    def begin(self, entry: str, epoch: int, num_epochs: int) -> None:
        """A new run, which may be that of a teacher: its events get a folder of their own."""
        self.reporter.begin(entry, epoch, num_epochs)
        self.writer = self.make_writer(str(self.folder / entry), purge_step=epoch + 1)

    def step(self, report: StepReport) -> None:
        self.reporter.step(report)

    def epoch(self, record: dict[str, Any]) -> None:
        self.reporter.epoch(record)
        number = record["epoch"]
        for name in ("lr", "train_top1", "images_per_s"):
            self.writer.add_scalar(name, record[name], number)
        for name, loss in record["losses"].items():
            self.writer.add_scalar(f"loss/{name}", loss, number)
        for target, measured in record["metrics"].items():
            self.writer.add_scalar(f"top1/{target}", measured["top1"], number)
        self.writer.flush()
