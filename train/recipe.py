"""A recipe: everything that decides a training run. `recipe_file` reads it from YAML."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

from ..errors import BadValue
from ..zoo.preprocess import Preprocess
from .strict import build

# Keys of a recipe that a resumed run may change: they do not change what it computes, or only how long.
FREE_TO_CHANGE = ("epochs", "checkpoint_minutes", "eval_every", "workers", "compile", "cuda_graphs")


@dataclass(frozen=True)
class Optimizer:
    """SGD."""

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4


@dataclass(frozen=True)
class Schedule:
    """`step`: times `gamma` at each epoch of `milestones`; `exponential`: times `gamma` after each epoch; `cosine`: down to zero.
    All after a linear warm-up."""

    kind: Literal["step", "cosine", "exponential"] = "step"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0


@dataclass(frozen=True)
class Augment:
    """In this order: `pad` pixels of value `fill` around and a random crop (or, as on ImageNet, a random part of the picture scaled
    to its size); mirror; AutoAugment with the policy of CIFAR-10; a black square of side `cutout` (0 = none); mixup or CutMix of
    pairs of images, the share drawn from Beta(a, a) with the given a (0 = none)."""

    pad: int = 4
    fill: int = 0
    flip: bool = True
    random_resized_crop: bool = False
    autoaugment: bool = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        init_weights: a .safetensors file with torchvision's weights of the same backbone, to start from; "" = from scratch,
            `required` = the user has to name one.
        teacher: what differs in the recipe that trains a missing teacher (its method is `baseline`, the rest as here).
        holdout: training images, spread over the classes, that are never trained on: what is calibrated afterwards (the thresholds
            of a cascade) needs images that the network has not seen.
        batch_size: images of one update, over all processes and accumulated parts.
        accumulate: parts that a batch is cut into, one after the other, where it does not fit into memory at once.
        clip_norm: largest norm of the gradient of all parameters together (0 = not clipped).
        ema_decay: the weights that are tested and deployed are an exponential moving average with this decay (0 = none).
        label_smoothing: share of the label that is spread over all classes.
        precision: `auto` (bf16 autocast where the processor has it), `fp32` or `bf16`.
        compile: `torch.compile` the network. cuda_graphs: replay forward and backward as CUDA graphs, for small networks.
        workers: processes that decode images of a set that does not fit into memory.
        checkpoint_minutes: a checkpoint is also saved in mid-epoch after this time. eval_every: epochs between evaluations.
    """

    method: str
    backbone: str
    dataset: str
    epochs: int
    batch_size: int
    method_config: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    holdout: int = 0
    init_weights: str = ""
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    augment: Augment = field(default_factory=Augment)
    image_size: int = 32
    mean: tuple[float, ...] = (0.5071, 0.4865, 0.4409)
    std: tuple[float, ...] = (0.2673, 0.2564, 0.2762)
    accumulate: int = 1
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    label_smoothing: float = 0.0
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    cuda_graphs: bool = False
    workers: int = 2
    checkpoint_minutes: float = 10.0
    eval_every: int = 1

    def __post_init__(self) -> None:
        sgd, schedule, augment = self.optimizer, self.schedule, self.augment
        steps = (0, *schedule.milestones)
        ascending = all(before < after for before, after in pairwise(steps))
        limits = {
            "epochs": (self.epochs, self.epochs >= 1, "at least 1"),
            "holdout": (self.holdout, self.holdout >= 0, "at least 0"),
            "batch_size": (self.batch_size, self.batch_size >= 2, "at least 2"),
            "eval_every": (self.eval_every, self.eval_every >= 1, "at least 1"),
            "image_size": (self.image_size, self.image_size >= 1, "at least 1"),
            "mean": (self.mean, len(self.mean) == 3, "three numbers"),
            "std": (self.std, len(self.std) == 3 and min(self.std) > 0, "three positive numbers"),
            "optimizer.lr": (sgd.lr, 0 <= sgd.lr < math.inf, "a finite number from 0 on"),
            "optimizer.momentum": (sgd.momentum, 0 <= sgd.momentum < 1, "a number from 0 to below 1"),
            "optimizer.weight_decay": (sgd.weight_decay, 0 <= sgd.weight_decay < math.inf, "a finite number from 0 on"),
            "schedule.milestones": (list(schedule.milestones), ascending, "ascending epochs from 1 on"),
            "schedule.gamma": (schedule.gamma, 0 < schedule.gamma < math.inf, "a finite number above 0"),
            "schedule.warmup_epochs": (schedule.warmup_epochs, 0 <= schedule.warmup_epochs < math.inf, "a finite number from 0 on"),
            "augment.pad": (augment.pad, augment.pad >= 0, "at least 0"),
            "augment.fill": (augment.fill, 0 <= augment.fill <= 255, "0 to 255"),
            "augment.cutout": (augment.cutout, augment.cutout >= 0, "at least 0"),
            "augment.mixup": (augment.mixup, augment.mixup >= 0, "a number from 0 on"),
            "augment.cutmix": (augment.cutmix, augment.cutmix >= 0, "a number from 0 on"),
            "accumulate": (self.accumulate, 1 <= self.accumulate <= self.batch_size // 2, "1 to half of batch_size"),
            "cuda_graphs": (self.cuda_graphs, not (self.cuda_graphs and self.accumulate > 1), "false where accumulate is above 1"),
            "clip_norm": (self.clip_norm, 0 <= self.clip_norm < math.inf, "a finite number from 0 on"),
            "ema_decay": (self.ema_decay, 0 <= self.ema_decay < 1, "a number from 0 to below 1"),
            "label_smoothing": (self.label_smoothing, 0 <= self.label_smoothing < 1, "a number from 0 to below 1"),
            "workers": (self.workers, self.workers >= 1, "at least 1"),
        }
        for key, (value, fits, takes) in limits.items():
            if not fits:
                raise BadValue("recipe key", key, value, takes)

    @property
    def preprocess(self) -> Preprocess:
        """Geometry and normalisation, as students carry them."""
        return Preprocess(self.image_size, self.image_size, self.mean, self.std)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_mapping` reads back: lists for tuples."""
        document: dict[str, Any] = _plain(asdict(self))
        return document

    @classmethod
    def from_mapping(cls, document: dict[str, Any]) -> Recipe:
        """Raises `UnknownName` for a key that no recipe has, `UsageError` for a wrong type or a missing key."""
        recipe = build(cls, document)
        assert isinstance(recipe, cls)
        return recipe


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
