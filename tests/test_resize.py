"""Pictures whose short side is scaled to one number before the centre is cropped to a smaller one, as on ImageNet."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from kdzoo.errors import BadValue, IntegrityError
from kdzoo.train.recipe import Recipe
from kdzoo.train.recipe_file import base_names, open_recipe
from kdzoo.zoo.datasets import open_split, read_split
from kdzoo.zoo.preprocess import Preprocess

IMAGENET = Preprocess(224, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=256)
PLAIN = {"height": 32, "width": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear", "crop": "center"}
LEAST = {"method": "baseline", "backbone": "resnet20", "dataset": "tiny", "epochs": 2, "batch_size": 16}


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def encoded(picture: Image.Image, kind: str = "BMP", **settings: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def torchvisions(picture: Image.Image, preprocess: Preprocess) -> np.ndarray[Any, Any]:
    """What the reference code of torchvision evaluates."""
    return np.asarray(Compose([Resize(preprocess.resize), CenterCrop((preprocess.height, preprocess.width))])(picture))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (333, 257), (90, 61), (20, 411), (256, 900)])
@pytest.mark.parametrize("preprocess", [IMAGENET, Preprocess(33, 21, (0, 0, 0), (1, 1, 1), resize=40)])
def test_a_picture_becomes_what_torchvision_makes_of_it_bit_for_bit(size: tuple[int, int], preprocess: Preprocess) -> None:
    assert np.array_equal(preprocess.read(encoded(noise(*size))), torchvisions(noise(*size), preprocess))


def test_a_picture_that_lies_on_its_side_is_turned_first() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = IMAGENET.read(encoded(noise(300, 400), "PNG", exif=exif))
    assert np.array_equal(found, torchvisions(noise(300, 400).transpose(Image.Transpose.ROTATE_270), IMAGENET))


def test_a_large_jpeg_that_is_decoded_at_a_fraction_of_its_size_looks_the_same() -> None:
    row, column = np.mgrid[0:1500, 0:2100]
    waves = np.stack([row / 6, column / 9, 127 + 120 * np.sin(row / 80) * np.cos(column / 90)], axis=-1).astype(np.uint8)
    data = encoded(Image.fromarray(waves), "JPEG", quality=95)
    exact = torchvisions(Image.open(io.BytesIO(data)), IMAGENET)
    np.testing.assert_allclose(IMAGENET.read(data).astype(int), exact.astype(int), atol=4)


def test_a_strip_takes_no_more_memory_than_a_picture() -> None:
    """Scaled as a whole, 60,000 pixels of width would become fifteen million, 12 GB."""
    assert IMAGENET.read(encoded(noise(60_000, 1))).shape == (224, 224, 3)


def test_a_random_part_is_scaled_straight_to_the_input() -> None:
    without = Preprocess(224, 224, IMAGENET.mean, IMAGENET.std)
    parts = [p.read(encoded(noise(500, 375)), part=lambda width, height: (10, 20, 300, 200)) for p in (IMAGENET, without)]
    assert np.array_equal(*parts)


def test_files_without_the_field_are_read_and_written_as_before() -> None:
    plain = Preprocess.from_dict(PLAIN)
    assert plain.resize == 0 and plain.to_dict() == PLAIN
    assert Preprocess.from_dict(IMAGENET.to_dict()) == IMAGENET and IMAGENET.to_dict()["resize"] == 256


@pytest.mark.parametrize("resize", [31, -1, "x", None])
def test_a_file_with_a_side_that_the_input_does_not_fit_in_is_refused(resize: Any) -> None:
    with pytest.raises(IntegrityError, match="not one that kdzoo wrote"):
        Preprocess.from_dict({**PLAIN, "resize": resize})


def test_processes_that_decode_scale_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdzoo.zoo.sets.images.DECODE_ALONE", 0)
    small = Preprocess(20, 20, (0, 0, 0), (1, 1, 1), resize=24)
    (tmp_path / "a").mkdir()
    for number in range(3):
        noise(50 + number, 40).save(tmp_path / "a" / f"{number}.png")
    expected = [torchvisions(noise(50 + number, 40), small) for number in range(3)]
    assert np.array_equal(read_split(tmp_path, "test", small, workers=1).images, expected)
    assert np.array_equal(np.concatenate(list(open_split(tmp_path, "test", small, lazy=True).batches(5))), expected)


def test_the_recipes_of_imagenet_evaluate_as_torchvision_does() -> None:
    names = ("ahbf-resnet18-imagenet", "baseline-resnet34-imagenet", "dbfskd-resnet18-imagenet", "dml-resnet34-imagenet")
    assert all(open_recipe(name).recipe.preprocess == IMAGENET for name in names)
    assert {"ahbf-imagenet", "dbfskd-imagenet", "dckd-imagenet"} <= set(base_names())
    assert open_recipe("dbfskd-resnet18-tiny-imagenet").recipe.preprocess.resize == 0


@pytest.mark.parametrize("resize", [-1, 31, 10**7])
def test_a_recipe_with_a_side_below_the_size_of_the_input_is_refused(resize: int) -> None:
    with pytest.raises(BadValue, match="'resize'"):
        Recipe.from_mapping({**LEAST, "resize": resize})
    assert Recipe.from_mapping({**LEAST, "resize": 36}).preprocess.resize == 36
