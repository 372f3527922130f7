"""The picture of README: accuracy against multiply-adds of every target of the bundled entry, as measured.

python tools/picture.py [ENTRY] [-o docs/accuracy.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdzoo.train.curve import PALETTE
from kdzoo.zoo.catalog import DEFAULT_ENTRY, get_entry

ROOT = Path(__file__).resolve().parent.parent


def draw(entry_name: str, path: Path) -> None:
    """One point per target, labelled; `target` is the same network as one of the branches and is not drawn twice."""
    entry = get_entry(entry_name)
    points = {t: (m["macs"] / 1e6, m["top1"], m["params"] / 1e6) for t, m in entry.measured.items() if t != "target"}
    n = next(iter(entry.measured.values()))["n"]
    figure = Figure(figsize=(7.0, 4.2), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    branches = sorted((macs, top1) for target, (macs, top1, _) in points.items() if target.isdigit())
    axes.plot(*zip(*branches, strict=True), color=PALETTE[0], linewidth=1, alpha=0.6, zorder=1)
    for target, (macs, top1, params) in points.items():
        single = target.isdigit()
        axes.scatter(macs, top1, color=PALETTE[0 if single else 3], marker="o" if single else "D", s=55, zorder=2)
        label = f"branch {target}" if single else target
        left = macs > 0.6 * max(p[0] for p in points.values())
        below = target == "ensemble"
        axes.annotate(
            f"{label}\n{params:.2f} M parameters", (macs, top1), textcoords="offset points", fontsize=8,
            xytext=(-9 if left else 9, -24 if below else 2 if left else -21), ha="right" if left else "left",
        )  # fmt: skip
    axes.set(
        xlabel="multiply-adds per image (millions)",
        ylabel="CIFAR-100 test top-1 (%)",
        title=f"One training run, {len(points)} deployable networks: {entry.name}\nmeasured on {n:,} images",
    )
    axes.margins(x=0.08, y=0.18)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", nargs="?", default=DEFAULT_ENTRY)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "accuracy.png")
    arguments = parser.parse_args()
    draw(arguments.entry, arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
