"""Top-1 and top-5 of every target of a network in one pass over a split, how far its branches are apart, and what targets cost.

Shapes: `b` images of a batch, `M` branches, `T` targets, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..zoo.datasets import ImageSplit
from ..zoo.network import MultiBranch
from ..zoo.preprocess import Preprocess
from ..zoo.profile import profile
from ..zoo.sets.images import WORKERS
from ..zoo.student import select, target_logits
from ..zoo.target import Target
from .augment import normalize
from .stream import on_device

FEW, MANY = 20, 100  # training images: fewer than FEW, FEW to MANY, more than MANY (Liu et al., 2019, arXiv 1904.05160)


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one split.

    Attributes:
        targets: by target `top1` and, of more than five classes, `top5` in percent, `n`, `split`; for a long-tailed training set
            also `many`, `medium` and `few`, top-1 on the test images of the classes with so many training images.
        distances: `M M`, the mean over images of the L2 distance between the probabilities that two branches give; empty for one
            branch.
    """

    targets: dict[str, dict[str, Any]]
    distances: list[list[float]] = field(default_factory=list)


def count_targets(network: MultiBranch, targets: Sequence[str], preprocess: Preprocess) -> dict[str, dict[str, int]]:
    """By target: `params`, `macs` and `macs_dbfskd` of its student (`zoo.profile`)."""
    students = {t: select(network, Target.parse(t)) for t in targets}
    return {t: asdict(profile(student, preprocess.height, preprocess.width)) for t, student in students.items()}


@torch.no_grad()
def evaluate(
    network: MultiBranch,
    data: ImageSplit,
    preprocess: Preprocess,
    targets: Sequence[str],
    *,
    device: torch.device,
    split: str,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    batch_size: int = 500,
    train_counts: Sequence[int] | NDArray[np.int64] | None = None,
    rank: int = 0,
    world: int = 1,
    workers: int = WORKERS,
) -> Evaluation:
    """Measure every target on `data`. Counts stay on the device; the host waits once, at the end.

    The network is left in the mode in which it came. `train_counts` are the training images of each class. Each of `world`
    processes evaluates its share, and all get the same result. Images that are not in memory are decoded batch by batch, many of
    them by `workers` processes.
    """
    was_training = network.training
    network.eval()
    parsed = [Target.parse(t) for t in targets]
    depth = 5 if len(data.classes) > 5 else 1
    hits_TK = torch.zeros(len(parsed), len(data.classes), dtype=torch.int64, device=device)
    top5_T = torch.zeros(len(parsed), dtype=torch.int64, device=device)
    apart: Tensor | None = None
    mean, std = torch.tensor(preprocess.mean, device=device), torch.tensor(preprocess.std, device=device)
    labels, first, last = torch.from_numpy(data.labels).to(device), rank * len(data) // world, (rank + 1) * len(data) // world
    parts = [slice(start, min(start + batch_size, last)) for start in range(first, last, batch_size)]
    pixels = on_device(data.batches(batch_size, workers, first=first, last=last), device)
    for part, images in zip(parts, pixels, strict=True):
        y_b = labels[part]
        with autocast():
            outputs = network(normalize(images, mean, std))
        for row, target in enumerate(parsed):
            best_bD = target_logits(outputs, target, network.target_branch).float().topk(depth, dim=1).indices
            right_bD = best_bD == y_b[:, None]
            hits_TK[row].index_add_(0, y_b, right_bD[:, 0].to(torch.int64))
            top5_T[row] += right_bD.sum()
        if len(outputs.logits) > 1:
            distance = branch_distances(torch.stack([logits.float().softmax(dim=1) for logits in outputs.logits], dim=1))
            apart = distance if apart is None else apart + distance
    network.train(was_training)
    if world > 1:
        num_branches = len(network.branches)
        if apart is None and num_branches > 1:  # this process had no image
            apart = torch.zeros(num_branches, num_branches, dtype=torch.float64, device=device)
        for total in (hits_TK, top5_T, apart):
            if total is not None:
                dist.all_reduce(total)
    result: dict[str, dict[str, Any]] = {}
    for name, hits_K, top5 in zip(targets, hits_TK.cpu().numpy(), top5_T.tolist(), strict=True):
        result[name] = {"top1": round(100 * int(hits_K.sum()) / len(data), 4), "n": len(data), "split": split}
        if depth == 5:
            result[name]["top5"] = round(100 * top5 / len(data), 4)
        if train_counts is not None:
            result[name] |= shots(hits_K, np.bincount(data.labels, minlength=len(data.classes)), np.asarray(train_counts))
    return Evaluation(result, [] if apart is None else (apart / len(data)).tolist())


def branch_distances(probabilities_bMK: Float[Tensor, "b M K"]) -> Float[Tensor, "M M"]:
    """L2 distance between every two branches, summed over the images, in float64."""
    exact = "donot_use_mm_for_euclid_dist"  # the quick way loses small distances to rounding
    return torch.cdist(probabilities_bMK, probabilities_bMK, compute_mode=exact).sum(dim=0, dtype=torch.float64)


def shots(hits_K: NDArray[np.int64], n_K: NDArray[np.int64], train_K: NDArray[np.int64]) -> dict[str, float]:
    """Top-1 on classes with many, a medium number of and few training images; nothing where the training set is balanced."""
    if len(set(train_K.tolist())) == 1:
        return {}
    groups = {"many": train_K > MANY, "medium": (train_K >= FEW) & (train_K <= MANY), "few": train_K < FEW}
    return {name: round(100 * int(hits_K[k].sum()) / int(n_K[k].sum()), 4) for name, k in groups.items() if n_K[k].sum()}
