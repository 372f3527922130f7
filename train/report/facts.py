"""What a run wrote about itself: manifest, log, and the counts of its targets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ...errors import IntegrityError
from ...zoo.checkpoint import Checkpoint
from ...zoo.manifest import Manifest
from ...zoo.network import MultiBranch
from ..evaluate import count_targets

LOG = "log.jsonl"


@dataclass(frozen=True)
class Run:
    """A run as the page tells it.

    Attributes:
        records: of its log, up to the epoch of the checkpoint; empty where there is no log.
        targets: by target: `params`, `macs` and, where it was evaluated, `top1`, `n`, `split` and what else the manifest has.
        num_branches, target_branch: of the network.
        twins: targets that are the same network as one of the branches, with its number.
    """

    manifest: Manifest
    records: list[dict[str, Any]]
    targets: dict[str, dict[str, Any]]
    num_branches: int
    target_branch: int
    twins: dict[str, str]

    def branch_name(self, number: int) -> str:
        """`1`, or `1 (target)`, as it is written beside its point or its line."""
        words = [word for word, twin in self.twins.items() if twin == str(number)]
        return f"{number} ({', '.join(words)})" if words else str(number)

    def branch_names(self) -> list[str]:
        """Of all branches."""
        return [self.branch_name(number) for number in range(1, self.num_branches + 1)]

    def drawn_targets(self) -> dict[str, str]:
        """The targets to draw, with what is written beside them; what is the same network as a branch is not drawn twice."""
        drawn = [target for target in self.targets if target not in self.twins]
        return {target: self.branch_name(int(target)) if target.isdigit() else target for target in drawn}

    def split(self) -> str:
        """Name of the split of the evaluations."""
        return str(next((row["split"] for row in self.targets.values() if "split" in row), "test"))

    def distances(self) -> list[tuple[int, Float[ndarray, "M M"]]]:
        """Epoch and matrix of distances between branches, where the log holds them."""
        logged = [(r["epoch"], np.asarray(r["distances"], np.float64)) for r in self.records if r.get("distances")]
        return [(epoch, matrix) for epoch, matrix in logged if matrix.shape == (self.num_branches, self.num_branches)]

    def facts(self) -> list[tuple[str, str]]:
        """Name and value of what describes the run, in order."""
        manifest, origin = self.manifest, self.manifest.provenance
        planned = manifest.recipe.get("epochs")
        epochs = f"{manifest.epochs} of {planned}" if planned is not None else str(manifest.epochs)
        changed = manifest.recipe.get("method_config", {})
        rows = [
            ("entry", manifest.entry),
            ("method", manifest.method + (f" ({', '.join(f'{n} = {v}' for n, v in sorted(changed.items()))})" if changed else "")),
            ("backbone", manifest.backbone),
            ("data set", f"{manifest.dataset}, {len(manifest.classes)} classes, {manifest.preprocess.height} x "
                         f"{manifest.preprocess.width} pixels"),
            ("epochs", epochs),
            ("seed", str(manifest.recipe.get("seed", "not recorded"))),
            ("commit", str(origin.get("git_commit") or "not recorded")),
            ("versions", ", ".join(f"{n} {v}" for n, v in sorted(origin.get("versions", {}).items())) or "not recorded"),
            ("host", str(origin.get("host") or "not recorded")),
            ("command", str(origin.get("command") or "not recorded")),
        ]  # fmt: skip
        for before in origin.get("resumed", []):
            rows.append(("resumed", f"after epoch {before.get('epoch')}; it had been started by: {before.get('command')}"))
        return rows


def read_run(checkpoint: Checkpoint, network: MultiBranch) -> Run:
    """The run of `checkpoint`, whose log is beside the checkpoint or, for a bundled entry, inside it.

    Raises:
        IntegrityError: the log is not JSON lines.
    """
    manifest = checkpoint.manifest
    path = next((p for p in (checkpoint.folder.parent / LOG, checkpoint.folder / LOG) if p.is_file()), None)
    try:
        records = (
            [] if path is None else [r for r in map(json.loads, path.read_text().splitlines()) if r["epoch"] <= manifest.epochs]
        )
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{path} is not the log of a run", hint="copy the folder of the run again") from None
    counts = count_targets(network, network.targets(), manifest.preprocess)
    targets = {t: {**manifest.metrics.get(t, {}), **counts[t]} for t in network.targets()}
    twins = {}
    if len(network.branches) > 1:
        twins["target"] = str(network.target_branch)
        fused = [str(n) for n, branch in enumerate(network.branches, start=1) if branch.logits == network.fused]
        twins.update(zip(["fused"], fused, strict=False))
    return Run(manifest, records, targets, len(network.branches), network.target_branch, twins)
