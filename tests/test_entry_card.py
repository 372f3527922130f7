"""The card of an entry states what was measured and, beside it, what the paper says."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from kdzoo.export.cards.entry_card import entry_card
from kdzoo.export.cards.published_figures import published_figures
from kdzoo.tests.small_packages import bundled
from kdzoo.zoo.catalog import CARDS, DEFAULT_ENTRY
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.files import read_json

FACTS = {"params": 10, "macs": 20, "macs_dbfskd": 30, "top1": 73.81, "top5": None, "n": 10000, "split": "test"}


@pytest.mark.parametrize("entry", sorted(path.parent.name for path in CARDS.glob("*/metrics.json")))
def test_the_card_of_an_entry_is_its_readme_and_states_its_measurements(entry: str) -> None:
    checkpoint = Checkpoint.open(CARDS / entry)
    targets = read_json(checkpoint.folder / "metrics.json")["targets"]
    beside = {path.name for path in checkpoint.folder.iterdir()}
    card = entry_card(checkpoint.manifest, targets, published_figures(entry, targets), beside)
    assert (checkpoint.folder / "README.md").read_text() == card, "the README is not made of these numbers: run tools/cards.py"
    for target, measured in targets.items():
        (row,) = [line for line in card.splitlines() if line.startswith(f"| `{target}` |")]
        assert f"| {measured['params']:,} |" in row and f"| {measured['top1']:.2f} % |" in row


def test_an_entry_card_counts_the_points_from_the_paper() -> None:
    manifest, published = bundled().manifest, published_figures(DEFAULT_ENTRY, ["target"])
    assert published["targets"]["target"]["top1"]["value"] == 74.81  # table 2: 25.19 % error
    assert "**1.00 points below**" in entry_card(manifest, {"target": FACTS}, published)
    assert "| 73.81 % | - | 74.81 % | -1.00 |" in entry_card(manifest, {"target": FACTS}, published)
    assert "publishes no figures" in entry_card(manifest, {"target": FACTS}, {})


def test_published_counts_stand_beside_ours_by_the_rule_of_the_paper() -> None:
    published = published_figures("dbfskd-resnet34-cifar100", ["4"])
    printed = published["targets"]["4"]
    card = entry_card(bundled().manifest, {"4": FACTS}, published)
    assert f"| `4` | 10 | {printed['params_m']['value']:g} M | 30 | {printed['macs_m']['value']:g} M |" in card
    assert "thop 0.0.31" in card
    plain = entry_card(bundled().manifest, {"target": FACTS}, published_figures(DEFAULT_ENTRY, ["target"]))
    assert "| `target` | 10 | 20 |" in plain and "thop" not in plain and "One multiply-add is two FLOPs" in plain


def test_the_card_of_an_unfinished_run_says_so() -> None:
    manifest = bundled().manifest
    for epochs, unfinished in ((3, True), (7, False)):
        card = entry_card(replace(manifest, epochs=epochs, recipe={**manifest.recipe, "epochs": 7}), {"target": FACTS}, {})
        assert f"after epoch {epochs} of 7" in card
        assert ("The run is not finished" in card) == unfinished


def test_a_card_names_only_what_lies_beside_it() -> None:
    manifest = bundled().manifest
    bare, full = (entry_card(manifest, {"target": FACTS}, {}, beside) for beside in ((), ("curve.png", "exports.json")))
    for words in ("(curve.png)", f"kdzoo reproduce {DEFAULT_ENTRY}"):
        assert words in full and words not in bare


def test_commands_say_where_they_were_stopped_and_not_where_images_lay() -> None:
    provenance = {
        "command": "kdzoo train x --resume --data '/home/me/my data' --seed 1", "host": "here", "versions": {},
        "resumed": [
            {"command": "kdzoo train x --data=/home/me", "epoch": 3, "step": 0, "num_epochs": 15},
            {"command": "kdzoo train x --resume", "epoch": 1, "step": 7, "num_epochs": 1},
        ],
    }  # fmt: skip
    card = entry_card(replace(bundled().manifest, provenance=provenance), {"target": FACTS}, {})
    assert "/home/me" not in card and "`FOLDER` stands for" in card
    for line in (
        "kdzoo train x --data=FOLDER  # stopped after epoch 3",
        "kdzoo train x --resume  # stopped after epoch 1, step 7",
        "kdzoo train x --resume --data FOLDER --seed 1",
    ):
        assert f"\n{line}\n" in card
    assert "to last 15 epochs by" in card and "to last 1 epoch by" in card
    plain = {"command": "kdzoo train x", "versions": {}}
    assert "FOLDER" not in entry_card(replace(bundled().manifest, provenance=plain), {"target": FACTS}, {})


def test_one_epoch_is_one() -> None:
    manifest = bundled().manifest
    recipe = {**manifest.recipe, "schedule": {**manifest.recipe["schedule"], "warmup_epochs": 1.0}}
    card = entry_card(replace(manifest, epochs=1, recipe=recipe), {"target": FACTS}, published_figures(DEFAULT_ENTRY, ["target"]))
    assert "1 epoch of warm-up" in card and "**1 epoch long" in card and not re.search(r"\b1 epochs", card)


def test_only_the_weights_that_come_with_kdzoo_have_its_license() -> None:
    manifest = bundled().manifest
    assert "license: apache-2.0" in entry_card(manifest, {"target": FACTS}, {})
    assert "license: unknown" in entry_card(replace(manifest, files={}), {"target": FACTS}, {}), "a run of the same recipe"


def test_a_cascade_is_offered_where_images_were_held_out_for_it() -> None:
    manifest = bundled().manifest
    for holdout, offered in ((0, False), (5000, True)):
        card = entry_card(replace(manifest, recipe={**manifest.recipe, "holdout": holdout}), {"target": FACTS}, {})
        assert (f"kdzoo export {DEFAULT_ENTRY} --branch cascade" in card) == offered
