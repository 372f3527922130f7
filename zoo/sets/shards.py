"""Tar archives in the layout of WebDataset, https://github.com/webdataset/webdataset, for sets of more files than a disk likes.

train/<name>-000000.tar ...   test/ or val/<name>-000000.tar ...   classes.txt (optional, one name a line)

An archive holds `<key>.jpg` (or png, webp, bmp) and, for the same key, `<key>.cls` (the number of the class) or `<key>.json` (with
`label`). They are read once for an index of where each picture is; every picture is then one read, so that images are shuffled over
the whole set and not within a window.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...errors import DataError, IntegrityError
from ..preprocess import Preprocess
from .folder import FOLDERS, split_folder
from .images import IMAGE_SUFFIXES, EncodedImages, Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLASSES = "classes.txt"
END = tarfile.BLOCKSIZE  # an archive ends with blocks of zeros
LABEL_BYTES = 1 << 16
AGAIN = "copy or pack it again"


class Index(NamedTuple):
    """One archive: where its pictures are, in the order of the archive, and their classes."""

    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    label: NDArray[np.int64]


def archives(folder: Path) -> list[Path]:
    """The shards of one split, in order. ImageNet's n01440764.tar, which may lie beside its class folders, is none."""
    return sorted(file for file in folder.glob("*.tar") if re.fullmatch(r"(.*[^A-Za-z0-9])?\d+", file.stem))


def holds_shards(path: Path) -> bool:
    """Whether `path`, or a split folder in it, holds shards."""
    return any(archives(folder) for folder in (path, *(path / name for names in FOLDERS.values() for name in names)))


def open_shards(path: Path, split: Split, preprocess: Preprocess) -> EncodedImages:
    """The pictures of all archives of a split.

    Raises:
        DataError: a picture has no label, or one outside the classes.
        IntegrityError: an archive is cut off or no archive, or a picture in it is empty.
    """
    import numpy as np

    files = archives(split_folder(path, split))
    if not files:
        raise DataError(f"{path} has no tar archives for {split}", hint="pack a folder with tools/make_shards.py")
    indexes = [index_of(file) for file in files]
    names = path / CLASSES
    if names.is_file():
        classes = tuple(line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip())
    else:  # both splits are counted, so that they agree
        others = {f for names in FOLDERS.values() for name in names for f in archives(path / name)} - set(files)
        largest = max(int(i.label.max(initial=-1)) for i in [*indexes, *map(index_of, sorted(others))])
        classes = tuple(map(str, range(largest + 1)))
    for file, index in zip(files, indexes, strict=True):
        if index.label.size and not 0 <= index.label.min() <= index.label.max() < len(classes):
            raise DataError(
                f"{file}: labels go from {index.label.min()} to {index.label.max()}, but there are {len(classes)} classes",
                hint=f"{CLASSES} lists the classes, one a line, the first is number 0",
            )
    which = np.repeat(np.arange(len(files)), [len(index.label) for index in indexes])
    offset, size, label = (np.concatenate(arrays) for arrays in zip(*indexes, strict=True))
    return EncodedImages(tuple(map(str, files)), which, offset, size, label, classes, path.name, preprocess)


def index_of(file: Path) -> Index:
    """The index of one archive, made once as long as the file stays the same."""
    stat = file.stat()
    return _index(str(file), stat.st_size, stat.st_mtime_ns)


@cache
def _index(file: str, size: int, changed: int) -> Index:
    import numpy as np

    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with Path(file).open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue
                key, suffix = _parts(member.name)
                if suffix in IMAGE_SUFFIXES:
                    if not member.size:  # which `Picture` would take for the whole file
                        raise IntegrityError(f"{file}: the picture {member.name} is empty", hint=AGAIN)
                    if key in pictures:
                        raise DataError(f"{file}: there are two pictures of the name '{key}'", hint="every key has one picture")
                    pictures[key] = member.offset_data, member.size
                elif suffix in (".cls", ".json"):
                    label = os.pread(stream.fileno(), min(member.size, LABEL_BYTES), member.offset_data)
                    if len(label) < min(member.size, LABEL_BYTES):
                        raise tarfile.ReadError("unexpected end of data")
                    labels[key] = _label(file, member.name, label, is_json=suffix == ".json")
            if os.pread(stream.fileno(), END, archive.offset) != bytes(END):
                raise tarfile.ReadError("the end is missing")
    except (tarfile.TarError, OSError) as error:
        raise IntegrityError(f"{file} is not a whole, uncompressed tar archive: {error}", hint=AGAIN) from None
    without = next((key for key in pictures if key not in labels), None)
    if without is not None:
        raise DataError(
            f"{file}: the picture '{without}' has no label", hint=f"each needs {without}.cls, or {without}.json with a 'label'"
        )
    places = np.asarray(list(pictures.values()), np.int64).reshape(-1, 2)
    return Index(places[:, 0].copy(), places[:, 1].copy(), np.asarray([labels[key] for key in pictures], np.int64))


def _parts(name: str) -> tuple[str, str]:
    """Key and suffix: what is before and after the first dot of the file's name, as in WebDataset."""
    folder, slash, base = name.rpartition("/")
    key, dot, suffix = base.partition(".")
    return folder + slash + key, dot + suffix.lower()


def _label(file: str, name: str, data: bytes, *, is_json: bool) -> int:
    try:
        label = json.loads(data)["label"] if is_json else int(data)
    except (ValueError, KeyError, TypeError):
        label = None
    if not isinstance(label, int) or isinstance(label, bool):
        raise DataError(f"{file}: {name} holds no class number but {data[:30]!r}", hint="a .cls is a whole number such as 17")
    return label
