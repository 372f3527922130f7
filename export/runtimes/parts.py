"""The parts of a cascade, each in its own runtime, one after the other."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cascade import EXIT
from ..package import Artifact
from ..runtime import RUNTIMES, Runtime, Session, runtime_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..runtime import Inputs


class Part:
    """One of them, as the driver calls it."""

    def __init__(self, session: Session) -> None:
        self.session, self.inputs = session, session.inputs

    def __call__(self, known: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self.session.everything(known)


class PartsSession(Session):
    def __init__(self, sessions: Sequence[Session], thresholds: Sequence[float]) -> None:
        self.sessions, self.thresholds = sessions, thresholds
        self.parts, self.ran_on, self.inputs = [Part(session) for session in sessions], sessions[0].ran_on, sessions[0].inputs
        self.shareable = all(session.shareable for session in sessions)

    def everything(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        from ..cascade_driver import run_cascade

        (image,) = self.by_name(inputs).values()
        logits, exits = run_cascade(self.parts, self.thresholds, image)
        return {"logits": logits, EXIT: exits}

    def close(self) -> None:
        for session in self.sessions:
            session.close()


@RUNTIMES.register("parts")
class Parts(Runtime):
    name = "parts"
    own_formats = ("parts",)

    def refuses(self, artifact: Artifact) -> str:
        if artifact.format != "parts":
            return "it runs the parts of a cascade only"
        return next((reason for part in artifact.parts if (reason := runtime_for(part)[0].refuses(part))), "")

    def check(self, folder: Path, artifact: Artifact) -> None:
        for part in artifact.parts:
            runtime_for(part)[0].check(folder, part)

    def open(self, folder: Path, artifact: Artifact, threads: int | None = None, *, in_turns: bool = False) -> Session:
        # Of one exit's threads none may wait busily while another exit computes.
        with ExitStack() as opened:
            sessions = [
                opened.enter_context(runtime_for(part)[0].open(folder, part, threads, in_turns=True)) for part in artifact.parts
            ]
            session = PartsSession(sessions, artifact.details["thresholds"])
            opened.pop_all()  # the session of all closes them
        return session
