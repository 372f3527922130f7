"""mixup, Zhang et al., 2018, https://arxiv.org/abs/1710.09412, and CutMix, Yun et al., 2019, https://arxiv.org/abs/1905.04899, of
whole batches, where the images live.

The share of the first image is drawn from Beta(a, a) once for the whole batch, as in the public code of both. Where a recipe has
both, each batch draws one of them.

Readings:
1. An image is mixed with its neighbour in the batch, whose order is random, and not with one of a second permutation: so the
   partner is in the same process. Batches and shares of even size are mixed alike for any number of processes; with odd shares the
   image at the edge of one takes its other neighbour.

Shapes: `B` batch, `K` classes, `H` `W` space.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F

from .recipe import Augment


class Mix(NamedTuple):
    """`share` of the first image in the label, and for CutMix the box (top, bottom, left, right) that the second one fills."""

    share: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(augment: Augment, size: int, generator: Generator) -> Mix | None:
    """What happens to one batch of images of side `size`, if anything."""
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(augment, kind)]
    if not kinds:
        return None
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    kind = kinds[int(rng.integers(len(kinds)))]
    alpha = augment.mixup if kind == "mixup" else augment.cutmix
    share = float(rng.beta(alpha, alpha))
    if kind == "mixup":
        return Mix(share)
    half = int(size * math.sqrt(1.0 - share)) // 2
    box = [(max(centre - half, 0), min(centre + half, size)) for centre in rng.integers(size, size=2).tolist()]
    (top, bottom), (left, right) = box
    return Mix(1.0 - (bottom - top) * (right - left) / size**2, (top, bottom, left, right))


def partners(start: int, stop: int) -> Int[Tensor, " b"]:
    """For images `start` to `stop` of a batch, the place in this range of the one that each is mixed with."""
    place = torch.arange(start, stop)
    partner = place ^ 1
    partner = torch.where(partner < start, place + 1, torch.where(partner >= stop, place - 1, partner))
    return partner.clamp(start, stop - 1) - start


def mix(
    images_B3HW: Float[Tensor, "B 3 H W"],
    labels_B: Int[Tensor, " B"],
    partner_B: Int[Tensor, " B"],
    num_classes: int,
    mixing: Mix,
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B K"]]:
    """Images mixed with their partners, and their labels as probabilities."""
    hard_BK = F.one_hot(labels_B, num_classes).float()
    labels_BK = hard_BK * mixing.share + hard_BK[partner_B] * (1.0 - mixing.share)
    if mixing.box is None:
        return images_B3HW * mixing.share + images_B3HW[partner_B] * (1.0 - mixing.share), labels_BK
    top, bottom, left, right = mixing.box
    mixed_B3HW = images_B3HW.clone()
    mixed_B3HW[:, :, top:bottom, left:right] = images_B3HW[partner_B, :, top:bottom, left:right]
    return mixed_B3HW, labels_BK
