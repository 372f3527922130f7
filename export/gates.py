"""What a measured file must not fall below. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import GateFailed
from ..zoo.paths import DRIVER
from .format import PRECISIONS
from .measure import Measurement, mark_dominated
from .package import Artifact
from .parity import EXACT, tolerance

# The least share of images that leave a cascade where they do in torch. A confidence near its threshold may fall to either side.
SAME_EXIT = {"fp32": 0.99, "fp16": 0.97, "bf16": 0.85, "int8": 0.85}


@dataclass(frozen=True)
class Gates:
    """What a file must not fall below. `max_drop`: points of top-1 against torch; `min_agreement`: share of equal argmax."""

    max_drop: dict[str, float] = field(default_factory=lambda: {"fp32": 0.02, "fp16": 0.1, "bf16": 0.5, "int8": 0.5})
    min_agreement: dict[str, float] = field(default_factory=lambda: {"fp32": 0.9999, "fp16": 0.99, "bf16": 0.9, "int8": 0.9})

    @classmethod
    def of(cls, max_drop: float | None, min_agreement: float | None) -> Gates:
        """The defaults, but for what is given."""
        default = cls()
        return cls(
            default.max_drop if max_drop is None else dict.fromkeys(PRECISIONS, max_drop),
            default.min_agreement if min_agreement is None else dict.fromkeys(PRECISIONS, min_agreement),
        )

    def check(self, artifact: Artifact, measured: dict[str, Any], reference_top1: float | None) -> None:
        """Raises `GateFailed` where a measured file is too far from torch."""
        parity, precision = measured["parity"], artifact.precision
        same = measured.get("exits", {}).get("agreement", 1.0)
        if same < SAME_EXIT[precision]:
            raise GateFailed(
                f"{artifact.path} lets {100 * same:.2f} % of the images leave at the exit where they leave in torch, "
                f"the gate is {100 * SAME_EXIT[precision]:.0f} %",
                hint="leave this precision out",
            )
        if parity["nan_count"]:
            raise GateFailed(f"{artifact.path} gives {parity['nan_count']} logits that are not finite", hint="try --precision fp32")
        if parity["agreement"] < self.min_agreement[precision]:
            raise GateFailed(
                f"{artifact.path} agrees with torch on {100 * parity['agreement']:.3f} % of {parity['n']} images, "
                f"the gate is {100 * self.min_agreement[precision]:.3f} %",
                hint="--min-agreement moves the gate",
            )
        allowed = tolerance(precision, parity["largest_logit"])
        if precision in EXACT and parity["max_abs_diff"] > allowed:
            raise GateFailed(
                f"{artifact.path} gives logits that differ from torch by up to {parity['max_abs_diff']:.3g}, "
                f"at most {allowed:.3g} is right for {precision}"
            )
        accuracy = measured.get("accuracy")
        if accuracy is not None and reference_top1 is not None:
            drop = reference_top1 - accuracy["top1"]
            if drop > self.max_drop[precision] + 1e-9:
                raise GateFailed(
                    f"{artifact.path} has top-1 {accuracy['top1']:.2f} %, {drop:.2f} points below torch; "
                    f"the gate is {self.max_drop[precision]} points",
                    hint="--max-drop moves the gate",
                )


def passing(
    folder: Path, artifacts: list[Artifact], measured: Measurement, gates: Gates, refused: dict[str, str] | None
) -> list[Artifact]:
    """The artifacts that pass their gates; the others, and those made of them, are removed, and noted in `refused` or, without it,
    raised. What could not be measured is noted there already, and has no measurement. Says which of the rest are dominated."""
    failed: set[str] = set()
    for artifact in artifacts:
        found = measured.artifacts.get(artifact.path)
        try:
            if found is not None and "parity" in found:
                gates.check(artifact, found, measured.reference_top1)
        except GateFailed as error:
            if refused is None:
                raise
            refused[artifact.path] = error.what
            found = None
        if found is None:
            failed.add(artifact.path)
    for artifact in (a for a in artifacts if a.path not in failed and a.details.get("from") in failed):
        failed.add(artifact.path)
        if refused is not None:
            refused[artifact.path] = f"{artifact.path} is made from {artifact.details['from']}, which was refused"
    left = [a for a in artifacts if a.path not in failed]
    for artifact in (a for a in artifacts if a.path in failed):
        measured.artifacts.pop(artifact.path, None)
        for name in (artifact.path, *artifact.companions):
            (folder / name).unlink()
    if not any(a.format == "parts" for a in left):
        (folder / DRIVER).unlink(missing_ok=True)  # all parts share it
    mark_dominated(measured.artifacts)
    return left
