"""One split of a data set: its images in memory, or still encoded in the files that hold them. Torch-free.

Both have the same face: `classes`, `labels`, `source`, `len`, `take`, `head`, `batches`. Shapes: `N` images, `n` some of them,
`H` `W` space, channels last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..preprocess import Preprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Split = Literal["train", "test"]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
DECODE_ALONE = 2000  # so few pictures are decoded before the first process that could help has started
WORKERS = 2  # where nobody says how many


class Picture(NamedTuple):
    """Where an encoded picture is: `size` bytes at `offset` of a file, or (size 0) the whole file.

    `draw` are the numbers that decide which random part of it is taken; without them it is the whole, scaled to cover the input.
    """

    file: str
    offset: int = 0
    size: int = 0
    draw: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.file}, the picture at byte {self.offset}," if self.size else self.file


@dataclass(frozen=True)
class LabelledImages:
    """One split in memory. `images` is `N H W C` uint8 RGB, `labels` is `N` int64, `classes` their names in order."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> LabelledImages:
        """The images `index`, in this order."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def head(self, count: int) -> LabelledImages:
        """The first `count` images."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def batches(self, size: int, workers: int = WORKERS, *, first: int = 0, last: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """The images `first` to `last` in order, `n H W C`, `size` at a time. They hold until the next ones are asked for."""
        stop = len(self) if last is None else last
        return (self.images[start : min(start + size, stop)] for start in range(first, stop, size))


@dataclass(frozen=True)
class EncodedImages:
    """One split whose pictures are decoded when they are needed, by `preprocess`.

    Attributes:
        files: image files, or archives of many images. file: `N`, which of them holds an image.
        offset, size: `N` each, where in its file an image is; size 0 is the whole file.
    """

    files: tuple[str, ...]
    file: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str
    preprocess: Preprocess

    @classmethod
    def of_files(
        cls, files: Iterable[tuple[str, int]], classes: tuple[str, ...], source: str, preprocess: Preprocess
    ) -> EncodedImages:
        """Image files with the number of their class."""
        import numpy as np

        listed = list(files)
        whole = np.zeros(len(listed), np.int64)
        labels = np.asarray([label for _, label in listed], np.int64)
        return cls(tuple(f for f, _ in listed), np.arange(len(listed)), whole, whole, labels, classes, source, preprocess)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def decoded_bytes(self) -> int:
        """What all images take in memory."""
        return len(self) * self.preprocess.height * self.preprocess.width * 3

    def picture(self, number: int, draw: tuple[int, ...] | None = None) -> Picture:
        """Where image `number` is."""
        return Picture(self.files[self.file[number]], int(self.offset[number]), int(self.size[number]), draw)

    def take(self, index: NDArray[np.int64]) -> EncodedImages:
        """The images `index`, in this order."""
        arrays = {name: getattr(self, name)[index] for name in ("file", "offset", "size", "labels")}
        return replace(self, **arrays)

    def head(self, count: int) -> LabelledImages:
        """The first `count` images, decoded."""
        import numpy as np

        return self.take(np.arange(min(count, len(self)))).decode()

    def decode(self, workers: int = 0) -> LabelledImages:
        """All of them in memory; many are decoded by `workers` processes.

        Raises:
            DataError: one of them is no picture.
        """
        import numpy as np

        images = np.empty((len(self), self.preprocess.height, self.preprocess.width, 3), np.uint8)
        done = 0
        for batch in self.batches(256, workers):
            images[done : done + len(batch)] = batch
            done += len(batch)
        return LabelledImages(images, self.labels, self.classes, self.source)

    def batches(self, size: int, workers: int = WORKERS, *, first: int = 0, last: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """The images `first` to `last` in order, `n H W C`, `size` at a time; many are decoded by `workers` processes. They hold
        until the next ones are asked for.

        Raises:
            DataError, IntegrityError: one of them cannot be decoded.
        """
        from .pool import DecodePool

        stop = len(self) if last is None else last
        requests = ([self.picture(n) for n in range(s, min(s + size, stop))] for s in range(first, stop, size))
        with DecodePool(self.preprocess, size, workers if stop - first > DECODE_ALONE else 0) as pool:
            yield from pool.stream(requests)


ImageSplit = LabelledImages | EncodedImages
