"""Labelled images from what users have on disk. Torch-free.

It stands in `zoo` and not in `train`, because `export` reads the same test split and may not import `train`. The layouts are in
`zoo.sets`; which one a path has is seen from its content.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError
from .preprocess import Preprocess
from .sets import cifar, folder, raf_db, shards, tiny_imagenet
from .sets.cifar import read_cifar10, read_cifar100
from .sets.folder import HINT
from .sets.held_out import held_out
from .sets.images import EncodedImages, ImageSplit, LabelledImages, Split
from .sets.long_tail import imbalance, long_tail
from .sets.npz import read_npz

__all__ = [
    "EncodedImages",
    "ImageSplit",
    "LabelledImages",
    "Split",
    "find_data",
    "held_out",
    "open_split",
    "read_cifar10",
    "read_cifar100",
    "read_npz",
    "read_split",
]

MEMORY_LIMIT = 2 * 2**30  # bytes; larger sets stay encoded
FOLDER_NAMES = {
    "cifar10": (cifar.CIFAR10_FOLDER,),
    "cifar100": (cifar.CIFAR100_FOLDER,),
    "tiny-imagenet": ("tiny-imagenet-200",),
    "imagenet": ("ILSVRC2012", "imagenet-1k"),
    "raf-db": ("RAF-DB", "rafdb"),
}


def find_data(dataset: str, given: Path | None) -> Path:
    """Where the images are: what the user gave, `$KDZOO_DATA`, or `./data`, in this order; raises `DataError` if nowhere.

    What the user gave may be the set, or a folder that holds it under its usual name.
    """
    base = imbalance(dataset)[0]
    if given is not None:
        if not given.exists():
            raise DataError(f"there is no data at {given}", hint=HINT)
        return _set_in(given, base) or given
    places = [Path(p) for p in (os.environ.get("KDZOO_DATA"), "data") if p]
    found = next((found for place in places if (found := _set_in(place, base))), None)
    if found is None:
        raise DataError(f"the images of '{base}' are not at hand; looked in {', '.join(map(str, places))}", hint=HINT)
    return found


def _set_in(place: Path, dataset: str) -> Path | None:
    names = FOLDER_NAMES.get(dataset, ())
    folders = (place / name for name in (*names, dataset) if (place / name).is_dir())
    file = place / f"{dataset}.npz"
    return next(folders, file if file.is_file() else None)


def open_split(
    path: Path,
    split: Split,
    preprocess: Preprocess,
    *,
    dataset: str = "",
    lazy: bool = False,
    memory_limit: int = MEMORY_LIMIT,
    workers: int = 0,
) -> ImageSplit:
    """One split of the data at `path`, whose kind is recognised by its content.

    A name of `dataset` that ends in `-lt50` or the like makes the training split long-tailed. Pictures stay encoded where `lazy`
    asks for it, in tar archives, and where they would take more than `memory_limit` bytes; else they are decoded now, by `workers`
    processes if there are many. What is stored as arrays is always in memory.

    Raises:
        DataError: nothing usable is there, or its images do not have the size of `preprocess`.
        IntegrityError: a CIFAR file is not the official one, an archive or a list of labels is broken.
    """
    if not path.exists():
        raise DataError(f"there is no data at {path}", hint=HINT)
    data = _open(path, split, preprocess)
    if isinstance(data, LabelledImages) and data.images.shape[1:] != (preprocess.height, preprocess.width, 3):
        raise DataError(
            f"images of {path} are {data.images.shape[1:]}, the network takes {(preprocess.height, preprocess.width, 3)}",
            hint="give images of that size, or an image folder, which is scaled",
        )
    if len(data) == 0:
        raise DataError(f"{path} holds no {split} images", hint=HINT)
    factor = imbalance(dataset)[1]
    if factor > 1 and split == "train":
        data = long_tail(data, factor)
    if isinstance(data, EncodedImages) and not lazy and not data.size.any() and data.decoded_bytes <= memory_limit:
        return data.decode(workers)
    return data


def read_split(path: Path, split: Split, preprocess: Preprocess, *, dataset: str = "", workers: int = 0) -> LabelledImages:
    """`open_split` with all images in memory, however many."""
    data = open_split(path, split, preprocess, dataset=dataset, lazy=True)
    return data.decode(workers) if isinstance(data, EncodedImages) else data


def _open(path: Path, split: Split, preprocess: Preprocess) -> ImageSplit:
    if path.is_file():
        if path.suffix == ".tar":
            raise DataError(f"{path} is a single archive", hint="name the folder that holds train/ and test/ with the archives")
        return read_npz(path, split)
    for name, read in ((cifar.CIFAR100_FOLDER, read_cifar100), (cifar.CIFAR10_FOLDER, read_cifar10)):
        if path.name == name or (path / name).is_dir():
            return read(path if path.name == name else path / name, split)
    raf_db_root = raf_db.raf_db_root(path)
    if raf_db_root is not None:
        return raf_db.open_raf_db(raf_db_root, split, preprocess)
    if tiny_imagenet.is_tiny_imagenet(path):
        return tiny_imagenet.open_tiny_imagenet(path, split, preprocess)
    if shards.holds_shards(path):
        return shards.open_shards(path, split, preprocess)
    return folder.open_folder(path, split, preprocess)
