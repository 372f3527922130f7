"""Arrays `train_images`, `train_labels`, `test_images`, `test_labels` and, optionally, `classes` in one `.npz`. No pickles."""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError, IntegrityError
from .cifar import CIFAR10_CLASSES
from .images import LabelledImages, Split

KNOWN_CLASSES = {"cifar10": CIFAR10_CLASSES}  # of files that carry no names


def read_npz(path: Path, split: Split) -> LabelledImages:
    """Raises `IntegrityError` where the file is not whole, `DataError` where its arrays do not fit."""
    import zipfile
    import zlib

    import numpy as np

    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no .npz file, or not a whole one")
        with np.load(path, allow_pickle=False) as arrays:
            names = set(arrays.files)
            missing = {f"{split}_images", f"{split}_labels"} - names
            if missing:
                raise DataError(f"{path} has no array {', '.join(sorted(missing))}", known=sorted(names))
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            if "classes" in names:
                classes = tuple(str(c) for c in arrays["classes"])
            else:
                labels_of = [arrays[n] for n in ("train_labels", "test_labels") if n in names]
                classes = tuple(str(i) for i in range(1 + max(int(a.max()) for a in labels_of)))
                if len(KNOWN_CLASSES.get(path.stem, ())) == len(classes):
                    classes = KNOWN_CLASSES[path.stem]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint="write it with numpy.savez, without objects") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or labels.shape != images.shape[:1]:
        raise DataError(f"{path}: {split}_images must be N H W 3 uint8 with one label each, not {images.shape} {images.dtype}")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{path}: {split}_labels must be whole numbers, not {labels.dtype}")
    if labels.size and (labels.min() < 0 or labels.max() >= len(classes)):
        raise DataError(f"{path}: {split}_labels go from {labels.min()} to {labels.max()}, but there are {len(classes)} classes")
    return LabelledImages(images, labels.astype(np.int64), classes, path.stem)
