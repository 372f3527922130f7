"""Labelled images from what users have on disk: the official CIFAR-100 files, `.npz`, image folders. Torch-free.

It stands in `zoo` and not in `train`, because `export` reads the same test split and may not import `train`.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DataError, IntegrityError
from .preprocess import Preprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Split = Literal["train", "test"]
CIFAR100_MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
HINT = "name it with --data: a folder with cifar-100-python/, an .npz file, or a folder of class folders"


@dataclass(frozen=True)
class LabelledImages:
    """One split. `images` is `N H W C` uint8 RGB, `labels` is `N` int64, `classes` their names in order."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.labels)


def find_data(dataset: str, given: Path | None) -> Path:
    """Where the images are: what the user gave, `$KDZOO_DATA`, or `./data`, in this order; raises `DataError` if nowhere."""
    if given is not None:
        if not given.exists():
            raise DataError(f"there is no data at {given}", hint=HINT)
        return given
    places = [Path(p) for p in (os.environ.get("KDZOO_DATA"), "data") if p]
    for place in places:
        if (place / "cifar-100-python").is_dir() and dataset == "cifar100":
            return place
        if (place / f"{dataset}.npz").is_file():
            return place / f"{dataset}.npz"
        if (place / dataset).is_dir():
            return place / dataset
    raise DataError(f"the images of '{dataset}' are not at hand; looked in {', '.join(map(str, places))}", hint=HINT)


def read_split(path: Path, split: Split, preprocess: Preprocess) -> LabelledImages:
    """One split of the data at `path`, whose kind is recognised by its content.

    Raises:
        DataError: nothing usable is there, or its images do not have the size of `preprocess`.
        IntegrityError: a CIFAR file is not the official one.
    """
    if not path.exists():
        raise DataError(f"there is no data at {path}", hint=HINT)
    if path.is_file():
        data = read_npz(path, split)
    elif (path / "cifar-100-python").is_dir() or path.name == "cifar-100-python":
        data = read_cifar100(path if path.name == "cifar-100-python" else path / "cifar-100-python", split)
    else:
        data = read_folder(path, split, preprocess)
    if data.images.shape[1:] != (preprocess.height, preprocess.width, 3):
        raise DataError(
            f"images of {path} are {data.images.shape[1:]}, the network takes {(preprocess.height, preprocess.width, 3)}",
            hint="give images of that size, or an image folder, which is scaled",
        )
    if len(data) == 0:
        raise DataError(f"{path} holds no {split} images", hint=HINT)
    return data


class _ArraysOnly(pickle.Unpickler):
    """Reads the pickles of CIFAR, which hold lists, strings and one numpy array, and nothing that can run."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _unpickle_official(path: Path, md5: str) -> dict[str, Any]:
    """Content of an official CIFAR file; nothing is unpickled before its md5 is the published one."""
    if not path.is_file():
        raise DataError(f"{path} is missing", hint="unpack the official cifar-100-python.tar.gz")
    data = path.read_bytes()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise IntegrityError(f"{path} has md5 {found}, the official file has {md5}", hint="download and unpack it again")
    document: dict[str, Any] = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    return document


def read_cifar100(folder: Path, split: Split) -> LabelledImages:
    """The official files, `train` / `test` and `meta`, fine labels."""
    import numpy as np

    document = _unpickle_official(folder / split, CIFAR100_MD5[split])
    classes = _unpickle_official(folder / "meta", CIFAR100_MD5["meta"])["fine_label_names"]
    images = np.ascontiguousarray(document["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return LabelledImages(images, np.asarray(document["fine_labels"], np.int64), tuple(classes), "cifar100")


def read_npz(path: Path, split: Split) -> LabelledImages:
    """Arrays `train_images`, `train_labels`, `test_images`, `test_labels` and, optionally, `classes`. No pickles inside."""
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
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint="write it with numpy.savez, without objects") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or labels.shape != images.shape[:1]:
        raise DataError(f"{path}: {split}_images must be N H W 3 uint8 with one label each, not {images.shape} {images.dtype}")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{path}: {split}_labels must be whole numbers, not {labels.dtype}")
    if labels.size and (labels.min() < 0 or labels.max() >= len(classes)):
        raise DataError(f"{path}: {split}_labels go from {labels.min()} to {labels.max()}, but there are {len(classes)} classes")
    return LabelledImages(images, labels.astype(np.int64), classes, path.stem)


def read_folder(path: Path, split: Split, preprocess: Preprocess) -> LabelledImages:
    """`path/<split>/<class>/*.jpg`, also with `val` for test, or `path/<class>/*.jpg` alone as the test split."""
    import numpy as np

    names = ("train",) if split == "train" else ("test", "val")
    root = next((path / n for n in names if (path / n).is_dir()), path)
    if root == path and (split == "train" or (path / "train").is_dir()):
        raise DataError(f"{path} has no folder {' or '.join(names)}", hint=HINT)
    classes = tuple(sorted(d.name for d in root.iterdir() if d.is_dir() and not d.name.startswith(".")))
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise DataError(f"{root} holds no images in class folders", hint=HINT)
    images = np.stack([preprocess.read(file) for file, _ in files])
    return LabelledImages(images, np.asarray([label for _, label in files], np.int64), classes, path.name)
