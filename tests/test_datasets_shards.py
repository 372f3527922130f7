"""Tar archives in the layout of WebDataset: what is packed is read back, what is broken is named, everything is indexed once."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdzoo.errors import DataError, IntegrityError
from kdzoo.zoo.datasets import EncodedImages, open_split, read_split
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.sets.decoder import Decoder
from kdzoo.zoo.sets.pack import write_shards

TOOL = Path(__file__).resolve().parent.parent / "tools" / "make_shards.py"


@pytest.fixture
def preprocess() -> Preprocess:
    return Preprocess(8, 8, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def picture(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, kind)
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_images_of_several_archives_are_read_with_their_labels(tmp_path: Path, preprocess: Preprocess) -> None:
    first = {"a.png": picture(1), "a.cls": b"2", "dir/b.cls": b"0\n", "dir/b.PNG": picture(2), "a.note.txt": b"?", "README": b""}
    second = {"a.json": json.dumps({"label": 1, "source": "x"}).encode(), "a.bmp": picture(3, "BMP")}
    tar(tmp_path / "train" / "set-000000.tar", first)
    tar(tmp_path / "train" / "set-000001.tar", second)
    tar(tmp_path / "val" / "set-000000.tar", {"z.png": picture(9), "z.cls": b"1"})
    (tmp_path / "classes.txt").write_text("cat\ndog\nhen\n")
    train, test = (open_split(tmp_path, split, preprocess) for split in ("train", "test"))
    assert isinstance(train, EncodedImages), "archives are not decoded in advance"
    assert train.classes == test.classes == ("cat", "dog", "hen") and train.labels.tolist() == [2, 0, 1]
    assert train.decode().images[:, 4, 4, 0].tolist() == [1, 2, 3]
    assert (test.labels.tolist(), test.head(5).images[:, 0, 0, 0].tolist()) == ([1], [9])
    assert read_split(tmp_path, "train", preprocess).images.shape == (3, 8, 8, 3)


def test_without_a_list_classes_are_counted_over_both_splits(tmp_path: Path, preprocess: Preprocess) -> None:
    tar(tmp_path / "train" / "0.tar", {"a.png": picture(1), "a.cls": b"1"})
    tar(tmp_path / "test" / "0.tar", {"a.png": picture(1), "a.cls": b"3"})
    for split in ("train", "test"):
        assert open_split(tmp_path, split, preprocess).classes == ("0", "1", "2", "3")  # type: ignore[arg-type]


def test_an_archive_is_indexed_once(tmp_path: Path, preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tar(tmp_path / "s-0.tar", {"a.png": picture(1), "a.cls": b"0"})
    before = open_split(tmp_path, "test", preprocess)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        assert np.array_equal(open_split(tmp_path, "test", preprocess).labels, before.labels)
    tar(file, {"a.png": picture(1), "a.cls": b"0", "b.png": picture(2), "b.cls": b"1"})
    assert len(open_split(tmp_path, "test", preprocess)) == 2, "a changed archive kept its old index"


GOOD = {f"{n}{ending}": data for n in range(5) for ending, data in ((".png", picture(n)), (".cls", b"%d" % (n % 2)))}


@pytest.mark.parametrize("keep", [0, 100, 600, 1600, 3000, "all but the end", "gzip", "noise"])
def test_an_archive_that_is_cut_off_or_none_is_refused(keep: int | str, tmp_path: Path, preprocess: Preprocess) -> None:
    file = tar(tmp_path / "s-000000.tar", GOOD)
    data = file.read_bytes()
    assert len(open_split(tmp_path, "test", preprocess)) == 5
    with tarfile.open(file) as archive:
        end = archive.getmembers()[-1].offset_data + 512
    contents = {"gzip": gzip.compress(data), "noise": bytes(range(256)) * 20, "all but the end": data[:end]}
    file.write_bytes(contents[keep] if isinstance(keep, str) else data[:keep])
    with pytest.raises(IntegrityError, match=r"s-000000\.tar is not a whole, uncompressed tar"):
        open_split(tmp_path, "test", preprocess)


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"a.png": picture(1)}, "the picture 'a' has no label"),
        ({"x/a.png": picture(1), "a.cls": b"0"}, "the picture 'x/a' has no label"),
        ({"a.png": picture(1), "a.cls": b"cat"}, r"a\.cls holds no class number but b'cat'"),
        ({"a.png": picture(1), "a.cls": b"1.5"}, "no class number"),
        ({"a.png": picture(1), "a.json": b"{}"}, r"a\.json holds no class number"),
        ({"a.png": picture(1), "a.json": b'{"label": "1"}'}, "no class number"),
        ({"a.png": picture(1), "a.json": b"[1"}, "no class number"),
        ({"a.png": picture(1), "a.cls": b"2"}, "labels go from 2 to 2, but there are 2 classes"),
        ({"a.png": picture(1), "a.cls": b"-1"}, "labels go from -1"),
        ({"a.png": picture(1), "a.jpg": picture(1, "JPEG"), "a.cls": b"0"}, "two pictures of the name 'a'"),
    ],
)
def test_labels_that_cannot_be_used_are_named(members: dict[str, bytes], what: str, tmp_path: Path, preprocess: Preprocess) -> None:
    tar(tmp_path / "s-000000.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=what) as caught:
        open_split(tmp_path, "test", preprocess)
    assert caught.value.hint and "s-000000.tar" in str(caught.value)


def test_an_empty_picture_is_refused_while_its_archive_is_indexed(tmp_path: Path, preprocess: Preprocess) -> None:
    """The reader would take its size, 0, for the whole archive."""
    tar(tmp_path / "s-000000.tar", {**GOOD, "dir/9.png": b"", "dir/9.cls": b"0"})
    with pytest.raises(IntegrityError, match=r"s-000000\.tar: the picture dir/9\.png is empty") as caught:
        open_split(tmp_path, "test", preprocess)
    assert caught.value.exit_code == 6 and caught.value.hint


def test_folders_of_shards_without_the_split_and_single_archives_are_refused(tmp_path: Path, preprocess: Preprocess) -> None:
    file = tar(tmp_path / "train" / "s-000000.tar", {"a.png": picture(1), "a.cls": b"0"})
    with pytest.raises(DataError, match="no folder test or val"):
        open_split(tmp_path, "test", preprocess)
    with pytest.raises(DataError, match="single archive"):
        open_split(file, "test", preprocess)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="no tar archives for test"):
        open_split(tmp_path, "test", preprocess)


def test_a_broken_picture_in_an_archive_is_named_by_its_place(tmp_path: Path, preprocess: Preprocess) -> None:
    file = tar(tmp_path / "s-000000.tar", {"a.png": picture(1)[:40], "a.cls": b"0"})
    data = open_split(tmp_path, "test", preprocess)
    with pytest.raises(DataError, match=r"s-000000\.tar, the picture at byte 512, cannot be decoded"):
        data.head(1)
    file.write_bytes(file.read_bytes()[:520])
    with pytest.raises(IntegrityError, match="shorter than when the run began"):
        data.head(1)
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        data.head(1)


def test_more_archives_than_may_be_open_are_read(tmp_path: Path, preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(6):
        tar(tmp_path / f"s-{n:06d}.tar", {"a.png": picture(n), "a.cls": b"0"})
    monkeypatch.setattr("kdzoo.zoo.sets.decoder.OPEN_ARCHIVES", 2)
    data, decoder = open_split(tmp_path, "test", preprocess), Decoder(preprocess)
    assert isinstance(data, EncodedImages)
    for n in (0, 1, 2, 0, 5, 4, 3, 2):
        assert decoder.read(data.picture(n))[0, 0, 0] == n
        assert len(decoder._archives) <= 2
    decoder.close()


def test_the_packing_tool_gives_shards_that_read_like_the_folder(tmp_path: Path, preprocess: Preprocess) -> None:
    for split in ("train", "val"):
        for n in range(7):
            path = tmp_path / "pets" / split / "ab"[n % 2] / f"{n}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(20 * n + len(split), "JPEG"))
    command = [sys.executable, str(TOOL), str(tmp_path / "pets"), str(tmp_path / "out"), "--shard-mb", "0.004"]
    subprocess.run(command, check=True, capture_output=True)
    assert len(list((tmp_path / "out" / "train").glob("pets-00000?.tar"))) > 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["classes.txt", "test", "train"]
    for split in ("train", "test"):
        files, packed = (read_split(tmp_path / place, split, preprocess) for place in ("pets", "out"))  # type: ignore[arg-type]
        assert np.array_equal(files.images, packed.images) and np.array_equal(files.labels, packed.labels)
        assert files.classes == packed.classes == ("a", "b")
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0, "a second run overwrote the first"


def test_packing_is_reproducible(tmp_path: Path, preprocess: Preprocess) -> None:
    (tmp_path / "pets" / "a").mkdir(parents=True)
    (tmp_path / "pets" / "a" / "x.png").write_bytes(picture(1))
    data = open_split(tmp_path / "pets", "test", preprocess, lazy=True)
    assert isinstance(data, EncodedImages)
    (one,), (other,) = (write_shards(data, tmp_path / name) for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_an_empty_file_is_not_packed(tmp_path: Path, preprocess: Preprocess) -> None:
    (tmp_path / "pets" / "a").mkdir(parents=True)
    (tmp_path / "pets" / "a" / "x.png").touch()
    data = open_split(tmp_path / "pets", "test", preprocess, lazy=True)
    assert isinstance(data, EncodedImages)
    with pytest.raises(DataError, match=r"x\.png is empty"):
        write_shards(data, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
