"""The two ways to train one recipe that `train_step.py` compares: ours, and the usual one.

Both start from the same weights and take the network, the losses and the hyper-parameters from the recipe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped]
from torchvision.datasets import CIFAR100  # type: ignore[import-untyped]

from kdzoo.train.batches import BatchSettings
from kdzoo.train.data import TrainingBatches
from kdzoo.train.loop import Training, make_autocast, train_step
from kdzoo.train.optim import make_optimizer
from kdzoo.train.recipe import Recipe
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.datasets import LabelledImages, find_data
from kdzoo.zoo.losses import sum_of
from kdzoo.zoo.method import METHODS, Method, Progress
from kdzoo.zoo.network import MultiBranch


@dataclass
class Side:
    """One way to train; `times` holds seconds of (loading, whole step) for every step that `run` took."""

    network: MultiBranch
    batches: Iterator[tuple[Tensor, Tensor]]
    update: Callable[[Tensor, Tensor], object]
    device: torch.device
    times: list[tuple[float, float]] = field(default_factory=list)

    def step(self) -> None:
        """A batch and an update, not waited for."""
        self.update(*next(self.batches))

    def run(self) -> None:
        """A step, waited for and timed."""
        began = time.perf_counter()
        images, labels = next(self.batches)
        loaded = time.perf_counter()
        self.update(images, labels)
        wait(self.device)
        self.times.append((loaded - began, time.perf_counter() - began))


class RandomPictures(Dataset[tuple[Tensor, int]]):
    """Gives what CIFAR100 gives, a transformed PIL image and its class, from arrays."""

    def __init__(self, data: LabelledImages, transform: Callable[[Image.Image], Tensor]) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data.images[index])), int(self.data.labels[index])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build(recipe: Recipe, num_classes: int, device: torch.device) -> tuple[Method, MultiBranch]:
    torch.manual_seed(recipe.seed)
    method = METHODS.get(recipe.method).from_mapping(recipe.method_config)
    return method, method.build(BACKBONES.get(recipe.backbone)(), num_classes).to(device).train()


def batches_of(recipe: Recipe, data: LabelledImages, device: torch.device) -> TrainingBatches:
    return TrainingBatches(data, BatchSettings(recipe.preprocess, recipe.augment, recipe.batch_size, recipe.seed, device))


def ours(recipe: Recipe, data: LabelledImages, path: Path | None, device: torch.device) -> Side:
    """What `kdzoo train` does. `device` may be meta, where no host can read a value."""
    method, network = build(recipe, len(data.classes), device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    is_meta = device.type == "meta"  # has neither fused kernels nor autocast
    optimizer = torch.optim.SGD(network.parameters()) if is_meta else make_optimizer(network, recipe.optimizer)
    autocast = nullcontext if is_meta else make_autocast(recipe.precision, device)
    training = Training(network, method, optimizer, recipe, autocast)
    batches, progress = batches_of(recipe, data, device), Progress(0, recipe.epochs)

    def update(images: Tensor, labels: Tensor) -> object:
        return train_step(training, images, labels, progress)

    endless = (batch for epoch in count() for batch in batches.epoch(epoch) if len(batch[1]) == recipe.batch_size)
    return Side(network, endless, update, device)


def peer(recipe: Recipe, data: LabelledImages, path: Path | None, device: torch.device) -> Side:
    """What the published loops do: one picture at a time, float32, NCHW, an optimizer that loops over the tensors."""
    method, network = build(recipe, len(data.classes), device)
    crop = transforms.RandomCrop(recipe.image_size, padding=recipe.augment.pad)
    normalize = transforms.Normalize(recipe.mean, recipe.std)
    transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize])
    pictures: Dataset[Any] = RandomPictures(data, transform)
    if data.source == "cifar100":
        pictures = CIFAR100(str(find_data(recipe.dataset, path).parent), train=True, transform=transform, download=False)
    loader = DataLoader(pictures, recipe.batch_size, shuffle=True, drop_last=True, num_workers=0)
    sgd, progress = recipe.optimizer, Progress(0, recipe.epochs)
    settings: dict[str, Any] = {"momentum": sgd.momentum, "nesterov": sgd.nesterov, "weight_decay": sgd.weight_decay}
    optimizer = torch.optim.SGD(network.parameters(), sgd.lr, **settings, foreach=False, fused=False)

    def update(images: Tensor, labels: Tensor) -> None:
        loss = sum_of(method.losses(network(images), labels, progress).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Side(network, ((x.to(device), y.to(device)) for _ in count() for x, y in loader), update, device)
