"""Count parameters and multiply-adds of every target of every entry that has a recipe, where only shapes exist.

python tools/count_entries.py [ENTRY ...]         writes model_cards/catalog/counts.json, which `kdzoo ls` reads instead of torch
"""

from __future__ import annotations

import argparse
import hashlib
import json
from typing import Any

import torch

from kdzoo.train.evaluate import count_targets
from kdzoo.train.recipe import Recipe
from kdzoo.train.recipe_file import load_recipe, recipe_names
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.catalog import COUNTS
from kdzoo.zoo.files import read_json, write_json
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.preprocess import Preprocess

NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "tiny-imagenet": 200, "imagenet": 1000, "raf-db": 7}


def identity(recipe: Recipe) -> str:
    """A digest of what decides the counts: another one means that they are stale."""
    told = [recipe.method, recipe.method_config, recipe.backbone, recipe.dataset, recipe.image_size]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def count(entry: str) -> dict[str, Any]:
    """The counts of each target, targets that are one network, and the digest of the recipe."""
    _, recipe = load_recipe(entry)
    num_classes = NUM_CLASSES[recipe.dataset.partition("-lt")[0]]
    with torch.device("meta"):
        network = METHODS.get(recipe.method).from_mapping(recipe.method_config).build(BACKBONES.get(recipe.backbone)(), num_classes)
    fused = [str(n) for n, branch in enumerate(network.branches, start=1) if branch.logits == network.fused]
    names = {"target": str(network.target_branch), **dict.fromkeys(["fused"] if fused else [], "".join(fused))}
    preprocess = Preprocess(recipe.image_size, recipe.image_size, recipe.mean, recipe.std)  # type: ignore[arg-type]
    return {
        "recipe": identity(recipe),
        "same": {word: number for word, number in names.items() if number in network.targets()},
        "targets": count_targets(network, network.targets(), preprocess),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="*", help="count these alone and keep the rest")
    names = parser.parse_args().entries
    old = read_json(COUNTS)["entries"] if names else {}
    counted = {name: count(name) for name in names or recipe_names()}
    write_json(COUNTS, {"schema_version": 1, "entries": {**old, **counted}})


if __name__ == "__main__":
    main()
