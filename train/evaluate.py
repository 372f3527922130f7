"""Top-1 and top-5 of every target of a network in one pass over a split, and what every target costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch

from ..zoo.datasets import LabelledImages
from ..zoo.network import MultiBranch
from ..zoo.preprocess import Preprocess
from ..zoo.profile import profile
from ..zoo.student import select, target_logits
from ..zoo.target import Target
from .augment import normalize


def count_targets(network: MultiBranch, targets: Sequence[str], preprocess: Preprocess) -> dict[str, dict[str, int]]:
    """By target: `params`, `macs` and `macs_dbfskd` of its student (`zoo.profile`)."""
    students = {t: select(network, Target.parse(t)) for t in targets}
    return {t: asdict(profile(student, preprocess.height, preprocess.width)) for t, student in students.items()}


@torch.no_grad()
def evaluate(
    network: MultiBranch,
    data: LabelledImages,
    preprocess: Preprocess,
    targets: Sequence[str],
    *,
    device: torch.device,
    split: str,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    batch_size: int = 500,
) -> dict[str, dict[str, Any]]:
    """By target: `top1` and `top5` in percent (top5 only where there are more than five classes), `n`, `split`.

    Counts stay on the device; the host waits once, at the end. The network is left in the mode in which it came.
    """
    was_training = network.training
    network.eval()
    parsed = [Target.parse(t) for t in targets]
    depth = 5 if len(data.classes) > 5 else 1
    hits = torch.zeros(len(parsed), 2, dtype=torch.int64, device=device)
    mean, std = torch.tensor(preprocess.mean, device=device), torch.tensor(preprocess.std, device=device)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    for start in range(0, len(data), batch_size):
        x = normalize(images[start : start + batch_size].to(device), mean, std)
        y = labels[start : start + batch_size].to(device)
        with autocast():
            outputs = network(x)
        for row, target in enumerate(parsed):
            right = target_logits(outputs, target, network.target_branch).float().topk(depth, dim=1).indices == y[:, None]
            hits[row, 0] += right[:, :1].sum()
            hits[row, 1] += right.sum()
    network.train(was_training)
    n = len(data)
    result: dict[str, dict[str, Any]] = {}
    for name, (top1, top5) in zip(targets, hits.tolist(), strict=True):
        result[name] = {"top1": round(100 * top1 / n, 4), "n": n, "split": split}
        if depth == 5:
            result[name]["top5"] = round(100 * top5 / n, 4)
    return result
