"""Grad-CAM as small pictures: heat over the grey image, one row per image, one column per classifier.

Shapes: `B` images, `H` `W` space, `h` `w` space of a map.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from ...zoo.datasets import LabelledImages
from .gradcam import Explanation, heat

SIDE = 112  # pixels of the shorter side of a tile; shown at half to two thirds of it
OPACITY = 0.55
COLOURS = "inferno"


@dataclass(frozen=True)
class Cell:
    """One tile and what stands below it. `mark` is empty where there is nothing to be right or wrong about."""

    jpeg: bytes
    alt: str
    lines: tuple[str, ...]
    mark: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of tiles; `scale` is the bar of colours, from nothing to the largest value of a map."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    scale: bytes


def gradcam_grid(data: LabelledImages, places: Sequence[int], found: Sequence[Explanation]) -> Grid:
    """The images of `data`, which stand at `places` in the split, beside the explanations of each; a prediction is marked right or
    wrong in words."""
    size = _size(data.images.shape[1], data.images.shape[2])
    heats = [heat(explanation.cam, *size).numpy() for explanation in found]
    rows = []
    for row, (place, pixels, label) in enumerate(zip(places, data.images, data.labels.tolist(), strict=True)):
        truth, image = data.classes[label], _enlarge(pixels, size)
        cells = [Cell(_jpeg(image), f"test image {place} of class {truth}", (truth,))]
        for explanation, heat_BHW in zip(found, heats, strict=True):
            said, sure = data.classes[explanation.predicted[row]], explanation.confidence[row]
            mark = "right" if explanation.predicted[row] == label else "wrong"
            shown = "Grad-CAM" if heat_BHW[row].any() else "Grad-CAM (empty: no place speaks for the class)"
            alt = f"{shown} of {explanation.name} on test image {place}: predicts {said}, {mark}; the class is {truth}"
            cells.append(Cell(_jpeg(blend(image, heat_BHW[row])), alt, (said, f"{100 * sure:.0f} %"), mark))
        rows.append(tuple(cells))
    bar = np.repeat(np.linspace(0, 1, 160, dtype=np.float32)[None], 12, axis=0)
    return Grid(("image and class", *(e.name for e in found)), tuple(rows), _jpeg(_colours(bar)))


def blend(image_HW3: UInt8[ndarray, "H W 3"], heat_HW: Float[ndarray, "H W"]) -> UInt8[ndarray, "H W 3"]:
    """The image in grey under the colours of the heat, so that all colour is heat."""
    grey_HW1 = image_HW3.astype(np.float32).mean(axis=2, keepdims=True)
    return ((1 - OPACITY) * grey_HW1 + OPACITY * _colours(heat_HW)).round().astype(np.uint8)


def _colours(heat_HW: Float[ndarray, "H W"]) -> UInt8[ndarray, "H W 3"]:
    import matplotlib as mpl

    return mpl.colormaps[COLOURS](heat_HW, bytes=True)[..., :3]


def _size(height: int, width: int) -> tuple[int, int]:
    scale = SIDE / min(height, width)
    return round(height * scale), round(width * scale)


def _enlarge(image_HW3: UInt8[ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[ndarray, "H W 3"]:
    from PIL import Image

    return np.asarray(Image.fromarray(image_HW3).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _jpeg(image_HW3: UInt8[ndarray, "H W 3"]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()
