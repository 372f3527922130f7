"""Random crop, mirror, Cutout and normalisation of whole batches, where the images live. No Python per sample.

Shapes: `N` images of the data set, `B` batch, `H` `W` space, channels last until the network, which sees `B 3 H W`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F


def pad_images(images_NHWC: UInt8[Tensor, "N H W 3"], pad: int, fill: int) -> UInt8[Tensor, "N P Q 3"]:
    """`pad` pixels of value `fill` on every side, once for the whole data set."""
    return F.pad(images_NHWC, (0, 0, pad, pad, pad, pad), value=fill) if pad else images_NHWC


def crop_and_flip(
    padded_NPQ3: UInt8[Tensor, "N P Q 3"],
    index_B: Int[Tensor, " B"],
    size: int,
    *,
    flip: bool,
    generator: Generator,
) -> UInt8[Tensor, "B S S 3"]:
    """Images `index_B`, each cropped to `size` at a place of its own and mirrored with probability 1/2: one gather.

    The random numbers are drawn on the host, a few hundred of them, so that every device sees the same ones. Only they travel:
    a copy this small is staged by CUDA, and the host does not wait for it.
    """
    batch, height, width = len(index_B), padded_NPQ3.shape[1], padded_NPQ3.shape[2]
    device = padded_NPQ3.device
    top_B = torch.randint(height - size + 1, (batch,), generator=generator)
    left_B = torch.randint(width - size + 1, (batch,), generator=generator)
    mirror_B = torch.randint(2, (batch,), generator=generator).bool() if flip else torch.zeros(batch, dtype=torch.bool)
    top_B, left_B, mirror_B, index_B = (t.to(device, non_blocking=True) for t in (top_B, left_B, mirror_B, index_B))
    steps_S = torch.arange(size, device=device)
    rows_BS = top_B[:, None] + steps_S
    columns_BS = left_B[:, None] + torch.where(mirror_B[:, None], size - 1 - steps_S, steps_S)
    flat_BSS = (rows_BS * width)[:, :, None] + columns_BS[:, None, :] + (index_B * (height * width))[:, None, None]
    return padded_NPQ3.view(-1, 3).index_select(0, flat_BSS.flatten()).view(batch, size, size, 3)


def cut_out(images_BHW3: UInt8[Tensor, "B H W 3"], size: int, generator: Generator) -> UInt8[Tensor, "B H W 3"]:
    """A black square of side `size` in every image, its centre anywhere, clipped at the border.

    DeVries & Taylor, 2017, https://arxiv.org/abs/1708.04552. As in the public code of Self-D it comes before normalisation: the
    square is black, not of the mean colour. Random numbers are drawn on the host.
    """
    batch, height, width = images_BHW3.shape[:3]
    device = images_BHW3.device
    corners = (torch.randint(side, (batch, 1), generator=generator) - size // 2 for side in (height, width))
    top_B1, left_B1 = (corner_B1.to(device, non_blocking=True) for corner_B1 in corners)
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
