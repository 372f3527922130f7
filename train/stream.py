"""Training and test images that do not fit into memory: decoded ahead by other processes, augmented on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..zoo.datasets import EncodedImages, ImageSplit
from ..zoo.preprocess import Preprocess
from ..zoo.sets.images import Picture
from ..zoo.sets.pool import DecodePool
from .augment import pad_images
from .batches import Batches
from .recipe import Augment


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

    def __init__(
        self,
        data: EncodedImages,
        preprocess: Preprocess,
        augment: Augment,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        *,
        workers: int = 0,
    ) -> None:
        super().__init__(data, preprocess, augment, batch_size, seed, device, rank, world)
        self.data = data
        self.pool = DecodePool(preprocess, -(-batch_size // world), workers)

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


def read_in_order(
    data: ImageSplit, parts: Sequence[slice], batch_size: int, device: torch.device, workers: int
) -> Iterator[Tensor]:
    """The images of each slice of `data`, of `batch_size` at most, `b H W 3` uint8 on the device, without augmentation."""
    if not isinstance(data, EncodedImages):
        images = torch.from_numpy(data.images)
        yield from (images[part].to(device) for part in parts)
        return
    requests = ([data.picture(n) for n in range(part.start, part.stop)] for part in parts)
    with DecodePool(data.preprocess, batch_size, workers) as pool:
        yield from on_device(pool.stream(requests), device)
