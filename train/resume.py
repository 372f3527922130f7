"""What a run needs to go on where it stopped: weights, momentum, random states, position, and what came before."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UsageError
from ..zoo.checkpoint import Checkpoint, TrainingState
from ..zoo.manifest import Manifest
from ..zoo.network import MultiBranch
from .loop import Totals
from .recipe import Recipe

FREE_TO_CHANGE = ("epochs", "checkpoint_minutes", "eval_every")  # keys of a recipe that a resumed run may change


def history(manifest: Manifest, epoch: int, step: int) -> list[dict[str, Any]]:
    """What came before a resumption, oldest first: where it stopped, and how it had been started."""
    before = manifest.provenance
    facts = {name: before.get(name) for name in ("command", "git_commit", "host")}
    return [*before.get("resumed", []), {"epoch": epoch, "step": step, "num_epochs": manifest.recipe["epochs"], **facts}]


def training_state(network: MultiBranch, optimizer: torch.optim.Optimizer, epoch: int, step: int, totals: Totals) -> TrainingState:
    """Momentum by parameter name, random states, position, and the sums of the epoch at hand."""
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in network.named_parameters():
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{name}"] = buffer
    if totals.correct is not None:
        tensors["totals.correct"] = totals.correct
        tensors |= {f"totals.part.{name}": part for name, part in totals.parts.items()}
    return TrainingState(tensors, {"epoch": epoch, "step": step, "images": totals.images, "steps": totals.steps})


def restore(
    checkpoint: Checkpoint, recipe: Recipe, network: MultiBranch, optimizer: torch.optim.Optimizer
) -> tuple[int, int, Totals]:
    """Put weights, momentum and random states back; gives epoch, step and sums to go on with.

    Raises:
        UsageError: the checkpoint was trained by another recipe, apart from `FREE_TO_CHANGE`.
    """
    before, now = checkpoint.manifest.recipe, recipe.to_dict()
    changed = sorted(k for k in now if now[k] != before.get(k) and k not in FREE_TO_CHANGE)
    if changed:
        raise UsageError(
            f"the run in {checkpoint.folder.parent} has another {', '.join(changed)}",
            hint=f"kdzoo train {checkpoint.folder.parent} --resume goes on with its own recipe, or start a new run",
        )
    state = checkpoint.training_state()
    device = next(network.parameters()).device
    fresh = network.state_dict()
    with torch.no_grad():
        whole = checkpoint.network().state_dict()
        for name, tensor in fresh.items():
            tensor.copy_(whole[name])
    for name, parameter in network.named_parameters():
        if f"momentum.{name}" in state.tensors:
            # The fused kernel walks raw memory: the buffer needs the strides of its parameter.
            buffer = torch.empty_like(parameter).copy_(state.tensors[f"momentum.{name}"])
            optimizer.state[parameter]["momentum_buffer"] = buffer.detach()
    torch.set_rng_state(state.tensors["rng.cpu"])
    if "rng.cuda" in state.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.tensors["rng.cuda"])
    totals = Totals(state.values["images"], state.values["steps"])
    if "totals.correct" in state.tensors:
        totals.correct = state.tensors["totals.correct"].to(device)
        prefix = "totals.part."
        totals.parts = {n.removeprefix(prefix): t.to(device) for n, t in state.tensors.items() if n.startswith(prefix)}
    return state.values["epoch"], state.values["step"], totals
