"""One picture: from an encoded file to the pixels that the network takes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdzoo.errors import DataError
from kdzoo.zoo.preprocess import Preprocess


def png(colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (32, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_a_lossless_picture_of_the_right_size_is_not_changed(kind: str, preprocess: Preprocess, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x", kind, **({"lossless": True} if kind == "WEBP" else {}))
    for source in (tmp_path / "x", (tmp_path / "x").read_bytes()):
        found = preprocess.read(source)
        assert found.dtype == np.uint8 and np.array_equal(found, pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_colour_mode_becomes_rgb(mode: str, preprocess: Preprocess) -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 255, 255)).convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
    assert preprocess.read(file.getvalue()).shape == (32, 32, 3) and preprocess.read(file.getvalue()).min() == 255


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (31, 31)), (6, (0, 31)), (8, (31, 0))])
def test_the_orientation_of_a_camera_is_applied(orientation: int, corner: tuple[int, int], preprocess: Preprocess) -> None:
    """The stored top left pixel is white; EXIF says where it belongs (row, column)."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[0, 0] = 255
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    assert np.argwhere(preprocess.read(file.getvalue())[..., 0]).tolist() == [list(corner)]


def test_a_picture_of_another_size_covers_the_input_and_is_cropped_in_the_centre() -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, :40], wide[:, 40:80], wide[:, 80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    for pixels in (wide, wide.transpose(1, 0, 2)):
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
        for size in (20, 40, 64):
            found = Preprocess(size, size, (0, 0, 0), (1, 1, 1)).read(file.getvalue())
            assert found.shape == (size, size, 3)
            assert (found[2:-2, 2:-2] == (0, 255, 0)).all(), "the middle third is green"
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    found = Preprocess(16, 16, (0, 0, 0), (1, 1, 1)).read(file.getvalue())
    np.testing.assert_allclose(found[8, 1:-1, 0], ramp[0].reshape(16, 4, 3).mean(1)[1:-1, 0], atol=1, err_msg="not antialiased")


@pytest.mark.parametrize("content", [b"", b"hello", png()[:60], png()[:-40], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture_is_refused(content: bytes, preprocess: Preprocess, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.jpg cannot be decoded"):
        preprocess.read(tmp_path / "x.jpg")
    with pytest.raises(DataError, match="the image cannot be decoded"):
        preprocess.read(content)


def test_a_missing_picture_is_named(preprocess: Preprocess, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jpg does not exist"):
        preprocess.read(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match="cannot be decoded"):
        preprocess.read(tmp_path)


def test_a_whole_picture_in_another_format_is_refused(preprocess: Preprocess) -> None:
    """Pillow opens formats that call other programs; a server must not."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "EPS")
    with pytest.raises(DataError, match="cannot be decoded"):
        preprocess.read(file.getvalue())


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_and_looks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL.JpegImagePlugin import JpegImageFile

    row, column = np.mgrid[0:600, 0:900]
    waves = np.stack([row / 3, column / 4, 127 + 120 * np.sin(row / 40) * np.cos(column / 60)], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(waves).save(file, "JPEG", quality=95)
    drafts, draft = [], JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda self, *a: drafts.append(draft(self, *a)) or drafts[-1])
    small = Preprocess(64, 64, (0, 0, 0), (1, 1, 1))
    exact = np.asarray(Image.open(file).convert("RGB").crop((150, 0, 750, 600)).resize((64, 64), Image.Resampling.BILINEAR), int)
    assert not drafts
    np.testing.assert_allclose(small.read(file.getvalue()).astype(int), exact, atol=3)
    found = small.read(file.getvalue(), part=lambda width, height: (300, 100, 700, 500))
    exact = np.asarray(Image.open(file).convert("RGB").crop((300, 100, 700, 500)).resize((64, 64), Image.Resampling.BILINEAR), int)
    np.testing.assert_allclose(found.astype(int), exact, atol=4)
    assert len(drafts) == 2, "the whole picture was decoded"
    Preprocess(160, 160, (0, 0, 0), (1, 1, 1)).read(file.getvalue())
    assert len(drafts) == 2, "600 rows leave less than twice the pixels at half size"


def test_a_part_is_taken_of_the_upright_picture() -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10, :20] = 255  # stored top left, seen top right after a quarter turn clockwise
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    sizes = []

    def part(width: int, height: int) -> tuple[int, int, int, int]:
        sizes.append((width, height))
        return 10, 0, 20, 20

    assert (Preprocess(16, 16, (0, 0, 0), (1, 1, 1)).read(file.getvalue(), part) == 255).all() and sizes == [(20, 40)]
