"""Random crop, random part, mirror, Cutout and normalisation of whole batches, where the images live. No Python per sample.

Random numbers are drawn on the host, a few hundred of them, so that every device sees the same ones, and for the batch of all
processes, of which each keeps its share. Only they travel: a copy this small is staged by CUDA, and the host does not wait for it.

Shapes: `N` images of the data set, `B` batch, `H` `W` space, `P` `Q` with padding, `S` side of the input, channels last until the
network, which sees `B 3 H W`; `T` trials.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F

from ..zoo.sets.decoder import AREA, ASPECT, TRIALS
from .autoaugment import CifarPolicy
from .recipe import Augment


class Draws(NamedTuple):
    """Everything random of one batch but mixup and CutMix; images are the last axis of each. None is what the recipe leaves out."""

    top_B: Tensor
    left_B: Tensor
    mirror_B: Tensor
    policy_2B: Tensor | None
    corner_2B: Tensor | None
    part_4B: Tensor | None

    def of(self, share: slice) -> Draws:
        """The numbers of some of the images."""
        policy, corner, part = (None if numbers is None else numbers[:, share] for numbers in self[3:])
        return Draws(self.top_B[share], self.left_B[share], self.mirror_B[share], policy, corner, part)


def draw(
    augment: Augment,
    batch: int,
    room: tuple[int, int],
    size: int,
    policy: CifarPolicy | None,
    generator: Generator,
    *,
    take_parts: bool = False,
) -> Draws:
    """The random numbers of a batch. `room`: by how many rows and columns the images are larger than the input."""
    part_4B = draw_parts(batch, generator) if take_parts else None
    top_B, left_B = (torch.randint(places + 1, (batch,), generator=generator) for places in room)
    mirror_B = torch.randint(2, (batch,), generator=generator).bool() if augment.flip else torch.zeros(batch, dtype=torch.bool)
    policy_2B = policy.draw(batch, generator) if policy else None
    corner_2B = None
    if augment.cutout:
        corner_2B = torch.stack([torch.randint(size, (batch,), generator=generator) for _ in range(2)]) - augment.cutout // 2
    return Draws(top_B, left_B, mirror_B, policy_2B, corner_2B, part_4B)


def pad_images(images_NHWC: UInt8[Tensor, "N H W 3"], pad: int, fill: int) -> UInt8[Tensor, "N P Q 3"]:
    """`pad` pixels of value `fill` on every side, once for the whole data set."""
    return F.pad(images_NHWC, (0, 0, pad, pad, pad, pad), value=fill) if pad else images_NHWC


def crop_and_flip(
    padded_NPQ3: UInt8[Tensor, "N P Q 3"], index_B: Int[Tensor, " B"], size: int, draws: Draws
) -> UInt8[Tensor, "B S S 3"]:
    """Images `index_B`, each cropped to `size` at a place of its own and, some, mirrored: one gather."""
    batch, height, width = len(index_B), padded_NPQ3.shape[1], padded_NPQ3.shape[2]
    device = padded_NPQ3.device
    numbers = (draws.top_B, draws.left_B, draws.mirror_B, index_B)
    top_B, left_B, mirror_B, index_B = (t.to(device, non_blocking=True) for t in numbers)
    steps_S = torch.arange(size, device=device)
    rows_BS = top_B[:, None] + steps_S
    columns_BS = left_B[:, None] + torch.where(mirror_B[:, None], size - 1 - steps_S, steps_S)
    flat_BSS = (rows_BS * width)[:, :, None] + columns_BS[:, None, :] + (index_B * (height * width))[:, None, None]
    return padded_NPQ3.view(-1, 3).index_select(0, flat_BSS.flatten()).view(batch, size, size, 3)


def draw_parts(batch: int, generator: Generator) -> Float[Tensor, "4 B"]:
    """Centre (x, y) and half sides (across, down) of a random part of each of `batch` square pictures, in -1 to 1.

    The distribution is that of `zoo.sets.decoder.random_part`: of several trials the first that fits.
    """
    area_TB = torch.empty(TRIALS, batch).uniform_(*AREA, generator=generator)
    aspect_TB = torch.empty(TRIALS, batch).uniform_(*map(math.log, ASPECT), generator=generator).exp()
    across_TB, down_TB = (area_TB * aspect_TB).sqrt(), (area_TB / aspect_TB).sqrt()
    fits_TB = (across_TB <= 1) & (down_TB <= 1)
    first_1B = fits_TB.int().argmax(dim=0, keepdim=True)
    sides_2B = torch.cat([sides_TB.gather(0, first_1B) for sides_TB in (across_TB, down_TB)])
    sides_2B = torch.where(fits_TB.any(dim=0), sides_2B, torch.ones(()))
    centre_2B = (2 * torch.rand(2, batch, generator=generator) - 1) * (1 - sides_2B)
    return torch.cat([centre_2B, sides_2B])


def resize_parts(images_BPQ3: UInt8[Tensor, "B P Q 3"], part_4B: Float[Tensor, "4 B"], size: int) -> UInt8[Tensor, "B S S 3"]:
    """A part of each image, scaled to the size of the input (bilinear)."""
    x_B, y_B, across_B, down_B = part_4B.to(images_BPQ3.device, non_blocking=True)
    zero_B = torch.zeros_like(x_B)
    rows_B23 = torch.stack([across_B, zero_B, x_B, zero_B, down_B, y_B], dim=-1).view(-1, 2, 3)
    grid_BSS2 = F.affine_grid(rows_B23, [len(x_B), 3, size, size], align_corners=False)
    floats_B3PQ = images_BPQ3.permute(0, 3, 1, 2).float()
    parts_B3SS = F.grid_sample(floats_B3PQ, grid_BSS2, "bilinear", padding_mode="border", align_corners=False)
    return parts_B3SS.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def cut_out(images_BHW3: UInt8[Tensor, "B H W 3"], size: int, corner_2B: Int[Tensor, "2 B"]) -> UInt8[Tensor, "B H W 3"]:
    """A black square of side `size` in every image, clipped at the border; `corner_2B`: its first row and column.

    DeVries & Taylor, 2017, https://arxiv.org/abs/1708.04552. As in the public code of Self-D it comes before normalisation: the
    square is black, not of the mean colour.
    """
    height, width = images_BHW3.shape[1:3]
    device = images_BHW3.device
    top_B1, left_B1 = (corner_B[:, None].to(device, non_blocking=True) for corner_B in corner_2B)
    rows_BH, columns_BW = torch.arange(height, device=device) - top_B1, torch.arange(width, device=device) - left_B1
    inside_BH, inside_BW = ((offset >= 0) & (offset < size) for offset in (rows_BH, columns_BW))
    keep_BHW = ~(inside_BH[:, :, None] & inside_BW[:, None, :])
    return images_BHW3 * keep_BHW[..., None]


def normalize(
    images_BHW3: UInt8[Tensor, "B H W 3"], mean: Float[Tensor, " 3"], std: Float[Tensor, " 3"]
) -> Float[Tensor, "B 3 H W"]:
    """(x/255 - mean)/std, seen as `B 3 H W` in channels-last memory without a copy."""
    scale, shift = 1.0 / (255.0 * std), -mean / std
    return torch.addcmul(shift, images_BHW3.to(torch.float32), scale).permute(0, 3, 1, 2)
