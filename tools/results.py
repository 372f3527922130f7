"""The table of docs/results.md out of finished runs: top-1 of every target of every method, beside the baseline of the same budget.

python tools/results.py RUNS        RUNS holds one folder per method, one of them `baseline`; prints Markdown
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from kdzoo.export.cards.markdown import in_order
from kdzoo.zoo.checkpoint import Checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    runs = {
        folder.name: Checkpoint.open(folder) for folder in sorted(parser.parse_args().runs.iterdir()) if folder.name != "teachers"
    }
    baseline = runs["baseline"].manifest.metrics["target"]
    for manifest in (run.manifest for run in runs.values()):
        assert manifest.epochs == manifest.recipe["epochs"], f"{manifest.entry} is not finished"
        assert manifest.recipe["seed"] == runs["baseline"].manifest.recipe["seed"]
    print("| method | target, top-1 % | against baseline | other targets, top-1 % |")
    print("|---|---|---|---|")
    for name, run in sorted(runs.items(), key=lambda pair: -pair[1].manifest.metrics["target"]["top1"]):
        metrics = run.manifest.metrics
        difference = metrics["target"]["top1"] - baseline["top1"]
        beside = "" if name == "baseline" else f"{difference:+.2f}"
        others = ", ".join(f"{t} {metrics[t]['top1']:.2f}" for t in in_order(metrics) if t != "target") or "-"
        print(f"| `{name}` | {metrics['target']['top1']:.2f} | {beside} | {others} |")
    share, n = baseline["top1"] / 100, baseline["n"]
    print(f"\nStandard error of one figure by its n = {n:,} test images: {100 * math.sqrt(share * (1 - share) / n):.2f} points.")


if __name__ == "__main__":
    main()
