"""Networks that teach in runs of a second: their recipe, and a checkpoint that fits it.

Import it as `kdzoo.tests.small_teachers`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from kdzoo.tests.small_runs import NUM_COLOURS, recipe_for
from kdzoo.train.recipe import Recipe
from kdzoo.train.reporter import Silent
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.checkpoint import Checkpoint, save_checkpoint
from kdzoo.zoo.datasets import read_npz
from kdzoo.zoo.manifest import Manifest
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.preprocess import Preprocess

COLOURS = tuple(f"colour {i}" for i in range(NUM_COLOURS))


def taught(method: str = "kd", **changes: Any) -> Recipe:
    """One epoch of two steps."""
    with_teacher = "teacher" in METHODS.get(method)().settings()
    config = {"teacher": "resnet8"} if with_teacher else {}
    return recipe_for(method, **{"backbone": "resnet8", "method_config": config, "batch_size": 8, "epochs": 1, **changes})


def written(recipe: Recipe, folder: Path) -> Path:
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    return path


def save_teacher(
    run: Path,
    npz: Path,
    method: str = "baseline",
    backbone: str = "resnet8",
    classes: tuple[str, ...] = COLOURS,
    preprocess: Preprocess | None = None,
    epochs: int = 1,
    seed: int = 5,
    **config: Any,
) -> Checkpoint:
    """The checkpoint of a run, of an untrained network that fits `taught`, whatever its manifest says."""
    torch.manual_seed(seed)
    configured = METHODS.get(method).from_mapping(config)
    network = configured.build(BACKBONES.get(backbone)(), len(classes)).eval()
    stated = {t: {"top1": 10.0, "n": 8, "split": "test"} for t in network.targets()}
    manifest = Manifest(
        f"{method}-{backbone}-colours", method, configured.settings(), backbone, "colours", classes,
        preprocess or taught().preprocess, {"seed": seed, "epochs": 1}, epochs, metrics=stated,
    )  # fmt: skip
    return save_checkpoint(run / "checkpoint", network, manifest, read_npz(npz, "test"))


class Names(Silent):
    """Writes down which runs begin."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def begin(self, entry: str, epoch: int, num_epochs: int) -> None:
        self.names.append(entry)
