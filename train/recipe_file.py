"""Recipes as files: an entry of the catalog or a YAML file, upon a base, overridden by `--set key=value`.

A base holds what the runs of one paper on one kind of data have in common: `train/recipes/<base>.yaml`. An entry of the catalog
names its base, its method and backbone, and what differs; a file may say `base: NAME` too, for a base or an entry.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import BadValue, KdzooError, UnknownName, UsageError
from ..zoo.catalog import entry_recipes
from ..zoo.checkpoint import Checkpoint
from ..zoo.files import standing
from .marked_yaml import MarkedYaml, parse, read_marked
from .recipe import Recipe, merge
from .teacher_recipe import teacher_recipe

RECIPES = Path(__file__).parent / "recipes"
IDENTITY = ("method", "backbone", "dataset", "method_config")


@dataclass
class Origin:
    """Where every key of a composed recipe was written: the line of a file, an entry, or an override."""

    whole: str
    places: dict[str, str] = field(default_factory=dict)

    def of(self, key: str) -> str:
        """The place of `key` or, where nobody wrote it, of one below or else the nearest one around it."""
        parts = key.split(".")
        below = (k for k in self.places if k.startswith(f"{key}."))
        around = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
        return next((self.places[k] for k in (key, *below, *around) if k in self.places), self.whole)

    def wrote(self, key: str, place: str) -> None:
        """`key` was written at `place`, and with it everything below it."""
        for below in [k for k in self.places if k.startswith(f"{key}.")]:
            del self.places[below]
        self.places[key] = place

    def name_place(self, error: KdzooError, key: str) -> None:
        """Put the place of `key` in front of what `error` says."""
        error.what = f"{self.of(key)}: {error.what}"
        error.args = (error.what,)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors about a key of the recipe name its place on their way out."""
        try:
            yield
        except UnknownName as error:
            self.name_place(error, error.name)
            raise
        except BadValue as error:
            self.name_place(error, error.key)
            raise
        except UsageError as error:
            self.name_place(error, "")
            raise


@dataclass(frozen=True)
class RecipeFile:
    """A recipe, the entry that it trains, and where its keys come from."""

    entry: str
    recipe: Recipe
    origin: Origin


def base_names() -> list[str]:
    """What the runs of a paper have in common, by name."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def recipe_names() -> list[str]:
    """The entries that can be trained by name."""
    return sorted(entry_recipes())


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> tuple[str, Recipe]:
    """Entry name and recipe of `name_or_path` (an entry, or a YAML file) with `key=value` overrides, values in YAML."""
    found = open_recipe(name_or_path, overrides)
    return found.entry, found.recipe


def open_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> RecipeFile:
    """As `load_recipe`, with the origin of every key.

    Raises:
        UnknownName: no such entry, base or key; BadValue: a value that a key cannot take; both name the line of the file.
        UsageError: no file, no YAML, a missing key.
    """
    path = Path(name_or_path)
    is_file = path.suffix in (".yaml", ".yml")
    if not is_file and name_or_path not in entry_recipes():
        if name_or_path in base_names():
            raise UsageError(
                f"{name_or_path} is a base, not an entry", hint=f"write base: {name_or_path} into a recipe file of yours"
            )
        raise UnknownName("entry", name_or_path, recipe_names(), hint="or give a recipe file that ends in .yaml")
    origin = Origin(f"recipe {path}" if is_file else f"entry {name_or_path}")
    document = _read(path, origin) if is_file else _compose(name_or_path, origin)
    return _built(path.stem if is_file else name_or_path, document, overrides, origin)


def open_run(folder: Path, overrides: Iterable[str] = ()) -> RecipeFile:
    """The recipe of a run that is to go on: its `recipe.yaml` or, where a crash came before that, what its checkpoint says.

    Raises:
        UsageError: there is no run, or as `open_recipe`.
    """
    checkpoint, path = Checkpoint.open(folder), folder / "recipe.yaml"
    if checkpoint.folder == standing(folder):
        raise UsageError(f"{folder} is a checkpoint, not the folder of a run", hint=f"kdzoo train {folder.parent} --resume")
    if path.is_file():
        found = open_recipe(str(path), overrides)
    else:
        found = _built("", checkpoint.manifest.recipe, overrides, Origin(f"checkpoint {checkpoint.folder}"))
    return replace(found, entry=checkpoint.manifest.entry)


def _built(name: str, document: dict[str, Any], overrides: Iterable[str], origin: Origin) -> RecipeFile:
    """The recipe of a composed document and its overrides, all of it checked, that of a teacher too."""
    before = {"method_config": {}, **copy.deepcopy(document)}
    for override in overrides:
        origin.wrote(apply_override(document, override), f"--set {override}")
    with origin.named():
        recipe = Recipe.from_mapping(document)
        teacher_recipe(recipe, recipe.backbone)
    if any(key in before and before[key] != getattr(recipe, key) for key in IDENTITY):
        name += "-modified"  # another network or other data: not the entry that the paper's figures belong to
    return RecipeFile(name, recipe, origin)


def apply_override(document: dict[str, Any], override: str) -> str:
    """`schedule.kind=cosine` sets one value in place; whether the key exists is checked when the recipe is built. Gives the key."""
    key, equals, text = override.partition("=")
    *parents, last = names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise UsageError(f"--set {override}: it is not of the form key=value", hint="for example --set epochs=30")
    place, key = document, ".".join(names)
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UsageError(f"--set {override}: '{parent}' holds a value, not keys")
    place[last], _ = parse(text, lambda line: f"--set {override}", key)
    return key


def _read(path: Path, origin: Origin) -> dict[str, Any]:
    """The document of a file upon that of its base."""
    marked = _shipped(path) if path.parent == RECIPES else read_marked(path, recipe_names())
    document = copy.deepcopy(marked.document)
    lower: dict[str, Any] = {}
    if "base" in document:
        origin.places["base"] = f"recipe {path}, line {marked.lines['base']}"
        lower = _compose(document.pop("base"), origin)
    origin.places.update({key: f"recipe {path}, line {line}" for key, line in marked.lines.items()})
    return merge(lower, document)


@cache
def _shipped(path: Path) -> MarkedYaml:
    return read_marked(path)


def _compose(name: object, origin: Origin) -> dict[str, Any]:
    """The document of the entry or the base called `name`."""
    if not isinstance(name, str):
        with origin.named():
            raise BadValue("recipe key", "base", name, "the name of a base or of an entry")
    if name in base_names():
        return _read(RECIPES / f"{name}.yaml", origin)
    own = dict(entry_recipes().get(name, {}))
    if not own:
        error = UnknownName("base", name, [*base_names(), *recipe_names()], hint="kdzoo ls lists the entries")
        origin.name_place(error, "base")
        raise error
    document = _compose(own.pop("base"), origin)
    origin.places.update(dict.fromkeys(own, f"entry {name}"))
    return merge(document, own)
