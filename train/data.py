"""The training split on the device, and the order in which it is read.

Everything random is a function of (seed, epoch, step): a run that resumes in mid-epoch sees the very batches that it would have
seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..zoo.datasets import LabelledImages
from ..zoo.preprocess import Preprocess
from .augment import crop_and_flip, cut_out, normalize, pad_images
from .autoaugment import CifarPolicy
from .recipe import Augment


def step_generator(seed: int, epoch: int, step: int = -1) -> torch.Generator:
    """A host generator for one step (or, with step -1, for the order of one epoch)."""
    return torch.Generator().manual_seed(((seed * 100_003 + epoch) * 1_000_003 + step + 1) % 2**63)


class TrainingBatches:
    """A whole training split, padded, on one device as uint8."""

    def __init__(
        self, data: LabelledImages, preprocess: Preprocess, augment: Augment, batch_size: int, seed: int, device: torch.device
    ) -> None:
        self.augment, self.batch_size, self.seed, self.size = augment, batch_size, seed, preprocess.height
        images = torch.from_numpy(data.images)
        self.padded = pad_images(images, augment.pad, augment.fill).to(device)
        self.labels = torch.from_numpy(data.labels).to(device)
        self.mean = torch.tensor(preprocess.mean, device=device)
        self.std = torch.tensor(preprocess.std, device=device)
        self.policy = CifarPolicy(self.size, self.size, augment.fill, device) if augment.autoaugment else None

    def __len__(self) -> int:
        """Batches of an epoch. The last one is smaller; one of a single image, which BatchNorm cannot use, is left out."""
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > 1)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images `B 3 H W` (normalised, channels last) and labels `B` of the batches of one epoch, from batch `start` on."""
        order = torch.randperm(len(self.labels), generator=step_generator(self.seed, epoch))
        for step in range(start, len(self)):
            yield self.batch(order[step * self.batch_size : (step + 1) * self.batch_size], epoch, step)

    def batch(self, index: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """The images `index`, augmented by the random numbers of this step in the order of Self-D."""
        generator = step_generator(self.seed, epoch, step)
        images = crop_and_flip(self.padded, index, self.size, flip=self.augment.flip, generator=generator)
        if self.policy is not None:
            images = self.policy(images, generator)
        if self.augment.cutout:
            images = cut_out(images, self.augment.cutout, generator)
        return normalize(images, self.mean, self.std), self.labels[index.to(self.labels.device, non_blocking=True)]
