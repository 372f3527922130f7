"""CIFAR-10 and CIFAR-100, Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html, from the official python files.

Nothing is unpickled before its md5 is the published one, and then by an unpickler that can only build lists, strings and arrays.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

from ...errors import DataError, IntegrityError
from .images import LabelledImages, Split

CIFAR10_FOLDER, CIFAR100_FOLDER = "cifar-10-batches-py", "cifar-100-python"
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
CIFAR100_MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


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
    """Content of an official CIFAR file."""
    if not path.is_file():
        archive = "cifar-10-python.tar.gz" if path.parent.name == CIFAR10_FOLDER else "cifar-100-python.tar.gz"
        raise DataError(f"{path} is missing", hint=f"unpack the official {archive}")
    data = path.read_bytes()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise IntegrityError(f"{path} has md5 {found}, the official file has {md5}", hint="download and unpack it again")
    document: dict[str, Any] = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    return document


def read_cifar100(folder: Path, split: Split) -> LabelledImages:
    """The official files, `train` / `test` and `meta`, fine labels."""
    document = _unpickle_official(folder / split, CIFAR100_MD5[split])
    classes = _unpickle_official(folder / "meta", CIFAR100_MD5["meta"])["fine_label_names"]
    return _from_planes([document["data"]], document["fine_labels"], tuple(classes), "cifar100")


def read_cifar10(folder: Path, split: Split) -> LabelledImages:
    """The official files, `data_batch_1` to `5` / `test_batch` and `batches.meta`."""
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    documents = [_unpickle_official(folder / name, CIFAR10_MD5[name]) for name in names]
    classes = _unpickle_official(folder / "batches.meta", CIFAR10_MD5["batches.meta"])["label_names"]
    labels = [label for document in documents for label in document["labels"]]
    return _from_planes([d["data"] for d in documents], labels, tuple(classes), "cifar10")


def _from_planes(planes: list[Any], labels: list[int], classes: tuple[str, ...], source: str) -> LabelledImages:
    """Rows of a red, a green and a blue plane become pixels."""
    import numpy as np

    images = np.concatenate(planes).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return LabelledImages(np.ascontiguousarray(images), np.asarray(labels, np.int64), classes, source)
