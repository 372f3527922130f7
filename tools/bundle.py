"""Make a run a bundled entry: half-precision weights, measured again in float32 on the test split, with log, curve and card.

python tools/bundle.py RUN --data FOLDER          writes model_cards/<entry>/
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from kdzoo.export.cards.entry_card import entry_card
from kdzoo.export.cards.published_figures import published_figures
from kdzoo.train.curve import draw_curve
from kdzoo.train.evaluate import count_targets, evaluate
from kdzoo.train.run_folder import read_log
from kdzoo.zoo.catalog import CARDS
from kdzoo.zoo.checkpoint import Checkpoint, save_checkpoint
from kdzoo.zoo.datasets import find_data, open_split
from kdzoo.zoo.files import write_bytes, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()

    trained = Checkpoint.open(arguments.run)
    manifest = replace(trained.manifest, weights_dtype="float16")
    if manifest.epochs < manifest.recipe["epochs"]:
        raise SystemExit(f"the run is not finished: {manifest.epochs} of {manifest.recipe['epochs']} epochs")
    data = open_split(find_data(manifest.dataset, arguments.data), "test", manifest.preprocess)
    folder = CARDS / manifest.entry
    rounded = save_checkpoint(folder, trained.network(), manifest, data)

    network = rounded.network()
    metrics = evaluate(network, data, manifest.preprocess, network.targets(), device=torch.device("cpu"), split="test").targets
    counts = count_targets(network, network.targets(), manifest.preprocess)
    metrics = {target: {**counts[target], **metrics[target], "epoch": manifest.epochs} for target in metrics}
    manifest = replace(manifest, metrics=metrics)
    save_checkpoint(folder, network, manifest, data)
    write_json(folder / "metrics.json", {"schema_version": 1, "entry": manifest.entry, "targets": metrics})
    shutil.copyfile(arguments.run / "log.jsonl", folder / "log.jsonl")
    records = read_log(folder / "log.jsonl")
    draw_curve(records, folder / "curve.png", f"{manifest.entry}: {manifest.epochs} epochs")
    card = entry_card(manifest, metrics, published_figures(manifest.entry, metrics), {path.name for path in folder.iterdir()})
    write_bytes(folder / "README.md", card.encode())
    print(card)


if __name__ == "__main__":
    main()
