"""The recipe of a teacher that has to be trained first: the baseline of its backbone, else as the student's, which may say what
differs under its key `teacher`."""

from __future__ import annotations

from typing import Any

from ..errors import BadValue, UnknownName
from .recipe import Recipe, merge

# Keys that `teacher` of a recipe cannot hold: the teacher is a baseline that sees what its student sees.
DECIDED = {"method", "method_config", "backbone", "dataset", "image_size", "resize", "mean", "std", "teacher"}


def teacher_recipe(recipe: Recipe, backbone: str) -> Recipe:
    """The recipe of a teacher of this backbone.

    Raises:
        UnknownName, BadValue: the key `teacher` of the student's recipe holds what it cannot, named as in `teacher.epochs`. Whether
            it does is the same for every backbone.
    """
    for key in sorted(DECIDED & recipe.teacher.keys()):
        takes = "none: a teacher has that of its student or of method_config; --teacher gives a network of another kind"
        raise BadValue("recipe key", f"teacher.{key}", recipe.teacher[key], takes)
    plain: dict[str, Any] = {"method": "baseline", "method_config": {}, "teacher": {}, "backbone": backbone}
    if backbone != recipe.backbone:
        plain["init_weights"] = ""  # those of another network
    try:
        return Recipe.from_mapping(merge({**recipe.to_dict(), **plain}, recipe.teacher))
    except UnknownName as error:
        known = [f"teacher.{key}" for key in error.known if key not in DECIDED]
        raise UnknownName(error.kind, f"teacher.{error.name}", known, hint=error.hint) from None
    except BadValue as error:
        error.what = error.what.replace(f"'{error.key}'", f"'teacher.{error.key}'", 1)
        error.args, error.key = (error.what,), f"teacher.{error.key}"
        raise
