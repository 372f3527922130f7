"""The pre-trained networks that a method needs: opened where the user has them, else trained first, once, and kept.

A teacher that is trained here is the baseline of its backbone with the recipe of the student, changed by the key `teacher` of that
recipe. It is kept beside the run, in `teachers/<entry>-<digest>`, where the digest stands for recipe and data: every run that needs
the same teacher finds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..zoo.catalog import entries
from ..zoo.checkpoint import WEIGHTS, Checkpoint, check_file
from ..zoo.datasets import EncodedImages, ImageSplit
from ..zoo.files import read_json, sha256, standing
from ..zoo.manifest import MANIFEST
from ..zoo.method import METHODS
from ..zoo.preprocess import Preprocess
from ..zoo.student import rebuild_student, select
from ..zoo.target import Target
from ..zoo.teacher import Teacher
from .recipe import FREE_TO_CHANGE, Recipe

CONFIG, LABELS, PREPROCESS = "config.json", "labels.txt", "preprocess.json"  # of a package


class TeacherMisfit(UsageError):
    """A teacher that does not fit its student; `key` of the recipe is what it does not fit."""

    def __init__(self, what: str, key: str, *, hint: str) -> None:
        self.key = key
        super().__init__(what, hint=hint)


@dataclass(frozen=True)
class Source:
    """A trained network on disk, not loaded yet: what can be compared before anything is computed."""

    folder: Path
    backbone: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    load: Callable[[], Teacher]

    def check(self, backbone: str, classes: Sequence[str], preprocess: Preprocess) -> None:
        """Raises `TeacherMisfit`, with the difference, where it cannot teach a student of these classes and this input."""
        pairs = {
            ("backbone", "method_config.teacher"): (self.backbone, backbone),
            ("number of classes", "dataset"): (len(self.classes), len(classes)),
            ("input", "image_size"): ((self.preprocess.height, self.preprocess.width), (preprocess.height, preprocess.width)),
            ("normalisation", "mean"): ((self.preprocess.mean, self.preprocess.std), (preprocess.mean, preprocess.std)),
        }
        for (what, key), (own, wanted) in pairs.items():
            if own != wanted:
                raise TeacherMisfit(
                    f"the teacher {self.folder} does not fit: its {what} is {own}, the student's {wanted}",
                    key,
                    hint="give another --teacher, or change the recipe (mean, std, image_size, method_config.teacher)",
                )
        differ = [i for i, (own, wanted) in enumerate(zip(self.classes, classes, strict=True)) if own != wanted]
        if differ:
            i = differ[0]
            raise TeacherMisfit(
                f"the teacher {self.folder} does not fit: its class {i} is '{self.classes[i]}', the student's '{classes[i]}'",
                "dataset",
                hint="teacher and student must have the same classes in the same order",
            )

    def describe(self) -> dict[str, Any]:
        """For the manifest of the student."""
        return {"folder": str(self.folder.resolve()), "backbone": self.backbone, "weights_sha256": sha256(self.folder / WEIGHTS)}


def open_source(name: str) -> Source:
    """The teacher that `name` means: a run, a checkpoint or a package, or an entry whose weights are bundled. Of a checkpoint it is
    the target.

    Raises:
        UsageError, IntegrityError: nothing usable is there.
    """
    folder = Path(name)
    if not folder.exists():
        bundled = {entry.name: entry.folder for entry in entries() if entry.folder is not None}
        if name not in bundled:
            raise UsageError(
                f"there is no teacher '{name}'",
                known=sorted(bundled),
                hint="give the folder of a run, a checkpoint or a package; without --teacher the teacher is trained first",
            )
        folder = bundled[name]
    manifest = standing(folder) / MANIFEST
    if manifest.is_file() and read_json(manifest).get("kind") == "package":
        return open_package(standing(folder))
    checkpoint = Checkpoint.open(folder)

    def load() -> Teacher:
        student = select(checkpoint.network(), Target("target"))
        return Teacher(student, str(folder), checkpoint.manifest.backbone)

    described = checkpoint.manifest
    if described.epochs == 0:
        raise UsageError(f"the teacher {folder} has not been trained for an epoch yet", hint=f"kdzoo train {folder} --resume")
    return Source(checkpoint.folder, described.backbone, described.classes, described.preprocess, load)


def open_package(folder: Path) -> Source:
    """A student that `export` wrote."""
    document = read_json(folder / CONFIG)
    labels = (folder / LABELS).read_text(encoding="utf-8").splitlines()

    def load() -> Teacher:
        check_file(folder / WEIGHTS, read_json(folder / MANIFEST).get("files", {}).get(WEIGHTS))
        return Teacher(rebuild_student(folder / CONFIG, folder / WEIGHTS), str(folder), document["backbone"])

    return Source(folder, document["backbone"], tuple(labels), Preprocess.from_dict(read_json(folder / PREPROCESS)), load)


def with_teacher(recipe: Recipe, sources: Sequence[Source]) -> Recipe:
    """The recipe whose method is told the backbone of the given teacher, where it has a setting for it."""
    settings = METHODS.get(recipe.method).from_mapping(recipe.method_config).settings()
    if not sources or "teacher" not in settings or settings["teacher"] == sources[0].backbone:
        return recipe
    return replace(recipe, method_config={**recipe.method_config, "teacher": sources[0].backbone})


def fingerprint(data: ImageSplit) -> str:
    """A digest of a training split: classes, labels, and the pixels or, of encoded pictures, where they are in which files."""
    digest = hashlib.sha256("\n".join(data.classes).encode())
    digest.update(data.labels.tobytes())
    if isinstance(data, EncodedImages):
        digest.update("\n".join(Path(file).name for file in data.files).encode())
        for numbers in (data.file, data.offset, data.size):
            digest.update(numbers.tobytes())
    else:
        digest.update(np.ascontiguousarray(data.images).data)
    return digest.hexdigest()


def teacher_folder(runs: Path, recipe: Recipe, data: ImageSplit) -> Path:
    """Where the teacher with this recipe, trained on this data, is kept."""
    told = {key: value for key, value in recipe.to_dict().items() if key == "epochs" or key not in FREE_TO_CHANGE}
    digest = hashlib.sha256(json.dumps({**told, "data": fingerprint(data)}, sort_keys=True).encode()).hexdigest()[:12]
    return runs / "teachers" / f"baseline-{recipe.backbone}-{recipe.dataset}-{digest}"
