"""Is loading the bottleneck? Images per second of loading and augmenting, of the training step, and of both together.

    python ../shared/data/unpack.py /tmp/data tiny-imagenet-val
    PYTHONPATH=.types python benchmarks/data_loading.py --data /tmp/data/tiny-imagenet-val

folder  our `StreamedBatches` over an image folder: decoding in worker processes, augmentation of whole batches on the device
shards  the same over tar archives that are packed from the folder first
peer    torchvision's ImageFolder, v2 transforms picture by picture and torch's DataLoader, with as many worker processes

All crop at random (4 pixels of padding), mirror and normalise. Decoded images are not kept, as if the set did not fit into memory.
The step is that of `baseline` (ResNet-18, CIFAR stem) in the precision that the processor has. Rounds of the three alternate in one
process, and workers that are not being measured have nothing to do; figures are medians over the rounds. In the rounds of both
together the clock starts when the first batch is there, which is not trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from kdzoo.train.batches import BatchSettings
from kdzoo.train.data import make_batches
from kdzoo.train.loop import Training, make_autocast, train_step
from kdzoo.train.optim import make_optimizer
from kdzoo.train.recipe import Augment, Recipe
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.datasets import EncodedImages, open_split
from kdzoo.zoo.manifest import host_description
from kdzoo.zoo.method import METHODS, Progress
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.sets.pack import write_classes, write_shards

SIZE, PAD = 64, 4
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
Epoch = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of class folders")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch", type=int, default=128, help="images of a batch in the rounds of loading alone")
    parser.add_argument("--step-batch", type=int, default=16, help="images of a training step")
    parser.add_argument("--images", type=int, default=2560, help="images of a round of loading alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="steps of a round of training")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the text")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(args, Path(scratch))
    print(json.dumps(result, indent=2) if args.json else describe(result))


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    device = torch.device(args.device)
    (scratch / "folder").mkdir()
    (scratch / "folder" / "train").symlink_to(args.data.resolve())
    loaders = {batch: make_loaders(args, scratch, batch, device) for batch in (args.batch, args.step_batch)}
    step, num_classes = make_step(args, scratch, device)
    loading: dict[str, list[float]] = {name: [] for name in loaders[args.batch]}
    together: dict[str, list[float]] = {name: [] for name in loading}
    waiting: dict[str, list[float]] = {name: [] for name in loading}
    alone: list[float] = []
    for number in range(args.rounds + 1):  # the first round starts the workers and warms everything up
        for name, epoch in loaders[args.batch].items():
            rate = load(epoch(number), device)
            loading[name] += [rate] if number else []
    fixed = next(loaders[args.step_batch]["folder"](0))
    step(*fixed)
    for number in range(args.rounds):
        alone.append(train(repeat(fixed), step, args.steps, device)[0])
        for name, epoch in loaders[args.step_batch].items():
            batches = epoch(number)
            next(batches)
            rate, percent = train(batches, step, args.steps, device)
            together[name].append(rate)
            waiting[name].append(percent)
            del batches
    rate = median(alone)
    return {
        "host": torch.cuda.get_device_name() if device.type == "cuda" else host_description(),
        "torch": torch.__version__, "threads": torch.get_num_threads(), "load_average": round(os.getloadavg()[0], 1),
        "backbone": args.backbone, "classes": num_classes, "workers": args.workers, "rounds": args.rounds,
        "batch": args.batch, "images": args.images, "step_batch": args.step_batch, "steps": args.steps,
        "loading": {name: summary(rates) for name, rates in loading.items()},
        "step_alone": summary(alone),
        "together": {
            name: {**summary(rates), "of_step_alone": share(rates, rate), "waiting_percent": round(median(waiting[name]), 2)}
            for name, rates in together.items()
        },
        "loading_to_step": {name: round(median(rates) / rate, 1) for name, rates in loading.items()},
        "ours_to_peer": {n: share(loading[n], median(loading["peer"])) for n in ("folder", "shards")},
    }  # fmt: skip


def make_loaders(args: argparse.Namespace, scratch: Path, batch: int, device: torch.device) -> dict[str, Epoch]:
    """By side: a function that gives the batches of an epoch over the same images."""
    preprocess, augment = Preprocess(SIZE, SIZE, MEAN, STD), Augment(pad=PAD)
    data = open_split(scratch / "folder", "train", preprocess, lazy=True)
    assert isinstance(data, EncodedImages)
    data = data.take(np.random.default_rng(0).permutation(len(data))[: args.images])
    shards = scratch / "shards"
    if not shards.exists():
        write_shards(data, shards / "train", shard_bytes=4_000_000)
        write_classes(data.classes, shards)
    sides: dict[str, Epoch] = {}
    settings = BatchSettings(preprocess, augment, batch, seed=0, device=device, workers=args.workers)
    for name, split in (("folder", data), ("shards", open_split(shards, "train", preprocess))):
        sides[name] = make_batches(split, settings).epoch
    transform = v2.Compose([
        v2.PILToTensor(), v2.RandomCrop(SIZE, padding=PAD), v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    pictures = ImageFolder(str(scratch / "folder" / "train"), transform)
    number_of = {path: number for number, (path, _) in enumerate(pictures.samples)}
    same = Subset(pictures, [number_of[data.picture(n).file] for n in range(len(data))])
    loader = DataLoader(same, batch, shuffle=True, num_workers=args.workers, persistent_workers=args.workers > 0)
    sides["peer"] = lambda _: ((x.to(device), y.to(device)) for x, y in loader)
    return sides


def make_step(args: argparse.Namespace, scratch: Path, device: torch.device) -> tuple[Callable[[Tensor, Tensor], object], int]:
    """The update of `kdzoo train`."""
    num_classes = sum(1 for _ in (scratch / "folder" / "train").iterdir())
    recipe = Recipe("baseline", args.backbone, "tiny-imagenet", epochs=1, batch_size=args.step_batch, image_size=SIZE)
    method = METHODS.get(recipe.method).from_mapping({})
    torch.manual_seed(0)
    network = method.build(BACKBONES.get(recipe.backbone)(), num_classes)
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(network, recipe.optimizer)
    training = Training(network, method, optimizer, recipe, make_autocast(recipe.precision, device))
    return lambda images, labels: train_step(training, images, labels, Progress(0, 1)), num_classes


def load(batches: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Images per second until the last batch of an epoch is there."""
    began = time.perf_counter()
    count = sum(len(labels) for _, labels in batches)
    return count / (wait(device) - began)


def train(batches: Iterator[Any], step: Callable[[Tensor, Tensor], object], num: int, device: torch.device) -> tuple[float, float]:
    """Images per second of `num` steps, and the percentage of the time in which they waited for a batch."""
    began, count, waited = wait(device), 0, 0.0
    for _ in range(num):
        asked = time.perf_counter()
        images, labels = next(batches)
        waited += time.perf_counter() - asked
        step(images, labels)
        count += len(labels)
    seconds = wait(device) - began
    return count / seconds, 100 * waited / seconds


def wait(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def summary(rates: list[float]) -> dict[str, float]:
    """Images per second: median, slowest and fastest round."""
    return {"median": round(median(rates), 1), "low": round(min(rates), 1), "high": round(max(rates), 1)}


def share(rates: list[float], whole: float) -> float:
    return round(median(rates) / whole, 3)


def describe(result: dict[str, Any]) -> str:
    lines = ["{host}; torch {torch}, {threads} threads, load average {load_average}".format(**result)]
    lines.append("{rounds} rounds, {workers} workers; images/s: median (slowest to fastest round)".format(**result))
    for name, rates in result["loading"].items():
        times = result["loading_to_step"][name]
        lines.append(f"loading alone, {name:6}  {figures(rates)}   {times:.1f} times the step, batch {result['batch']}")
    lines.append(f"{result['backbone']} step alone      {figures(result['step_alone'])}   batch {result['step_batch']}")
    for name, rates in result["together"].items():
        waited = f"waited for images {rates['waiting_percent']:.2f} % of the time"
        lines.append(
            f"both, {name:6}           {figures(rates)}   {100 * rates['of_step_alone']:.1f} % of the step alone, {waited}"
        )
    ratios = result["ours_to_peer"]
    lines.append(f"loading, ours : peer: folder {ratios['folder']:.2f}, shards {ratios['shards']:.2f}")
    return "\n".join(lines)


def figures(rates: dict[str, float]) -> str:
    return "{median:8.1f} ({low:.1f} to {high:.1f})".format(**rates)


if __name__ == "__main__":
    main()
