"""A recipe: everything that decides a training run, read from YAML with strict keys and overridden by `--set key=value`.

The file name of a recipe is the name of its entry. The recipes of the zoo carry the settings of the papers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

from ..errors import UnknownName, UsageError

RECIPES = Path(__file__).parent / "recipes"
IDENTITY = ("method", "backbone", "dataset", "method_config")


@dataclass(frozen=True)
class Optimizer:
    """SGD."""

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4


@dataclass(frozen=True)
class Schedule:
    """`step`: times `gamma` at each epoch of `milestones`; `cosine`: down to zero. Both after a linear warm-up."""

    kind: Literal["step", "cosine"] = "step"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0


@dataclass(frozen=True)
class Augment:
    """In this order: `pad` pixels of value `fill` around and a random crop; mirror; AutoAugment with the policy of CIFAR-10; a
    black square of side `cutout` (0 = none)."""

    pad: int = 4
    fill: int = 0
    flip: bool = True
    autoaugment: bool = False
    cutout: int = 0


@dataclass(frozen=True)
class Recipe:
    """One training run. `precision` is `auto` (bf16 autocast where the processor has it), `fp32` or `bf16`.

    `checkpoint_minutes`: a checkpoint is also saved in mid-epoch after this time. `eval_every`: epochs between evaluations.
    """

    method: str
    backbone: str
    dataset: str
    epochs: int
    batch_size: int
    method_config: dict[str, Any] = field(default_factory=dict)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    augment: Augment = field(default_factory=Augment)
    image_size: int = 32
    mean: tuple[float, ...] = (0.5071, 0.4865, 0.4409)
    std: tuple[float, ...] = (0.2673, 0.2564, 0.2762)
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_minutes: float = 10.0
    eval_every: int = 1

    def __post_init__(self) -> None:
        sgd, augment = self.optimizer, self.augment
        limits = {
            "epochs": (self.epochs, self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size, self.batch_size >= 2, "at least 2"),
            "eval_every": (self.eval_every, self.eval_every >= 1, "at least 1"),
            "image_size": (self.image_size, self.image_size >= 1, "at least 1"),
            "mean": (self.mean, len(self.mean) == 3, "three numbers"),
            "std": (self.std, len(self.std) == 3 and min(self.std) > 0, "three positive numbers"),
            "optimizer.lr": (sgd.lr, 0 <= sgd.lr < math.inf, "a finite number from 0 on"),
            "optimizer.momentum": (sgd.momentum, 0 <= sgd.momentum < 1, "a number from 0 to below 1"),
            "optimizer.weight_decay": (sgd.weight_decay, 0 <= sgd.weight_decay < math.inf, "a finite number from 0 on"),
            "augment.pad": (augment.pad, augment.pad >= 0, "at least 0"),
            "augment.fill": (augment.fill, 0 <= augment.fill <= 255, "0 to 255"),
            "augment.cutout": (augment.cutout, augment.cutout >= 0, "at least 0"),
        }
        for key, (value, fits, takes) in limits.items():
            if not fits:
                raise UsageError(f"recipe key '{key}' cannot be {value}", hint=f"it takes {takes}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_mapping` reads back: lists for tuples."""
        document: dict[str, Any] = _plain(asdict(self))
        return document

    @classmethod
    def from_mapping(cls, document: dict[str, Any]) -> Recipe:
        """Raises `UnknownName` for a key that no recipe has, `UsageError` for a wrong type or a missing key."""
        recipe = _build(cls, document, "")
        assert isinstance(recipe, cls)
        return recipe


def recipe_names() -> list[str]:
    """The entries that can be trained by name."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> tuple[str, Recipe]:
    """Entry name and recipe of `name_or_path` (an entry, or a YAML file) with `key=value` overrides, values in YAML."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in recipe_names():
            raise UnknownName("entry", name_or_path, recipe_names(), hint="or give a recipe file that ends in .yaml")
        path = RECIPES / f"{name_or_path}.yaml"
    try:
        document = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"there is no recipe {path}", known=recipe_names()) from None
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"recipe {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UsageError(f"recipe {path} is not a mapping of keys to values")
    before, name = Recipe.from_mapping(copy.deepcopy(document)), path.stem
    for override in overrides:
        apply_override(document, override)
    recipe = Recipe.from_mapping(document)
    if any(getattr(before, key) != getattr(recipe, key) for key in IDENTITY):
        name += "-modified"  # another network or other data: not the entry that the paper's figures belong to
    return name, recipe


def apply_override(document: dict[str, Any], override: str) -> None:
    """`schedule.kind=cosine` sets one value in place; whether the key exists is checked when the recipe is built."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"'{override}' is not of the form key=value", hint="for example --set epochs=30")
    *parents, last = key.strip().split(".")
    place = document
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UsageError(f"'{parent}' in '{override}' holds a value, not keys")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"the value of '{override}' is not YAML") from None


def _build(cls: type[Any], document: dict[str, Any], prefix: str) -> Any:
    hints, known = get_type_hints(cls), [f.name for f in fields(cls)]
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key not in known:
            raise UnknownName("recipe key", f"{prefix}{key}", [f"{prefix}{k}" for k in known])
        values[key] = _value(hints[key], value, f"{prefix}{key}")
    try:
        return cls(**values)
    except TypeError as error:
        raise UsageError(f"incomplete recipe: {str(error).split('__init__() ')[-1]}") from None


def _value(hint: Any, value: Any, key: str) -> Any:
    """`value` as the type of the field; YAML knows no tuples and reads 5e-4 as a string, which we forgive."""
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise UsageError(f"recipe key '{key}' takes keys of its own", known=[f.name for f in fields(hint)])
        return _build(hint, value, f"{key}.")  # type: ignore[arg-type]
    choices = get_args(hint)
    try:
        if hint is float and not isinstance(value, bool):
            return float(value)
        if getattr(hint, "__origin__", None) is tuple and isinstance(value, (list, tuple)):
            return tuple(_value(choices[0], item, key) for item in value)
        if getattr(hint, "__origin__", None) is Literal and value in choices:
            return value
    except (TypeError, ValueError):
        pass
    plain = getattr(hint, "__origin__", hint)
    if isinstance(plain, type) and isinstance(value, plain) and isinstance(value, bool) == (plain is bool):
        return value
    takes = {tuple: "a list", dict: "keys of its own", Literal: "one of these"}.get(plain) or f"a {hint.__name__}"
    known = [str(c) for c in choices if isinstance(c, str)] if plain is Literal else []
    raise UsageError(f"recipe key '{key}' cannot be {value!r}", known=known, hint=f"it takes {takes}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
