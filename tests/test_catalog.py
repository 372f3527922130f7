"""The catalog: what the papers print is in it, its entries can be trained, its counts are those of the real networks."""

from __future__ import annotations

import importlib.util
import time
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kdzoo.errors import UnknownName
from kdzoo.train.recipe import Recipe
from kdzoo.train.recipe_file import base_names, load_recipe, recipe_names
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.catalog import COUNTS, comparisons, entries, entry_recipes, get_entry
from kdzoo.zoo.datasets import FOLDER_NAMES
from kdzoo.zoo.files import read_json
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.published import Row, papers
from kdzoo.zoo.sets.long_tail import imbalance

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = {entry.name: entry for entry in entries()}
ROWS = [row for paper in papers() for row in paper.rows]
COUNTED = {name: entry for name, entry in ENTRIES.items() if entry.counted}


@cache
def count_entries() -> ModuleType:
    """tools/count_entries.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("count_entries", ROOT / "tools" / "count_entries.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what is printed ----------------------------------------------------------------------------------------------------

# Figures of the papers by paper, as counted by hand over shared/methods.md. AHBF: two data sets of 5 networks and 7 methods, 2 on
# ImageNet with 5, 8 + 2 of table 5, the ablations. DBFSKD: tables 4 and 1, Tiny-ImageNet, ImageNet, RAF-DB, tables 10 and 11, DLF.
FIGURES = {
    "ahbf": 2 * 5 * 7 + 2 * 5 + 8 + 2 + 1 + 25, "dbfskd": 29 + 6 + 20 + 7 + 10 + 9 + 5 + 27 + 15 + 7 * 5,
    "thfkd": 4 + 17 + 3 + 3 + 1, "dckd": 2 + 3 + 3, "ffcl": 0, "reference": 0,
}  # fmt: skip
PRINTED = [
    ("ahbf-resnet32-cifar100", {"1": 74.81, "target": 74.81}),
    ("ahbf-densenet40-12-bc-cifar10", {"target": 93.83}),
    ("ahbf-resnet34-imagenet", {"target": 74.53}),
    ("ahbf-resnet32-reduce-cifar100", {"1": 68.52, "2": 71.82, "3": 72.64, "4": 73.43, "target": 73.43}),
    ("ahbf-mobilenetv2-x0.5-reduce-cifar100", {"1": 58.6, "4": 61.76}),
    ("baseline-mobilenetv2-x0.5-cifar10", {"target": 85.65}),
    ("okddip-vgg16-cifar100", {"target": 74.85}),
    ("cl_ilr-resnet110-bottleneck-cifar10", {"target": 95.05}),
    ("dbfskd-resnet18-cifar100", {"1": 78.60, "2": 80.63, "3": 82.33, "4": 82.65, "5": 82.96, "target": 82.65, "fused": 82.96}),
    ("dbfskd-resnet34-cifar100", {"1": 79.05, "2": 82.44, "3": 83.52, "4": 83.75, "5": 83.91, "target": 83.75, "fused": 83.91}),
    ("dbfskd-shufflenetv2-cifar100", {"1": 76.07, "2": 77.45, "target": 77.93, "fused": 78.27}),
    ("dbfskd-resnet34-imagenet", {"1": 63.46, "target": 74.71, "fused": 75.21}),
    ("dbfskd-resnet18-imagenet-raf-db", {"1": 87.45, "target": 88.28, "fused": 88.62}),
    ("kd-resnet50-from-resnet101-cifar100", {"target": 82.09}),
    ("self_d-resnet18-imagenet", {"target": 70.51}),
    ("thfkd-resnet32-from-resnet110-cifar100", {"1": 75.41, "target": 75.41}),
    ("one-resnet8x4-cifar100", {"target": 61.66}),
    ("dckd-resnet8x4-from-resnet32x4-cifar100", {"target": 78.47}),
    ("baseline-resnet110x2-cifar100", {"target": 78.18}),
    ("ffcl-resnet18-cifar10", {}),
]


@pytest.mark.parametrize(("name", "figures"), PRINTED)
def test_an_entry_has_what_its_paper_prints(name: str, figures: dict[str, float]) -> None:
    published = ENTRIES[name].published
    assert {target: published[target] for target in figures} == figures
    assert bool(published) == bool(figures), "an entry without figures has some, or the other way round"


def test_no_figure_of_a_paper_is_missing() -> None:
    assert {p.key: sum(len(row.top1) for row in p.rows) for p in papers()} == FIGURES


def test_spread_baseline_and_length_of_the_paper_belong_to_an_entry() -> None:
    entry = ENTRIES["ahbf-resnet32-cifar100"]
    assert entry.source == "table 2: error 25.19 ± 0.16 %, mean of 3 runs, best epoch"
    assert (entry.published_baseline, entry.published_epochs) == (71.28, 300)
    grid = {tuple(row.settings.values()): row.top1["target"] for row in entry.rows if "lambda_takl" in row.settings}
    assert len(grid) == 25 and grid[4.0, 2.0] == 74.81 and grid[0.0, 0.0] == 71.12 and grid[1.0, 4.0] == 73.70


def test_methods_that_kdzoo_does_not_have_are_kept_for_comparison() -> None:
    others = {(row.method, row.top1["target"]) for row in comparisons(ENTRIES["ahbf-resnet32-cifar100"]) if not row.entry}
    assert others == {("AFID", 74.05), ("AFID", 74.05), ("FFSD", 74.50), ("ReviewKD", 73.89)}
    foreign = {row.method for row in ROWS if not row.entry}
    assert foreign >= {"AFID", "FFSD", "RKD", "SPKD", "Feat", "CS-KD", "FRSKD", "SemCKD", "ReviewKD"}
    assert not foreign & set(METHODS.names()), "a row of a method that kdzoo has must name an entry"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.paper}-{row.entry or row.method}")
def test_a_row_is_whole(row: Row) -> None:
    assert row.backbone in BACKBONES.names()
    assert row.top1 or "top1" in row.not_reproducible, "a row without an accuracy says why"
    assert all(0 < value < 100 for value in row.top1.values()) and row.std.keys() <= row.top1.keys()
    assert {key.partition(".")[0] for key in row.not_reproducible} <= {"top1", "params_m", "macs_m"}
    targets = {*row.top1, *row.params_m, *row.macs_m} - {"target"}
    if row.entry:
        assert targets <= COUNTED[row.entry].counted.keys(), "the network has no such target"
        METHODS.get(row.method).from_mapping({**entry_recipes()[row.entry].get("method_config", {}), **row.settings})


# --- published beside counted -------------------------------------------------------------------------------------------


def counts_of(row: Row) -> list[tuple[str, float, float]]:
    """Figure and target, printed, and counted by the rule of its paper (DBFSKD) in the same unit."""
    counted = COUNTED[row.entry].counted
    found = [(f"params_m.{t}", value, counted[t]["params"] / 1e6) for t, value in row.params_m.items()]
    return [*found, *((f"macs_m.{t}", value, counted[t]["macs_dbfskd"] / 1e6) for t, value in row.macs_m.items())]


def test_45_of_the_46_counts_of_dbfskd_are_met_to_their_rounding_and_the_last_is_flagged() -> None:
    rows = [row for row in ROWS if row.paper == "dbfskd" and row.params_m]
    figures = [(row, *figure) for row in rows for figure in counts_of(row)]
    half = {"params_m": 0.005, "macs_m": 0.5}  # half a unit of the last printed digit
    missed = [(row.backbone, name) for row, name, printed, counted in figures if abs(printed - counted) > half[name.split(".")[0]]]
    assert len(figures) == 46
    assert missed == [("mobilenetv2", "params_m.3")]
    assert [key for row in rows for key in row.not_reproducible] == ["params_m.3"]


def test_table_5_of_ahbf_is_flagged_and_rightly_so() -> None:
    rows = [row for row in ROWS if row.paper == "ahbf" and row.params_m]
    assert len(rows) == 2 and all(row.not_reproducible.keys() == {"params_m", "macs_m"} for row in rows)
    off = [abs(printed / counted - 1) for row in rows for _, printed, counted in counts_of(row)]
    assert len(off) == 16 and min(off) > 0.3


def test_what_is_lost_or_contradicts_itself_is_flagged() -> None:
    assert all("top1" in ENTRIES[name].not_reproducible for name in ENTRIES if name.startswith("ffcl"))
    assert "74.56" in ENTRIES["thfkd-resnet8x4-from-resnet32x4-cifar100"].not_reproducible["top1"]
    assert "75.41" in next(row for row in ROWS if row.paper == "thfkd" and row.table == "9").not_reproducible["top1"]


# --- entries and recipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_an_entry_is_named_after_what_it_trains(name: str) -> None:
    entry = ENTRIES[name]
    loaded, recipe = load_recipe(name)
    assert loaded == name in recipe_names() and (recipe.method, recipe.backbone, recipe.dataset) == (
        entry.method, entry.backbone, entry.dataset
    )  # fmt: skip
    assert name.startswith(f"{recipe.method}-{recipe.backbone.removesuffix(f'-{recipe.dataset}')}-")
    assert name.endswith(f"-{recipe.dataset}")
    assert recipe.method in METHODS.names() and recipe.backbone in BACKBONES.names()
    assert imbalance(recipe.dataset)[0] in FOLDER_NAMES
    method = METHODS.get(recipe.method).from_mapping(recipe.method_config)
    assert set(method.teachers(recipe.backbone)) <= set(BACKBONES.names())
    teacher = recipe.method_config.get("teacher", "")
    assert (f"-from-{teacher}-" in name) == bool(teacher)
    assert entry.published_epochs in (None, recipe.epochs)
    assert Recipe.from_mapping(recipe.to_dict()) == recipe


AHBF_CIFAR = {
    "dataset": "cifar100", "backbone": "resnet32", "epochs": 300, "batch_size": 128,
    "optimizer": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "schedule": {"kind": "step", "milestones": [150, 225], "gamma": 0.1}, "augment": {"pad": 4, "fill": 0, "flip": True},
    "mean": [0.5071, 0.4865, 0.4409], "std": [0.2673, 0.2564, 0.2762],
}  # fmt: skip
DBFSKD_CIFAR = {
    **AHBF_CIFAR, "method": "dbfskd", "batch_size": 256, "schedule": {"kind": "step", "milestones": [130, 220, 280], "gamma": 0.1},
    "augment": {"pad": 4, "fill": 128, "flip": True, "autoaugment": True, "cutout": 16},
    "mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010],
}  # fmt: skip
AS_BEFORE: dict[str, dict[str, Any]] = {  # what the recipes held when each was a file of its own
    "ahbf-resnet32-cifar100": {**AHBF_CIFAR, "method": "ahbf", "method_config": {"num_branches": 4, "aux": 4}},
    "ahbf-resnet32-reduce-cifar100": {
        **AHBF_CIFAR, "method": "ahbf", "method_config": {"num_branches": 4, "aux": 2, "compress": True}
    },
    "baseline-resnet32-cifar100": {**AHBF_CIFAR, "method": "baseline"},
    "dbfskd-resnet18-cifar100": {**DBFSKD_CIFAR, "backbone": "resnet18"},
    "dbfskd-resnet34-cifar100": {**DBFSKD_CIFAR, "backbone": "resnet34"},
}  # fmt: skip


@pytest.mark.parametrize("name", AS_BEFORE)
def test_the_first_entries_train_as_they_always_did(name: str) -> None:
    assert load_recipe(name)[1] == Recipe.from_mapping(AS_BEFORE[name])


def test_recipes_differ_where_the_papers_say_so() -> None:
    def recipe(name: str) -> Recipe:
        return load_recipe(name)[1]

    assert recipe("dbfskd-wide-resnet50-2-cifar100").method_config == {"expansion": 1.2, "attention_reduction": 0}
    thfkd = recipe("thfkd-resnet32-from-resnet110-cifar100")
    assert (thfkd.optimizer.lr, thfkd.epochs) == (0.05, 300)
    assert thfkd.teacher == {"epochs": 240, "optimizer": {"lr": 0.1}, "schedule": {"milestones": [150, 180, 210]}}
    mobile = recipe("dckd-mobilenetv2-x0.5-from-resnet32x4-cifar100")
    assert (mobile.optimizer.lr, mobile.teacher, mobile.batch_size) == (0.01, {"optimizer": {"lr": 0.05}}, 64)
    assert recipe("ahbf-resnet18-imagenet").augment.random_resized_crop and recipe("ahbf-resnet18-imagenet").batch_size == 96
    assert recipe("ffcl-wrn-28-10-cifar100").schedule.milestones == (60, 120, 160)


def test_every_method_can_be_trained_by_name_and_a_base_is_no_entry() -> None:
    assert {recipe["method"] for recipe in entry_recipes().values()} == set(METHODS.names())
    assert not set(base_names()) & set(recipe_names())
    assert {recipe["base"] for recipe in entry_recipes().values()} | {"dckd-imagenet"} == set(base_names())


# --- counts -------------------------------------------------------------------------------------------------------------


def smallest(of: str) -> list[str]:
    """The cheapest entry of each method or backbone."""
    best: dict[str, str] = {}
    for name in sorted(COUNTED, key=lambda name: sum(c["params"] for c in COUNTED[name].counted.values())):
        best.setdefault(getattr(COUNTED[name], of), name)
    return sorted(best.values())


def test_the_counts_are_those_of_the_recipes() -> None:
    tool = count_entries()
    counts = read_json(COUNTS)["entries"]
    stale = [n for n in recipe_names() if counts.get(n, {}).get("recipe") != tool.identity(load_recipe(n)[1])]
    assert not stale and counts.keys() == set(recipe_names()), "run tools/count_entries.py"


@pytest.mark.usefixtures("shapes_only")
@pytest.mark.parametrize("name", smallest("method"))
def test_the_counts_of_a_method_are_those_of_the_real_network(name: str) -> None:
    assert count_entries().count(name) == read_json(COUNTS)["entries"][name], f"run tools/count_entries.py {name}"


@pytest.mark.parametrize("name", smallest("backbone"))
def test_the_target_of_each_backbone_has_the_parameters_counted(name: str) -> None:
    _, recipe = load_recipe(name)
    num_classes = count_entries().NUM_CLASSES[imbalance(recipe.dataset)[0]]
    with torch.device("meta"):
        network = METHODS.get("baseline")().build(BACKBONES.get(recipe.backbone)(), num_classes)
    plain = sum(p.numel() for p in network.parameters())
    same = recipe.method not in ("simkd", "dckd") and not recipe.method_config.get("compress")
    assert (COUNTED[name].counted["target"]["params"] == plain) == same, f"run tools/count_entries.py {name}"


def test_the_catalog_is_read_fast() -> None:
    began = time.process_time()
    assert papers.__wrapped__() == papers()
    assert time.process_time() - began < 0.25


def test_an_unknown_entry_has_a_suggestion() -> None:
    with pytest.raises(UnknownName, match="unknown entry") as caught:
        get_entry("ahbf-resnet32-cifar10O")
    assert caught.value.suggestion in ("ahbf-resnet32-cifar10", "ahbf-resnet32-cifar100")
