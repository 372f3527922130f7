"""From a picture to the pixels that a student was trained on, and the normalisation inside its graph. Torch-free."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, IntegrityError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # Pillow knows many more, some of which start other programs
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values for pictures that lie on their side
STRIP = 100  # times the short side: of a longer picture the ends are cut off before it is scaled, or it might not fit into memory
SPARE = 2  # a JPEG is decoded at a fraction of its size where that still has so many times the pixels that are needed
Box = tuple[float, float, float, float]  # left, top, right, bottom

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Preprocess:
    """Geometry in pixels, and per-channel statistics (RGB, for values of 0..1) that normalise as (x/255 - mean)/std.

    An image of another size is scaled (bilinear, antialiased) until it covers `height` x `width`, or, where `resize` is above 0,
    until its short side has so many pixels; then it is cropped in the centre.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int = 0

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Preprocess:
        """Raises `IntegrityError` where a field is missing or wrong."""
        try:
            mean, std = (tuple(float(v) for v in document[name]) for name in ("mean", "std"))
            height, width, resize = int(document["height"]), int(document["width"]), int(document.get("resize", 0))
            fits = min(height, width) >= 1 and (resize == 0 or resize >= max(height, width))
            if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or not fits:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise IntegrityError(
                f"preprocessing {document!r} is not one that kdzoo wrote", hint="export the student again"
            ) from None
        return cls(height, width, mean, std, resize)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back; without `resize` where there is none, as before there was such a field."""
        fields = {name: value for name, value in asdict(self).items() if value or name != "resize"}
        return {**fields, "mean": list(self.mean), "std": list(self.std), "interpolation": "bilinear", "crop": "center"}

    def read(
        self, source: Path | bytes, part: Callable[[int, int], Box] | None = None, name: str = "the image"
    ) -> NDArray[np.uint8]:
        """Decode an image file to `H W C` uint8 RGB.

        `part` tells from width and height which part of the picture is taken and scaled to the size; `name` is what messages call
        the picture where `source` is its bytes.

        Raises:
            DataError: the file is missing, or no image that Pillow can decode.
        """
        import numpy as np
        from PIL import Image, ImageOps, UnidentifiedImageError

        name = name if isinstance(source, bytes) else str(source)
        size = (self.width, self.height)
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as picture:
                orientation = picture.getexif().get(ORIENTATION, 1)
                width, height = picture.size[::-1] if orientation in SIDEWAYS else picture.size
                box = (0.0, 0.0, float(width), float(height)) if part is None else part(width, height)
                needed = (self.resize, self.resize) if self.resize and part is None else size
                surplus = min((box[2] - box[0]) / needed[0], (box[3] - box[1]) / needed[1]) / SPARE
                if surplus >= 2:
                    picture.draft(None, (int(picture.width / surplus), int(picture.height / surplus)))  # JPEG; others ignore it
                image = picture if orientation == 1 else ImageOps.exif_transpose(picture)
                image = image.convert("RGB")
        except FileNotFoundError:
            raise DataError(f"{name} does not exist") from None
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{name} cannot be decoded: {error}", hint="give a whole JPEG, PNG, WebP, BMP or GIF file") from None
        if part is not None:
            across, down = image.width / width, image.height / height  # 1, or less where it was decoded at a fraction of its size
            edges = (round(box[0] * across), round(box[1] * down), round(box[2] * across), round(box[3] * down))
            image = image.crop(edges).resize(size, Image.Resampling.BILINEAR)
        elif self.resize:  # sizes and places are rounded as torchvision rounds them
            image = _centre(image, [min(side, STRIP * min(image.size)) for side in image.size])
            short = min(width, height)
            whole = [self.resize * min(side, STRIP * short) // short for side in (width, height)]
            image = _centre(image.resize(whole, Image.Resampling.BILINEAR), size)
        elif image.size != size:
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.uint8)


def _centre(image: Any, size: Sequence[int]) -> Any:
    """The middle of a picture, `size` wide and high."""
    left, top = (round((whole - part) / 2) for whole, part in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))
