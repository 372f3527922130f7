"""What a run needs to go on where it stopped: weights, momentum, position, and what came before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..zoo.checkpoint import Checkpoint, TrainingState
from ..zoo.datasets import ImageSplit
from ..zoo.manifest import Manifest
from .loop import Totals, Training
from .recipe import FREE_TO_CHANGE, Recipe
from .teachers import fingerprint


def history(manifest: Manifest, epoch: int, step: int) -> list[dict[str, Any]]:
    """What came before a resumption, oldest first: where it stopped, and how it had been started."""
    before = manifest.provenance
    facts = {name: before.get(name) for name in ("command", "git_commit", "host")}
    return [*before.get("resumed", []), {"epoch": epoch, "step": step, "num_epochs": manifest.recipe["epochs"], **facts}]


def training_state(training: Training, epoch: int, step: int, totals: Totals) -> TrainingState:
    """Momentum by parameter name, weights that are not the deployed ones, position, and the sums of the epoch at hand.

    No random states: everything random follows from the seed and the position.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in training.network.named_parameters():
        buffer = training.optimizer.state[parameter].get("momentum_buffer") if parameter.requires_grad else None
        if buffer is not None:
            tensors[f"momentum.{name}"] = buffer
    if training.average is not None:
        tensors |= {f"raw.{name}": tensor for name, tensor in training.network.state_dict().items()}
    if totals.correct is not None:
        tensors["totals.correct"] = totals.correct
        tensors |= {f"totals.part.{name}": part for name, part in totals.parts.items()}
    return TrainingState(tensors, {"epoch": epoch, "step": step, "images": totals.images, "steps": totals.steps})


def check_data(checkpoint: Checkpoint, data: ImageSplit, path: Path) -> None:
    """Raises `UsageError` where the run was started with other images."""
    manifest = checkpoint.manifest
    before = manifest.provenance.get("data_fingerprint")
    if manifest.classes != data.classes or before not in (None, fingerprint(data)):
        what = "classes" if manifest.classes != data.classes else "training images"
        raise UsageError(
            f"the run in {checkpoint.folder.parent} has other {what} than {path}", hint="resume it with the data of its start"
        )


def check_company(checkpoint: Checkpoint, teachers: Sequence[Mapping[str, Any]], num_processes: int) -> None:
    """Raises `UsageError` where the run was started with other teachers, or stopped in mid-epoch with other processes."""
    before, folder = checkpoint.manifest.provenance, checkpoint.folder.parent
    for was, now in zip(before.get("teachers", []), teachers, strict=False):
        if was["weights_sha256"] != now["weights_sha256"]:
            raise UsageError(
                f"the run in {folder} learnt from other weights than {now['folder']}", hint=f"they were in {was['folder']}"
            )
    if before.get("processes", num_processes) != num_processes and checkpoint.training_state().values["step"]:
        raise UsageError(
            f"the run in {folder} was stopped in mid-epoch with {before['processes']} processes, not {num_processes}",
            hint="resume it with as many",
        )


def check_recipe(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raises `UsageError` where the checkpoint was trained by another recipe, apart from `FREE_TO_CHANGE`."""
    before, now = Recipe.from_mapping(checkpoint.manifest.recipe).to_dict(), recipe.to_dict()
    changed = sorted(k for k in now if now[k] != before.get(k) and k not in FREE_TO_CHANGE)
    if changed:
        raise UsageError(
            f"the run in {checkpoint.folder.parent} has another {', '.join(changed)}",
            hint=f"kdzoo train {checkpoint.folder.parent} --resume goes on with its own recipe, or start a new run",
        )


def restore(checkpoint: Checkpoint, training: Training) -> tuple[int, int, Totals]:
    """Put weights and momentum back; gives epoch, step and sums to go on with.

    Raises:
        UsageError: the checkpoint was trained by another recipe, apart from `FREE_TO_CHANGE`.
    """
    check_recipe(checkpoint, training.recipe)
    state = checkpoint.training_state()
    network = training.network
    device = next(network.parameters()).device
    copy_tensors(checkpoint.network().state_dict(), training.deployed)
    if training.average is not None:
        copy_tensors({n.removeprefix("raw."): t for n, t in state.tensors.items() if n.startswith("raw.")}, network)
    for name, parameter in network.named_parameters():
        if f"momentum.{name}" in state.tensors:
            # The fused kernel walks raw memory: the buffer needs the strides of its parameter.
            buffer = torch.empty_like(parameter).copy_(state.tensors[f"momentum.{name}"])
            training.optimizer.state[parameter]["momentum_buffer"] = buffer.detach()
    totals = Totals(state.values["images"], state.values["steps"])
    if "totals.correct" in state.tensors:
        totals.correct = state.tensors["totals.correct"].to(device)
        prefix = "totals.part."
        totals.parts = {n.removeprefix(prefix): t.to(device) for n, t in state.tensors.items() if n.startswith(prefix)}
    return state.values["epoch"], state.values["step"], totals


@torch.no_grad()
def copy_tensors(tensors: Mapping[str, torch.Tensor], network: nn.Module) -> None:
    """Fill every tensor of `network`, in place, where it is."""
    for name, tensor in network.state_dict().items():
        tensor.copy_(tensors[name])
