"""Batches from memory and from files, in one process and in several: the same images, bit for bit, whoever decodes them where."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kdzoo.errors import UsageError
from kdzoo.train.augment import draw_parts, resize_parts
from kdzoo.train.batches import Batches, BatchSettings, step_generator
from kdzoo.train.data import TrainingBatches, make_batches
from kdzoo.train.mix import Mix, draw_mix, mix, partners
from kdzoo.train.recipe import Augment
from kdzoo.train.stream import StreamedBatches
from kdzoo.zoo.datasets import EncodedImages, ImageSplit, LabelledImages, open_split
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.sets.pack import write_shards

CPU = torch.device("cpu")
NUM, CLASSES = 43, 3
SMALL = Preprocess(16, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
EVERYTHING = Augment(pad=2, fill=128, autoaugment=True, cutout=6)
PARTS = Augment(random_resized_crop=True, cutout=4)
Batch = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> EncodedImages:
    """Pictures of 20x28 pixels as files."""
    folder, draw = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for number in range(NUM):
        place = folder / "train" / "abc"[number % CLASSES]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 28, 3), np.uint8)).save(place / f"{number:02d}.png")
    opened = open_split(folder, "train", SMALL, lazy=True)
    assert isinstance(opened, EncodedImages)
    return opened


@pytest.fixture(scope="module")
def decoded(encoded: EncodedImages) -> LabelledImages:
    return encoded.decode()


@pytest.fixture(scope="module")
def shards(encoded: EncodedImages, tmp_path_factory: pytest.TempPathFactory) -> ImageSplit:
    folder = tmp_path_factory.mktemp("shards")
    assert len(write_shards(encoded, folder / "train", shard_bytes=20_000)) > 1
    return open_split(folder, "train", SMALL)


def batches_of(data: ImageSplit, augment: Augment, batch_size: int = 10, seed: int = 5, **place: int) -> Batches:
    """`place`: rank, world, workers."""
    return make_batches(data, BatchSettings(SMALL, augment, batch_size, seed, CPU, **place))


def epoch_of(
    data: ImageSplit, augment: Augment, *, epoch: int = 2, start: int = 0, batch_size: int = 10, seed: int = 5, **place: int
) -> Batch:
    batches = batches_of(data, augment, batch_size, seed, **place)
    read = list(batches.epoch(epoch, start))
    assert len(read) == len(batches) - start
    if isinstance(batches, StreamedBatches):
        batches.close()
    return read


def assert_same(one: Batch, other: Batch) -> None:
    for (a, a_labels), (b, b_labels) in zip(one, other, strict=True):
        assert torch.equal(a, b) and torch.equal(a_labels, b_labels)


@pytest.mark.parametrize("augment", [Augment(pad=2), EVERYTHING], ids=["plain", "everything"])
def test_files_and_shards_give_the_batches_of_memory(
    encoded: EncodedImages, decoded: LabelledImages, shards: ImageSplit, augment: Augment
) -> None:
    expected = epoch_of(decoded, augment)
    assert [len(labels) for _, labels in expected] == [10, 10, 10, 10, 3]
    assert_same(epoch_of(encoded, augment, workers=2), expected)
    assert_same(epoch_of(shards, augment, workers=1), expected)


def test_parts_do_not_depend_on_the_number_of_processes_and_differ_from_epoch_to_epoch(encoded: EncodedImages) -> None:
    expected = epoch_of(encoded, PARTS)
    for workers in (1, 3):
        assert_same(epoch_of(encoded, PARTS, workers=workers), expected)
    plain = Augment(random_resized_crop=True, flip=False)
    here, again, *elsewhere = (  # as sets: the order of the images differs, too
        sorted(torch.cat([images.mean(dim=(1, 2, 3)) for images, _ in epoch_of(encoded, plain, epoch=e, seed=s)]).tolist())
        for e, s in ((2, 5), (2, 5), (3, 5), (2, 6))
    )
    assert here == again and all(np.abs(np.subtract(other, here)).max() > 1e-3 for other in elsewhere)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_epoch_that_starts_in_the_middle_gives_the_batches_of_a_whole_one(encoded: EncodedImages, workers: int) -> None:
    assert_same(epoch_of(encoded, PARTS, start=2, workers=workers), epoch_of(encoded, PARTS)[2:])
    assert epoch_of(encoded, PARTS, start=5, workers=workers) == []


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("augment", [Augment(pad=2), EVERYTHING, PARTS], ids=["plain", "everything", "parts"])
@pytest.mark.parametrize("kind", ["decoded", "encoded"])
def test_the_shares_of_all_processes_are_the_batch_of_one(
    kind: str, augment: Augment, world: int, encoded: EncodedImages, decoded: LabelledImages
) -> None:
    """Batches of 10, 10, 10, 10 and 3 images; of four processes one has no image of the last one, so that it is left out."""
    data = encoded if kind == "encoded" else decoded
    alone = epoch_of(data, augment)[: None if world < 4 else 4]
    shares = [epoch_of(data, augment, rank=rank, world=world) for rank in range(world)]
    for n, (images, labels) in enumerate(alone):
        assert torch.equal(torch.cat([share[n][0] for share in shares]), images)
        assert torch.equal(torch.cat([share[n][1] for share in shares]), labels)
    assert all(len(share) == len(alone) for share in shares)


def test_a_process_that_resumes_in_mid_epoch_sees_its_share_of_the_rest(decoded: LabelledImages) -> None:
    whole, rest = (epoch_of(decoded, EVERYTHING, rank=1, world=3, start=start) for start in (0, 2))
    assert_same(rest, whole[2:])


def test_a_process_among_several_holds_only_its_share_of_the_pixels(decoded: LabelledImages) -> None:
    batches = batches_of(decoded, Augment(pad=2), rank=1, world=3)
    assert isinstance(batches, TrainingBatches)
    for epoch in range(2):
        list(batches.epoch(epoch))
        assert batches.padded is not None and len(batches.padded) == 4 * 3 + 1
    with pytest.raises(UsageError, match="a batch of 2 images has none"):
        batches_of(decoded, Augment(), batch_size=2, world=3)


def test_the_size_of_a_batch_is_that_of_all_processes(decoded: LabelledImages) -> None:
    batches = batches_of(decoded, Augment(), batch_size=20, rank=0, world=3)
    assert [batches.num_images(step) for step in range(len(batches))] == [20, 20, 3]
    assert [len(labels) for _, labels in batches.epoch(0)] == [6, 6, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="processes decode on Linux only")
def test_epochs_of_one_loader_follow_each_other_also_where_one_was_left_early(encoded: EncodedImages) -> None:
    batches = batches_of(encoded, PARTS, workers=2)
    assert isinstance(batches, StreamedBatches)
    next(batches.epoch(0))
    assert_same(list(batches.epoch(2)), epoch_of(encoded, PARTS))
    batches.close()


# Random parts of images in memory


def test_parts_of_images_in_memory_are_where_they_should_be() -> None:
    """Red is the column, green the row: a part that is scaled up by a straight line has known values everywhere."""
    row, column = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    images = torch.stack([column, row, torch.zeros_like(row)], dim=-1).mul(8).to(torch.uint8).expand(300, 32, 32, 3)
    part_4B = draw_parts(300, step_generator(0, 0, 0))
    found = resize_parts(images, part_4B, 32)
    x, y, across, down = ((part_4B + torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None]) * 16).double()
    steps = (torch.arange(32) + 0.5) / 32
    for channel, centre, half in ((0, x, across), (1, y, down)):
        assert (centre - half).min() >= -1e-5 and (centre + half).max() <= 32 + 1e-5, "a part leaves the image"
        places = (centre - half)[:, None] + 2 * half[:, None] * steps - 0.5
        expected = (8 * places.clamp(0, 31))[:, None, :] if channel == 0 else (8 * places.clamp(0, 31))[:, :, None]
        assert float((found[..., channel] - expected).abs().max()) <= 0.51


def test_parts_of_square_images_have_the_distribution_of_torchvision() -> None:
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    picture = torch.empty(1, 2000, 2000)
    theirs = np.array([RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(800)]) / 2000
    x, y, across, down = draw_parts(800, step_generator(0, 0, 0)).double().numpy() / 2
    ours = np.stack([y + 0.5 - down, x + 0.5 - across, 2 * down, 2 * across], axis=1)
    for a, b in zip(ours.T, theirs.T, strict=True):
        assert abs(a.mean() - b.mean()) < 5 * b.std() / 20 and abs(a.std() - b.std()) < 5 * b.std() / 20


def test_memory_takes_parts_too(decoded: LabelledImages) -> None:
    one, other = (epoch_of(decoded, PARTS, epoch=epoch)[0][0] for epoch in (0, 1))
    assert one.shape == (10, 3, 16, 16) and not torch.equal(one, other)


# mixup and CutMix


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 8, 8, generator=draw), torch.tensor([0, 1, 2, 2, 1, 0])


def test_mixup_is_the_weighted_mean_of_two_images_and_of_their_labels(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    found, soft = mix(images, labels, torch.tensor([1, 0, 3, 2, 5, 4]), CLASSES, Mix(0.3))
    for i, j in ((0, 1), (1, 0), (4, 5)):
        np.testing.assert_allclose(found[i], 0.3 * images[i].double() + 0.7 * images[j].double(), atol=1e-6)
        expected = np.zeros(CLASSES)
        expected[labels[i]] += 0.3
        expected[labels[j]] += 0.7
        np.testing.assert_allclose(soft[i], expected, atol=1e-6)


def test_cutmix_replaces_a_box_and_the_label_by_its_area(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    for seed in range(200):
        mixing = draw_mix(Augment(cutmix=1.0), 8, step_generator(seed, 0, 0))
        assert mixing is not None
        found, soft = mix(images, labels, torch.tensor([1, 0, 3, 2, 5, 4]), CLASSES, mixing)
        own = (found[0] == images[0]).all(dim=0)
        assert (own | (found[0] == images[1]).all(dim=0)).all()
        rows, columns = (~own).any(dim=1).sum(), (~own).any(dim=0).sum()
        assert int((~own).sum()) == int(rows * columns), "not a box"
        np.testing.assert_allclose(soft[0], [float(own.float().mean()), 1 - float(own.float().mean()), 0], atol=1e-6)
    assert torch.equal(images, batch[0])


def test_shares_are_drawn_from_the_beta_distribution() -> None:
    for alpha in (1.0, 0.2):
        draws = [draw_mix(Augment(mixup=alpha), 8, step_generator(0, 0, step)) for step in range(4000)]
        shares = np.array([d.share for d in draws if d is not None])
        assert abs(shares.mean() - 0.5) < 0.03 and abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.01
    kinds = [draw_mix(Augment(mixup=1.0, cutmix=1.0), 8, step_generator(0, 0, step)) for step in range(1000)]
    assert 420 < sum(d is not None and d.box is None for d in kinds) < 580
    assert draw_mix(Augment(), 8, step_generator(0, 0, 0)) is None


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (0, 7), (3, 7), (3, 8), (4, 5), (5, 7), (0, 1)])
def test_partners_are_neighbours_in_the_share_of_the_process(start: int, stop: int) -> None:
    found = partners(start, stop)
    assert found.shape == (stop - start,) and found.min() >= 0 and found.max() < stop - start
    apart = (found - torch.arange(stop - start)).abs()
    assert (apart == 1).all() or stop - start == 1
    if start % 2 == stop % 2 == 0:
        assert torch.equal(found + start, torch.arange(start, stop) ^ 1)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_batches_have_soft_labels_and_even_shares_make_the_batch_of_one_process(kind: str, decoded: LabelledImages) -> None:
    augment = Augment(pad=2, **{kind: 1.0})
    alone, first, second = (
        epoch_of(decoded, augment, batch_size=12, rank=rank, world=world) for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    for step in range(3):
        images, labels = alone[step]
        assert labels.shape == (12, CLASSES) and labels.dtype == torch.float32 and images.dtype == torch.float32
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(12))
        assert torch.equal(torch.cat([first[step][0], second[step][0]]), images)
        assert torch.equal(torch.cat([first[step][1], second[step][1]]), labels)
    plain = epoch_of(decoded, Augment(pad=2), batch_size=12)
    assert not torch.equal(plain[0][0], alone[0][0]) and plain[0][1].shape == (12,)


@pytest.fixture(autouse=True)
def no_files_left_open() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0
    yield
    if sys.platform == "linux":
        assert len(list(Path("/proc/self/fd").iterdir())) <= before, "a test left sockets or files open"
