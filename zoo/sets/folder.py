"""An image folder: `<split>/<class>/*.jpg`, as ImageNet is laid out. Classes that are WordNet numbers get their English names where
a list of them lies beside (`words.txt` of Tiny-ImageNet, `LOC_synset_mapping.txt` of ImageNet)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError
from ..preprocess import Preprocess
from .images import IMAGE_SUFFIXES, EncodedImages, Split

FOLDERS = {"train": ("train",), "test": ("test", "val")}
NAME_LISTS = ("words.txt", "LOC_synset_mapping.txt")
HINT = "name it with --data: the folder of a known data set, a folder of class folders or of tar archives, or an .npz file"
FLAT_HINT = "every class needs a folder; the official validation images of ImageNet are sorted by its script valprep.sh"


def split_folder(path: Path, split: Split) -> Path:
    """`path/train`, `path/test` or `path/val`; a `path` without any of them is itself the test split."""
    root = next((path / n for n in FOLDERS[split] if (path / n).is_dir()), path)
    if root == path and (split == "train" or (path / "train").is_dir()):
        raise DataError(f"{path} has no folder {' or '.join(FOLDERS[split])}", hint=HINT)
    return root


def open_folder(path: Path, split: Split, preprocess: Preprocess) -> EncodedImages:
    """`path/<split>/<class>/*.jpg`, also with `val` for test, or `path/<class>/*.jpg` alone as the test split."""
    root = split_folder(path, split)
    folders = sorted(d.name for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
    files = [(file, label) for label, name in enumerate(folders) for file in images_below(str(root / name))]
    if not files:
        flat = next(images_below(str(root)), None) is not None
        raise DataError(f"{root} holds no images in class folders", hint=FLAT_HINT if flat else HINT)
    return EncodedImages.of_files(files, class_names(path, folders), path.name, preprocess)


def images_below(folder: str) -> Iterator[str]:
    """Image files in `folder` and deeper, sorted; without a path object for each, which a million of them would pay for."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (f"{root}/{name}" for name in sorted(names) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)  # noqa: PTH122


def class_names(path: Path, folders: list[str]) -> tuple[str, ...]:
    """What the classes are called: the first word for a WordNet number where a list of words is at hand, else the folder's name.

    Two classes of one name (ImageNet has two cranes) keep their number behind it.
    """
    if not all(re.fullmatch(r"n\d{8}", name) for name in folders):
        return tuple(folders)
    words: dict[str, str] = {}
    for file in (path / name for name in NAME_LISTS):
        if file.is_file():
            lines = (re.split(r"[\t ]", line.strip(), maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines())
            words |= {line[0]: line[1].split(",")[0].strip() for line in lines if len(line) == 2}
    names = [words.get(number) or number for number in folders]
    count = Counter(names)
    return tuple(name if count[name] == 1 else f"{name} {number}" for name, number in zip(names, folders, strict=True))
