"""Images from disk: what is read is exact, and what cannot be read is refused by name. Nothing on disk can run code."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdzoo.errors import DataError, IntegrityError
from kdzoo.zoo.datasets import LabelledImages, find_data, read_split
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.sets import cifar

UNPACK = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "unpack.py"


def png(colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (32, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# .npz


def test_npz_is_read_as_it_was_written(tiny_npz: Path, preprocess: Preprocess) -> None:
    with np.load(tiny_npz) as written:
        for split in ("train", "test"):
            data = read_split(tiny_npz, split, preprocess)  # type: ignore[arg-type]
            assert np.array_equal(data.images, written[f"{split}_images"]) and data.images.dtype == np.uint8
            assert np.array_equal(data.labels, written[f"{split}_labels"]) and data.labels.dtype == np.int64
            assert len(data) == len(data.images)
            assert (data.classes, data.source) == (("red", "green", "blue", "grey"), "tiny")


def test_npz_without_names_counts_its_classes_over_both_splits(tmp_path: Path, preprocess: Preprocess) -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "x.npz", test_images=images, test_labels=[0, 1], train_images=images, train_labels=[3, 0])
    assert read_split(tmp_path / "x.npz", "test", preprocess).classes == ("0", "1", "2", "3")


GOOD = {"test_images": np.zeros((2, 32, 32, 3), np.uint8), "test_labels": np.array([0, 1]), "classes": np.array(["a", "b"])}


@pytest.mark.parametrize(
    ("changes", "error", "what"),
    [
        ({"test_images": np.zeros((2, 32, 32, 3), np.float32)}, DataError, "uint8"),
        ({"test_images": np.zeros((2, 3, 32, 32), np.uint8)}, DataError, "N H W 3"),
        ({"test_images": np.zeros((2, 32, 32), np.uint8)}, DataError, "N H W 3"),
        ({"test_images": np.zeros((2, 16, 32, 3), np.uint8)}, DataError, r"\(16, 32, 3\).*\(32, 32, 3\)"),
        ({"test_images": GOOD["test_images"][:0], "test_labels": GOOD["test_labels"][:0]}, DataError, "no test images"),
        ({"test_labels": np.array([0, 2])}, DataError, "go from 0 to 2, but there are 2"),
        ({"test_labels": np.array([-1, 1])}, DataError, "go from -1"),
        ({"test_labels": np.array([0, 1, 1])}, DataError, "one label each"),
        ({"test_labels": np.array([[0], [1]])}, DataError, "one label each"),
        ({"test_labels": np.array([0.0, 0.5])}, DataError, "whole numbers"),
        ({"test_labels": np.array(["0", "1"])}, DataError, "whole numbers"),
        ({"test_labels": np.array([0, None], object)}, IntegrityError, "cannot be read"),
        ({"classes": np.array(["a", 1], object)}, IntegrityError, "cannot be read"),
        ({"test_labels": None}, DataError, "no array test_labels"),
        ({"test_images": None, "test_labels": None}, DataError, "no array test_images, test_labels"),
    ],
)
def test_npz_with_wrong_arrays_is_refused(
    changes: dict[str, Any], error: type[Exception], what: str, tmp_path: Path, preprocess: Preprocess
) -> None:
    np.savez(tmp_path / "x.npz", **{n: a for n, a in {**GOOD, **changes}.items() if a is not None})
    with pytest.raises(error, match=what):
        read_split(tmp_path / "x.npz", "test", preprocess)


@pytest.mark.parametrize("content", ["cut", "noise", "flipped", "npy", "pickle", "empty"])
def test_a_file_that_is_no_whole_npz_is_refused(content: str, tmp_path: Path, preprocess: Preprocess) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, **{**GOOD, "test_images": np.random.default_rng(0).integers(0, 9, (2, 32, 32, 3), np.uint8)})
    data = path.read_bytes()
    npy = io.BytesIO()
    np.save(npy, GOOD["test_images"])
    path.write_bytes(
        {
            "cut": data[: len(data) // 2],
            "noise": bytes(range(256)),
            "flipped": data[:200] + bytes(b ^ 0xFF for b in data[200:230]) + data[230:],
            "npy": npy.getvalue(),
            "pickle": pickle.dumps({"test_images": 1}),
            "empty": b"",
        }[content]
    )
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_split(path, "test", preprocess)


# Image folders


def test_image_folders_are_read_in_order_of_class_and_name(tmp_path: Path, preprocess: Preprocess) -> None:
    for split, shift in (("train", 0), ("val", 100)):
        put(tmp_path / "set" / split / "dog" / "b.PNG", png((shift + 3, 0, 0)))
        put(tmp_path / "set" / split / "dog" / "deeper" / "a.png", png((shift + 2, 0, 0), (64, 64)))
        put(tmp_path / "set" / split / "cat" / "z.bmp", png((shift + 1, 0, 0)))
        put(tmp_path / "set" / split / "cat" / "notes.txt", b"not an image")
        put(tmp_path / "set" / split / ".ipynb_checkpoints" / "x.png", png())
    for split, shift in (("train", 0), ("test", 100)):
        data = read_split(tmp_path / "set", split, preprocess)  # type: ignore[arg-type]
        assert data.classes == ("cat", "dog") and data.source == "set"
        assert data.labels.tolist() == [0, 1, 1]
        assert sorted(data.images[:, 5, 5, 0].tolist()) == [shift + 1, shift + 2, shift + 3], f"{split} got the other split"
        assert data.images.shape == (3, 32, 32, 3)


def test_class_folders_alone_are_the_test_split(tmp_path: Path, preprocess: Preprocess) -> None:
    put(tmp_path / "cat" / "z.png", png())
    assert read_split(tmp_path, "test", preprocess).classes == ("cat",)
    with pytest.raises(DataError, match="no folder train"):
        read_split(tmp_path, "train", preprocess)


def test_training_images_are_never_taken_for_the_test_split(tmp_path: Path, preprocess: Preprocess) -> None:
    put(tmp_path / "train" / "cat" / "z.png", png())
    with pytest.raises(DataError, match="no folder test or val"):
        read_split(tmp_path, "test", preprocess)


def test_folders_without_images_and_broken_images_are_named(tmp_path: Path, preprocess: Preprocess) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        read_split(tmp_path, "test", preprocess)
    put(tmp_path / "cat" / "broken.png", png()[:50])
    with pytest.raises(DataError, match=r"broken\.png cannot be decoded"):
        read_split(tmp_path, "test", preprocess)
    with pytest.raises(DataError, match="no data at"):
        read_split(tmp_path / "nowhere", "test", preprocess)


# CIFAR-100


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def cifar_files(folder: Path, train: object) -> Path:
    """`cifar-100-python` with a train file of our own; gives the folder to be named with --data."""
    classes = {"fine_label_names": [f"class{i}" for i in range(100)]}
    put(folder / "cifar-100-python" / "train", pickle.dumps(train, protocol=3))
    put(folder / "cifar-100-python" / "meta", pickle.dumps(classes, protocol=3))
    return folder


def accept(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Pretend that the files are the official ones."""
    for name in ("train", "meta"):
        md5 = hashlib.md5((folder / "cifar-100-python" / name).read_bytes()).hexdigest()
        patch.setitem(cifar.CIFAR100_MD5, name, md5)


def test_a_cifar_file_of_another_md5_is_refused_before_it_is_unpickled(
    tmp_path: Path, preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "attacked"
    folder = cifar_files(tmp_path, Attack(marker))

    def no_unpickling(*_: object, **__: object) -> None:
        raise AssertionError("an unknown file reached the unpickler")

    monkeypatch.setattr(cifar, "_ArraysOnly", no_unpickling)
    with pytest.raises(IntegrityError, match="md5"):
        read_split(folder, "train", preprocess)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_the_unpickler_runs_nothing_even_when_the_md5_is_right(
    protocol: int, tmp_path: Path, preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "attacked"
    folder = cifar_files(tmp_path, None)
    attack = pickle.dumps({"data": Attack(marker)}, protocol=protocol)
    put(folder / "cifar-100-python" / "train", attack)
    accept(folder, monkeypatch)
    with pytest.raises(pickle.UnpicklingError, match="is not allowed"):
        read_split(folder, "train", preprocess)
    assert not marker.exists()
    pickle.loads(attack)
    assert marker.exists(), "the attack of this test is none"


def test_cifar_planes_become_pixels(tmp_path: Path, preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch) -> None:
    planes = np.zeros((2, 3, 32, 32), np.uint8)
    planes[1, 0, 4, 7], planes[1, 2, 31, 0] = 200, 90
    folder = cifar_files(tmp_path, {"data": planes.reshape(2, 3072), "fine_labels": [99, 5], "coarse_labels": [1, 2]})
    accept(folder, monkeypatch)
    for path in (folder, folder / "cifar-100-python"):
        data = read_split(path, "train", preprocess)
        assert data.labels.tolist() == [99, 5] and len(data.classes) == 100
        assert data.images[1, 4, 7].tolist() == [200, 0, 0] and data.images[1, 31, 0].tolist() == [0, 0, 90]
    (folder / "cifar-100-python" / "meta").unlink()
    with pytest.raises(DataError, match="meta is missing"):
        read_split(folder, "train", preprocess)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    """The official CIFAR-100: where `$KDZOO_DATA` says, or unpacked from the shared folder beside the checkout."""
    folder = Path(os.environ.get("KDZOO_DATA", "nowhere"))
    if not (folder / "cifar-100-python").is_dir():
        if not UNPACK.is_file():
            pytest.skip("no official CIFAR-100 at hand: set KDZOO_DATA to the folder that holds cifar-100-python/")
        folder = tmp_path_factory.mktemp("cifar")
        subprocess.run([sys.executable, str(UNPACK), str(folder), "cifar100"], check=True, capture_output=True)
    return read_split(folder, "train", Preprocess(32, 32, (0, 0, 0), (1, 1, 1)))


@pytest.mark.slow
def test_the_real_cifar100_has_its_published_statistics(real: LabelledImages) -> None:
    """Statistics of shared/data/README.md; over the whole set, in float64 by histogram."""
    assert real.images.shape == (50_000, 32, 32, 3) and real.images.dtype == np.uint8
    assert np.bincount(real.labels).tolist() == [500] * 100
    assert (real.classes[0], real.classes[99], real.source) == ("apple", "worm", "cifar100")
    counts = np.stack([np.bincount(real.images[..., c].ravel(), minlength=256) for c in range(3)])
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(axis=1)
    std = np.sqrt(counts @ values**2 / counts.sum(axis=1) - mean**2)
    np.testing.assert_allclose(mean, [0.50707516, 0.48654887, 0.44091784], atol=1e-8)
    np.testing.assert_allclose(std, [0.26733429, 0.25643846, 0.27615047], atol=1e-8)


# Where data is looked for


def test_data_is_looked_for_where_the_user_says_then_in_the_environment_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, environment = tmp_path / "given", tmp_path / "environment"
    (tmp_path / "data" / "cifar-100-python").mkdir(parents=True)
    put(environment / "flowers.npz", b"")
    (environment / "cifar-100-python").mkdir()
    (tmp_path / "data" / "pets").mkdir()
    given.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDZOO_DATA", str(environment))
    assert find_data("cifar100", given) == given
    assert find_data("cifar100", None) == environment / "cifar-100-python"
    assert find_data("cifar100", environment) == find_data("cifar100-lt10", None) == environment / "cifar-100-python"
    assert find_data("flowers", None) == environment / "flowers.npz"
    assert find_data("pets", None) == Path("data/pets")
    monkeypatch.delenv("KDZOO_DATA")
    assert find_data("cifar100", None) == Path("data/cifar-100-python")


def test_data_that_is_nowhere_is_an_error_that_lists_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDZOO_DATA", "/elsewhere")
    with pytest.raises(DataError, match="'cifar100' are not at hand; looked in /elsewhere, data") as caught:
        find_data("cifar100", None)
    assert "--data" in caught.value.hint
    with pytest.raises(DataError, match="no data at"):
        find_data("cifar100", tmp_path / "missing")
