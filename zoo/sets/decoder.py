"""Pictures from files and archives to pixels, in this process or in one of a pool. Starts fast: numpy and Pillow, no torch."""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, IntegrityError
from ..preprocess import Box, Preprocess
from .images import Picture

OPEN_ARCHIVES = 128  # of which a process keeps a descriptor; it may have 1024
AREA, ASPECT, TRIALS = (0.08, 1.0), (3 / 4, 4 / 3), 10


def random_part(numbers: tuple[int, ...]) -> Callable[[int, int], Box]:
    """A part of a picture of 8 to 100 % of its area and an aspect of 3/4 to 4/3, as a function of `numbers` and the picture's size.

    Szegedy et al., 2015, https://arxiv.org/abs/1409.4842, section 6, in the form of torchvision's `RandomResizedCrop`.
    """
    draw = np.random.default_rng(numbers)

    def part(width: int, height: int) -> Box:
        for _ in range(TRIALS):
            area = width * height * draw.uniform(*AREA)
            aspect = math.exp(draw.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
                return left, top, left + w, top + h
        w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    return part


class Decoder:
    """Reads pictures; keeps the archives that it reads from open."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess
        self._archives: OrderedDict[str, int] = OrderedDict()

    def read(self, picture: Picture) -> NDArray[np.uint8]:
        """Pixels `H W C`.

        Raises:
            DataError: it is missing, or no picture. IntegrityError: its archive has become shorter.
        """
        part = None if picture.draw is None else random_part(picture.draw)
        return self.preprocess.read(self._bytes(picture), part, name=str(picture))

    def close(self) -> None:
        """Close the archives."""
        while self._archives:
            os.close(self._archives.popitem()[1])

    def _bytes(self, picture: Picture) -> bytes:
        try:
            if not picture.size:
                with open(picture.file, "rb", buffering=0) as file:  # noqa: PTH123 - a path object for each picture takes time
                    return file.read()
            data = os.pread(self._archive(picture.file), picture.size, picture.offset)
        except OSError as error:
            raise DataError(f"{picture} cannot be read: {error.strerror}", hint="the data changed after the run began") from None
        if len(data) < picture.size:
            raise IntegrityError(f"{picture} is cut off: the file is shorter than when the run began", hint="copy it again")
        return data

    def _archive(self, file: str) -> int:
        if file not in self._archives:
            if len(self._archives) >= OPEN_ARCHIVES:
                os.close(self._archives.popitem(last=False)[1])
            self._archives[file] = os.open(file, os.O_RDONLY)
        self._archives.move_to_end(file)
        return self._archives[file]


def serve(tasks_fd: int, answers_fd: int, memory_fd: int, shape: tuple[int, ...], preprocess: dict[str, object]) -> None:
    """The life of a process of `DecodePool`: take a task, decode its pictures into the shared memory, answer; until there is
    nobody left who sends tasks."""
    decoder = Decoder(Preprocess.from_dict(preprocess))
    images = np.frombuffer(mmap.mmap(memory_fd, math.prod(shape)), np.uint8).reshape(shape)
    with socket.socket(fileno=tasks_fd) as tasks, socket.socket(fileno=answers_fd) as answers:
        while message := tasks.recv(1 << 22):
            slot, first, pictures = json.loads(message)
            answer: dict[str, object] = {"slot": slot}
            try:
                for place, (file, offset, size, draw) in enumerate(pictures, start=first):
                    images[slot, place] = decoder.read(Picture(file, offset, size, None if draw is None else tuple(draw)))
            except (DataError, IntegrityError) as error:
                answer |= {"error": type(error).__name__, "what": error.what, "hint": error.hint}
            try:
                answers.send(json.dumps(answer).encode())
            except (BrokenPipeError, ConnectionResetError):
                return
