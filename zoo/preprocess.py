"""From a picture to the pixels that a student was trained on, and the normalisation inside its graph. Torch-free."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, IntegrityError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # Pillow knows many more, some of which start other programs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Preprocess:
    """Geometry in pixels, and per-channel statistics (RGB, for values of 0..1) that normalise as (x/255 - mean)/std.

    An image of another size is scaled (bilinear, antialiased) until it covers `height` x `width`, then cropped in the centre.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Preprocess:
        """Raises `IntegrityError` where a field is missing or wrong."""
        try:
            mean, std = (tuple(float(v) for v in document[name]) for name in ("mean", "std"))
            height, width = int(document["height"]), int(document["width"])
            if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or min(height, width) < 1:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise IntegrityError(
                f"preprocessing {document!r} is not one that kdzoo wrote", hint="export the student again"
            ) from None
        return cls(height, width, mean, std)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std), "interpolation": "bilinear", "crop": "center"}

    def read(self, source: Path | bytes) -> NDArray[np.uint8]:
        """Decode an image file to `H W C` uint8 RGB.

        Raises:
            DataError: the file is missing, or no image that Pillow can decode.
        """
        import numpy as np
        from PIL import Image, ImageOps, UnidentifiedImageError

        name = "the image" if isinstance(source, bytes) else str(source)
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as picture:
                image = ImageOps.exif_transpose(picture).convert("RGB")
        except FileNotFoundError:
            raise DataError(f"{name} does not exist") from None
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{name} cannot be decoded: {error}", hint="give a whole JPEG, PNG, WebP, BMP or GIF file") from None
        if image.size != (self.width, self.height):
            image = ImageOps.fit(image, (self.width, self.height), Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.uint8)
