"""What all sources of training batches have in common: the order of the images, the share of a process, augmentation.

Everything random is a function of (seed, epoch, step): a run that resumes in mid-epoch sees the very batches that it would have
seen. With several processes every one draws the numbers of the whole batch and keeps its share, so that their images together are
those of a single process, bit for bit.

Shapes: `N` images of the data set, `B` batch of all processes, `b` the share of this one, `H` `W` space, `P` `Q` with padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..errors import UsageError
from ..zoo.datasets import ImageSplit
from ..zoo.preprocess import Preprocess
from .augment import crop_and_flip, cut_out, draw, normalize, resize_parts
from .autoaugment import CifarPolicy
from .mix import draw_mix, mix, partners
from .recipe import Augment


def step_generator(seed: int, epoch: int, step: int = -1) -> torch.Generator:
    """A host generator for one step (or, with step -1, for the order of one epoch)."""
    return torch.Generator().manual_seed(((seed * 100_003 + epoch) * 1_000_003 + step + 1) % 2**63)


@dataclass(frozen=True)
class BatchSettings:
    """How batches are made of a split, whatever holds its pixels.

    Attributes:
        batch_size: images of a batch, over all processes.
        device: where the batches are. rank, world: this process, and how many there are.
        workers: processes that decode, where the split is not in memory; with none, this one does.
    """

    preprocess: Preprocess
    augment: Augment
    batch_size: int
    seed: int
    device: torch.device
    rank: int = 0
    world: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < self.world:
            raise UsageError(
                f"a batch of {self.batch_size} images has none for some of {self.world} processes",
                hint="make batch_size larger, or use fewer processes",
            )


class Batches(ABC):
    """The batches of one split, for one process. Subclasses say where the pixels come from."""

    def __init__(self, data: ImageSplit, settings: BatchSettings) -> None:
        preprocess, augment, device = settings.preprocess, settings.augment, settings.device
        self.augment, self.batch_size, self.seed, self.size = augment, settings.batch_size, settings.seed, preprocess.height
        self.device, self.rank, self.world = device, settings.rank, settings.world
        self.num_classes = len(data.classes)
        self.labels = torch.from_numpy(data.labels).to(device)
        self.mean = torch.tensor(preprocess.mean, device=device)
        self.std = torch.tensor(preprocess.std, device=device)
        self.policy = CifarPolicy(self.size, self.size, augment.fill, device) if augment.autoaugment else None
        self.pad = 0 if augment.random_resized_crop else augment.pad

    def __len__(self) -> int:
        """Batches of an epoch. The last one is smaller; it is left out where it is a single image, which BatchNorm cannot use, or
        has none for some process."""
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest >= max(2, self.world))

    @abstractmethod
    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images `b 3 H W` (normalised, channels last) and labels of the batches of one epoch, from batch `start` on. Labels are
        `b`, or `b K` probabilities where images are mixed."""

    def num_images(self, step: int) -> int:
        """Images of batch `step` in all processes together."""
        return min(self.batch_size, len(self.labels) - step * self.batch_size)

    def share(self, num_images: int) -> slice:
        """The part of a batch of `num_images` that this process works on."""
        return slice(self.rank * num_images // self.world, (self.rank + 1) * num_images // self.world)

    def index(self, order_N: Int[Tensor, " N"], step: int) -> Int[Tensor, " B"]:
        """The images of batch `step` of all processes."""
        return order_N[step * self.batch_size : step * self.batch_size + self.num_images(step)]

    def order(self, epoch: int) -> Int[Tensor, " N"]:
        """All images in the order of one epoch."""
        return torch.randperm(len(self.labels), generator=step_generator(self.seed, epoch))

    def augmented(
        self,
        padded_XPQ3: UInt8[Tensor, "X P Q 3"],
        rows_b: Int[Tensor, " b"],
        index_B: Int[Tensor, " B"],
        epoch: int,
        step: int,
        *,
        parts_taken: bool = False,
    ) -> tuple[Float[Tensor, "b 3 H W"], Tensor]:
        """Images `rows_b` of `padded_XPQ3`, the share of this process of the images `index_B` of the set, after everything that the
        recipe does to them, in the order of Self-D; and their labels (`b`, or `b K` where images are mixed).

        `parts_taken`: a random part of each picture has been taken already.
        """
        share, generator = self.share(len(index_B)), step_generator(self.seed, epoch, step)
        height, width = padded_XPQ3.shape[1:3]
        take_parts = self.augment.random_resized_crop and not parts_taken
        room = (height - self.size, width - self.size)
        draws = draw(self.augment, len(index_B), room, self.size, self.policy, generator, take_parts=take_parts)
        draws_b = draws.of(share)
        if draws_b.part_4B is not None:
            padded_XPQ3 = resize_parts(padded_XPQ3[rows_b.to(self.device)], draws_b.part_4B, self.size)
            rows_b = torch.arange(len(rows_b))
        images = crop_and_flip(padded_XPQ3, rows_b, self.size, draws_b)
        if self.policy is not None and draws_b.policy_2B is not None:
            images = self.policy.through(images, draws_b.policy_2B)
        if draws_b.corner_2B is not None:
            images = cut_out(images, self.augment.cutout, draws_b.corner_2B)
        normal, labels = normalize(images, self.mean, self.std), self.labels[index_B[share].to(self.device, non_blocking=True)]
        mixing = draw_mix(self.augment, self.size, generator)
        if mixing is None:
            return normal, labels
        partner_b = partners(share.start, share.stop).to(self.device, non_blocking=True)
        return mix(normal, labels, partner_b, self.num_classes, mixing)
