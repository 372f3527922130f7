"""Recipes: strict keys, types, overrides, and those of the zoo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdzoo.cli.messages import sentence
from kdzoo.errors import UnknownName, UsageError
from kdzoo.train.recipe import Augment, Recipe
from kdzoo.train.recipe_file import apply_override, base_names, load_recipe

LEAST = {"method": "baseline", "backbone": "resnet20", "dataset": "tiny", "epochs": 2, "batch_size": 16}


def built(**changes: Any) -> Recipe:
    return Recipe.from_mapping({**LEAST, **changes})


def test_the_least_recipe_gets_the_defaults() -> None:
    recipe = built()
    assert recipe.optimizer.lr == 0.1 and recipe.augment == Augment() and recipe.precision == "auto" and recipe.seed == 0


@pytest.mark.parametrize(
    ("changes", "name", "suggestion"),
    [
        ({"epoch": 3}, "epoch", "epochs"),
        ({"optimizer": {"lrr": 0.1}}, "optimizer.lrr", "optimizer.lr"),
        ({"augment": {"cut_out": 16}}, "augment.cut_out", "augment.cutout"),
        ({"schedule": {"milestone": [1]}}, "schedule.milestone", "schedule.milestones"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(changes: dict[str, Any], name: str, suggestion: str) -> None:
    with pytest.raises(UnknownName) as caught:
        built(**changes)
    assert caught.value.name == name and caught.value.suggestion == suggestion
    assert f"did you mean '{suggestion}'?" in sentence(caught.value)


@pytest.mark.parametrize(
    ("changes", "key", "word"),
    [
        ({"epochs": "many"}, "epochs", "int"),
        ({"epochs": 2.5}, "epochs", "int"),
        ({"epochs": True}, "epochs", "int"),
        ({"epochs": 0}, "epochs", "from 1 to"),
        ({"batch_size": 1}, "batch_size", "from 2 to"),
        ({"optimizer": 0.1}, "optimizer", "lr"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr", "float"),
        ({"optimizer": {"lr": -0.1}}, "optimizer.lr", "from 0 on"),
        ({"optimizer": {"lr": ".nan"}}, "optimizer.lr", "float"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr", "finite"),
        ({"optimizer": {"nesterov": 1}}, "optimizer.nesterov", "bool"),
        ({"schedule": {"kind": "linear"}}, "schedule.kind", "cosine"),
        ({"schedule": {"milestones": 150}}, "schedule.milestones", "list"),
        ({"schedule": {"milestones": ["a"]}}, "schedule.milestones", "int"),
        ({"augment": {"fill": 256}}, "augment.fill", "255"),
        ({"mean": [0.5, 0.5]}, "mean", "three numbers"),
        ({"mean": [123.7, 116.3, 103.5]}, "mean", "from 0 to 1"),
        ({"std": [0.5, 0.5, 0.0]}, "std", "above 0"),
        ({"method_config": [4]}, "method_config", "keys of its own"),
        ({"precision": "fp8"}, "precision", "bf16"),
    ],
)
def test_a_wrong_value_is_refused_naming_key_and_what_it_takes(changes: dict[str, Any], key: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        built(**changes)
    assert f"'{key}'" in sentence(caught.value) and word in sentence(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UsageError, match="'backbone'"):
        Recipe.from_mapping({k: v for k, v in LEAST.items() if k != "backbone"})


def test_numbers_that_yaml_reads_as_text_are_forgiven() -> None:
    assert yaml.safe_load("5e-4") == "5e-4"
    assert built(optimizer={"weight_decay": "5e-4"}).optimizer.weight_decay == 5e-4


def test_overrides_reach_nested_keys_and_keep_their_neighbours() -> None:
    name, recipe = load_recipe(
        "ahbf-resnet32-cifar100",
        ["epochs=3", "optimizer.lr=5e-2", "schedule.kind=cosine", "schedule.milestones=[1, 2]", "method_config.aux=2", "seed=7"],
    )
    assert name == "ahbf-resnet32-cifar100-modified", "with aux=2 it is another network than the one of the entry"
    assert (recipe.epochs, recipe.optimizer.lr, recipe.schedule.kind, recipe.schedule.milestones) == (3, 0.05, "cosine", (1, 2))
    assert recipe.method_config == {"num_branches": 4, "aux": 2} and recipe.seed == 7
    assert recipe.optimizer.momentum == 0.9 and recipe.batch_size == 128


@pytest.mark.parametrize("override", ["epochs", "=3", "epochs=[", "epochs.deep=1", "optimizer..lr=1", ".=1", "epochs=1\n---\n2"])
def test_an_override_that_is_none_is_refused(override: str) -> None:
    with pytest.raises(UsageError, match="="):
        apply_override(dict(LEAST), override)


def test_an_override_of_an_unknown_key_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"optimizer\.rate"):
        load_recipe("baseline-resnet32-cifar100", ["optimizer.rate=1"])


def test_a_recipe_survives_its_own_yaml(tmp_path: Path) -> None:
    recipe = built(
        method="ahbf", method_config={"aux": 1}, schedule={"milestones": [1, 2]}, optimizer={"lr": 0.3}, mean=[0.1, 0.2, 0.3]
    )
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(str(tmp_path / "again.yaml")) == ("again", recipe)


def test_an_unknown_entry_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        load_recipe("ahfb-resnet32-cifar100")
    assert caught.value.suggestion == "ahbf-resnet32-cifar100"


@pytest.mark.parametrize(("content", "word"), [("a: [", "cannot be read"), ("- a", "mapping"), (b"\xff\xfe\xfa", "cannot be read")])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str | bytes, word: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=word):
        load_recipe(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no recipe .*none\.yaml"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_an_override_supplies_a_key_that_the_file_lacks(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: ahbf\ndataset: mine\nbatch_size: 8\n")
    entry, recipe = load_recipe(str(path), ["epochs=3", "backbone=resnet20"])
    assert (entry, recipe.epochs, recipe.backbone) == ("mine", 3, "resnet20"), "what was missing was supplied, not modified"
    assert load_recipe(str(path), ["epochs=3", "backbone=resnet20", "method_config.aux=2"])[0] == "mine-modified"
    with pytest.raises(UsageError, match="'backbone' is missing"):
        load_recipe(str(path), ["epochs=3"])


@pytest.mark.parametrize("name", base_names())
def test_a_base_trains_nothing_by_itself_and_anything_in_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{name} is a base, not an entry"):
        load_recipe(name)
    (tmp_path / "mine.yaml").write_text(f"base: {name}\nmethod: one\nbackbone: resnet20\ndataset: mine\nschedule: {{gamma: 0.3}}\n")
    entry, recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert entry == "mine" and (recipe.method, recipe.backbone, recipe.schedule.gamma) == ("one", "resnet20", 0.3)
    schedule = recipe.schedule
    assert len(schedule.milestones) >= 2 or schedule.kind == "exponential", "the milestones of the base are gone"


def test_a_file_upon_an_entry_keeps_what_it_does_not_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: ahbf-resnet32-cifar100\nmethod_config: {aux: 2}\noptimizer: {lr: 0.05}\n")
    entry, recipe = load_recipe(str(tmp_path / "mine.yaml"), ["epochs=7"])
    whole = load_recipe("ahbf-resnet32-cifar100")[1]
    assert entry == "mine" and recipe.method_config == {"num_branches": 4, "aux": 2} and recipe.epochs == 7
    assert recipe.optimizer == replace(whole.optimizer, lr=0.05) and recipe.schedule == whole.schedule


def test_settings_of_a_method_do_not_outlive_a_change_of_the_method(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: ahbf-resnet32-cifar100\nmethod: one\n")
    assert load_recipe(str(tmp_path / "mine.yaml"))[1].method_config == {}


def test_an_override_leaves_the_entry_for_the_next_as_it_was() -> None:
    assert load_recipe("ahbf-resnet32-cifar100", ["method_config.aux=1", "optimizer.lr=1"])[1].method_config["aux"] == 1
    assert load_recipe("ahbf-resnet32-cifar100")[1].method_config["aux"] == 4
    assert load_recipe("ahbf-resnet32-cifar100")[1].optimizer.lr == 0.1


def test_another_schedule_is_still_the_same_entry() -> None:
    assert load_recipe("ahbf-resnet32-cifar100", ["epochs=3", "optimizer.lr=0.05"])[0] == "ahbf-resnet32-cifar100"
