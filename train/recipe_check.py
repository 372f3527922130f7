"""Whether a recipe can be trained, before any image is read: its network is built where only shapes exist.

One that cannot is refused with the line of its file that is to blame.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError, KdzooError, UnknownName, UsageError
from ..zoo.backbone import BACKBONES
from ..zoo.catalog import entry_recipes
from ..zoo.datasets import FOLDER_NAMES, find_data
from ..zoo.method import METHODS, Method
from ..zoo.sets.long_tail import imbalance
from .recipe import Recipe
from .recipe_file import Origin

NUM_CLASSES = 10  # how many there are is not known before the data is read, and decides nothing here
IMPOSSIBLE = (ValueError, RuntimeError, IndexError, ZeroDivisionError, UserWarning)  # of torch, for sizes that do not fit
Settings = Mapping[str, Any]


def check_network(recipe: Recipe, origin: Origin, teacher: str = "") -> None:
    """Build the network of `recipe` on the meta device and run it once. `teacher`: backbone of a network given by the user.

    Raises:
        UnknownName: an unknown method, backbone or setting, with the nearest known one.
        UsageError: settings that do not go together, a missing teacher, images that are too small; all name their place.
    """
    method = _blamed(lambda: METHODS.get(recipe.method), origin, _always("method"))
    backbone = _blamed(lambda: BACKBONES.get(recipe.backbone), origin, _always("backbone"))()
    settings = dict(recipe.method_config)
    for name, value in settings.items():
        _blamed(partial(method.from_mapping, {name: value}), origin, _always(f"method_config.{name}"))
    if teacher and "teacher" in method().settings():
        settings["teacher"] = teacher

    def build(settings: Settings, image_size: int = recipe.image_size) -> None:
        configured: Method = method.from_mapping(settings)
        for needed in configured.teachers(recipe.backbone):
            BACKBONES.get(needed)
        with torch.device("meta"), torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("error", "Initializing zero-element")  # a layer without channels
            network = configured.build(backbone, NUM_CLASSES)
            network(torch.zeros(2, 3, image_size, image_size))

    def blame(error: Exception) -> str:
        for name, value in settings.items():
            if isinstance(error, UnknownName) and (value == error.name or (isinstance(value, list) and error.name in value)):
                return f"method_config.{name}"
        for name in settings:
            if _works(partial(build, {key: value for key, value in settings.items() if key != name})):
                return f"method_config.{name}"
        if _works(partial(build, settings, backbone.image_size)):
            return "image_size"
        return next((key for key in ("method_config", "method") if key in origin.places), "")

    _blamed(partial(build, settings), origin, blame)


def check_dataset(recipe: Recipe, origin: Origin, data: Path | None) -> None:
    """Whether the images are at hand or, at least, of a data set that kdzoo knows by name.

    Raises:
        UnknownName: `data` names none, none are at hand, and the recipe names a set that nobody knows; with its place.
    """

    def find() -> None:
        try:
            find_data(recipe.dataset, data)
        except DataError:
            if data is None and imbalance(recipe.dataset)[0] not in FOLDER_NAMES:
                known = sorted({*FOLDER_NAMES, *(entry["dataset"] for entry in entry_recipes().values())})
                raise UnknownName("data set", recipe.dataset, known, hint="or name your own images with --data") from None

    _blamed(find, origin, _always("dataset"))


def _blamed(work: Callable[[], Any], origin: Origin, blame: Callable[[Exception], str]) -> Any:
    """What `work` gives. If it fails, the user's recipe is wrong: the error names the place of the key that `blame` finds."""
    try:
        return work()
    except KdzooError as error:
        origin.name_place(error, blame(error))
        raise
    except IMPOSSIBLE as error:
        refusal = UsageError(
            f"this network cannot be built: {str(error).splitlines()[0]}", hint="look at method_config and image_size"
        )
        origin.name_place(refusal, blame(error))
        raise refusal from error


def _always(key: str) -> Callable[[Exception], str]:
    return lambda error: key


def _works(work: Callable[[], Any]) -> bool:
    try:
        work()
    except (KdzooError, *IMPOSSIBLE):
        return False
    return True
