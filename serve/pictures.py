"""Uploaded pictures: decoded within limits, in threads of their own, and answered with classes in words. NumPy and Pillow.

Shapes: `N` images, `H` `W` space, `C` channels, `K` classes.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..export.cascade import EXIT
from ..export.threads import physical_cores
from .refusal import Reason, Refusal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..zoo.preprocess import Preprocess
    from .model import Model

KINDS = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif", "application/octet-stream", "")


class Decoder:
    """Decodes uploads; no more than `bound` wait for it."""

    def __init__(self, max_pixels: int, bound: int, threads: int | None = None) -> None:
        self.max_pixels, self.bound, self.waiting = max_pixels, bound, 0
        self.pool = ThreadPoolExecutor(threads or physical_cores(), thread_name_prefix="decode")

    async def decode(self, pictures: Sequence[tuple[str, bytes]], preprocess: Preprocess) -> NDArray[np.uint8]:
        """`N H W C` of named files.

        Raises:
            Refusal: one is no picture, or has too many pixels; or too many wait already.
        """
        import numpy as np

        if self.waiting + len(pictures) > self.bound and self.waiting:
            raise Refusal(Reason.BUSY, f"{self.waiting} pictures wait to be decoded already")
        self.waiting += len(pictures)
        try:
            loop = asyncio.get_running_loop()
            tasks = [loop.run_in_executor(self.pool, self._decode, name, data, preprocess) for name, data in pictures]
            return np.stack(await asyncio.gather(*tasks))
        finally:
            self.waiting -= len(pictures)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, name: str, data: bytes, preprocess: Preprocess) -> NDArray[np.uint8]:
        check_pixels(name, data, self.max_pixels)
        try:
            return preprocess.read(data, name=name)
        except DataError as error:
            raise Refusal(Reason.BAD, f"{error.what:.300}") from None


def check_pixels(name: str, data: bytes, limit: int) -> None:
    """Raises a Refusal where the head of a picture tells of more pixels than `limit`; nothing is decoded."""
    from PIL import Image, UnidentifiedImageError

    from ..zoo.preprocess import FORMATS

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
    except Image.DecompressionBombError as error:
        raise Refusal(Reason.TOO_LARGE, f"{name} is refused: {error!s:.200}") from None
    except UnidentifiedImageError:
        raise Refusal(Reason.BAD, f"{name} cannot be decoded: it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's readers raise whatever they meet in a broken file
        raise Refusal(Reason.BAD, f"{name} cannot be decoded: {error!s:.200}") from None
    if width * height > limit:
        raise Refusal(Reason.TOO_LARGE, f"{name} has {width} x {height} pixels; this server decodes {limit}")


async def classify(
    model: Model,
    decoder: Decoder,
    pictures: Sequence[tuple[str, bytes]],
    top: int,
    timeout: float | None,
    watch: Callable[[asyncio.Future[Any]], None] = lambda future: None,
) -> dict[str, Any]:
    """The `top` classes of every picture, the exit it left a cascade at, and the time that decoding and computing took."""
    from .tensors import check_batch

    check_batch(model, len(pictures))
    assert model.batcher is not None
    began = time.perf_counter()
    images = await decoder.decode(pictures, model.package.preprocess)
    decoded = time.perf_counter()
    future = model.batcher.submit(model.prepared(images), timeout)
    watch(future)
    try:
        outputs = await future
    except asyncio.CancelledError:
        raise ConnectionError("the client went away") from None
    ended = time.perf_counter()
    answers = best(outputs["logits"], top, model.labels)
    predictions = [{"image": name, "classes": classes} for (name, _), classes in zip(pictures, answers, strict=True)]
    if EXIT in outputs:
        for prediction, exit in zip(predictions, outputs[EXIT].tolist(), strict=True):
            prediction["exit"] = exit
    return {
        "model_name": model.name,
        "target": model.package.document["target"],
        "predictions": predictions,
        "decode_ms": round(1000 * (decoded - began), 3),
        "infer_ms": round(1000 * (ended - decoded), 3),
    }


def best(logits: NDArray[Any], top: int, labels: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Of every image of `N K` the `top` classes, as `kdzoo predict` tells them."""
    import numpy as np

    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = shifted / shifted.sum(axis=1, keepdims=True)
    order = np.argsort(-shares, axis=1, kind="stable")[:, :top]
    return [
        [{"class": labels[k], "index": k, "probability": round(float(row[k]), 6)} for k in ks]
        for row, ks in zip(shares, order.tolist(), strict=True)
    ]
