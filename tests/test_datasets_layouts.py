"""Every layout of a data set on disk: the right images with the right labels, and what is wrong is named."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from kdzoo.errors import DataError, IntegrityError
from kdzoo.zoo.datasets import EncodedImages, LabelledImages, find_data, open_split, read_split
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.sets import cifar
from kdzoo.zoo.sets.long_tail import class_counts, long_tail

UNPACK = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "unpack.py"


@pytest.fixture
def preprocess() -> Preprocess:
    return Preprocess(8, 8, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def put(path: Path, number: int) -> None:
    """A picture of 8x8 pixels of one grey, without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number, number, number)).save(path, "PNG")


def greys(data: LabelledImages) -> list[int]:
    assert (data.images == data.images[:, :1, :1, :1]).all()
    return data.images[:, 0, 0, 0].tolist()


# CIFAR-10


def test_the_md5_sums_are_those_that_torchvision_publishes() -> None:
    for ours, theirs in ((cifar.CIFAR10_MD5, CIFAR10), (cifar.CIFAR100_MD5, CIFAR100)):
        listed = [*theirs.train_list, *theirs.test_list, [theirs.meta["filename"], theirs.meta["md5"]]]
        assert ours == dict(listed)


def cifar10_files(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """`cifar-10-batches-py` with two images in each batch, taken for the official one: image i has value i, label i % 10."""
    folder.mkdir()
    for batch, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        values = [2 * batch, 2 * batch + 1]
        planes = np.repeat(np.array(values, np.uint8)[:, None], 3072, axis=1)
        planes[:, 1024:2048] += 100
        document = {"data": planes, "labels": [v % 10 for v in values]}
        (folder / name).write_bytes(pickle.dumps(document, protocol=3))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(cifar.CIFAR10_CLASSES)}, protocol=3))
    for file in folder.iterdir():
        patch.setitem(cifar.CIFAR10_MD5, file.name, hashlib.md5(file.read_bytes()).hexdigest())
    return folder


def test_cifar10_batches_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cifar10_files(tmp_path / "cifar-10-batches-py", monkeypatch)
    for path in (tmp_path, folder):
        train = read_split(path, "train", Preprocess(32, 32, (0, 0, 0), (1, 1, 1)))
        assert train.images[:, 3, 4].tolist() == [[i, i + 100, i] for i in range(10)]
        assert train.labels.tolist() == list(range(10)) and train.source == "cifar10"
        test = read_split(path, "test", Preprocess(32, 32, (0, 0, 0), (1, 1, 1)))
        assert test.images[:, 0, 0, 0].tolist() == [10, 11] and test.classes == train.classes == cifar.CIFAR10_CLASSES


def test_a_changed_cifar10_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cifar10_files(tmp_path / "cifar-10-batches-py", monkeypatch)
    (folder / "data_batch_3").write_bytes((folder / "data_batch_3").read_bytes() + b"x")
    with pytest.raises(IntegrityError, match="data_batch_3 has md5"):
        read_split(tmp_path, "train", Preprocess(32, 32, (0, 0, 0), (1, 1, 1)))
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3 is missing") as caught:
        read_split(tmp_path, "train", Preprocess(32, 32, (0, 0, 0), (1, 1, 1)))
    assert "cifar-10-python.tar.gz" in caught.value.hint


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    """The real set: where `$KDZOO_DATA` says, or unpacked from the shared folder beside the checkout."""
    folder = Path(os.environ.get("KDZOO_DATA", "nowhere"))
    if not (folder / "cifar10.npz").is_file() and not (folder / "cifar-10-batches-py").is_dir():
        if not UNPACK.is_file():
            pytest.skip("no CIFAR-10 at hand: set KDZOO_DATA to the folder that holds cifar10.npz or cifar-10-batches-py/")
        folder = tmp_path_factory.mktemp("cifar10")
        subprocess.run([sys.executable, str(UNPACK), str(folder), "cifar10"], check=True, capture_output=True)
    return read_split(find_data("cifar10", folder), "train", Preprocess(32, 32, (0, 0, 0), (1, 1, 1)))


@pytest.mark.slow
def test_the_real_cifar10_has_its_published_mean(cifar10: LabelledImages) -> None:
    """Statistics of shared/data/README.md. 72 of the 50,000 training images are JPEG stand-ins there: the tolerance is theirs."""
    assert cifar10.images.shape == (50_000, 32, 32, 3) and cifar10.classes[0] == "airplane" and cifar10.classes[9] == "truck"
    assert np.bincount(cifar10.labels).tolist() == [5000] * 10
    counts = np.stack([np.bincount(cifar10.images[..., c].ravel(), minlength=256) for c in range(3)])
    np.testing.assert_allclose(
        counts @ (np.arange(256) / 255) / counts.sum(axis=1), [0.49139965, 0.48215826, 0.44653075], atol=2e-6
    )


# Long tails


@pytest.mark.parametrize(("factor", "last", "total"), [(10, 50, 19_573), (50, 10, 12_608), (100, 5, 10_847)])
def test_the_long_tails_of_cifar100_have_their_published_sizes(factor: int, last: int, total: int) -> None:
    counts = class_counts(500, 100, factor)
    assert (counts[0], counts[99], sum(counts)) == (500, last, total)
    assert counts == sorted(counts, reverse=True)


def test_a_long_tail_keeps_the_first_images_of_each_class_in_their_order() -> None:
    labels = np.array([2, 0, 1, 1, 0, 2, 1, 2, 0, 0, 1, 2])
    pixels = np.arange(12, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)
    kept = long_tail(LabelledImages(pixels, labels, ("a", "b", "c"), "letters"), 4)
    assert isinstance(kept, LabelledImages)
    # 4 * (1/4) ** (c/2) is 4, 2, 1
    assert kept.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 8, 9]
    assert kept.labels.tolist() == [2, 0, 1, 1, 0, 0, 0]


def test_the_name_of_the_data_set_makes_its_training_split_long_tailed(tmp_path: Path, preprocess: Preprocess) -> None:
    for split in ("train", "test"):
        for number in range(20):
            put(tmp_path / "pets" / split / "ab"[number % 2] / f"{number:02d}.png", number)
    path = find_data("pets-lt5", tmp_path)
    assert path == tmp_path / "pets"
    for lazy in (False, True):
        train = open_split(path, "train", preprocess, dataset="pets-lt5", lazy=lazy)
        assert np.bincount(train.labels).tolist() == [10, 2]
        assert greys(train.head(99)) == [*range(0, 20, 2), 1, 3]
    assert len(open_split(path, "test", preprocess, dataset="pets-lt5")) == 20
    assert len(open_split(path, "train", preprocess, dataset="pets")) == 20
    with pytest.raises(DataError, match="leaves no image of class 'b'"):
        open_split(path, "train", preprocess, dataset="pets-lt11")


# Tiny-ImageNet


@pytest.fixture
def tiny_imagenet(tmp_path: Path) -> Path:
    """Two classes, two training images each, three of validation, and a test folder without labels."""
    root = tmp_path / "tiny-imagenet-200"
    for place, number in enumerate(("n02000002", "n01000001")):
        for i in range(2):
            put(root / "train" / number / "images" / f"{number}_{i}.JPEG", 10 * place + i)
        (root / "train" / number / f"{number}_boxes.txt").write_text("not an image")
    for i in range(3):
        put(root / "val" / "images" / f"val_{i}.JPEG", 100 + i)
    put(root / "test" / "images" / "test_0.JPEG", 200)
    lines = ["val_0.JPEG\tn01000001\t0\t32\t44\t62", "val_1.JPEG\tn02000002\t1\t2\t3\t4", "val_2.JPEG\tn01000001\t1\t2\t3\t4"]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "wnids.txt").write_text("n02000002\nn01000001\n")
    (root / "words.txt").write_text(
        "n00000001\tthing\nn01000001\tgoldfish, Carassius auratus\nn02000002\tpop bottle, soda bottle\n"
    )
    return root


def test_tiny_imagenet_is_read_in_its_official_layout(tiny_imagenet: Path, preprocess: Preprocess) -> None:
    path = find_data("tiny-imagenet", tiny_imagenet.parent)
    train, test = (read_split(path, split, preprocess) for split in ("train", "test"))
    assert train.classes == test.classes == ("goldfish", "pop bottle") and train.source == "tiny-imagenet"
    assert (greys(train), train.labels.tolist()) == ([10, 11, 0, 1], [0, 0, 1, 1])
    assert (greys(test), test.labels.tolist()) == ([100, 101, 102], [0, 1, 0])


def test_an_annotation_of_tiny_imagenet_that_names_no_class_is_refused(tiny_imagenet: Path, preprocess: Preprocess) -> None:
    annotations = tiny_imagenet / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text().replace("n02000002", "n03000003"))
    with pytest.raises(IntegrityError, match="line 2: 'val_1"):
        open_split(tiny_imagenet, "test", preprocess)


# ImageNet


def test_imagenet_folders_get_their_names_and_two_classes_of_one_name_their_number(tmp_path: Path, preprocess: Preprocess) -> None:
    for split in ("train", "val"):
        for number in ("n01440764", "n02012849", "n03126707"):
            put(tmp_path / split / number / "x.png", 7)
    (tmp_path / "train" / "n01440764.tar").write_bytes(b"an archive of images, left behind")
    assert read_split(tmp_path, "train", preprocess).classes == ("n01440764", "n02012849", "n03126707")
    mapping = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"
    (tmp_path / "LOC_synset_mapping.txt").write_text(mapping)
    for split in ("train", "test"):
        assert read_split(tmp_path, split, preprocess).classes == ("tench", "crane n02012849", "crane n03126707")  # type: ignore[arg-type]


def test_validation_images_without_class_folders_are_told_apart_from_none(tmp_path: Path, preprocess: Preprocess) -> None:
    put(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", 1)
    with pytest.raises(DataError, match="no images in class folders") as caught:
        open_split(tmp_path, "test", preprocess)
    assert "valprep" in caught.value.hint


# RAF-DB


@pytest.mark.parametrize("inside", ["", "basic"])
def test_raf_db_is_read_by_its_list(inside: str, tmp_path: Path, preprocess: Preprocess) -> None:
    root = tmp_path / inside
    for name, number in (("train_00001", 1), ("train_00002", 2), ("test_0001", 3)):
        put(root / "Image" / "aligned" / f"{name}_aligned.jpg", number)
    (root / "EmoLabel").mkdir()
    listing = root / "EmoLabel" / "list_patition_label.txt"
    listing.write_text("train_00001.jpg 5\ntrain_00002.jpg 1\ntest_0001.jpg 7\n")
    train, test = (read_split(tmp_path, split, preprocess) for split in ("train", "test"))
    assert train.classes == ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
    assert (greys(train), train.labels.tolist()) == ([1, 2], [4, 0])
    assert (greys(test), test.labels.tolist(), test.source) == ([3], [6], "raf-db")
    for line in ("train_00002.jpg 8", "train_00002.jpg", "train_00002 3", "other_00002.jpg 3", ""):
        listing.write_text(f"train_00001.jpg 5\n{line}\n")
        with pytest.raises(IntegrityError, match=r"list_patition_label\.txt, line 2"):
            open_split(tmp_path, "train", preprocess)


def test_raf_db_without_its_aligned_images_is_refused(tmp_path: Path, preprocess: Preprocess) -> None:
    (tmp_path / "EmoLabel").mkdir()
    (tmp_path / "EmoLabel" / "list_patition_label.txt").write_text("train_00001.jpg 5\n")
    with pytest.raises(DataError, match=r"aligned is missing"):
        open_split(tmp_path, "train", preprocess)


# What stays encoded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        put(tmp_path / "pets" / "train" / "ab"[number // 3] / f"{number}.png", number)
    return tmp_path / "pets"


def test_a_set_stays_encoded_where_it_would_exceed_the_memory_limit(folder: Path, preprocess: Preprocess) -> None:
    decoded = 6 * 8 * 8 * 3
    assert isinstance(open_split(folder, "train", preprocess, memory_limit=decoded), LabelledImages)
    encoded = open_split(folder, "train", preprocess, memory_limit=decoded - 1)
    assert isinstance(encoded, EncodedImages) and encoded.decoded_bytes == decoded
    assert isinstance(open_split(folder, "train", preprocess, lazy=True), EncodedImages)
    assert isinstance(read_split(folder, "train", preprocess), LabelledImages)


def test_both_kinds_of_a_split_have_the_same_face(folder: Path, preprocess: Preprocess) -> None:
    encoded, decoded = (open_split(folder, "train", preprocess, lazy=lazy) for lazy in (True, False))
    assert (encoded.classes, encoded.source, len(encoded)) == (decoded.classes, decoded.source, len(decoded))
    assert np.array_equal(encoded.labels, decoded.labels)
    index = np.array([4, 0])
    assert greys(encoded.take(index).head(9)) == greys(decoded.take(index).head(9)) == [4, 0]
    assert greys(encoded.head(2)) == greys(decoded.head(2)) == [0, 1]


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pictures are decoded as many are."""
    monkeypatch.setattr("kdzoo.zoo.sets.images.DECODE_ALONE", 0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("first", "last", "sizes"), [(0, None, [4, 2]), (1, 6, [4, 1]), (2, 4, [2]), (3, 3, [])])
def test_batches_of_both_kinds_are_the_images_in_order(
    first: int, last: int | None, sizes: list[int], workers: int, folder: Path, preprocess: Preprocess, many: None
) -> None:
    encoded, decoded = (open_split(folder, "train", preprocess, lazy=lazy) for lazy in (True, False))
    assert isinstance(decoded, LabelledImages)
    for data in (encoded, decoded):
        found = [batch.copy() for batch in data.batches(4, workers, first=first, last=last)]
        assert [len(batch) for batch in found] == sizes
        assert not sizes or np.array_equal(np.concatenate(found), decoded.images[first:last])
