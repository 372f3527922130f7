"""Tiny-ImageNet-200, Stanford CS231N, http://cs231n.stanford.edu/tiny-imagenet-200.zip, in its official layout.

train/<wnid>/images/*.JPEG   val/images/*.JPEG with val/val_annotations.txt   wnids.txt   words.txt

Readings: 1. the labels of test/ were never published: the test split is val/. 2. Classes are in the order of their WordNet numbers,
as an image folder has them, not in that of wnids.txt.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError, IntegrityError
from ..preprocess import Preprocess
from .folder import class_names, images_below
from .images import EncodedImages, Split

ANNOTATIONS = Path("val", "val_annotations.txt")
SOURCE = "tiny-imagenet"
HINT = "unpack the official tiny-imagenet-200.zip again"


def is_tiny_imagenet(path: Path) -> bool:
    """Whether `path` has the official layout."""
    return (path / ANNOTATIONS).is_file() and (path / "wnids.txt").is_file()


def open_tiny_imagenet(path: Path, split: Split, preprocess: Preprocess) -> EncodedImages:
    """The pictures of `train`, or of `val` for the test split.

    Raises:
        IntegrityError: a line of the annotations cannot be read, or names a class that wnids.txt does not have.
    """
    numbers = sorted((path / "wnids.txt").read_text().split())
    label_of = {number: label for label, number in enumerate(numbers)}
    if split == "train":
        files = [(f, label) for number, label in label_of.items() for f in images_below(str(path / "train" / number))]
    else:
        files = []
        for line_number, line in enumerate((path / ANNOTATIONS).read_text().splitlines(), start=1):
            name, number = [*line.split("\t"), "", ""][:2]
            if number not in label_of:
                raise IntegrityError(f"{path / ANNOTATIONS}, line {line_number}: '{line[:60]}' names no class", hint=HINT)
            files.append((str(path / "val" / "images" / name), label_of[number]))
    if not files:
        raise DataError(f"{path} holds no {split} images", hint=HINT)
    return EncodedImages.of_files(files, class_names(path, numbers), SOURCE, preprocess)
