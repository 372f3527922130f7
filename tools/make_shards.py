"""Pack a data set of image files into tar archives in the layout of WebDataset, with which `kdzoo train` works as with the files.

python tools/make_shards.py FOLDER OUT [--shard-mb 256]          writes OUT/{train,test}/<name>-000000.tar and OUT/classes.txt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kdzoo.errors import DataError
from kdzoo.zoo.datasets import EncodedImages, open_split
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.sets.pack import SHARD_BYTES, write_classes, write_shards

AS_IT_IS = Preprocess(1, 1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # nothing is decoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shard-mb", type=float, default=SHARD_BYTES / 1e6)
    arguments = parser.parse_args()

    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise SystemExit(f"{arguments.out} is not empty")
    for split in ("train", "test"):
        try:
            data = open_split(arguments.folder, split, AS_IT_IS, lazy=True)
        except DataError as error:
            print(f"no {split} images: {error}")
            continue
        if not isinstance(data, EncodedImages) or data.size.any():
            raise SystemExit(f"{arguments.folder} does not hold image files")
        files = write_shards(data, arguments.out / split, int(arguments.shard_mb * 1e6))
        write_classes(data.classes, arguments.out)
        print(f"{arguments.out / split}: {len(data):,} images of {len(data.classes)} classes in {len(files)} archives")


if __name__ == "__main__":
    main()
