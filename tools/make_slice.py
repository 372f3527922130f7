"""Cut the slice of CIFAR-100 that travels with the project: `python tools/make_slice.py --data FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from kdzoo.zoo.datasets import read_cifar100

CLASSES = ("apple", "bicycle", "bottle", "castle", "leopard", "orchid", "plain", "road", "rocket", "sunflower")
COUNT = {"train": 50, "test": 10}
SLICE = Path(__file__).resolve().parent.parent / "tests" / "data" / "cifar100-slice.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar-100-python/")
    folder = parser.parse_args().data / "cifar-100-python"
    arrays: dict[str, np.ndarray] = {"classes": np.array(CLASSES)}
    for split, count in COUNT.items():
        data = read_cifar100(folder, split)  # type: ignore[arg-type]
        index = np.concatenate([np.flatnonzero(data.labels == data.classes.index(name))[:count] for name in CLASSES])
        arrays[f"{split}_images"] = data.images[index]
        arrays[f"{split}_labels"] = np.repeat(np.arange(len(CLASSES)), count)
    np.savez_compressed(SLICE, **arrays)
    print(f"{SLICE}: {SLICE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
