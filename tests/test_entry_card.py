"""The card of an entry states what was measured and, beside it, what the paper says."""

from __future__ import annotations

from dataclasses import replace

from kdzoo.export.card import entry_card
from kdzoo.tests.small_packages import bundled
from kdzoo.zoo.catalog import DEFAULT_ENTRY, published_entries
from kdzoo.zoo.files import read_json


def test_the_card_of_an_entry_is_its_readme_and_states_its_measurements() -> None:
    checkpoint = bundled()
    targets = read_json(checkpoint.folder / "metrics.json")["targets"]
    card = entry_card(checkpoint.manifest, targets, published_entries()[DEFAULT_ENTRY])
    assert (checkpoint.folder / "README.md").read_text() == card, "the README is not made of these numbers: run tools/bundle.py"
    for target, measured in targets.items():
        (row,) = [line for line in card.splitlines() if line.startswith(f"| `{target}` |")]
        assert f"| {measured['params']:,} |" in row and f"| {measured['top1']:.2f} % |" in row


def test_an_entry_card_counts_the_points_from_the_paper() -> None:
    manifest = bundled().manifest
    facts = {"params": 10, "macs": 20, "top1": 73.81, "top5": None, "n": 10000, "split": "test"}
    published = published_entries()[DEFAULT_ENTRY]
    assert published["published"]["target"] == 74.81  # table 2: 25.19 % error
    assert "**1.00 points below**" in entry_card(manifest, {"target": facts}, published)
    assert "| 73.81 % | - | 74.81 % | -1.00 |" in entry_card(manifest, {"target": facts}, published)
    assert "publishes no figures" in entry_card(manifest, {"target": facts}, {})


def test_the_card_of_an_unfinished_run_says_so() -> None:
    manifest = bundled().manifest
    facts = {"params": 10, "macs": 20, "top1": 73.81, "top5": None, "n": 10000, "split": "test"}
    for epochs, unfinished in ((3, True), (7, False)):
        card = entry_card(replace(manifest, epochs=epochs, recipe={**manifest.recipe, "epochs": 7}), {"target": facts}, {})
        assert f"after epoch {epochs} of 7" in card
        assert ("The run is not finished" in card) == unfinished
