"""Our training step against the same network trained the usual way: images per second, augmentation, memory, host waits.

    PYTHONPATH=.types python benchmarks/train_step.py --data /where/cifar-100-python/is

ours   TrainingBatches (whole batches on the device), bf16 autocast where the processor has it, channels last, fused SGD
peer   torch DataLoader (no workers) over torchvision's CIFAR100 with per-sample transforms, float32, NCHW, unfused SGD

Recipe: AHBF, ResNet-32, four branches, batch 128. Single steps of the two alternate in one process; a step counts from asking
for the batch to the updated weights. DataLoader workers would take the loading off the peer's step, though not off the
processor: the ratio without loading is what the peer would reach if they cost nothing. Peak memory is that of a fresh process
for each side. Without the images of CIFAR-100, both sides train on random ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from host_waits import host_waits
from train_sides import Side, batches_of, ours, peer, wait

from kdzoo.errors import DataError
from kdzoo.train.recipe import Recipe
from kdzoo.train.recipe_file import load_recipe
from kdzoo.zoo.datasets import LabelledImages, find_data, read_split
from kdzoo.zoo.manifest import host_description

SIDES = {"ours": ours, "peer": peer}
ENTRY, WARM_UP, NUM_RANDOM = "ahbf-resnet32-cifar100", 3, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="timed steps of each side (at least 2)")
    parser.add_argument("--data", type=Path, help="folder with cifar-100-python/")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="torch threads; default: torch's own choice")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the text")
    parser.add_argument("--memory-of", choices=SIDES, help="only measure the memory of one side, in this process")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe, device = replace(load_recipe(ENTRY)[1], batch_size=args.batch), torch.device(args.device)
    data = read_data(args.data, recipe)
    if args.memory_of:
        print(json.dumps(memory_of(SIDES[args.memory_of](recipe, data, args.data, device))))
        return
    result = measure(args, recipe, data, device)
    print(json.dumps(result, indent=2) if args.json else describe(result))


def read_data(path: Path | None, recipe: Recipe) -> LabelledImages:
    try:
        return read_split(find_data(recipe.dataset, path), "train", recipe.preprocess)
    except DataError as error:
        print(f"random images: {error}", file=sys.stderr)
    rng, classes = np.random.default_rng(0), tuple(map(str, range(100)))
    images = rng.integers(0, 256, (NUM_RANDOM, recipe.image_size, recipe.image_size, 3), np.uint8)
    return LabelledImages(images, rng.integers(0, len(classes), NUM_RANDOM), classes, "random")


def measure(args: argparse.Namespace, recipe: Recipe, data: LabelledImages, device: torch.device) -> dict[str, Any]:
    sides = {name: make(recipe, data, args.data, device) for name, make in SIDES.items()}
    for _ in range(WARM_UP + args.pairs):
        for side in sides.values():
            side.run()
    loading, whole, updating = {}, {}, {}
    for name, side in sides.items():
        loading[name], whole[name] = (list(column) for column in zip(*side.times[WARM_UP:], strict=True))
        updating[name] = [total - load for load, total in side.times[WARM_UP:]]
    augmentation = time_augmentation(recipe, data, device, args.pairs)
    waits = {}
    for place in dict.fromkeys((device, torch.device("meta"))):
        side = ours(recipe, data, args.data, place)
        side.step()
        waits[place.type] = host_waits(side.step, place)
    return {
        "host": torch.cuda.get_device_name() if device.type == "cuda" else host_description(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "images": data.source,
        "batch": recipe.batch_size,
        "pairs": args.pairs,
        "median_ms": {name: milliseconds(times) for name, times in whole.items()},
        "median_loading_ms": {name: milliseconds(times) for name, times in loading.items()},
        "images_per_s": {name: round(recipe.batch_size / statistics.median(times), 1) for name, times in whole.items()},
        "ratio": ratio(whole),
        "ratio_without_loading": ratio(updating),
        "augmentation_ms": milliseconds(augmentation),
        "augmentation_percent": round(100 * statistics.median(augmentation) / statistics.median(whole["ours"]), 2),
        "memory_mb": {name: memory_in_fresh_process(name) for name in SIDES},
        "host_waits": waits,
    }


def milliseconds(seconds: list[float]) -> float:
    return round(1000 * statistics.median(seconds), 2)


def ratio(times: dict[str, list[float]]) -> dict[str, float]:
    """Median of the peer over ours, and the quartiles of the ratios of neighbouring steps."""
    pairs = [theirs / own for own, theirs in zip(times["ours"], times["peer"], strict=True)]
    low, _, high = statistics.quantiles(pairs, n=4, method="inclusive")
    of_medians = statistics.median(times["peer"]) / statistics.median(times["ours"])
    return {"of_medians": round(of_medians, 3), "low_quartile": round(low, 3), "high_quartile": round(high, 3)}


def time_augmentation(recipe: Recipe, data: LabelledImages, device: torch.device, num: int) -> list[float]:
    """Seconds that a batch takes from the order of the images to what the network sees."""
    batches, times = batches_of(recipe, data, device), []
    order = torch.randperm(len(data))
    for step in range(WARM_UP + num):
        index = order[torch.arange(step * recipe.batch_size, (step + 1) * recipe.batch_size) % len(order)]
        wait(device)
        began = time.perf_counter()
        batches.batch(index, 0, step)
        wait(device)
        times.append(time.perf_counter() - began)
    return times[WARM_UP:]


def memory_in_fresh_process(name: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    document: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return document


def memory_of(side: Side, steps: int = 3) -> dict[str, float]:
    """Before the first step (libraries, network, images), and at the peak of a few steps."""
    if side.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        rest = torch.cuda.memory_allocated()
    else:
        rest = resident_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of reading the images
    for _ in range(steps):
        side.run()
    # Not getrusage: a child's ru_maxrss begins at the peak of its parent, and cannot be reset.
    peak = torch.cuda.max_memory_allocated() if side.device.type == "cuda" else resident_bytes("VmHWM")
    return {"at_rest": round(rest / 1e6, 1), "peak": round(peak / 1e6, 1), "increase": round((peak - rest) / 1e6, 1)}


def resident_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def describe(result: dict[str, Any]) -> str:
    lines = ["{host}; torch {torch}, {threads} threads, load average {load_average:.1f}".format(**result)]
    lines.append("{pairs} pairs of steps, batch {batch}, {images} images".format(**result))
    for name in SIDES:
        memory = result["memory_mb"][name]
        lines.append(
            f"{name}  {result['median_ms'][name]:8.1f} ms  {result['images_per_s'][name]:8.1f} images/s"
            f"   of it loading {result['median_loading_ms'][name]:6.1f} ms"
            f"   memory {memory['at_rest']:.0f} MB at rest, +{memory['increase']:.0f} MB peak"
        )
    for name, title in (("ratio", "peer : ours"), ("ratio_without_loading", "peer : ours, loading left out on both sides")):
        lines.append("{}: {of_medians:.2f} (quartiles {low_quartile:.2f} to {high_quartile:.2f})".format(title, **result[name]))
    lines.append("augmentation: {augmentation_ms:.2f} ms a batch, {augmentation_percent:.2f} % of our step".format(**result))
    for place, found in result["host_waits"].items():
        lines.append(f"host waits in our step, seen on {place}: {'; '.join(found) or 'none'}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
