"""Who watches a run."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from .loop import StepReport


@runtime_checkable
class Reporter(Protocol):
    """Is told where a run stands. The command line draws a progress bar."""

    def begin(self, entry: str, epoch: int, num_epochs: int) -> None: ...

    def step(self, report: StepReport) -> None: ...

    def epoch(self, record: dict[str, Any]) -> None: ...


class Silent:
    """Watches nothing: the processes of a run that are not the first."""

    def begin(self, entry: str, epoch: int, num_epochs: int) -> None:
        return None

    def step(self, report: StepReport) -> None:
        return None

    def epoch(self, record: dict[str, Any]) -> None:
        return None
