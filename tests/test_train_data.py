"""Crop, mirror, AutoAugment, Cutout, normalisation, and the order in which images are read."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from kdzoo.train.augment import crop_and_flip, cut_out, draw, normalize, pad_images
from kdzoo.train.autoaugment import CifarPolicy
from kdzoo.train.batches import BatchSettings, step_generator
from kdzoo.train.data import TrainingBatches
from kdzoo.train.recipe import Augment
from kdzoo.zoo.datasets import LabelledImages
from kdzoo.zoo.preprocess import Preprocess

CPU = torch.device("cpu")
EVERYTHING = Augment(pad=4, fill=128, flip=True, autoaugment=True, cutout=16)


def pictures(count: int, size: int = 32) -> Tensor:
    """Smooth pictures with noise, so that every operation has something to change: `N H W 3` uint8."""
    draw = np.random.default_rng(1)
    coarse = torch.from_numpy(draw.uniform(0, 255, (count, 3, 4, 4)))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear") + torch.from_numpy(
        draw.normal(0, 12, (count, 3, size, size))
    )
    return smooth.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def numbered(count: int) -> LabelledImages:
    """Pictures whose label is their number."""
    return LabelledImages(pictures(count).numpy(), np.arange(count), tuple(map(str, range(count))), "numbered")


def batches(
    data: LabelledImages, preprocess: Preprocess, batch_size: int = 8, seed: int = 0, augment: Augment = EVERYTHING
) -> TrainingBatches:
    return TrainingBatches(data, BatchSettings(preprocess, augment, batch_size, seed, CPU))


def test_padding_equals_numpy() -> None:
    images = pictures(3)
    expected = np.pad(images.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)), constant_values=128)
    assert np.array_equal(pad_images(images, 4, 128).numpy(), expected)
    assert pad_images(images, 0, 128) is images


def test_crop_and_flip_equal_slicing_image_by_image_and_use_every_place() -> None:
    # Red is the row, green the column, blue the number of the image: every crop tells where it was taken.
    row, column = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    sources = torch.stack([torch.stack([row, column, torch.full_like(row, n)], dim=-1) for n in range(6)]).to(torch.uint8)
    index = torch.arange(600) % 6
    crops = crop_and_flip(sources, index, 32, draw(Augment(), 600, (8, 8), 32, None, step_generator(0, 0, 0)))
    places = set()
    for crop, number in zip(crops, index.tolist(), strict=True):
        top, left, mirrored = int(crop[0, 0, 0]), int(crop[0, :, 1].min()), bool(crop[0, 0, 1] > crop[0, 1, 1])
        plain = sources[number, top : top + 32, left : left + 32]
        assert torch.equal(crop, plain.flip(1) if mirrored else plain)
        places.add((top, left, mirrored))
    assert {p[0] for p in places} == {p[1] for p in places} == set(range(9)), "some offset of the crop never occurs"
    assert 250 < sum(bool(c[0, 0, 1] > c[0, 1, 1]) for c in crops) < 350, "mirrored images are not half of all"


def test_without_flip_nothing_is_mirrored() -> None:
    images = pictures(4)
    draws = draw(Augment(flip=False), 4, (0, 0), 32, None, step_generator(0, 0, 0))
    assert torch.equal(crop_and_flip(images, torch.arange(4), 32, draws), images)


def test_normalize_equals_torchvision(preprocess: Preprocess) -> None:
    images = pictures(5)
    expected = TF.normalize(
        TF.to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True), [*preprocess.mean], [*preprocess.std]
    )
    found = normalize(images, torch.tensor(preprocess.mean), torch.tensor(preprocess.std))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("augment", [Augment(), EVERYTHING], ids=["plain", "everything"])
def test_batches_are_float32_in_channels_last_memory(preprocess: Preprocess, augment: Augment) -> None:
    images, labels = next(batches(numbered(20), preprocess, augment=augment).epoch(0))
    assert images.shape == (8, 3, 32, 32) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64


def test_every_image_is_seen_once_per_epoch_in_a_new_order(preprocess: Preprocess) -> None:
    data = batches(numbered(21), preprocess)
    orders = [torch.cat([labels for _, labels in data.epoch(epoch)]).tolist() for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(21))
    assert orders[0] != orders[1] != orders[2]
    assert len(data) == 3


def test_a_last_batch_of_one_image_is_left_out(preprocess: Preprocess) -> None:
    data = batches(numbered(17), preprocess)
    seen = [len(labels) for _, labels in data.epoch(0)]
    assert seen == [8, 8] and len(data) == 2


def test_batches_are_a_function_of_seed_epoch_and_step(preprocess: Preprocess) -> None:
    data = numbered(20)
    first, again, other = (batches(data, preprocess, seed=seed) for seed in (3, 3, 4))
    for (a, a_labels), (b, b_labels) in zip(first.epoch(2), again.epoch(2), strict=True):
        assert torch.equal(a, b) and torch.equal(a_labels, b_labels)
    index = torch.arange(8)
    here = first.batch(index, 0, 0)[0]
    for elsewhere in (first.batch(index, 0, 1), first.batch(index, 1, 0), other.batch(index, 0, 0)):
        assert not torch.equal(here, elsewhere[0])


def test_an_epoch_that_starts_in_the_middle_gives_the_batches_of_a_whole_one(preprocess: Preprocess) -> None:
    data = batches(numbered(30), preprocess)
    whole = list(data.epoch(1))
    torch.manual_seed(99)  # the global state of random numbers must not matter
    rest = list(data.epoch(1, start=2))
    assert len(rest) == len(whole) - 2
    for (a, a_labels), (b, b_labels) in zip(whole[2:], rest, strict=True):
        assert torch.equal(a, b) and torch.equal(a_labels, b_labels)


def affine(
    image: Tensor, translate: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0), center: list[float] | None = None
) -> Tensor:
    return TF.affine(image, 0.0, [*translate], 1.0, [*shear], fill=[128.0], center=center)


REFERENCE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda image, m: image,
    "ShearY": lambda image, m: affine(image, shear=(0.0, math.degrees(math.atan(m))), center=[0.0, 0.0]),
    "TranslateX": lambda image, m: affine(image, translate=(int(m), 0)),
    "TranslateY": lambda image, m: affine(image, translate=(0, int(m))),
    "Rotate": lambda image, m: TF.rotate(image, m, fill=[128.0]),
    "Brightness": lambda image, m: TF.adjust_brightness(image, 1.0 + m),
    "Color": lambda image, m: TF.adjust_saturation(image, 1.0 + m),
    "Contrast": lambda image, m: TF.adjust_contrast(image, 1.0 + m),
    "Sharpness": lambda image, m: TF.adjust_sharpness(image, 1.0 + m),
    "Posterize": lambda image, m: TF.posterize(image, int(m)),
    "Solarize": lambda image, m: TF.solarize(image, 255.0 * m),
    "AutoContrast": lambda image, m: TF.autocontrast(image),
    "Equalize": lambda image, m: TF.equalize(image),
    "Invert": lambda image, m: TF.invert(image),
}


@pytest.fixture(scope="module")
def policy() -> CifarPolicy:
    return CifarPolicy(32, 32, 128, CPU)


def test_every_operation_of_autoaugment_equals_torchvisions_function_image_by_image(policy: CifarPolicy) -> None:
    images = pictures(4).permute(0, 3, 1, 2).contiguous()
    for place, (name, magnitude) in enumerate(policy.operations):
        found = images.clone()
        policy.apply(found, torch.full((4,), place))
        expected = torch.stack([REFERENCE[name](image, magnitude) for image in images])
        assert torch.equal(found, expected), f"{name} at {magnitude}"


def test_a_batch_with_mixed_sub_policies_equals_its_images_one_by_one(policy: CifarPolicy) -> None:
    images = pictures(64)
    first, second = policy.draw(64, step_generator(0, 0, 5)).tolist()
    found = policy(images, step_generator(0, 0, 5))
    for image, a, b, result in zip(images.permute(0, 3, 1, 2), first, second, found.permute(0, 3, 1, 2), strict=True):
        expected = image
        for name, magnitude in (policy.operations[a], policy.operations[b]):
            expected = REFERENCE[name](expected, magnitude)
        assert torch.equal(result, expected), f"{policy.operations[a]} then {policy.operations[b]}"


def test_autoaugment_leaves_its_input_alone(policy: CifarPolicy) -> None:
    images = pictures(32)
    before = images.clone()
    policy(images, step_generator(0, 0, 0))
    assert torch.equal(images, before)


def test_sub_policies_are_drawn_with_the_probabilities_of_the_paper(policy: CifarPolicy) -> None:
    # Means over the 25 sub-policies of the appendix of the AutoAugment paper.
    first, second = policy.draw(100_000, step_generator(0, 0, 0))
    assert float((first > 0).float().mean()) == pytest.approx(0.536, abs=0.006)
    assert float((second > 0).float().mean()) == pytest.approx(0.524, abs=0.006)
    names = [operation.name for operation in policy.operations]
    rate = {
        n: float(torch.isin(first, torch.tensor([i for i, m in enumerate(names) if m == n])).float().mean()) for n in set(names)
    }
    assert rate["Equalize"] == pytest.approx((0.6 + 0.3 + 0.2 + 0.2 + 0.8) / 25, abs=0.01)
    assert rate["Rotate"] == pytest.approx(0.7 / 25, abs=0.005)
    assert rate["Invert"] == pytest.approx(0.1 / 25, abs=0.002)
    right, left = (int((second == names.index("TranslateX") + i).sum()) for i in (0, 1))
    assert right == pytest.approx(left, rel=0.15), "the two signs of an operation are not equally likely"


def test_autoaugment_takes_other_sizes() -> None:
    images = pictures(16, 20)
    assert CifarPolicy(20, 20, 0, CPU)(images, step_generator(0, 0, 0)).shape == images.shape


@pytest.mark.parametrize("size", [16, 7])
def test_cutout_is_one_black_square_clipped_at_the_border(size: int) -> None:
    images = torch.full((500, 32, 32, 3), 255, dtype=torch.uint8)
    corners = draw(Augment(cutout=size), 500, (0, 0), 32, None, step_generator(0, 0, 0)).corner_2B
    assert corners is not None
    cut = cut_out(images, size, corners)
    assert set(cut.unique().tolist()) == {0, 255} and int(images.min()) == 255
    centres = set()
    for image in cut:
        black = (image == 0).all(dim=-1)
        rows, columns = black.any(dim=1).nonzero().flatten(), black.any(dim=0).nonzero().flatten()
        assert int(black.sum()) == len(rows) * len(columns), "not a rectangle"
        for side in (rows, columns):
            first, last = int(side[0]), int(side[-1])
            assert last - first + 1 == len(side)
            assert len(side) == size or (len(side) >= size // 2 and (first == 0 or last == 31))
        top = int(rows[0]) if len(rows) == size or rows[0] > 0 else int(rows[-1]) + 1 - size
        centres.add(top + size // 2)
    assert centres == set(range(32)), "some row is never the centre"


def test_cutout_comes_before_normalisation_and_is_black(preprocess: Preprocess) -> None:
    white = LabelledImages(np.full((4, 32, 32, 3), 255, np.uint8), np.zeros(4, np.int64), ("a",), "white")
    images, _ = batches(white, preprocess, augment=Augment(pad=0, flip=False, cutout=16)).batch(torch.arange(4), 0, 0)
    for channel in range(3):
        black = -preprocess.mean[channel] / preprocess.std[channel]
        assert float(images[:, channel].amin()) == pytest.approx(black, abs=1e-5)
