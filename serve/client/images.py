"""The images that a client is given, in any of their forms: as files to upload, or as the pixels they are. NumPy and Pillow.

Shapes: `N` images, `H` `W` space, `C` channels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ...errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    One: TypeAlias = str | Path | bytes | Image | NDArray[np.uint8]
    Images: TypeAlias = One | Iterable[One]

FORMS = "a path, the bytes of a file, a PIL image, or a NumPy array uint8 H W C (or N H W C)"
CHANNELS = (1, 3, 4)


def each_of(images: Images) -> list[Any]:
    """One or many images as a list; arrays are `H W C` then.

    Raises:
        UsageError: something is no image.
    """
    import numpy as np

    if isinstance(images, np.ndarray) and images.ndim == 4:
        return [_checked(image) for image in images]
    if _is_one(images):
        return [_checked(images)]
    if isinstance(images, Iterable):
        return [_checked(image) for image in images]
    raise UsageError(f"an image cannot be of type {type(images).__name__}", hint=f"give {FORMS}")


def name_of(image: Any, number: int) -> str:
    """What messages call it."""
    return str(image) if isinstance(image, (str, Path)) else f"image {number}"


def as_file(image: Any) -> Callable[[], bytes]:
    """What gives the file to upload, when its turn comes: as it is, or, of pixels, a PNG, which loses nothing. It raises
    `DataError` where a file cannot be read."""
    if isinstance(image, (str, Path)):
        return lambda: _read(Path(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return lambda: bytes(image)
    return lambda: _png(image)


def _is_one(image: object) -> bool:
    import numpy as np
    from PIL.Image import Image

    return isinstance(image, (str, Path, bytes, bytearray, memoryview, np.ndarray, Image))


def _checked(image: Any) -> Any:
    import numpy as np

    if not _is_one(image):
        raise UsageError(f"an image cannot be of type {type(image).__name__}", hint=f"give {FORMS}")
    is_array = isinstance(image, np.ndarray)
    if is_array and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in CHANNELS or not image.size):
        raise UsageError(f"an image cannot be an array {image.dtype} of shape {image.shape}", hint=f"give {FORMS}")
    return image


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _png(image: Any) -> bytes:
    """Upright, as a file of the same picture would be shown."""
    import numpy as np
    from PIL import Image, ImageOps

    if isinstance(image, np.ndarray):
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    else:
        picture = ImageOps.exif_transpose(image)
        if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            picture = picture.convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
