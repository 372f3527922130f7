"""RAF-DB, basic emotions: Li, Deng & Du, 2017, http://www.whdeld.cn/#/research/RAF-DB, in its official layout.

Image/aligned/train_00001_aligned.jpg   EmoLabel/list_patition_label.txt with lines like `train_00001.jpg 5`

12,271 training and 3,068 test images of 100x100 pixels. The folder may be the one named `basic` or the one that holds it.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError, IntegrityError
from ..preprocess import Preprocess
from .images import EncodedImages, Split

LIST = Path("EmoLabel", "list_patition_label.txt")
CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")  # labels 1 to 7
SOURCE = "raf-db"


def raf_db_root(path: Path) -> Path | None:
    """The folder that holds `EmoLabel`, if there is one."""
    return next((root for root in (path, path / "basic") if (root / LIST).is_file()), None)


def open_raf_db(root: Path, split: Split, preprocess: Preprocess) -> EncodedImages:
    """The aligned faces whose names begin with the split.

    Raises:
        DataError: the aligned images are missing.
        IntegrityError: a line of the list cannot be read.
    """
    aligned = root / "Image" / "aligned"
    if not aligned.is_dir():
        raise DataError(f"{aligned} is missing", hint="unpack the official aligned.zip of RAF-DB there")
    files = []
    for number, line in enumerate((root / LIST).read_text().splitlines(), start=1):
        name, label = [*line.split(), "", ""][:2]
        stem, dot, suffix = name.rpartition(".")
        if not dot or label not in "1234567" or len(label) != 1 or not name.startswith(("train_", "test_")):
            raise IntegrityError(
                f"{root / LIST}, line {number}: '{line[:60]}' is not like 'train_00001.jpg 5'",
                hint="unpack the official list again",
            )
        if name.startswith(split):
            files.append((str(aligned / f"{stem}_aligned.{suffix}"), int(label) - 1))
    if not files:
        raise DataError(f"{root / LIST} lists no {split} images", hint="unpack the official list again")
    return EncodedImages.of_files(files, CLASSES, SOURCE, preprocess)
