"""Processes that decode: the same pixels however many there are, and an error, never a hang, when one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from kdzoo.errors import DataError, EnvironmentProblem, IntegrityError
from kdzoo.zoo.datasets import EncodedImages, open_split
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.sets.decoder import Decoder, random_part
from kdzoo.zoo.sets.images import Picture
from kdzoo.zoo.sets.pool import SLOTS, DecodePool

NUM = 60
SMALL = Preprocess(16, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes decode on Linux only")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EncodedImages:
    """Pictures of 20x24 pixels, noise, as files."""
    folder, draw = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    (folder / "a").mkdir()
    for number in range(NUM):
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / "a" / f"{number:02d}.png")
    opened = open_split(folder, "test", SMALL, lazy=True)
    assert isinstance(opened, EncodedImages)
    return opened


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    with DecodePool(SMALL, 7, workers=2) as pool:
        yield pool


def requests(data: EncodedImages, count: int = 12, size: int = 7) -> list[list[Picture]]:
    """Batches of random parts, the last one smaller."""
    pictures = [data.picture(n % NUM, draw=(1, 2, n)) for n in range(count * size - 3)]
    return [pictures[start : start + size] for start in range(0, len(pictures), size)]


def pids(pool: DecodePool) -> list[int]:
    assert pool._children is not None
    return [process.pid for process in pool._children.answers.values()]


@needs_linux
@pytest.mark.parametrize("workers", [1, 3])
def test_pixels_do_not_depend_on_the_number_of_processes(data: EncodedImages, workers: int) -> None:
    alone, decoder = DecodePool(SMALL, 7, workers=0), Decoder(SMALL)
    with DecodePool(SMALL, 7, workers) as several:
        for one, other, request in zip(alone.stream(requests(data)), several.stream(requests(data)), requests(data), strict=True):
            assert np.array_equal(one, other)
            assert np.array_equal(one[0], decoder.read(request[0])), "batches came in another order"
        assert len(pids(several)) == workers


@needs_linux
def test_processes_start_at_the_first_use_and_end_with_the_pool(data: EncodedImages) -> None:
    pool = DecodePool(SMALL, 7, workers=2)
    assert pool._children is None
    next(pool.stream(requests(data)))
    started = pids(pool)
    pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
    assert len(list(pool.stream(requests(data)))) == 12, "a closed pool does not start again"
    started = pids(pool)
    del pool
    assert not any(Path(f"/proc/{pid}").exists() for pid in started), "processes outlive a pool that nobody holds"


@needs_linux
def test_a_stream_that_is_left_early_does_not_disturb_the_next_one(data: EncodedImages, pool: DecodePool) -> None:
    expected = [batch.copy() for batch in DecodePool(SMALL, 7, workers=0).stream(requests(data))]
    for leave_after in (1, 3):
        stream = pool.stream(requests(data)[::-1])
        for _ in range(leave_after):
            next(stream)
        stream.close()
        for found, batch in zip(pool.stream(requests(data)), expected, strict=True):
            assert np.array_equal(found, batch)


@needs_linux
def test_a_batch_of_many_tasks_does_not_block(data: EncodedImages) -> None:
    """More tasks than the sockets hold messages."""
    many = [[data.picture(n % NUM) for n in range(600)]] * (SLOTS + 1)
    with DecodePool(SMALL, 600, workers=1) as pool:
        pool.task = 1
        assert sum(len(batch) for batch in pool.stream(many)) == 600 * len(many)


@needs_linux
@pytest.mark.parametrize("at", [0, 5])
def test_a_process_that_is_killed_is_an_error_and_not_a_hang(data: EncodedImages, pool: DecodePool, at: int) -> None:
    endless = (batch for _ in range(10_000) for batch in requests(data))
    began = time.monotonic()
    with pytest.raises(EnvironmentProblem, match="decodes images was killed by SIGKILL") as caught:
        for number, _ in enumerate(pool.stream(endless)):
            if number == at:
                os.kill(pids(pool)[0], signal.SIGKILL)
    assert "fewer workers" in caught.value.hint and time.monotonic() - began < 30
    assert pool._children is None, "the other process is still there"
    assert len(list(pool.stream(requests(data)))) == 12


@needs_linux
def test_all_processes_killed_at_once_is_an_error_too(data: EncodedImages, pool: DecodePool) -> None:
    stream = pool.stream(batch for _ in range(10_000) for batch in requests(data))
    next(stream)
    for pid in pids(pool):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(EnvironmentProblem, match="SIGKILL"):
        for _ in stream:
            pass


KILLED = """
import json, os, signal, sys
from pathlib import Path
from kdzoo.zoo.datasets import open_split
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.sets.pool import DecodePool
small = Preprocess(16, 16, (0, 0, 0), (1, 1, 1))
data = open_split(Path(sys.argv[1]), "test", small, lazy=True)
pool = DecodePool(small, 7, workers=2)
stream = pool.stream([data.picture(n) for n in range(7)] for _ in range(1000))
next(stream)
print(json.dumps([p.pid for p in pool._children.answers.values()]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_linux
def test_processes_end_when_their_parent_is_killed(data: EncodedImages) -> None:
    folder = Path(data.files[0]).parent.parent
    ran = subprocess.run([sys.executable, "-c", KILLED, str(folder)], capture_output=True, text=True, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    children, until = json.loads(ran.stdout), time.monotonic() + 20
    while any(is_running(pid) for pid in children):
        assert time.monotonic() < until, "a process that decodes outlives the training run"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]
    except OSError:
        return False


@needs_linux
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_named_and_the_pool_can_go_on(data: EncodedImages, workers: int, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(Path(data.files[0]).read_bytes()[:100])
    broken = [[*requests(data)[0][:3], Picture(str(tmp_path / "broken.png"))]]
    with DecodePool(SMALL, 7, workers) as pool:
        for bad, what in (
            (broken, r"broken\.png cannot be decoded"),
            ([[Picture("/nowhere.png")]], r"/nowhere\.png cannot be read"),
        ):
            with pytest.raises(DataError, match=what):
                list(pool.stream(requests(data)[:2] + bad + requests(data)))
            assert len(list(pool.stream(requests(data)))) == 12
        cut = [[Picture(data.files[0], 10, 1_000_000)]]
        with pytest.raises(IntegrityError, match="cut off"):
            list(pool.stream(cut))


def test_the_processes_start_fast() -> None:
    """They import neither torch nor the main module of their parent."""
    code = "import kdzoo.zoo.sets.decoder, sys; assert not {'torch', 'torchvision', 'yaml', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# The random part


@pytest.mark.parametrize(("width", "height"), [(500, 375), (64, 64), (30, 400), (3, 2)])
def test_random_parts_have_the_distribution_of_torchvision(width: int, height: int) -> None:
    count = 800
    torch.manual_seed(0)
    boxes = np.array([random_part((0, 0, n))(width, height) for n in range(count)])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    image = Image.new("L", (width, height))
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    tops, lefts, heights, widths = theirs.T
    for ours, other in (
        (boxes[:, 0], lefts), (boxes[:, 1], tops), (boxes[:, 2] - boxes[:, 0], widths), (boxes[:, 3] - boxes[:, 1], heights)
    ):  # fmt: skip
        error = 5 * (np.std(other) + 1e-9) / np.sqrt(count / 2)
        assert abs(np.mean(ours) - np.mean(other)) <= error, "another mean than torchvision's"
        assert abs(np.std(ours) - np.std(other)) <= error, "another spread than torchvision's"


def test_a_random_part_is_that_of_its_numbers_cropped_and_scaled(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    box = random_part((3, 1, 4))(70, 50)
    expected = Image.fromarray(pixels).crop(box).resize((16, 16), Image.Resampling.BILINEAR)
    decoder = Decoder(SMALL)
    assert np.array_equal(decoder.read(Picture(str(tmp_path / "x.png"), draw=(3, 1, 4))), np.asarray(expected))
    others = [decoder.read(Picture(str(tmp_path / "x.png"), draw=numbers)) for numbers in ((4, 1, 4), (3, 2, 4), (3, 1, 5))]
    assert not any(np.array_equal(other, np.asarray(expected)) for other in others)
