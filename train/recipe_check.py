"""Whether a recipe can be trained, before any image is read: its network is built where only shapes exist.

One that cannot is refused with the line of its file that is to blame.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError, KdzooError, UnknownName, UsageError
from ..zoo.backbone import BACKBONES
from ..zoo.catalog import entry_recipes
from ..zoo.datasets import FOLDER_NAMES, find_data
from ..zoo.foreign import from_torchvision, read_weights
from ..zoo.method import METHODS, Method
from ..zoo.sets.long_tail import imbalance
from .recipe import Recipe
from .recipe_file import Origin
from .teacher_recipe import teacher_recipe
from .teachers import Source, with_teacher

NUM_CLASSES = 10  # how many there are is not known before the data is read, and decides nothing here
IMPOSSIBLE = (ValueError, RuntimeError, IndexError, ZeroDivisionError, UserWarning)  # of torch, for sizes that do not fit
Settings = Mapping[str, Any]


def checked(recipe: Recipe, origin: Origin, given: Sequence[Source], data: Path | None, *, resume: bool = False) -> Recipe:
    """The recipe as it is trained by the `given` teachers, after all that can be checked before an image is read.

    Raises:
        UnknownName: an unknown method, backbone, setting or data set, with the nearest known one.
        UsageError: settings that do not go together, a missing teacher, images that are too small; IntegrityError: broken
            weights to start from. All name their place.
    """
    check_names(recipe, origin)
    taught = with_teacher(recipe, given)
    check_network(taught, origin)
    if not resume:
        check_starts(taught, origin, len(given))
    check_dataset(taught, origin, data)
    return taught


def check_names(recipe: Recipe, origin: Origin) -> None:
    """Whether there are its method and backbone, and all settings by themselves."""
    method = _blamed(lambda: METHODS.get(recipe.method), origin, _always("method"))
    _blamed(lambda: BACKBONES.get(recipe.backbone), origin, _always("backbone"))
    for name, value in recipe.method_config.items():
        _blamed(partial(method.from_mapping, {name: value}), origin, _always(f"method_config.{name}"))


def check_network(recipe: Recipe, origin: Origin) -> None:
    """Build the network of `recipe`, and those of its teachers, on the meta device and run them once."""
    method, backbone, settings = METHODS.get(recipe.method), BACKBONES.get(recipe.backbone)(), recipe.method_config

    def build(settings: Settings, image_size: int = recipe.image_size) -> None:
        configured: Method = method.from_mapping(settings)
        teachers = [BACKBONES.get(name)() for name in dict.fromkeys(configured.teachers(recipe.backbone))]
        with torch.device("meta"), torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("error", "Initializing zero-element")  # a layer without channels
            images = torch.zeros(2, 3, image_size, image_size)
            configured.build(backbone, NUM_CLASSES)(images)
            for teacher in teachers:
                METHODS.get("baseline")().build(teacher, NUM_CLASSES)(images)

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


def check_starts(recipe: Recipe, origin: Origin, num_given: int = 0) -> None:
    """`check_start` of a run and of the teachers that it would train."""
    _blamed(partial(check_start, recipe), origin, _always("init_weights"))
    teachers = METHODS.get(recipe.method).from_mapping(recipe.method_config).teachers(recipe.backbone)
    for backbone in dict.fromkeys(teachers[num_given:]):
        key = "teacher.init_weights" if "init_weights" in recipe.teacher else "init_weights"
        _blamed(partial(check_start, teacher_recipe(recipe, backbone), key), origin, _always(key))


def check_start(recipe: Recipe, key: str = "init_weights") -> None:
    """Whether the weights that `key` names are there and are those of the backbone.

    Raises:
        UsageError: they are not, or still have to be named. IntegrityError: the file is not whole.
    """
    if recipe.init_weights == "required":
        raise UsageError(
            f"{key}: this recipe starts from weights of ImageNet, and none were given",
            hint=f"--set {key}=FILE.safetensors, or --set {key}='' to start from scratch",
        )
    if recipe.init_weights:
        try:
            from_torchvision(recipe.backbone, read_weights(Path(recipe.init_weights)))
        except KdzooError as error:
            error.what = f"{key}: {error.what}"
            error.args = (error.what,)
            raise


def check_dataset(recipe: Recipe, origin: Origin, data: Path | None) -> None:
    """Whether the images are at hand or, at least, of a data set that kdzoo knows by name."""

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
