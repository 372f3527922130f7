"""The training batches of a run: from memory, where the whole split lives on the device, or decoded as they are needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..zoo.datasets import EncodedImages, ImageSplit, LabelledImages
from .augment import pad_images
from .batches import Batches, BatchSettings
from .stream import StreamedBatches


def make_batches(data: ImageSplit, settings: BatchSettings) -> Batches:
    """The batches of `data`, by the class for where its pixels are."""
    return StreamedBatches(data, settings) if isinstance(data, EncodedImages) else TrainingBatches(data, settings)


class TrainingBatches(Batches):
    """A training split, padded, on one device as uint8. One of several processes has there what it will use in this epoch."""

    def __init__(self, data: LabelledImages, settings: BatchSettings) -> None:
        super().__init__(data, settings)
        self.images = torch.from_numpy(data.images)
        self.row_N = torch.arange(len(data))  # where an image is in `padded`
        self.padded = self._upload(self.images) if self.world == 1 else None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order(epoch)
        if self.world > 1 and start < len(self):
            parts = [self.index(order, step) for step in range(start, len(self))]
            mine = torch.cat([part[self.share(len(part))] for part in parts])
            self.padded = None  # two epochs at once would take twice the memory
            self.padded = self._upload(self.images[mine])
            self.row_N[mine] = torch.arange(len(mine))
        for step in range(start, len(self)):
            yield self.batch(self.index(order, step), epoch, step)

    def batch(self, index: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """This process's share of the images `index`, augmented by the random numbers of this step."""
        assert self.padded is not None
        return self.augmented(self.padded, self.row_N[index[self.share(len(index))]], index, epoch, step)

    def _upload(self, images: Tensor) -> Tensor:
        return pad_images(images, self.pad, self.augment.fill).to(self.device)
