"""Training images that do not fit into memory, decoded ahead by other processes and augmented on the device; and the way there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..zoo.datasets import EncodedImages
from ..zoo.sets.images import Picture
from ..zoo.sets.pool import DecodePool
from .augment import pad_images
from .batches import Batches, BatchSettings


def on_device(batches: Iterable[NDArray[np.uint8]], device: torch.device) -> Iterator[Tensor]:
    """Pixels as tensors. On a CPU they hold until the next ones are asked for.

    On CUDA a stream of its own copies them: the host waits for the copy, and not for the network that is still at the batch before.
    """
    if device.type != "cuda":
        yield from (torch.from_numpy(pixels).to(device) for pixels in batches)
        return
    copies, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    for pixels in batches:
        with torch.cuda.stream(copies):
            images = torch.from_numpy(pixels).to(device)
        here.wait_stream(copies)
        images.record_stream(here)
        yield images


class StreamedBatches(Batches):
    """Batches whose images are decoded by `workers` processes while the network trains on the ones before.

    A random part of each picture, where the recipe takes one, is taken from the original in its full size, in those processes;
    which one is a function of (seed, epoch, number of the image).
    """

    def __init__(self, data: EncodedImages, settings: BatchSettings) -> None:
        super().__init__(data, settings)
        self.data = data
        self.pool = DecodePool(settings.preprocess, -(-self.batch_size // self.world), settings.workers)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order(epoch)
        indexes = [self.index(order, step) for step in range(start, len(self))]
        requests = (self._request(index[self.share(len(index))], epoch) for index in indexes)
        for step, images in enumerate(on_device(self.pool.stream(requests), self.device), start=start):
            padded = pad_images(images, self.pad, self.augment.fill)
            yield self.augmented(padded, torch.arange(len(images)), indexes[step - start], epoch, step, parts_taken=True)

    def close(self) -> None:
        """End the processes."""
        self.pool.close()

    def _request(self, index: Tensor, epoch: int) -> list[Picture]:
        draws = self.augment.random_resized_crop
        return [self.data.picture(n, (self.seed % 2**63, epoch, n) if draws else None) for n in index.tolist()]
